"""Converts raw sets, once, into the form that training reads.

    python -m cxrjax.prepare --list
    python -m cxrjax.prepare phantom
    python -m cxrjax.prepare chestxray14 --raw DIR [--dry-run]
    python -m cxrjax.prepare rsna_pneumonia --raw DIR --short-side 1024 --format png --split mgca_detection
    python -m cxrjax.prepare folder --raw DIR --name clinic --table list.csv \\
        --map file='png/{ID}.png' patient=Patient labels=Diagnosis view=View --separator ';'
    python -m cxrjax.prepare folder --raw DIR --mapping configs/sets/tb_lung_masks.json

    python -m cxrjax.prepare --audit chestxray14 rsna_pneumonia
    python -m cxrjax.prepare --findings chestxray14 chexpert

Converted sets go to $CXRJAX_DATA (by default ~/.cache/cxrjax), each size of a set beside the others. Stopped
conversions go on where they were. --audit prints which pictures and patients two converted sets share, --findings what
sets call the same finding.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cxrjax.datasets import catalogue, findings, schema
from cxrjax.datasets.files import say
from cxrjax.datasets.manifest import Manifest

OWN = {
    "folder": "any folder of PNG, JPEG or DICOM pictures, with a CSV or Parquet table of patients, labels, views ...",
    "unpack": "WebDataset tar files and Hugging Face Parquet files to plain pictures and a table, for folder",
    "phantom": "radiographs computed through a small 3-D anatomy, with findings, masks and reports; needs no raw data",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 where bad files kept the set from being written, 2 for a mistake."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        if given.list:
            say(listing(given.data_dir or schema.data_dir()))
            return 0
        if given.audit:
            from cxrjax.input import overlap

            say(overlap.audit(given.audit[0], given.audit[1], given.data_dir))
            return 0
        if given.findings is not None:
            say(same_findings(given.findings or list(findings.SETS), given.data_dir))
            return 0
        if given.set is None:
            parser.print_help()
            return 2
        return _OWN[given.set](given) if given.set in _OWN else _official(given)
    except (ValueError, OSError) as error:
        if given.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. What is converted is kept: the same command goes on from there.", file=sys.stderr)
        return 130


def listing(data_dir: Path) -> str:
    """The sets that can be converted and where to get them, and those in the data folder with pictures per split."""
    from cxrjax.input import converted_sets

    lines = ["Sets that need no official download:", *(f"  {name:<10} {what}" for name, what in OWN.items())]
    lines += ["", "Official sets (python -m cxrjax.prepare NAME --raw DIR):"]
    for name, entry in catalogue.SETS.items():
        lines += [f"  {name}: {entry.title}", f"      {entry.size}; needs: {entry.access}; licence: {entry.licence}"]
        lines.append(f"      {entry.where}")
        lines += [f"      --{option} {' | '.join(choices)}" for option, choices in entry.options.items()]
    names = converted_sets.converted(data_dir)
    lines += ["", f"Converted in {data_dir}:"]
    for name in names:
        there = converted_sets.open_set(name, data_dir)
        sizes = ", ".join(
            f"{split} {there.split_sizes[split]}" for split in schema.SPLITS if split in there.split_sizes
        )
        lines.append(f"  {name}: {sizes}; {len(there.label_names)} labels; {there.directory}")
    return "\n".join(lines if names else [*lines, "  none yet"])


def same_findings(names: Sequence[str], data_dir: Path | None) -> str:
    """What these sets call the same finding; of one that is not converted, the labels of the reviewed table."""
    from cxrjax.input import converted_sets

    known = {
        name: converted_sets.open_set(name, data_dir).label_names
        if converted_sets.is_converted(name, data_dir)
        else findings.published(name)
        for name in names
    }
    return "\n".join(findings.sentences(known))


def _parser() -> argparse.ArgumentParser:
    raw_text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m cxrjax.prepare", description=__doc__, formatter_class=raw_text)
    parser.add_argument("--list", action="store_true", help="name the known sets and those that are converted")
    parser.add_argument("--audit", nargs=2, metavar=("A", "B"), help="pictures and patients that two sets share")
    parser.add_argument("--findings", nargs="*", metavar="SET", help="what sets call the same finding [all known sets]")
    shared = argparse.ArgumentParser(add_help=False)
    for one in (parser, shared):
        default = None if one is parser else argparse.SUPPRESS
        one.add_argument("--data-dir", type=Path, default=default, help="folder of the converted sets [$CXRJAX_DATA]")
        one.add_argument(
            "--debug", action="store_true", default=default or False, help="show the traceback of an error"
        )
    conversion = _conversion_options()
    sets = parser.add_subparsers(dest="set", metavar="SET", title="sets", help="see --list")

    folder = sets.add_parser("folder", parents=[shared, conversion], help=OWN["folder"], description=_folder_help())
    folder.formatter_class = raw_text
    folder.add_argument("--mapping", type=Path, metavar="JSON", help="file with the mapping; the options below win")
    folder.add_argument("--name", help="name of the converted set")
    folder.add_argument("--table", help="CSV, TSV or Parquet with one row per picture, in the raw folder or elsewhere")
    folder.add_argument("--map", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="mapping keys")
    folder.add_argument("--separator", help="between the labels of one cell ['|']")

    phantom = sets.add_parser("phantom", parents=[shared], help=OWN["phantom"], description=OWN["phantom"])
    phantom.add_argument("--studies", type=int, metavar="N", help="studies, each frontal and lateral")
    phantom.add_argument("--short-side", type=int, metavar="PX", help="of the pictures")

    unpacking = sets.add_parser("unpack", parents=[shared], help=OWN["unpack"], description=OWN["unpack"])
    unpacking.add_argument("--raw", type=Path, required=True, metavar="DIR", help="folder that holds the shards")
    unpacking.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder for pictures and table.csv")

    for name, entry in catalogue.SETS.items():
        about = f"{entry.title}.\n\n{entry.size}; needs: {entry.access}\nlicence: {entry.licence}\nfrom: {entry.where}"
        official = sets.add_parser(name, parents=[shared, conversion], description=about)
        official.formatter_class = raw_text
        for option, choices in entry.options.items():
            official.add_argument(f"--{option}", choices=choices, default=choices[0], help=f"[{choices[0]}]")
    return parser


def _conversion_options() -> argparse.ArgumentParser:
    """What every conversion of pictures takes."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--raw", type=Path, required=True, metavar="DIR", help="folder that holds the pictures")
    options.add_argument(
        "--short-side", type=_side, default=256, metavar="PX", help="of the stored pictures, or original [256]"
    )
    options.add_argument("--format", choices=("jpeg", "png"), default="jpeg", help="of the stored pictures [jpeg]")
    options.add_argument("--bits", type=int, choices=(8, 16), default=8, help="16 with --format png [8]")
    options.add_argument(
        "--grey-range",
        choices=("checked", "declared"),
        default="checked",
        help="declared: keep windows, and percentiles 0.1 and 99.9, that leave the middle 98 %% of the pixels less "
        "than a quarter of the grey levels [checked]",
    )
    options.add_argument(
        "--admit",
        metavar="WORDS",
        help="comma-separated modalities and body parts of DICOM headers to take as chest radiographs, such as RF,THX",
    )
    options.add_argument(
        "--vocab",
        type=Path,
        metavar="FILE",
        help="BERT vocab.txt for the reports [trained on those of the train split]",
    )
    options.add_argument("--workers", type=int, help="threads that decode and encode [one per core]")
    options.add_argument(
        "--beam", metavar="OPTIONS", help="convert by Apache Beam with these comma-separated options of its pipeline"
    )
    options.add_argument(
        "--allow-bad", action="store_true", help="write the set without the files that are missing or bad"
    )
    options.add_argument(
        "--dry-run",
        nargs="?",
        const="200",
        type=_sample,
        metavar="N",
        help="write nothing; read N pictures, or all, and say what would be refused, counts, size and time [200]",
    )
    options.add_argument("--overwrite", action="store_true", help="replace a set of this name made from something else")
    return options


def _side(text: str) -> int | str:
    if text == "original" or text.isdigit():
        return text if text == "original" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels nor 'original'")


def _sample(text: str) -> int | str:
    if text == "all" or (text.isdigit() and int(text) > 0):
        return text if text == "all" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pictures nor 'all'")


def _folder_help() -> str:
    """The keys of a mapping with the comments beside them in its definition."""
    import inspect

    from cxrjax.datasets.mapping import Mapping

    _, about, fields = inspect.getsource(Mapping).split('"""', 2)
    keys = [line.strip().partition("  # ") for line in fields.splitlines() if ": " in line]
    lines = [f"  {field:<43} {comment}".rstrip() for field, _, comment in keys]
    about = "\n".join(line.strip() for line in about.splitlines())
    return "\n".join(
        [f"Converts {OWN['folder']}", "", "Mapping keys (JSON, or --map KEY=VALUE ...)", *lines, "", about]
    )


def _folder(given: argparse.Namespace) -> int:
    from cxrjax.datasets import folder, mapping

    keys = mapping.from_arguments(given.map)
    named = {"name": given.name, "table": given.table, "separator": given.separator}
    keys |= {key: value for key, value in named.items() if value is not None}
    return _convert(folder.manifest(given.raw, mapping.load(given.mapping, **keys)), given)


def _official(given: argparse.Namespace) -> int:
    options = {option: getattr(given, option) for option in catalogue.SETS[given.set].options}
    return _convert(catalogue.manifest(given.set, given.raw, **options), given)


def _convert(manifest: Manifest, given: argparse.Namespace) -> int:
    from cxrjax.datasets import dry_run
    from cxrjax.datasets.convert import convert_manifest

    options = {
        "data_dir": given.data_dir,
        "short_side": given.short_side,
        "image_format": given.format,
        "bits": given.bits,
        "check_grey_range": given.grey_range == "checked",
        "admit": given.admit.split(",") if given.admit else (),
        "workers": given.workers,
    }
    if given.dry_run is not None:
        sample = None if given.dry_run == "all" else given.dry_run
        return 1 if dry_run.look(manifest, sample=sample, **options) else 0
    made = convert_manifest(
        manifest,
        **options,
        vocabulary=given.vocab,
        beam=None if given.beam is None else given.beam.split(","),
        allow_bad=given.allow_bad,
        overwrite=given.overwrite,
    )
    say(made.counts)
    if made.directory is None:
        print(
            "error: the set was not written because of the files above. Correct them and run the same command again "
            "(what is converted is kept), or add --allow-bad to write the set without them.",
            file=sys.stderr,
        )
        return 1
    say(f"Converted set: {made.directory}")
    return 0


def _unpack(given: argparse.Namespace) -> int:
    from cxrjax.datasets import unpack

    made = unpack.unpack(given.raw, given.to)
    say(f"Next: cxrjax.prepare folder --raw {given.to} --name NAME --table {made.table.name} --map file=COLUMN")
    return 0


def _phantom(given: argparse.Namespace) -> int:
    from cxrjax.phantom import phantom_set

    options = {"studies": given.studies, "short_side": given.short_side}
    data_dir = given.data_dir or schema.data_dir()
    made = phantom_set.build(data_dir, **{key: value for key, value in options.items() if value is not None})
    say(f"Converted set: {made}")
    return 0


_OWN = {"folder": _folder, "unpack": _unpack, "phantom": _phantom}

if __name__ == "__main__":
    raise SystemExit(main())
