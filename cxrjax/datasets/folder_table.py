"""The user's table of a folder set, read as the mapping says: columns by field, in the words of the schema."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas

from cxrjax.datasets import schema
from cxrjax.datasets.manifest import listed
from cxrjax.datasets.mapping import Mapping, MappingError
from cxrjax.datasets.table import UNKNOWN, column, pattern, read_table

SEPARATORS = ("|", ";", ",", "/")
"""What stands between the labels of a cell in most tables."""
ANSWERS = ("0", "1", "-1")
"""What a column of one label holds in most tables."""
_SPLITS = {
    **dict.fromkeys(("train", "training", "trn", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "te"), "test"),
}
_PROJECTIONS = {
    **dict.fromkeys(("", "UNKNOWN"), "UNKNOWN"),
    **dict.fromkeys(("PA", "POSTEROANTERIOR", "POSTERO-ANTERIOR", "PA ERECT"), "PA"),
    **dict.fromkeys(("AP", "ANTEROPOSTERIOR", "ANTERO-POSTERIOR", "AP SUPINE", "AP ERECT", "AP PORTABLE"), "AP"),
    **dict.fromkeys(("L", "LL", "LAT", "LATERAL", "LEFT LATERAL", "RIGHT LATERAL"), "LATERAL"),
}
_LABELS = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "present"), schema.PRESENT),
    **dict.fromkeys(("0", "0.0", "false", "no", "absent"), schema.ABSENT),
    **dict.fromkeys(("-1", "-1.0", "uncertain"), schema.UNCERTAIN),
    **dict.fromkeys(("-2", "-2.0"), schema.NOT_MENTIONED),
}


class Columns(NamedTuple):
    """The table by field of the schema: one entry for each row, "" where the cell is blank or no column is named.

    patients: None where no column is named, so that every picture is its own patient. splits: None where no column is
    named, so that the split is made by patient. masks_by_pattern: the mapping builds the names of the masks by a
    pattern, so that not every one of them has to be there. labels: the c label values of each row. first_name: of the
    table's first column.
    """

    first_name: str
    files: list[str]
    image_ids: list[str]
    patients: list[str] | None
    studies: list[str]
    projections: list[str]
    splits: list[str] | None
    label_names: tuple[str, ...]
    labels: list[tuple[int, ...]]
    masks: list[str]
    masks_by_pattern: bool
    sexes: list[str]
    ages: list[str]
    same_pictures: list[str]
    same_patients: list[str]
    findings: list[str]
    impressions: list[str]
    texts: list[str]
    text_files: list[str]


def read(path: Path, mapping: Mapping, remarks: list[str]) -> Columns:
    """Reads the table; what the user should know of it is added to the remarks.

    Raises TableError for a table that cannot be read or lacks a column, MappingError for cells that the mapping does
    not explain, and for a file with several different rows.
    """
    frame = _without_repeats(read_table(path, mapping.encoding), mapping, path, remarks)

    def cells(name: str | None) -> list[str]:
        return column(frame, name, path) if name else [""] * len(frame)

    def names(spec: str | None) -> list[str]:
        return pattern(frame, spec, path)[0] if spec else [""] * len(frame)

    label_names, labels = _labels(frame, mapping, path)
    return Columns(
        first_name=frame.columns[0],
        files=names(mapping.file),
        image_ids=cells(mapping.image_id),
        patients=cells(mapping.patient) if mapping.patient else None,
        studies=cells(mapping.study),
        projections=_projections(frame, mapping, path),
        splits=_splits(frame, mapping, path),
        label_names=label_names,
        labels=labels,
        masks=names(mapping.mask),
        masks_by_pattern=bool(mapping.mask) and pattern(frame, mapping.mask, path)[1],
        sexes=cells(mapping.sex),
        ages=cells(mapping.age),
        same_pictures=names(mapping.same_picture),
        same_patients=names(mapping.same_patient),
        findings=cells(mapping.findings),
        impressions=cells(mapping.impression),
        texts=cells(mapping.text),
        text_files=names(mapping.text_file),
    )


def _without_repeats(frame: pandas.DataFrame, mapping: Mapping, path: Path, remarks: list[str]) -> pandas.DataFrame:
    """Drops rows that repeat another one in every cell; raises MappingError for files with two different rows."""
    distinct = frame.drop_duplicates().reset_index(drop=True)
    if len(distinct) < len(frame):
        remarks.append(f"{len(frame) - len(distinct)} rows of {path.name} repeat another row and were read once.")
    counts = Counter(name for name in pattern(distinct, mapping.file, path)[0] if name)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise MappingError(
            f"{len(repeated)} files have several different rows in {path.name}: {listed(repeated)}. "
            "One row per picture is needed: bring the rows of a file together first."
        )
    return distinct


def _labels(frame: pandas.DataFrame, mapping: Mapping, path: Path) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
    """The label names, and the label values of every row."""
    listed_in_cells, named = _listed_labels(frame, mapping, path)
    columns = {label: column(frame, name, path) for name, label in mapping.label_columns.items()}
    names = mapping.label_names or (*sorted(named), *columns)
    extra = sorted((named | set(columns)) - set(names))
    if extra:
        raise MappingError(
            f"{path.name} has labels that label_names does not list: {listed(extra, 20)}. label_names: "
            f"{', '.join(names)}. Add them, rename them with label_values, or drop them (label_values with null)."
        )
    unknown = Counter(cell for cells in columns.values() for cell in cells if cell and cell.lower() not in _LABELS)
    if unknown:
        raise MappingError(
            f"The label columns of {path.name} hold {_counted(unknown)}; expected 1 (present), 0 (absent), "
            "-1 (uncertain) or blank."
        )
    blank = schema.ABSENT if mapping.blank_labels == "absent" else schema.NOT_MENTIONED
    rows = []
    for index, present in enumerate(listed_in_cells):
        labels = {}
        if mapping.labels:
            labels = {name: blank if present is None else int(name in present) for name in names if name not in columns}
        for name, cells in columns.items():
            labels[name] = _LABELS[cells[index].lower()] if cells[index] else blank
        rows.append(tuple(labels.get(name, schema.NOT_MENTIONED) for name in names))
    return names, rows


def _listed_labels(frame: pandas.DataFrame, mapping: Mapping, path: Path) -> tuple[list[set[str] | None], set[str]]:
    """The labels that each row's cell of `mapping.labels` lists, None where it is blank, and all of them together."""
    if not mapping.labels:
        return [None] * len(frame), set()
    rows: list[set[str] | None] = []
    cells = column(frame, mapping.labels, path)
    _check_separator(cells, mapping, path)
    for cell in cells:
        parts = [part.strip() for part in cell.split(mapping.separator)]
        parts = [part for part in parts if part and part.lower() not in UNKNOWN]
        renamed = {mapping.label_values.get(part, part) for part in parts}
        rows.append({name for name in renamed if name is not None} if parts else None)
    found = set().union(*(row for row in rows if row))
    if found and all(name.removesuffix(".0") in ANSWERS for name in found):
        raise MappingError(
            f"The column {mapping.labels!r} of {path.name} holds {listed(sorted(found))}, as that of one label does: "
            f"give label_columns={mapping.labels}. labels= is for a column that lists names; label_values= names codes."
        )
    return rows, found


def _check_separator(cells: Sequence[str], mapping: Mapping, path: Path) -> None:
    """Raises MappingError where another sign divides cells into labels that other cells have alone."""
    alone = {cell.strip() for cell in cells}
    for sign in SEPARATORS:
        several = [cell for cell in alone if sign in cell and {part.strip() for part in cell.split(sign)} <= alone]
        if several and sign != mapping.separator and not any(mapping.separator in cell for cell in alone):
            raise MappingError(
                f"The separator {mapping.separator!r} is in no cell of the column {mapping.labels!r} of {path.name}, "
                f"but {sign!r} stands between labels in {listed(sorted(several))}: give --separator '{sign}'."
            )


def _projections(frame: pandas.DataFrame, mapping: Mapping, path: Path) -> list[str]:
    if mapping.view is None:
        return ["UNKNOWN"] * len(frame)
    words = (mapping.view_values, _PROJECTIONS, schema.PROJECTIONS)
    return _translated(frame, path, mapping.view, "projection", "view_values", *words)


def _splits(frame: pandas.DataFrame, mapping: Mapping, path: Path) -> list[str] | None:
    if mapping.split is None:
        return None
    words = (mapping.split_values, _SPLITS, schema.SPLITS)
    return _translated(frame, path, mapping.split, "split", "split_values", *words)


def _translated(
    frame: pandas.DataFrame,
    path: Path,
    name: str,
    what: str,
    key: str,
    own: dict[str, str],
    usual: dict[str, str],
    allowed: tuple[str, ...],
) -> list[str]:
    wrong = sorted(f"{before} -> {after}" for before, after in own.items() if after not in allowed)
    if wrong:
        raise MappingError(f"{key} translates {listed(wrong)}; the right side must be {', '.join(allowed)}.")
    words = {word.lower(): meaning for word, meaning in (usual | own).items()}
    cells = [" ".join(cell.replace("_", " ").split()).lower() for cell in column(frame, name, path)]
    words |= {" ".join(word.replace("_", " ").split()): meaning for word, meaning in words.items()}
    unknown = Counter(cell for cell in cells if cell not in words)
    if unknown:
        example = next(iter(unknown)) or ""
        raise MappingError(
            f"The column {name!r} of {path.name} holds {_counted(unknown)}, which is no known {what}. Say what it "
            f'means with {key}, for example {{"{example}": "{allowed[0]}"}}; known: {", ".join(allowed)}.'
        )
    return [words[cell] for cell in cells]


def _counted(values: Counter) -> str:
    return listed([f"{value or '(blank)'!r} ({count} rows)" for value, count in values.most_common()])
