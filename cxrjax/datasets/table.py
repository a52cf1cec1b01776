"""Users' tables: CSV, TSV or Parquet as texts, with columns found by name whatever their case and blanks."""

import codecs
import csv
import gzip
import io
import string
from pathlib import Path

import pandas

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".parquet")


class TableError(ValueError):
    """A table that cannot be read, or lacks a column."""


def read_table(path: Path) -> pandas.DataFrame:
    """Reads a table with every cell as stripped text; blank and missing cells are "".

    CSV: UTF-8, UTF-16 with its mark, else Windows-1252; comma, semicolon, tab or bar between columns, whichever
    the header has most of. Raises TableError.
    """
    if not path.is_file():
        near = [other.name for other in sorted(path.parent.glob("*")) if other.name.lower().endswith(TABLE_SUFFIXES)]
        there = f"tables in {path.parent}: {', '.join(near)}" if near else f"there is no table in {path.parent}"
        raise TableError(f"The table {path} does not exist; {there}.")
    try:
        if path.suffix.lower() == ".parquet":
            frame = pandas.read_parquet(path)
            frame = frame.apply(lambda column: column.map(_text))
        else:
            frame = _read_csv(path)
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise TableError(f"The table {path} cannot be read: {str(error).rstrip('.')}.") from None
    frame.columns = [str(name).strip() for name in frame.columns]
    if frame.empty:
        raise TableError(f"The table {path} has no rows.")
    return pandas.DataFrame(frame.fillna("").apply(lambda column: column.str.strip()))


def column(frame: pandas.DataFrame, name: str, path: Path) -> list[str]:
    """The cells of the column, found without regard to case and blanks; raises TableError naming those available."""
    return frame.iloc[:, _position(frame, name, path)].tolist()


def pattern(frame: pandas.DataFrame, spec: str, path: Path) -> tuple[list[str], bool]:
    """Cells of a column, or of a pattern over columns such as "images/{Image Index}.png".

    Returns (texts, whether it is a pattern). A pattern gives "" where one of its columns is blank.
    """
    if "{" not in spec:
        return column(frame, spec, path), False
    try:
        pieces = [(text, field) for text, field, _, _ in string.Formatter().parse(spec)]
    except ValueError as error:
        raise TableError(f"The pattern {spec!r} is not valid: {error}.") from None
    cells = {field: column(frame, field, path) for _, field in pieces if field is not None}
    texts = []
    for row in range(len(frame)):
        values = [(text, None if field is None else cells[field][row]) for text, field in pieces]
        blank = any(value == "" for _, value in values)
        texts.append("" if blank else "".join(text + (value or "") for text, value in values))
    return texts, True


def _position(frame: pandas.DataFrame, name: str, path: Path) -> int:
    if name in frame.columns:
        found = [index for index, other in enumerate(frame.columns) if other == name]
    else:
        found = [index for index, other in enumerate(frame.columns) if other.lower() == name.strip().lower()]
    if not found:
        raise TableError(f"{path.name} has no column {name!r}; its columns are: {', '.join(frame.columns)}.")
    if len(found) > 1:
        raise TableError(f"{path.name} has {len(found)} columns named {name!r}; rename all but one.")
    return found[0]


def _read_csv(path: Path) -> pandas.DataFrame:
    data = path.read_bytes()
    if path.suffix.lower() == ".gz":
        data = gzip.decompress(data)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252", errors="replace")
    header = text.split("\n", 1)[0]
    if not header.strip():
        raise TableError("its first line, which should name the columns, is empty.")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t|", key=header.count))
    names = next(lines)
    rows = []
    for cells in lines:
        if any(cells[len(names) :]):
            raise TableError(
                f"line {lines.line_num} has {len(cells)} cells, but the header {len(names)}; put quotes around cells "
                "that hold the separator."
            )
        if cells:
            rows.append((cells + [""] * len(names))[: len(names)])
    return pandas.DataFrame(rows, columns=names, dtype=str)


def _text(value: object) -> str:
    if value is None or value is pandas.NA or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
