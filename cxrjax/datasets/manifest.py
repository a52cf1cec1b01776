"""The manifest: every raw set in one form, before its pictures are converted.

A set's module only has to say which file is which picture of which patient; checks, counts and conversion are shared.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from cxrjax.datasets import schema
from cxrjax.imaging.masks import MaskSource


class Box(NamedTuple):
    """A box in pixels of the raw picture; x, y is its top-left corner.

    reader: who drew it, where several did; "" is the box to judge by: the only one, or the fused one.
    phrase: the words of a report that the box shows. frame: width and height of the picture that the numbers are of,
    where that may have another size than the raw picture; (1, 1) for relative ones.
    """

    label: str
    x: float
    y: float
    width: float
    height: float
    reader: str = ""
    phrase: str = ""
    frame: tuple[float, float] | None = None


class Row(NamedTuple):
    """One picture of a raw set.

    view: the projection. labels: c values of schema. masks: united (left and right lung, for example). extra_masks: the
    same for each of the manifest's extra_mask_names. sex: "F", "M" or "". age: years, -1 where unknown. same_picture,
    same_patient: its ids in other sets as "set:id". Projection, sex and age are taken from a DICOM header where they
    are not given.
    """

    file: Path
    image_id: str
    patient_id: str
    study_id: str
    split: str
    view: str = "UNKNOWN"
    labels: tuple[int, ...] = ()
    masks: tuple[MaskSource, ...] = ()
    boxes: tuple[Box, ...] = ()
    findings: str = ""
    impression: str = ""
    text: str = ""
    sex: str = ""
    age: int = -1
    extra_masks: tuple[tuple[MaskSource, ...], ...] = ()
    same_picture: tuple[str, ...] = ()
    same_patient: tuple[str, ...] = ()


class Problem(NamedTuple):
    """One file that could not be used as the set promises.

    kind: "missing", "picture", "mask", "box", "report" or "row".
    """

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
    extra_mask_names: tuple[str, ...] = ()  # structures beside the one of `masks`
    published: Mapping[str, int] = MappingProxyType({})  # what the publisher counts, by line of `count_table`


def check(manifest: Manifest) -> None:
    """Raises ValueError for repeated image ids, unknown splits or projections, or a patient in two splits."""
    repeated = [name for name, count in Counter(row.image_id for row in manifest.rows).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} image ids of set {manifest.name!r} are not unique: {listed(repeated)}. "
            "Use a column that is different for every picture, or the file name; of an official table remove what is "
            "there twice."
        )
    for what, given, known in (
        ("split", {row.split for row in manifest.rows}, schema.SPLITS),
        ("projection", {row.view for row in manifest.rows}, schema.PROJECTIONS),
    ):
        unknown = sorted(given - set(known))
        if unknown:
            raise ValueError(f"Unknown {what} {listed(unknown)} in set {manifest.name!r}; known: {', '.join(known)}.")
    patients = {split: {row.patient_id for row in manifest.rows if row.split == split} for split in schema.SPLITS}
    schema.assert_patients_disjoint(patients, manifest.name)


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names and how many more there are, for a sentence."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more


def count_table(
    rows: Sequence[Row],
    label_names: Sequence[str],
    published: Mapping[str, int] = MappingProxyType({}),
    marked: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> str:
    """Counts per split as aligned text: pictures, patients, studies, projections, masks, boxes, reports, labels.

    published: what the publisher counts, shown beside them; keyed "pictures", "label Mass" ... or "pictures in test".
    marked: further lines, the image ids that each of them counts.
    """
    splits = [split for split in schema.SPLITS if any(row.split == split for row in rows)]
    parts = [[row for row in rows if row.split == split] for split in splits] + [list(rows)]
    lines: list[tuple[str, list[int]]] = [
        ("pictures", [len(part) for part in parts]),
        ("patients", [len({row.patient_id for row in part}) for part in parts]),
        ("studies", [len({row.study_id for row in part}) for part in parts]),
    ]
    lines += [
        (f"projection {name}", [sum(row.view == name for row in part) for part in parts]) for name in schema.PROJECTIONS
    ]
    lines.append(("with a mask", [sum(bool(row.masks) for row in part) for part in parts]))
    lines.append(("boxes", [sum(not box.reader for row in part for box in row.boxes) for part in parts]))
    lines.append(
        ("with a report", [sum(bool(row.findings or row.impression or row.text) for row in part) for part in parts])
    )
    lines += [(name, [sum(row.image_id in ids for row in part) for part in parts]) for name, ids in marked.items()]
    lines = [line for line in lines if line[1][-1] or line[0] in published]
    for index, name in enumerate(label_names):
        for code, said in ((schema.PRESENT, name), (schema.UNCERTAIN, f"{name}, uncertain")):
            counts = [sum(row.labels[index] == code for row in part) for part in parts]
            if counts[-1] or code == schema.PRESENT:
                lines.append((f"label {said}", counts))
    cells = [["", *splits, "all"], *([name, *map(str, counts)] for name, counts in lines)]
    if published:
        cells = [cells[0] + ["published"], *(_with_published(row, splits, published) for row in cells[1:])]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    rows = [
        [f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in cells
    ]
    return "\n".join("  ".join(row).rstrip() for row in rows)


def _with_published(row: list[str], splits: list[str], published: Mapping[str, int]) -> list[str]:
    name, *counts, whole = row
    stated = [published.get(f"{name} in {split}") for split in splits]
    beside = [count if known is None else f"{count} of {known}" for count, known in zip(counts, stated, strict=True)]
    return [name, *beside, whole, str(published.get(name, ""))]
