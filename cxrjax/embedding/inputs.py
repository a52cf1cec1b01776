"""What can be embedded: files and folders, a text list of files, a table with a column of paths, a converted set."""

from collections.abc import Callable, Sequence
from os import fspath
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow

from cxrjax.datasets import files, table
from cxrjax.imaging import fingerprint, pixels, reader
from cxrjax.input import converted_sets, crops, record_index, source

SPLITS = converted_sets.JOINED.join(("train", "val", "test"))


class Seen(NamedTuple):
    """A picture as it was read: pixels h w uint8, height and width as stored, what was done to it, its fingerprint."""

    pixels: np.ndarray
    height: int
    width: int
    steps: tuple[str, ...]
    fingerprint: str


class Pictures(NamedTuple):
    """Pictures by number.

    names: n, no two alike: path, or image id in a set. kept: n rows of columns that go into the table as they are.
    read: number -> the picture, or why there is none. notes: sentences on what was given and is not among them.
    """

    names: list[str]
    kept: pyarrow.Table
    read: Callable[[int], Seen | str]
    notes: tuple[str, ...] = ()


def of_files(images: Sequence[str | Path], admit: Sequence[str] = ()) -> Pictures:
    """Files as given, and the pictures below folders in the order of their names; each once.

    admit: as of `reader.read`. Raises ValueError where a path does not exist or there is no picture at all.
    """
    found: list[str] = []
    for given in map(Path, images):
        if given.is_dir():
            found += [fspath(path) for path in map(given.joinpath, files.below(given)) if reader.is_picture(path)]
        elif given.exists():
            found.append(fspath(given))
        else:
            raise ValueError(f"There is no file or folder {given}.")
    if not found:
        raise ValueError(f"No {', '.join(reader.SUFFIXES)} below {', '.join(map(str, images))}.")
    found = list(dict.fromkeys(found))
    return Pictures(list(map(files.printable, found)), _no_columns(len(found)), _reader(found, admit))


def of_list(file: str | Path, root: str | Path | None = None, admit: Sequence[str] = ()) -> Pictures:
    """The files that a text names, one a line. root: what relative paths start from, by default the text's folder.

    Raises ValueError where it names none.
    """
    lines = [line.strip() for line in files.decoded(Path(file).read_bytes())[0].splitlines()]
    given = list(filter(None, lines))
    names = list(dict.fromkeys(given))
    if not names:
        raise ValueError(f"{file} names no file; expected one path a line.")
    again = len(given) - len(names)
    notes = (f"{again} lines of {file} name a file of an earlier line and are left out.",) if again else ()
    return Pictures(names, _no_columns(len(names)), _reader(_below(names, file, root), admit), notes)


def of_table(
    file: str | Path,
    column: str,
    keep: Sequence[str] = (),
    root: str | Path | None = None,
    admit: Sequence[str] = (),
) -> Pictures:
    """The files that a column of a table names (CSV, Parquet … as `datasets.table` reads them); each once.

    column: a name, or a pattern such as "images/{ID}.png". keep: columns that are kept, as text. root: as of `of_list`.
    Raises ValueError where a column is not there, names no file, or is called as one of ours is.
    """
    read = table.read_table(Path(file))
    paths, _ = table.pattern(read, column, Path(file))
    rows = sorted({path: row for row, path in reversed(list(enumerate(paths))) if path}.values())
    if not rows:
        raise ValueError(f"No cell of column {column!r} of {file} names a file.")
    named = sum(map(bool, paths))
    notes = []
    if empty := len(paths) - named:
        notes.append(f"{empty} of {len(paths)} rows of {file} name no file in column {column!r} and are left out.")
    if again := named - len(rows):
        notes.append(f"{again} rows of {file} name a file of an earlier row and are left out, with what else they say.")
    kept = {name: table.column(read, name, Path(file)) for name in keep}
    columns = {name: pyarrow.array([cells[row] for row in rows], pyarrow.string()) for name, cells in kept.items()}
    names = [paths[row] for row in rows]
    return Pictures(
        names,
        pyarrow.table(columns) if columns else _no_columns(len(rows)),
        _reader(_below(names, file, root), admit),
        tuple(notes),
    )


def of_set(name: str, split: str = SPLITS) -> Pictures:
    """The pictures of a converted set by image id, with patient, study, projection and every label beside them.

    split: one, or several as "train+val". Labels are 1 present, 0 absent, -1 uncertain, -2 not mentioned.
    Raises ValueError for a set or a split that is not there.
    """
    opened = converted_sets.open_set(name)
    index = record_index.index(opened, split)
    stored = source.Source(opened, split, np.arange(len(index)))
    columns = {each: pyarrow.array(index[each].astype(str)) for each in ("patient_id", "study_id", "view")}
    labels = np.stack(index["labels"].tolist()) if len(index) else np.zeros((0, len(opened.label_names)), np.int8)
    columns |= {label: pyarrow.array(labels[:, i]) for i, label in enumerate(opened.label_names)}

    def read(number: int) -> Seen | str:
        try:
            example = stored[number]
            picture = crops.decode(example["image"])
        except ValueError as error:
            return str(error)
        kept = example["fingerprint"] if "fingerprint" in example else ""
        height, width = picture.shape
        return Seen(picture, height, width, (), kept or fingerprint.fingerprint(picture))

    return Pictures(index["image_id"].tolist(), pyarrow.table(columns), read)


def _below(names: Sequence[str], file: str | Path, root: str | Path | None) -> list[str]:
    folder = Path(file).parent if root is None else Path(root)
    return [fspath(folder / name) for name in names]


def _reader(paths: Sequence[str], admit: Sequence[str]) -> Callable[[int], Seen | str]:
    def read(number: int) -> Seen | str:
        try:
            found = reader.read(paths[number], admit=admit)
        except pixels.UnreadablePicture as error:
            return str(error)
        looks = fingerprint.fingerprint(found.pixels)
        return Seen(found.pixels, found.source_height, found.source_width, found.steps, looks)

    return read


def _no_columns(rows: int) -> pyarrow.Table:
    """So many rows of no column: pyarrow counts the rows of a table by its columns."""
    return pyarrow.table({"": pyarrow.nulls(rows)}).select([])
