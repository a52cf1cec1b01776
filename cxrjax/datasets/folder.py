"""Any folder of PNG, JPEG or DICOM pictures, with or without a table, as a converted set.

    convert(raw, {"name": "clinic", "table": "list.csv", "file": "png/{ID}.png", "patient": "Patient", "labels": "Dx"})

The command is `python -m cxrjax.prepare folder`; the keys are described at `mapping.Mapping`.
"""

import os
from collections import Counter
from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Any

import pandas

from cxrjax.datasets import manifest as manifests
from cxrjax.datasets import release, schema
from cxrjax.datasets.convert import Conversion, convert_manifest
from cxrjax.datasets.files import below as files_below
from cxrjax.datasets.manifest import Box, Manifest, Problem, Row, listed
from cxrjax.datasets.mapping import Mapping, MappingError, load
from cxrjax.datasets.table import TABLE_SUFFIXES, column, pattern, read_table

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")

_SPLITS = {
    **dict.fromkeys(("train", "training", "trn", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "te"), "test"),
}
_PROJECTIONS = {
    **dict.fromkeys(("", "UNKNOWN", "NA", "N/A", "NAN", "NONE"), "UNKNOWN"),
    **dict.fromkeys(("PA", "POSTEROANTERIOR", "POSTERO-ANTERIOR", "PA ERECT"), "PA"),
    **dict.fromkeys(("AP", "ANTEROPOSTERIOR", "ANTERO-POSTERIOR", "AP SUPINE", "AP ERECT", "AP PORTABLE"), "AP"),
    **dict.fromkeys(("L", "LL", "LAT", "LATERAL", "LEFT LATERAL", "RIGHT LATERAL"), "LATERAL"),
}
_CODES = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "present"), schema.PRESENT),
    **dict.fromkeys(("0", "0.0", "false", "no", "absent"), schema.ABSENT),
    **dict.fromkeys(("-1", "-1.0", "uncertain"), schema.UNCERTAIN),
    **dict.fromkeys(("-2", "-2.0", "nan"), schema.NOT_MENTIONED),
}


def convert(raw: str | Path, mapping: Mapping | MappingType[str, Any] | str | Path, **options: Any) -> Conversion:
    """Converts a folder; mapping is a Mapping, its keys as a dict, or a JSON file; options as `convert_manifest`'s."""
    if not isinstance(mapping, Mapping):
        mapping = load(mapping)
    return convert_manifest(manifest(Path(raw), mapping), **options)


def manifest(raw: Path, mapping: Mapping) -> Manifest:
    """Reads the folder and its table into a manifest; no picture is opened yet.

    Files that the table names and the folder lacks become problems of the manifest. Raises MappingError for a folder
    or mapping that cannot be used, TableError for a table, ValueError for a patient in two splits.
    """
    files = _Files(raw)
    made = _without_table(files, mapping) if mapping.table is None else _with_table(files, mapping)
    manifests.check(made)
    return made


class _Files:
    """The files below a folder, found by path; a bare name is also found in a folder below, if it is there once."""

    def __init__(self, raw: Path):
        if not raw.is_dir():
            what = "is not a folder" if raw.exists() else "does not exist"
            raise MappingError(f"The raw folder {raw} {what}; give the folder that holds the pictures.")
        self.raw = raw
        self.paths = set(files_below(raw))
        self.pictures = sorted(path for path in self.paths if path.lower().endswith(PICTURE_SUFFIXES))
        self.elsewhere: set[str] = set()  # found by their name alone
        self.by_name: dict[str, list[str]] = {}
        for path in self.pictures:
            self.by_name.setdefault(Path(path).name, []).append(path)

    def find(self, given: str) -> tuple[str | None, str]:
        """(path below the raw folder or None, reason it was not found)."""
        path = os.path.normpath(given.replace("\\", "/"))
        if os.path.isabs(path) and Path(path).is_relative_to(self.raw.absolute()):
            path = Path(path).relative_to(self.raw.absolute()).as_posix()
        if path in self.paths:
            return path, ""
        same = self.by_name.get(path, [])
        if len(same) == 1:
            self.elsewhere.add(same[0])
            return same[0], ""
        if same:
            return None, f"The table names it, and {len(same)} files have that name: {listed(same)}."
        return None, "The table names it, but there is no such file."


def _without_table(files: _Files, mapping: Mapping) -> Manifest:
    _need_pictures(files)
    rows = [Row(files.raw / path, path, path, path, schema.assign_split(mapping.name, path)) for path in files.pictures]
    remarks = ["No table was given: every picture is its own patient, without labels; the split was made by picture."]
    tables = [path for path in sorted(files.paths) if path.lower().endswith(TABLE_SUFFIXES)]
    if tables:
        remarks.append(f"The folder holds tables that were not used: {listed(tables)}.")
    problems: list[Problem] = []
    boxes = _boxes(files, mapping, {row.image_id for row in rows}, problems, remarks)
    rows = [row._replace(boxes=tuple(boxes.get(row.image_id, ()))) for row in rows]
    return Manifest(
        mapping.name,
        (),
        tuple(rows),
        _description(mapping),
        tuple(problems),
        tuple(remarks),
        has_boxes=bool(mapping.boxes),
        value_range=mapping.value_range,
    )


def _with_table(files: _Files, mapping: Mapping) -> Manifest:
    path = files.raw / mapping.table
    if not path.is_file() and Path(mapping.table).is_file():
        path = Path(mapping.table)
    frame = read_table(path)
    remarks: list[str] = []
    problems: list[Problem] = []
    frame = _without_repeats(frame, mapping, path, remarks)
    given, _ = pattern(frame, mapping.file, path)
    label_names, labels = _labels(frame, mapping, path)
    count = len(frame)
    blank = [""] * count
    image_ids = column(frame, mapping.image_id, path) if mapping.image_id else blank
    patients = column(frame, mapping.patient, path) if mapping.patient else None
    studies = column(frame, mapping.study, path) if mapping.study else blank
    views = _views(frame, mapping, path)
    splits = _splits(frame, mapping, path)
    masks, mask_is_pattern = pattern(frame, mapping.mask, path) if mapping.mask else (blank, False)
    sexes = column(frame, mapping.sex, path) if mapping.sex else blank
    ages = column(frame, mapping.age, path) if mapping.age else blank
    pictures_elsewhere, _ = pattern(frame, mapping.same_picture, path) if mapping.same_picture else (blank, False)
    patients_elsewhere, _ = pattern(frame, mapping.same_patient, path) if mapping.same_patient else (blank, False)
    texts = {key: column(frame, name, path) if name else blank for key, name in _text_columns(mapping).items()}
    text_files, _ = pattern(frame, mapping.text_file, path) if mapping.text_file else (blank, False)
    if patients is None:
        remarks.append("No patient column was named: every picture is its own patient.")
    if mapping.split is None:
        remarks.append("No split column was named: the split was made by patient.")
    if not files.paths & set(given):  # pictures that a table names need no suffix: DICOM often has none
        _need_pictures(files)
    rows, picture_names, mask_names = [], set(), set()
    for index in range(count):
        name, reason = files.find(given[index]) if given[index] else (None, "The table has a row without a file name.")
        if name is None:
            problems.append(Problem(given[index] or f"row {index + 2}", "missing", reason))
            continue
        picture_names.add(name)
        image_id = image_ids[index] or name
        patient = image_id if patients is None else patients[index]
        if not patient:
            problems.append(Problem(name, "row", f"The table has no patient for it (column {mapping.patient!r})."))
            continue
        mask_files = ()
        if masks[index]:
            mask_name, reason = files.find(masks[index]) if not mask_is_pattern else (None, "")
            if mask_is_pattern and os.path.normpath(masks[index]) in files.paths:
                mask_name = os.path.normpath(masks[index])
            if mask_name:
                mask_names.add(mask_name)
                mask_files = (files.raw / mask_name,)
            elif not mask_is_pattern:
                problems.append(Problem(masks[index], "mask", f"{reason} It is the mask of {name}."))
        text = texts["text"][index]
        if text_files[index]:
            text = _text_file(files, text_files[index], name, problems) or text
        rows.append(
            Row(
                files.raw / name,
                image_id,
                patient,
                studies[index] or image_id,
                splits[index] if splits else schema.assign_split(mapping.name, patient),
                views[index],
                labels[index],
                mask_files,
                findings=texts["findings"][index],
                impression=texts["impression"][index],
                text=text,
                sex=release.sex(sexes[index]),
                age=release.years(ages[index]),
                same_picture=tuple(filter(None, [pictures_elsewhere[index]])),
                same_patient=tuple(filter(None, [patients_elsewhere[index]])),
            )
        )
    names = {row.file.relative_to(files.raw).as_posix() for row in rows}
    boxes = _boxes(files, mapping, names, problems, remarks)
    rows = [row._replace(boxes=tuple(boxes.get(row.file.relative_to(files.raw).as_posix(), ()))) for row in rows]
    if picture_names & mask_names:
        raise MappingError(
            f"{len(picture_names & mask_names)} files would be a picture and a mask at once: "
            f"{listed(sorted(picture_names & mask_names))}. Give their folders, for example by a pattern."
        )
    if files.elsewhere:
        names = sorted(files.elsewhere)
        remarks.append(f"{len(names)} files were found by name in folders below: {listed(names)}.")
    unlisted = [name for name in files.pictures if name not in picture_names | mask_names]
    if unlisted:
        remarks.append(f"{len(unlisted)} pictures on disk are not in the table and were left out: {listed(unlisted)}.")
    if not rows:
        first = f" For example: {problems[0].file}: {problems[0].reason}" if problems else ""
        raise MappingError(
            f"None of the {count} rows of {path.name} leads to a picture below {files.raw}.{first} The folder has for "
            f"example {listed(files.pictures, 3)}; name the file by a pattern over columns, such as "
            f"'images/{{{frame.columns[0]}}}.png'."
        )
    return Manifest(
        mapping.name,
        label_names,
        tuple(rows),
        _description(mapping),
        tuple(problems),
        tuple(remarks),
        has_mask=mapping.mask is not None,
        has_boxes=bool(mapping.boxes),
        has_report=any(_text_columns(mapping).values()) or mapping.text_file is not None,
        value_range=mapping.value_range,
    )


def _need_pictures(files: _Files) -> None:
    if files.pictures:
        return
    suffixes = Counter(Path(path).suffix.lower() or "no suffix" for path in files.paths)
    there = ", ".join(f"{count} x {suffix}" for suffix, count in suffixes.most_common(5))
    there = f"it holds {there}" if there else "it is empty"
    raise MappingError(f"The raw folder {files.raw} has no PNG, JPEG or DICOM picture; {there}.")


def _description(mapping: Mapping) -> str:
    return mapping.description or f"Pictures of a folder, converted as set {mapping.name!r}."


def _text_columns(mapping: Mapping) -> dict[str, str | None]:
    return {"findings": mapping.findings, "impression": mapping.impression, "text": mapping.text}


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
    """Label names and the codes of every row."""
    blank = schema.ABSENT if mapping.blank_labels == "absent" else schema.NOT_MENTIONED
    listed_labels: list[set[str] | None] = [None] * len(frame)
    found: set[str] = set()
    if mapping.labels:
        for index, cell in enumerate(column(frame, mapping.labels, path)):
            named = [part.strip() for part in cell.split(mapping.separator) if part.strip()]
            renamed = {mapping.label_values.get(name, name) for name in named} - {None}
            found |= renamed
            listed_labels[index] = renamed if named else None
    columns = {label: column(frame, name, path) for name, label in mapping.label_columns.items()}
    names = mapping.label_names or (*sorted(found), *columns)
    extra = sorted((found | set(columns)) - set(names))
    if extra:
        raise MappingError(
            f"{path.name} has labels that label_names does not list: {listed(extra, 20)}. label_names: "
            f"{', '.join(names)}. Add them, rename them with label_values, or drop them (label_values with null)."
        )
    unknown = Counter(cell for cells in columns.values() for cell in cells if cell and cell.lower() not in _CODES)
    if unknown:
        raise MappingError(
            f"The label columns of {path.name} hold {_counted(unknown)}; expected 1 (present), 0 (absent), "
            "-1 (uncertain) or blank."
        )
    rows = []
    for index, present in enumerate(listed_labels):
        codes = {}
        if mapping.labels:
            codes = {name: blank if present is None else int(name in present) for name in names if name not in columns}
        for name, cells in columns.items():
            codes[name] = _CODES[cells[index].lower()] if cells[index] else blank
        rows.append(tuple(codes.get(name, schema.NOT_MENTIONED) for name in names))
    return names, rows


def _views(frame: pandas.DataFrame, mapping: Mapping, path: Path) -> list[str]:
    if mapping.view is None:
        return ["UNKNOWN"] * len(frame)
    return _translated(frame, path, "view", mapping.view, mapping.view_values, _PROJECTIONS, schema.PROJECTIONS)


def _splits(frame: pandas.DataFrame, mapping: Mapping, path: Path) -> list[str] | None:
    if mapping.split is None:
        return None
    return _translated(frame, path, "split", mapping.split, mapping.split_values, _SPLITS, schema.SPLITS)


def _translated(
    frame: pandas.DataFrame,
    path: Path,
    key: str,
    name: str,
    own: dict[str, str],
    usual: dict[str, str],
    allowed: tuple[str, ...],
) -> list[str]:
    wrong = sorted(f"{before} -> {after}" for before, after in own.items() if after not in allowed)
    if wrong:
        raise MappingError(f"{key}_values translates {listed(wrong)}; the right side must be {', '.join(allowed)}.")
    words = {word.lower(): meaning for word, meaning in (usual | own).items()}
    cells = [" ".join(cell.replace("_", " ").split()).lower() for cell in column(frame, name, path)]
    words |= {" ".join(word.replace("_", " ").split()): meaning for word, meaning in words.items()}
    unknown = Counter(cell for cell in cells if cell not in words)
    if unknown:
        example = next(iter(unknown)) or ""
        raise MappingError(
            f"The column {name!r} of {path.name} holds {_counted(unknown)}, which is no known {key}. Say what it means "
            f'with {key}_values, for example {{"{example}": "{allowed[0]}"}}; known: {", ".join(allowed)}.'
        )
    return [words[cell] for cell in cells]


def _counted(values: Counter) -> str:
    return listed([f"{value or '(blank)'!r} ({count} rows)" for value, count in values.most_common()])


def _text_file(files: _Files, given: str, picture: str, problems: list[Problem]) -> str:
    path = os.path.normpath(given)
    if path not in files.paths:
        problems.append(Problem(given, "report", f"The report of {picture} does not exist."))
        return ""
    return (files.raw / path).read_text(encoding="utf-8", errors="replace").strip()


def _boxes(
    files: _Files, mapping: Mapping, names: set[str], problems: list[Problem], remarks: list[str]
) -> dict[str, list[Box]]:
    """Boxes of every picture, by its path below the raw folder."""
    boxes: dict[str, list[Box]] = {}
    for table in mapping.boxes:
        path = files.raw / table
        frame = read_table(path)
        fields = [column(frame, name, path) for name in ("file", "label", "x", "y", "width", "height")]
        strangers = 0
        for given, label, *numbers in zip(*fields, strict=True):
            name, _ = files.find(given)
            if name not in names:
                strangers += 1
                continue
            try:
                box = Box(label, *(float(number) for number in numbers))
            except ValueError:
                problems.append(Problem(given, "box", f"A box of {path.name} is not four numbers: {numbers}."))
                continue
            boxes.setdefault(name, []).append(box)
        if strangers:
            remarks.append(f"{strangers} boxes of {path.name} are of pictures that the set does not have.")
    return boxes
