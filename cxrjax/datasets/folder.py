"""Any folder of PNG, JPEG or DICOM pictures, with or without a table, as a converted set.

    convert(raw, {"name": "clinic", "table": "list.csv", "file": "png/{ID}.png", "patient": "Patient", "labels": "Dx"})

The command is `python -m cxrjax.prepare folder`; the keys are described at `mapping.Mapping`.
"""

from collections import Counter
from collections.abc import Iterator
from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Any

from cxrjax.datasets import dicom_patients, folder_table, release, schema
from cxrjax.datasets import manifest as manifests
from cxrjax.datasets.convert import Conversion, convert_manifest
from cxrjax.datasets.files import decoded, shown
from cxrjax.datasets.folder_files import Files
from cxrjax.datasets.folder_table import Columns
from cxrjax.datasets.manifest import Box, Manifest, Problem, Row, listed
from cxrjax.datasets.mapping import Mapping, MappingError, load
from cxrjax.datasets.table import TABLE_SUFFIXES, column, read_table
from cxrjax.datasets.table import remarks as table_remarks


def convert(raw: str | Path, mapping: Mapping | MappingType[str, Any] | str | Path, **options: Any) -> Conversion:
    """Converts a folder; mapping is a Mapping, its keys as a dict, or a JSON file; options as `convert_manifest`'s."""
    if not isinstance(mapping, Mapping):
        mapping = load(mapping)
    return convert_manifest(manifest(Path(raw), mapping), **options)


def manifest(raw: Path, mapping: Mapping) -> Manifest:
    """Reads the folder and its table into a manifest; of the pictures no more is opened than headers of DICOM files.

    Where no table names patients and studies, those are of the DICOM headers.

    Files that the table names and the folder lacks become problems of the manifest. Raises MappingError for a folder
    or mapping that cannot be used, TableError for a table, ValueError for a patient in two splits.
    """
    files = Files(raw)
    with table_remarks() as said:
        made = _without_table(files, mapping) if mapping.table is None else _with_table(files, mapping, mapping.table)
    made = made._replace(remarks=(*said, *made.remarks))
    manifests.check(made)
    return made


def _without_table(files: Files, mapping: Mapping) -> Manifest:
    _need_pictures(files)
    persons = dicom_patients.of(files.raw, files.pictures, mapping)
    rows = []
    for path in files.pictures:
        image_id = shown(path)
        patient, study = persons.get(path, ("", ""))
        patient = patient or study or image_id
        rows.append(
            Row(files.raw / path, image_id, patient, study or image_id, schema.assign_split(mapping.name, patient))
        )
    remarks = ["No table was given: pictures have no labels."]
    remarks += dicom_patients.remarks(persons, files.pictures, mapping.dicom_patient)
    tables = [path for path in sorted(files.paths) if path.lower().endswith(TABLE_SUFFIXES)]
    if tables:
        remarks.append(f"The folder holds tables that were not used: {listed(tables)}.")
    problems: list[Problem] = []
    rows = _with_boxes(rows, files, mapping, problems, remarks)
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


def _with_table(files: Files, mapping: Mapping, table: str) -> Manifest:
    problems: list[Problem] = []
    remarks: list[str] = []
    path = files.raw / table if (files.raw / table).is_file() or not Path(table).is_file() else Path(table)
    columns = folder_table.read(path, mapping, remarks)
    if columns.patients is None:
        remarks.append("No patient column was named.")
    if columns.splits is None:
        remarks.append("No split column was named: the split was made by patient.")
    if not set(files.paths) & set(columns.files):  # pictures that a table names need no suffix: DICOM often has none
        _need_pictures(files)
    rows, pictures, masks = _rows(files, mapping, columns, problems, remarks)
    rows = _with_boxes(rows, files, mapping, problems, remarks)
    if pictures & masks:
        raise MappingError(
            f"{len(pictures & masks)} files would be a picture and a mask at once: {listed(sorted(pictures & masks))}. "
            "Give their folders, for example by a pattern."
        )
    remarks += _remarks_on_files(files, pictures | masks)
    if not rows:
        raise MappingError(_no_rows(files, path, columns, problems))
    return Manifest(
        mapping.name,
        columns.label_names,
        tuple(rows),
        _description(mapping),
        tuple(problems),
        tuple(remarks),
        has_mask=mapping.mask is not None,
        has_boxes=bool(mapping.boxes),
        has_report=any((mapping.findings, mapping.impression, mapping.text)) or mapping.text_file is not None,
        value_range=mapping.value_range,
    )


def _rows(
    files: Files, mapping: Mapping, columns: Columns, problems: list[Problem], remarks: list[str]
) -> tuple[list[Row], set[str], set[str]]:
    """The rows that can be used, and the paths of all pictures and of all masks that the table names and that exist."""
    rows: list[Row] = []
    pictures: set[str] = set()
    masks: set[str] = set()
    blank = "The table has a row without a file name."
    places = [files.find(given) if given else (None, blank) for given in columns.files]
    persons = _persons(files, mapping, columns, [name for name, _ in places if name is not None])
    if columns.patients is None:
        remarks += dicom_patients.remarks(persons, list(persons), mapping.dicom_patient)
    for index, given in enumerate(columns.files):
        name, reason = places[index]
        if name is None:
            problems.append(Problem(given or f"row {index + 2}", "missing", reason))
            continue
        pictures.add(name)
        image_id = columns.image_ids[index] or shown(name)
        person, study = persons.get(name, ("", ""))
        patient = (person or study or image_id) if columns.patients is None else columns.patients[index]
        if columns.patients is not None and mapping.hash_ids and patient:
            patient = dicom_patients.hashed(patient, mapping.hash_ids)
        if not patient:
            problems.append(Problem(name, "row", f"The table has no patient for it (column {mapping.patient!r})."))
            continue
        mask = _mask(files, columns, index, name, problems)
        if mask:
            masks.add(mask)
        rows.append(
            Row(
                files.raw / name,
                image_id,
                patient,
                _study(columns.studies[index], mapping) or study or image_id,
                columns.splits[index] if columns.splits else schema.assign_split(mapping.name, patient),
                columns.projections[index],
                columns.labels[index],
                (files.raw / mask,) if mask else (),
                findings=columns.findings[index],
                impression=columns.impressions[index],
                text=_text(files, mapping, columns, index, name, problems),
                sex=release.sex(columns.sexes[index]),
                age=release.years(columns.ages[index]),
                same_picture=tuple(filter(None, [columns.same_pictures[index]])),
                same_patient=tuple(filter(None, [columns.same_patients[index]])),
            )
        )
    return rows, pictures, masks


def _mask(files: Files, columns: Columns, index: int, picture: str, problems: list[Problem]) -> str | None:
    """The path of a row's mask below the raw folder. A mask that a column names and that is missing is a problem."""
    given = columns.masks[index]
    if not given:
        return None
    if columns.masks_by_pattern:
        return files.there(given)[0]
    name, reason = files.find(given)
    if name is None:
        problems.append(Problem(given, "mask", f"{reason} It is the mask of {picture}."))
    return name


def _text(files: Files, mapping: Mapping, columns: Columns, index: int, picture: str, problems: list[Problem]) -> str:
    """The full report of a row: what its text file says, or else its cell."""
    given = columns.text_files[index]
    if not given:
        return columns.texts[index]
    path, _ = files.there(given)
    if path is None:
        problems.append(Problem(given, "report", f"The report of {picture} does not exist."))
        return columns.texts[index]
    try:
        text, _ = decoded((files.raw / path).read_bytes(), mapping.encoding)
    except (OSError, LookupError, UnicodeDecodeError) as error:
        problems.append(Problem(given, "report", f"The report of {picture} cannot be read: {error}."))
        return columns.texts[index]
    return text.strip() or columns.texts[index]


def _persons(files: Files, mapping: Mapping, columns: Columns, names: list[str]) -> dict[str, tuple[str, str]]:
    """Patient and study by DICOM header of the pictures, as far as the table does not name them."""
    if columns.patients is not None and mapping.study is not None:
        return {}
    return dicom_patients.of(files.raw, names, mapping)


def _study(cell: str, mapping: Mapping) -> str:
    return dicom_patients.hashed(cell, mapping.hash_ids) if cell and mapping.hash_ids else cell


def _remarks_on_files(files: Files, used: set[str]) -> Iterator[str]:
    """Sentences on files that were not found where the table says, and on pictures that it does not name."""
    if files.elsewhere:
        names = sorted(files.elsewhere)
        yield f"{len(names)} files were found by name in folders below: {listed(names)}."
    unlisted = [name for name in files.pictures if name not in used]
    if unlisted:
        yield f"{len(unlisted)} pictures on disk are not in the table and were left out: {listed(unlisted)}."


def _no_rows(files: Files, path: Path, columns: Columns, problems: list[Problem]) -> str:
    first = f" For example: {problems[0].file}: {problems[0].reason}" if problems else ""
    return (
        f"None of the {len(columns.files)} rows of {path.name} leads to a picture below {files.raw}.{first} The folder "
        f"has for example {listed(files.pictures, 3)}; name the file by a pattern over columns, such as "
        f"'images/{{{columns.first_name}}}.png'."
    )


def _need_pictures(files: Files) -> None:
    if files.pictures:
        return
    suffixes = Counter(Path(path).suffix.lower() or "no suffix" for path in files.paths)
    there = ", ".join(f"{count} x {suffix}" for suffix, count in suffixes.most_common(5))
    there = f"it holds {there}" if there else "it is empty"
    raise MappingError(f"The raw folder {files.raw} has no PNG, JPEG or DICOM picture; {there}.")


def _description(mapping: Mapping) -> str:
    return mapping.description or f"Pictures of a folder, converted as set {mapping.name!r}."


def _with_boxes(
    rows: list[Row], files: Files, mapping: Mapping, problems: list[Problem], remarks: list[str]
) -> list[Row]:
    """The rows with the boxes that the tables of `mapping.boxes` give to their pictures."""
    names = [row.file.relative_to(files.raw).as_posix() for row in rows]
    boxes: dict[str, list[Box]] = {name: [] for name in names}
    for table in mapping.boxes:
        path = files.raw / table
        frame = read_table(path, mapping.encoding)
        fields = [column(frame, name, path) for name in ("file", "label", "x", "y", "width", "height")]
        strangers = 0
        for given, label, *numbers in zip(*fields, strict=True):
            name, _ = files.find(given)
            if name is None or name not in boxes:
                strangers += 1
                continue
            try:
                x, y, width, height = map(float, numbers)
            except ValueError:
                problems.append(Problem(given, "box", f"A box of {path.name} is not four numbers: {numbers}."))
                continue
            boxes[name].append(Box(label, x, y, width, height))
        if strangers:
            remarks.append(f"{strangers} boxes of {path.name} are of pictures that the set does not have.")
    return [row._replace(boxes=tuple(boxes[name])) for name, row in zip(names, rows, strict=True)]
