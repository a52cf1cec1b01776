"""Embed PNG, JPEG and DICOM pictures with a trained encoder.

    python -m cxrjax.embed --checkpoint WORKDIR IMAGES… --output features.parquet [--patches float16] [--attention]
    python -m cxrjax.embed --checkpoint WORKDIR --table FILE [--column path] [--keep age,view] --output features.parquet
    python -m cxrjax.embed --checkpoint WORKDIR --list FILE | --set NAME [--split train+val] --output features.parquet
    python -m cxrjax.embed --checkpoint WORKDIR --output features.parquet --like FILE [--nearest 10]
    python -m cxrjax.embed --output features.parquet [--duplicates] [--map map.png [--colour view]]

IMAGES are files, or folders that are searched for .png, .jpg, .jpeg, .dcm, .dicom, .img and DICOM without a suffix.
--list is a text with one path a line, --table a CSV or Parquet file with a column of paths; relative paths start from
its folder, or from --root. --set is a converted set. The table has one row per picture: path (image id of a set),
embedding (list of float32), height and width as stored, steps: what was done to get one grey 8-bit picture, such as
"colour to luma", fingerprint: how the picture looks, then the columns of --keep, or of a set patient, study, view and
labels. With --patches those of part 7 are features.patches/00007.npy, n p q d; with --attention where [CLS] looks in
the last block, mean over the heads, is features.attention/00007.npy, n p q. A row says its patch_part and patch_row.
Pictures that cannot be read are printed with the reason and written to features.unreadable.csv, and the exit status is
1 unless --allow-bad is given. The same command again goes on where the last one stopped, also where it was killed.

Of a table that is there: --like prints the pictures whose features are nearest to a picture's by cosine. --duplicates
writes features.duplicates.csv: pairs with close fingerprints (bits that differ, of 1024), and each picture with the one
of the nearest features, where their centred cosine is at least 0.99. --map draws all on the first two principal
components of their features, coloured by a column.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas
import pyarrow
from pyarrow import parquet
from tqdm import tqdm

from cxrjax import encoder
from cxrjax.drawing import style
from cxrjax.embedding import asking, growing, inputs, scatter
from cxrjax.embedding.inputs import Pictures, Seen
from cxrjax.export import step_name


def embed(
    checkpoint: str | Path,
    images: Sequence[str | Path] | Pictures,
    output: str | Path,
    step: int | str = "latest",
    batch_size: int = 64,
    threads: int = 4,
    admit: Sequence[str] = (),
    patches: str = "",
    attention: bool = False,
) -> pandas.DataFrame:
    """Writes the table of `output` (Parquet) and returns the pictures that could not be read: path and reason.

    images: files and folders, or what a function of `embedding.inputs` gives. batch_size: pictures on the device at
    once, rounded up to a multiple of its devices. admit: modalities and body parts of DICOM headers that are taken as
    chest radiographs. patches: "float16" or "float32" keeps the vectors of patches too. attention: so does float16 of
    where [CLS] attends.
    Rows that `output` has already are kept if they come from the same checkpoint.
    Raises ValueError where no picture is found, or `output` comes from another checkpoint or has other columns.
    """
    pictures = images if isinstance(images, Pictures) else inputs.of_files(images, admit)
    output = Path(output)
    model = encoder.load(checkpoint, step)
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = ({"patches": patches} if patches else {}) | ({"attention": "float16"} if attention else {})
    table = growing.Growing(output, model.trained.digest, pictures.kept.schema, beside)
    waiting = [number for number, name in enumerate(pictures.names) if name not in table.done]
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(waiting), unit="picture", disable=not sys.stderr.isatty()) as bar,
    ):
        for part in (waiting[start : start + growing.PART] for start in range(0, len(waiting), growing.PART)):
            rows, bad, arrays = [], [], defaultdict(list)
            for batch in _read_ahead(pool, pictures, part, batch_size):
                good = [(number, seen) for number, seen in batch if isinstance(seen, Seen)]
                bad += [(pictures.names[number], seen) for number, seen in batch if isinstance(seen, str)]
                if good:
                    found = model.features([seen.pixels for _, seen in good], batch_size, ("pooled", *beside))
                    rows.append(_rows(pictures, good, found["pooled"]))
                    for name in beside:
                        arrays[name].append(found[name])
                bar.update(len(batch))
            table.add(pyarrow.concat_tables(rows or [_rows(pictures, [], np.zeros((0, 0)))]), bad, arrays)
    unreadable = pandas.DataFrame(table.finish(), columns=["path", "reason"])
    file = output.with_suffix(".unreadable.csv")
    if len(unreadable):
        unreadable.to_csv(file, index=False)
    else:
        file.unlink(missing_ok=True)
    return unreadable


def _read_ahead(
    pool: ThreadPoolExecutor, pictures: Pictures, numbers: Sequence[int], size: int
) -> Iterator[list[tuple[int, Seen | str]]]:
    """Batches of (number, picture or the reason why there is none); the next one is read while the last is used."""
    ahead = []
    for start in range(0, len(numbers), size):
        ahead.append([(number, pool.submit(pictures.read, number)) for number in numbers[start : start + size]])
        if len(ahead) > 1:
            yield [(number, future.result()) for number, future in ahead.pop(0)]
    for last in ahead:
        yield [(number, future.result()) for number, future in last]


def _rows(pictures: Pictures, good: Sequence[tuple[int, Seen]], features: np.ndarray) -> pyarrow.Table:
    columns = {
        "path": [pictures.names[number] for number, _ in good],
        "embedding": list(features),
        "height": [seen.height for _, seen in good],
        "width": [seen.width for _, seen in good],
        "steps": [list(seen.steps) for _, seen in good],
        "fingerprint": [seen.fingerprint for _, seen in good],
    }
    rows = pyarrow.array([number for number, _ in good], pyarrow.int64())  # of no row as well
    found, kept = pyarrow.table(columns, schema=growing.COLUMNS), pictures.kept.take(rows)
    for name in kept.column_names:
        found = found.append_column(kept.schema.field(name), kept[name])
    return found


def _pictures(given: argparse.Namespace) -> Pictures | None:
    """What the command line names to embed, or None."""
    admit = given.admit.split(",") if given.admit else ()
    kinds = [bool(given.images), *(each is not None for each in (given.list, given.table, given.set))]
    if sum(kinds) > 1:
        raise ValueError("Give files and folders, or one of --list, --table and --set.")
    if given.images:
        return inputs.of_files(given.images, admit)
    if given.list is not None:
        return inputs.of_list(given.list, given.root, admit)
    if given.table is not None:
        return inputs.of_table(
            given.table, given.column, given.keep.split(",") if given.keep else (), given.root, admit
        )
    return None if given.set is None else inputs.of_set(given.set, given.split)


def _like(checkpoint: str, step: int | str, output: Path, picture: str, count: int) -> list[str]:
    """Lines of cosine and path, nearest first."""
    model = encoder.load(checkpoint, step)
    written_with = (parquet.read_schema(output).metadata or {}).get(growing.DIGEST, b"").decode()
    if written_with != model.trained.digest:
        raise ValueError(f"{output} holds features of another checkpoint ({written_with}); embed with this one first.")
    cosines, rows = asking.nearest(output, model.embed(picture), count)
    paths = parquet.read_table(output, columns=["path"])["path"].take(rows[0]).to_pylist()
    return [f"{cosine:.4f}  {path}" for cosine, path in zip(cosines[0], paths, strict=True)]


def _asked(given: argparse.Namespace) -> None:
    """Answers what the command line asks of the table."""
    output = Path(given.output)
    asking.check(output)
    if given.like is not None:
        print("\n".join(_like(given.checkpoint, given.step, output, given.like, given.nearest)))
    if given.duplicates:
        file, found = output.with_suffix(".duplicates.csv"), asking.copies(output)
        pandas.DataFrame(found, columns=list(asking.Copy._fields)).to_csv(file, index=False)
        print(f"{len(found)} pairs of pictures that may be one in {file}.")
    if given.map is not None:
        style.write(Path(given.map), scatter.draw(output, given.colour))
        print(f"{given.map} shows all pictures of {output}.")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _stray(given: argparse.Namespace) -> str:
    """What is wrong with options that do nothing beside the others, and with the names of files to write; or ""."""
    listed = given.list is not None or given.table is not None
    for option, value, at_home, home in (
        ("--keep", given.keep, given.table is not None, "--table"),
        ("--column", given.column != "path", given.table is not None, "--table"),
        ("--root", given.root, listed, "--list or --table"),
        ("--split", given.split != inputs.SPLITS, given.set is not None, "--set"),
        ("--admit", given.admit, given.set is None, "files"),
        ("--colour", given.colour, given.map is not None, "--map"),
    ):
        if value and not at_home:
            return f"{option} goes with {home} alone"
    for option, file, suffix in (("--output", given.output, ".parquet"), ("--map", given.map, ".png")):
        if file is not None and Path(file).suffix.lower() != suffix:
            return f"{option} {file} is written as {suffix[1:]}; give a name that ends in {suffix}"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cxrjax.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="*", help="PNG, JPEG and DICOM files, or folders of them")
    parser.add_argument("--list", metavar="FILE", help="text with one path a line")
    parser.add_argument("--table", metavar="FILE", help="CSV or Parquet file with a column of paths")
    parser.add_argument("--column", default="path", help='of --table, or a pattern: "images/{ID}.png" (default path)')
    parser.add_argument("--keep", metavar="NAMES", help="columns of --table that are kept: age,view")
    parser.add_argument("--root", help="what relative paths of --list and --table start from (default: its folder)")
    parser.add_argument("--set", metavar="NAME", help="converted set, or its path")
    parser.add_argument("--split", default=inputs.SPLITS, help=f"of --set (default {inputs.SPLITS})")
    parser.add_argument("--checkpoint", help="workdir, its checkpoints folder, or one step's folder")
    parser.add_argument("--output", required=True, help="Parquet file to write, to continue or to ask")
    parser.add_argument("--patches", choices=["float16", "float32"], default="", help="keep vectors of patches too")
    parser.add_argument("--attention", action="store_true", help="keep where [CLS] attends in the last block too")
    parser.add_argument("--like", metavar="FILE", help="print the pictures that are most like this one")
    parser.add_argument("--nearest", type=_count, default=10, help="how many of them (default 10)")
    parser.add_argument("--duplicates", action="store_true", help="write pairs of pictures that may be one")
    parser.add_argument("--map", metavar="PNG", help="draw all pictures by principal components")
    parser.add_argument("--colour", metavar="COLUMN", default="", help="of --map")
    parser.add_argument("--step", type=step_name, default="latest", help="latest (default), best, or a number")
    parser.add_argument("--batch-size", type=_count, default=64, help="pictures on the device at once (default 64)")
    parser.add_argument("--threads", type=_count, default=4, help="that read pictures (default 4)")
    parser.add_argument(
        "--admit",
        metavar="WORDS",
        help="modalities and body parts of DICOM headers to take as chest radiographs: RF,THX",
    )
    parser.add_argument("--allow-bad", action="store_true", help="exit with 0 although some pictures cannot be read")
    given = parser.parse_args(argv)
    asks = given.like is not None or given.duplicates or given.map is not None
    bad = pandas.DataFrame()
    if stray := _stray(given):
        parser.error(stray)
    try:
        pictures = _pictures(given)
        if pictures is None and not asks:
            parser.error("give pictures, --list, --table or --set; or ask a table by --like, --duplicates or --map")
        checkpoint: str = given.checkpoint or ""
        if not checkpoint and (pictures is not None or given.like is not None):
            parser.error("give the --checkpoint that embeds")
        if pictures is not None:
            for note in pictures.notes:
                print(f"note: {note}", file=sys.stderr)
            sizes = given.batch_size, given.threads
            bad = embed(
                checkpoint, pictures, given.output, given.step, *sizes, patches=given.patches, attention=given.attention
            )
            for path, reason in bad.itertuples(index=False):
                print(f"unreadable: {path}: {reason}", file=sys.stderr)
            count = parquet.read_metadata(given.output).num_rows
            print(f"{count} pictures in {given.output}, {len(bad)} unreadable.")
        if asks:
            _asked(given)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if len(bad) and not given.allow_bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
