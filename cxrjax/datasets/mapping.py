"""The mapping of a folder set: which column of the user's table is which field of the schema.

A mapping is a flat JSON object (or the same keys on the command line). Every key is described at `Mapping`.
"""

import difflib
import json
import re
from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Any, NamedTuple


class Mapping(NamedTuple):
    """Which columns of the table are which fields of the schema.

    A value that names a file (file, mask, text_file) is a column, or a pattern over columns such as
    "images/{Image Index}.png", relative to the raw folder. Columns are found without regard to case and outer blanks.
    """

    name: str  # of the converted set: lower-case letters, digits, underscores
    description: str = ""  # of the source, with its licence; goes into the metadata of the set
    table: str | None = None  # CSV, TSV (also .gz), JSON, .xlsx or Parquet, a row per picture; none: no labels
    encoding: str | None = None  # of the table and the text files; default: UTF-8, UTF-16, else Windows-1252
    file: str = "file"
    image_id: str | None = None  # default: the file's path below the raw folder
    patient: str | None = None  # default: as DICOM headers say, else every picture its own patient
    study: str | None = None  # default: as DICOM headers say, else every picture its own study
    dicom_patient: str = "PatientID"  # the element of DICOM headers that is the patient, where no table says
    dicom_study: str = "StudyInstanceUID"  # the element that is the study
    hash_ids: str | None = None  # a secret: patient and study ids become their keyed hashes
    view: str | None = None  # the projection, PA, AP or lateral; default: what a DICOM header says, else UNKNOWN
    view_values: dict[str, str] = {}  # e.g. {"Frontal erect": "PA"}, beyond the usual spellings
    split: str | None = None  # default: made by patient
    split_values: dict[str, str] = {}  # e.g. {"fold 0": "test"}, beyond the usual spellings
    labels: str | None = None  # a column that lists the labels that are present; all others are absent
    separator: str = "|"  # between the labels of one cell
    label_values: dict[str, str | None] = {}  # renames a listed label; null drops it
    label_columns: dict[str, str] = {}  # column -> label; cells 1, 0, -1 (uncertain) or blank
    label_names: tuple[str, ...] = ()  # fixes the names and their order; default: sorted names of the table
    blank_labels: str = "not_mentioned"  # what a blank cell says: "not_mentioned" or "absent"
    sex: str | None = None  # F or female, M or male; anything else is unknown
    age: str | None = None  # years, or as in DICOM ("057Y", "018M"); anything else is unknown
    same_picture: str | None = None  # this picture in another set as "set:image_id", for the guard against leaks
    same_patient: str | None = None  # this patient in another set as "set:patient_id"
    mask: str | None = None  # a mask picture per picture; blank: no mask
    findings: str | None = None  # section of the report
    impression: str | None = None  # section of the report
    text: str | None = None  # the full report
    text_file: str | None = None  # a text file per picture, for the full report
    boxes: tuple[str, ...] = ()  # tables with columns file, label, x, y, width, height in pixels of the raw picture
    value_range: tuple[int, int] | None = None  # for pictures deeper than 8 bits: the values that become 0 and 255


_WITHOUT_TABLE = (
    *("name", "description", "file", "boxes", "value_range", "separator", "encoding"),
    *("dicom_patient", "dicom_study", "hash_ids"),
)


class MappingError(ValueError):
    """A mapping that cannot be used as it is."""


def load(source: str | Path | MappingType[str, Any] | None = None, **overrides: Any) -> Mapping:
    """Reads a mapping from a JSON file or a dict; keyword arguments replace its keys.

    Raises MappingError for unknown keys (naming the nearest known one) and values of the wrong kind.
    """
    if isinstance(source, str | Path):
        keys = _from_json(Path(source))
    else:
        keys = dict(source or {})
    keys |= {key: value for key, value in overrides.items() if value is not None}
    for key in keys:
        if key not in Mapping._fields:
            near = difflib.get_close_matches(key, Mapping._fields, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise MappingError(f"Unknown mapping key {key!r}.{hint} Known: {', '.join(Mapping._fields)}.")
    if not keys.get("name"):
        raise MappingError("The set has no name: give --name NAME, or the key 'name' in the mapping.")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", str(keys["name"])):
        raise MappingError(
            f"The set name {keys['name']!r} cannot be used: it must begin with a lower-case letter and hold lower-case "
            "letters, digits and underscores only."
        )
    return _typed(keys)


def from_arguments(arguments: list[str]) -> dict[str, Any]:
    """Mapping keys from `key=value` arguments; JSON values and comma lists are understood where a key takes them."""
    keys: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise MappingError(f"{argument!r} is not key=value, for example patient='Patient ID'.")
        if value[:1] in ("{", "[") and key not in ("file", "mask", "text_file"):
            try:
                keys[key] = json.loads(value)
            except json.JSONDecodeError as error:
                raise MappingError(f"The value of {key} is not valid JSON: {error}.") from None
        elif key in ("label_columns", "label_names", "boxes"):
            keys[key] = [part.strip() for part in value.split(",") if part.strip()]
        elif key == "value_range":
            keys[key] = value.split(",")
        elif key.endswith("_values"):
            pairs = [part.partition(":") for part in value.split(",")]
            keys[key] = {before.strip(): after.strip() or None for before, _, after in pairs}
        else:
            keys[key] = value
    return keys


def _from_json(path: Path) -> dict[str, Any]:
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MappingError(f"The mapping {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise MappingError(f"The mapping {path} is not valid JSON: {error}.") from None
    if not isinstance(keys, dict):
        raise MappingError(f'The mapping {path} must be one JSON object, {{"name": ..., "table": ...}}.')
    return keys


def _typed(keys: dict[str, Any]) -> Mapping:
    keys = dict(keys)
    if isinstance(keys.get("label_columns"), list | tuple):
        keys["label_columns"] = {column: column for column in keys["label_columns"]}
    if isinstance(keys.get("boxes"), str):
        keys["boxes"] = [keys["boxes"]]
    for key, value in keys.items():
        if key in ("label_names", "boxes"):
            right = isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
            kind = "a list of texts"
            keys[key] = tuple(value) if right else value
        elif key.endswith("_values") or key == "label_columns":
            right = isinstance(value, dict) and all(isinstance(part, str | None) for part in value.values())
            kind = "an object of text to text"
        elif key == "value_range":
            try:
                low, high = (int(part) for part in value or ())
            except (TypeError, ValueError):
                low, high = 0, -1
            right, kind = low < high, "two whole numbers, the lower one first"
            keys[key] = (low, high)
        else:
            right, kind = value is None or isinstance(value, str), "a text"
        if not right:
            raise MappingError(f"The mapping key {key!r} must be {kind}, but is {value!r}.")
    keys = {key: value for key, value in keys.items() if value is not None}
    if keys.get("blank_labels", "absent") not in ("not_mentioned", "absent"):
        raise MappingError(f"blank_labels is {keys['blank_labels']!r}; choose 'not_mentioned' or 'absent'.")
    if keys.get("separator") == "":
        raise MappingError("The separator between labels is empty; give for example '|' or ';'.")
    if "table" not in keys:
        needs = [key for key in keys if key not in _WITHOUT_TABLE]
        if needs:
            raise MappingError(f"The mapping names {', '.join(needs)}, but no table: give --table FILE or key 'table'.")
    return Mapping(**keys)
