"""The manifest: every raw set in one form, before its pictures are converted.

A set's module only has to say which file is which picture of which patient; checks, counts and conversion are shared.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cxrjax.datasets import schema


class Box(NamedTuple):
    """A box in pixels of the raw picture; x, y is its top-left corner."""

    label: str
    x: float
    y: float
    width: float
    height: float


class Row(NamedTuple):
    """One picture of a raw set. labels: c codes of schema; mask_files are united (left and right lung, for example)."""

    file: Path
    image_id: str
    patient_id: str
    study_id: str
    split: str
    view: str = "UNKNOWN"
    labels: tuple[int, ...] = ()
    mask_files: tuple[Path, ...] = ()
    boxes: tuple[Box, ...] = ()
    findings: str = ""
    impression: str = ""
    text: str = ""


class Problem(NamedTuple):
    """One file that could not be used as the set promises. kind is "missing", "picture", "mask", "box" or "row"."""

    file: str
    kind: str
    reason: str


class Manifest(NamedTuple):
    """A raw set, ready to be converted."""

    name: str
    label_names: tuple[str, ...]
    rows: tuple[Row, ...]
    description: str
    problems: tuple[Problem, ...] = ()
    remarks: tuple[str, ...] = ()  # what the user should know, as sentences
    has_mask: bool = False
    has_boxes: bool = False
    has_report: bool = False
    value_range: tuple[int, int] | None = None


def check(manifest: Manifest) -> None:
    """Raises ValueError for repeated image ids, unknown splits or views, or a patient in two splits."""
    repeated = [name for name, count in Counter(row.image_id for row in manifest.rows).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} image ids of set {manifest.name!r} are not unique: {listed(repeated)}. "
            "Use a column that is different for every picture, or the file name."
        )
    for field, known in (("split", schema.SPLITS), ("view", schema.VIEWS)):
        unknown = sorted({getattr(row, field) for row in manifest.rows} - set(known))
        if unknown:
            raise ValueError(f"Unknown {field} {listed(unknown)} in set {manifest.name!r}; known: {', '.join(known)}.")
    patients = {split: {row.patient_id for row in manifest.rows if row.split == split} for split in schema.SPLITS}
    schema.assert_patients_disjoint(patients, manifest.name)


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names and how many more there are, for a sentence."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more


def count_table(rows: Sequence[Row], label_names: Sequence[str]) -> str:
    """Counts per split as aligned text: pictures, patients, studies, views, masks, boxes, reports, labels."""
    splits = [split for split in schema.SPLITS if any(row.split == split for row in rows)]
    parts = [[row for row in rows if row.split == split] for split in splits] + [list(rows)]
    lines: list[tuple[str, list[int]]] = [
        ("pictures", [len(part) for part in parts]),
        ("patients", [len({row.patient_id for row in part}) for part in parts]),
        ("studies", [len({row.study_id for row in part}) for part in parts]),
    ]
    lines += [(f"view {view}", [sum(row.view == view for row in part) for part in parts]) for view in schema.VIEWS]
    lines.append(("with a mask", [sum(bool(row.mask_files) for row in part) for part in parts]))
    lines.append(("boxes", [sum(len(row.boxes) for row in part) for part in parts]))
    lines.append(
        ("with a report", [sum(bool(row.findings or row.impression or row.text) for row in part) for part in parts])
    )
    lines = [line for line in lines if line[1][-1]]
    for index, name in enumerate(label_names):
        for code, said in ((schema.PRESENT, name), (schema.UNCERTAIN, f"{name}, uncertain")):
            counts = [sum(row.labels[index] == code for row in part) for part in parts]
            if counts[-1] or code == schema.PRESENT:
                lines.append((f"label {said}", counts))
    width = max(len(line[0]) for line in lines)
    head = " " * width + "".join(f"{name:>9}" for name in [*splits, "all"])
    return "\n".join([head, *(f"{name:<{width}}" + "".join(f"{count:>9}" for count in row) for name, row in lines)])
