"""Users' tables: CSV, TSV, JSON, Excel or Parquet as texts, with columns found by name whatever their case and blanks.

Cells that say that nothing is known (UNKNOWN) are blank in every table. Letters that Unicode can spell in two ways are
composed (NFC), so that names which look the same are the same.
"""

import contextlib
import csv
import gzip
import io
import json
import re
import string
import unicodedata
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import pandas

from cxrjax.datasets.files import decoded

_UNPACKED_BYTES, _UNPACKED_RATIO = 2**26, 100
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".parquet", ".json", ".jsonl", ".xlsx")
UNKNOWN = ("nan", "na", "n/a", "#n/a", "<na>", "none", "null", "nil", "nat", "-", "--")  # whatever their case
_NO_TEXT = {
    b"PK\x03\x04": "a spreadsheet (.xlsx, .ods) or a zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls)",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip file",
}
LIST_SEPARATOR = "|"  # between the items of a cell that is a list

_remarks: ContextVar[list[str] | None] = ContextVar("remarks", default=None)


class TableError(ValueError):
    """A table that cannot be read, or lacks a column."""


@contextlib.contextmanager
def remarks() -> Iterator[list[str]]:
    """Collects, as sentences, what the tables that are read inside the block hold and a user should know."""
    found: list[str] = []
    token = _remarks.set(found)
    try:
        yield found
    finally:
        _remarks.reset(token)


def read_table(path: Path, encoding: str | None = None) -> pandas.DataFrame:
    """Reads a table with every cell as stripped text; blank, missing and unknown cells are "".

    CSV: comma, semicolon, tab or bar between columns, whichever the header has most of, or what a first line "sep=;"
    says; quotes inside quoted cells doubled or behind a backslash. encoding: of CSV and JSON, by default as `decoded`
    finds out. JSON: a list of objects, or one object a line (.jsonl). Items of cells that are lists are joined by "|".
    Raises TableError.
    """
    if not path.is_file():
        near = [other.name for other in sorted(path.parent.glob("*")) if other.name.lower().endswith(TABLE_SUFFIXES)]
        there = f"tables in {path.parent}: {', '.join(near)}" if near else f"there is no table in {path.parent}"
        raise TableError(f"The table {path} does not exist; {there}.")
    try:
        frame = _read(path, encoding)
    except ImportError:
        raise TableError(
            f"The table {path} is an Excel workbook: pip install 'cxrjax[excel]', or save it as CSV (UTF-8)."
        ) from None
    except (OSError, EOFError, ValueError, LookupError, csv.Error) as error:
        raise TableError(f"The table {path} cannot be read: {str(error).rstrip('.')}.") from None
    frame.columns = [unicodedata.normalize("NFC", str(name)).strip() for name in frame.columns]
    if frame.empty:
        raise TableError(f"The table {path} has no rows.")
    return _cleaned(frame, path)


def column(frame: pandas.DataFrame, name: str, path: Path) -> list[str]:
    """The cells of the column, found without regard to case and blanks; raises TableError naming those available."""
    return frame.iloc[:, _position(frame, name, path)].tolist()


def pattern(frame: pandas.DataFrame, spec: str, path: Path) -> tuple[list[str], bool]:
    """Cells of a column, or of a pattern over columns such as "images/{Image Index}.png" or "{ID:05d}.png".

    Returns (texts, whether it is a pattern). A pattern gives "" where one of its columns is blank.
    """
    if "{" not in spec:
        return column(frame, spec, path), False
    try:
        pieces = list(string.Formatter().parse(spec))
    except ValueError as error:
        raise TableError(f"The pattern {spec!r} is not valid: {error}.") from None
    cells = {field: column(frame, field, path) for _, field, _, _ in pieces if field is not None}
    texts = []
    for row in range(len(frame)):
        values = ["x" if field is None else cells[field][row] for _, field, _, _ in pieces]
        filled = "".join(
            text + ("" if field is None or not cell else _formatted(cell, form or "", field, spec, path))
            for cell, (text, field, form, _) in zip(values, pieces, strict=True)
        )
        texts.append(filled if all(values) else "")
    return texts, True


def _formatted(cell: str, form: str, field: str, spec: str, path: Path) -> str:
    """The cell in the format that the pattern gives after a colon; numbers where the format is one of numbers."""
    if not form:
        return cell
    for kind in (int, float, str):
        with contextlib.suppress(ValueError):
            return format(kind(cell), form)
    raise TableError(
        f"The cell {cell!r} of column {field!r} of {path.name} cannot be written in the format {form!r} of the pattern "
        f"{spec!r}."
    )


def _position(frame: pandas.DataFrame, name: str, path: Path) -> int:
    name = unicodedata.normalize("NFC", name)
    if name in frame.columns:
        found = [index for index, other in enumerate(frame.columns) if other == name]
    else:
        found = [index for index, other in enumerate(frame.columns) if other.lower() == name.strip().lower()]
    if not found:
        raise TableError(f"{path.name} has no column {name!r}; its columns are: {', '.join(frame.columns)}.")
    if len(found) > 1:
        raise TableError(f"{path.name} has {len(found)} columns named {name!r}; rename all but one.")
    return found[0]


def _read(path: Path, encoding: str | None) -> pandas.DataFrame:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        frame = pandas.read_parquet(path)
    elif suffix == ".xlsx":
        frame = _read_workbook(path)
    elif suffix in (".json", ".jsonl"):
        frame = _read_json(path, encoding)
    else:
        return _read_csv(path, encoding)
    return frame.map(cell_text)


def _read_workbook(path: Path) -> pandas.DataFrame:
    """The first sheet of an Excel workbook; a remark tells of further ones. Raises ImportError without openpyxl."""
    with pandas.ExcelFile(path, engine="openpyxl") as workbook:
        first, *others = map(str, workbook.sheet_names)
        if others:
            _remark(f"Of the sheets of {path.name} the first, {first!r}, was read, not {', '.join(map(repr, others))}.")
        return pandas.read_excel(workbook, sheet_name=first, dtype=object, na_filter=False)


def _read_json(path: Path, encoding: str | None) -> pandas.DataFrame:
    text = _decoded(path.read_bytes(), path, encoding)
    lines = path.suffix.lower() == ".jsonl"
    records = [json.loads(line) for line in text.splitlines() if line.strip()] if lines else json.loads(text)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise TableError("it is no list of objects, one a picture")
    names = dict.fromkeys(name for record in records for name in record)
    return pandas.DataFrame(
        [[record.get(name) for name in names] for record in records], columns=list(names), dtype=object
    )


def _unpacked(path: Path) -> bytes:
    """What a gzip file holds. Raises TableError where that is far more than tables shrink to."""
    limit = max(_UNPACKED_BYTES, _UNPACKED_RATIO * path.stat().st_size)
    with gzip.open(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise TableError(
            f"it holds more than {limit / 2**20:,.0f} MiB, {_UNPACKED_RATIO} times its own size, which no table "
            "of pictures does; if it is right all the same, unpack it and give the unpacked file."
        )
    return data


def _read_csv(path: Path, encoding: str | None) -> pandas.DataFrame:
    data = _unpacked(path) if path.suffix.lower() == ".gz" else path.read_bytes()
    if what := next((what for mark, what in _NO_TEXT.items() if data.startswith(mark)), ""):
        raise TableError(f"it is {what}, not text; save it as CSV (UTF-8)")
    text = _decoded(data, path, encoding)
    header, _, rest = text.partition("\n")
    declared = re.fullmatch(r'"?sep=(.)"?\s*', header, re.IGNORECASE)  # Excel's own line, above the header
    if declared:
        text, header = rest, rest.split("\n", 1)[0]
    if not header.strip():
        raise TableError("its first line, which should name the columns, is empty.")
    delimiter = declared[1] if declared else max(",;\t|", key=header.count)
    try:
        names, rows = _rows(text, delimiter)
    except csv.Error:
        if '\\"' not in text:
            raise
        names, rows = _rows(text, delimiter, escapechar="\\")
    return pandas.DataFrame(rows, columns=names, dtype=str)


def _rows(text: str, delimiter: str, escapechar: str | None = None) -> tuple[list[str], list[list[str]]]:
    """The header and the rows, filled up to its length. Raises csv.Error where quotes do not match."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # 131,072 by default, which run lengths can exceed
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, escapechar=escapechar)
    names: list[str] = []
    rows = []
    read = 0
    try:
        for cells in lines:
            read = lines.line_num
            if not names:
                names = cells
            elif any(cells[len(names) :]):
                raise TableError(
                    f"line {lines.line_num} has {len(cells)} cells, but the header {len(names)}; put quotes around "
                    "cells that hold the separator."
                )
            elif cells:
                rows.append((cells + [""] * len(names))[: len(names)])
    except csv.Error:
        raise csv.Error(
            f"a quote that opens in line {read + 1} or soon after is never closed, or closes in the middle of a cell. "
            "Close it; double the quotes that belong to a text"
        ) from None
    return names, rows


def _decoded(data: bytes, path: Path, encoding: str | None) -> str:
    text, found = decoded(data, encoding)
    if encoding is None and found == "cp1252":
        _remark(f"{path.name} is not UTF-8 and was read as Windows-1252; another encoding can be named.")
    return text


def _cleaned(frame: pandas.DataFrame, path: Path) -> pandas.DataFrame:
    """The frame with stripped, composed cells, "" where nothing is known; a remark counts the words for that."""
    columns, said = [], []
    for index, name in enumerate(frame.columns):
        cells = frame.iloc[:, index].fillna("").tolist()
        meaning = {cell: unicodedata.normalize("NFC", cell.strip()) for cell in set(cells)}
        unknown = [cell for cell in meaning if meaning[cell].lower() in UNKNOWN]
        said += [f"{meaning[cell]!r} in {name} ({cells.count(cell)})" for cell in sorted(unknown)]
        meaning |= dict.fromkeys(unknown, "")
        columns.append([meaning[cell] for cell in cells])
    if said:
        more = f" and {len(said) - 20} more" if len(said) > 20 else ""
        _remark(f"Cells of {path.name} that say that nothing is known, read as blank: {', '.join(said[:20])}{more}.")
    return pandas.DataFrame(dict(enumerate(columns)), dtype=str).set_axis(frame.columns, axis=1)


def _remark(sentence: str) -> None:
    found = _remarks.get()
    if found is not None and sentence not in found:
        found.append(sentence)


def cell_text(value: object) -> str:
    """A value of any type as the text of a cell, "" where nothing is known."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return LIST_SEPARATOR.join(filter(None, map(cell_text, value)))
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bytes):
        return decoded(value)[0]
    if value is None or value is pandas.NA or value != value:
        return ""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)
