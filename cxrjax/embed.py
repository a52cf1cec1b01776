"""Embed PNG, JPEG and DICOM pictures with a trained encoder.

    python -m cxrjax.embed --checkpoint WORKDIR IMAGES… --output features.parquet [--step latest|best|N] [--allow-bad]

IMAGES are files, or folders that are searched for .png, .jpg, .jpeg, .dcm, .dicom, .img and DICOM without a suffix.
The table has one row per picture: path, embedding (list of float32), height and width as stored, and steps: what was
done to get one grey 8-bit picture, such as "colour to luma". Pictures that cannot be read are printed with the reason
and written to features.unreadable.csv, and the exit status is 1 unless --allow-bad is given. The same command again
goes on where the last one stopped.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas
import pyarrow
from pyarrow import parquet
from tqdm import tqdm

from cxrjax import encoder
from cxrjax.datasets import files
from cxrjax.export import step_name
from cxrjax.imaging import pixels, reader

SCHEMA = pyarrow.schema(
    [
        ("path", pyarrow.string()),
        ("embedding", pyarrow.list_(pyarrow.float32())),
        ("height", pyarrow.int32()),
        ("width", pyarrow.int32()),
        ("steps", pyarrow.list_(pyarrow.string())),
    ]
)
DIGEST = b"cxrjax_checkpoint"
SAVE_SECONDS = 300


def embed(
    checkpoint: str | Path,
    images: Sequence[str | Path],
    output: str | Path,
    step: int | str = "latest",
    batch_size: int = 64,
    threads: int = 4,
    admit: Sequence[str] = (),
) -> pandas.DataFrame:
    """Writes the table of `output` (Parquet) and returns the pictures that could not be read: path and reason.

    images: files and folders. batch_size: pictures on the device at once, rounded up to a multiple of its devices.
    admit: modalities and body parts of DICOM headers that are taken as chest radiographs.
    Rows that `output` has already are kept if they come from the same checkpoint.
    Raises ValueError where no picture is found, or `output` comes from another checkpoint or is no such table.
    """
    paths, output = find(images), Path(output)
    model = encoder.load(checkpoint, step)
    table = _existing(output, model.trained.digest)
    done = set(table["path"].to_pylist())
    waiting = [path for path in paths if files.printable(path) not in done]
    _save(table, output)  # so that a disk that refuses does so before the work

    unreadable, saved_at = [], time.monotonic()
    try:
        with tqdm(total=len(waiting), unit="picture", disable=not sys.stderr.isatty()) as bar:
            for found in _read_ahead(waiting, batch_size, threads, admit):
                unreadable += [(files.printable(path), picture) for path, picture in found if isinstance(picture, str)]
                good = [(path, picture) for path, picture in found if not isinstance(picture, str)]
                if good:
                    features = model.pooled([picture.pixels for _, picture in good], batch_size)
                    table = pyarrow.concat_tables([table, _rows(good, features)])
                if time.monotonic() - saved_at > SAVE_SECONDS:
                    _save(table, output)
                    saved_at = time.monotonic()
                bar.update(len(found))
    finally:
        _save(table, output)
    bad = pandas.DataFrame(unreadable, columns=["path", "reason"])
    _write_unreadable(bad, output)
    return bad


def find(images: Sequence[str | Path]) -> list[Path]:
    """Files as given, and the pictures below folders in the order of their names; each once.

    Raises ValueError where a path does not exist or there is no picture at all.
    """
    found = []
    for given in map(Path, images):
        if given.is_dir():
            found += [path for path in map(given.joinpath, files.below(given)) if reader.is_picture(path)]
        elif given.exists():
            found.append(given)
        else:
            raise ValueError(f"There is no file or folder {given}.")
    if not found:
        raise ValueError(f"No {', '.join(reader.SUFFIXES)} below {', '.join(map(str, images))}.")
    return list(dict.fromkeys(found))


def _read_ahead(
    paths: Sequence[Path], size: int, threads: int, admit: Sequence[str]
) -> Iterator[list[tuple[Path, pixels.Picture | str]]]:
    """Batches of (path, picture or the reason why there is none); the next one is read while the last is used."""
    with ThreadPoolExecutor(threads) as pool:
        ahead = []
        for start in range(0, len(paths), size):
            ahead.append([(path, pool.submit(_read, path, admit)) for path in paths[start : start + size]])
            if len(ahead) > 1:
                yield [(path, future.result()) for path, future in ahead.pop(0)]
        for last in ahead:
            yield [(path, future.result()) for path, future in last]


def _read(path: Path, admit: Sequence[str]) -> pixels.Picture | str:
    try:
        return reader.read(path, admit=admit)
    except pixels.UnreadablePicture as error:
        return str(error)


def _rows(good: Sequence[tuple[Path, pixels.Picture]], features: np.ndarray) -> pyarrow.Table:
    columns = {
        "path": [files.printable(path) for path, _ in good],
        "embedding": list(features),
        "height": [picture.source_height for _, picture in good],
        "width": [picture.source_width for _, picture in good],
        "steps": [list(picture.steps) for _, picture in good],
    }
    return pyarrow.table(columns, schema=SCHEMA)


def _existing(output: Path, digest: str) -> pyarrow.Table:
    """The rows of an earlier run with the same checkpoint, or none."""
    empty = SCHEMA.with_metadata({DIGEST: digest.encode()}).empty_table()
    if not output.exists():
        return empty
    try:
        table = parquet.read_table(output)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{output} is there already and no Parquet table ({error}); give another --output.") from None
    written_with = (table.schema.metadata or {}).get(DIGEST, b"").decode()
    if written_with != digest:
        raise ValueError(
            f"{output} is there already and holds features of "
            f"{f'another checkpoint ({written_with})' if written_with else 'something else'}; this one is {digest}. "
            "Give another --output, or remove the file."
        )
    return table.select(SCHEMA.names).cast(empty.schema)


def _save(table: pyarrow.Table, output: Path) -> None:
    """Puts the table in place at once, so that a killed run leaves the earlier file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.partial")
    parquet.write_table(table, partial)
    partial.replace(output)


def _write_unreadable(bad: pandas.DataFrame, output: Path) -> None:
    file = output.with_suffix(".unreadable.csv")
    if len(bad):
        bad.to_csv(file, index=False)
    else:
        file.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cxrjax.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", help="PNG, JPEG and DICOM files, or folders of them")
    parser.add_argument("--checkpoint", required=True, help="workdir, its checkpoints folder, or one step's folder")
    parser.add_argument("--output", required=True, help="Parquet file to write or to continue")
    parser.add_argument("--step", type=step_name, default="latest", help="latest (default), best, or a number")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures on the device at once (default 64)")
    parser.add_argument("--threads", type=int, default=4, help="that read pictures (default 4)")
    parser.add_argument(
        "--admit",
        metavar="WORDS",
        help="modalities and body parts of DICOM headers to take as chest radiographs: RF,THX",
    )
    parser.add_argument("--allow-bad", action="store_true", help="exit with 0 although some pictures cannot be read")
    arguments = parser.parse_args(argv)
    try:
        bad = embed(
            arguments.checkpoint,
            arguments.images,
            arguments.output,
            arguments.step,
            arguments.batch_size,
            arguments.threads,
            arguments.admit.split(",") if arguments.admit else (),
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, reason in bad.itertuples(index=False):
        print(f"unreadable: {path}: {reason}", file=sys.stderr)
    print(f"{parquet.read_metadata(arguments.output).num_rows} pictures in {arguments.output}, {len(bad)} unreadable.")
    return 1 if len(bad) and not arguments.allow_bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
