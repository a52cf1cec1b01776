"""Pictures of ChestX-ray14 with the labels of Google's radiologists instead of those mined from reports.

The form of the tables is taken from their documentation and from loaders, not seen in a file.
Source: cloud.google.com/healthcare-api/docs/resources/public-datasets/nih-chest. four: Majkowska et al., Radiology
2019, four findings of 4,374 pictures, adjudicated by three radiologists. all: Nabulsi et al., Scientific Reports 2021,
the 14 findings of 810 of them, by majority of three.
Layout: four_findings_expert_labels/ with validation_labels.csv and test_labels.csv (Image Index, and YES or NO for each
finding) and all_findings_expert_labels/test_labels.csv (Image ID, Abnormal, the findings and Other), or the same files
with the folder's name before their own, laid into the folder of ChestX-ray14.
Ours: of `four`, the validation part is cut into train and val by patient, less the patients of the test part; `all` has
a test part alone. No Finding is what is not Abnormal.
"""

from collections.abc import Sequence
from pathlib import Path

from cxrjax.datasets import chestxray14, release
from cxrjax.datasets.manifest import Manifest, Problem, Row
from cxrjax.datasets.schema import ABSENT, NOT_MENTIONED, PRESENT, UNCERTAIN
from cxrjax.datasets.table import column

FOUR = ("Fracture", "Pneumothorax", "Airspace opacity", "Nodule or mass")
ALL = (*chestxray14.FINDINGS, "No Finding", "Other")
PUBLISHED = {"four": {"pictures": 4374, "pictures in test": 1962}, "all": {"pictures": 810, "pictures in test": 810}}
_LABELS = {"YES": PRESENT, "1": PRESENT, "NO": ABSENT, "0": ABSENT, "HEDGE": UNCERTAIN, "": NOT_MENTIONED}
_NORMAL = {PRESENT: ABSENT, ABSENT: PRESENT}
_COLUMNS = {"Pleural_Thickening": "Pleural Thickening", "No Finding": "Abnormal"}


def manifest(raw: Path, labels: str = "four") -> Manifest:
    """Reads ChestX-ray14 and one set of labels, "four" or "all" findings.

    Raises LayoutError for another folder, TableError for a table that cannot be read.
    """
    download = release.Release("nih_google", raw)
    names = FOUR if labels == "four" else ALL
    problems: list[Problem] = []
    labels_of = {
        part: _labels(download, f"{labels}_findings_expert_labels", part, names, problems)
        for part in (("test", "validation") if labels == "four" else ("test",))
    }
    whole = chestxray14.manifest(raw)
    rows_of = {row.image_id: row for row in whole.rows}
    reasons = {problem.file: problem for problem in whole.problems if problem.kind in ("missing", "row")}
    rows: list[Row] = []
    for part, given in labels_of.items():
        for image_id, found in given.items():
            row = rows_of.get(image_id)
            if row is None:
                unknown = Problem(image_id, "row", "Google's labels name it, but the table of ChestX-ray14 does not.")
                problems.append(reasons.get(image_id, unknown))
            else:
                held_out = release.is_validation("nih_google", row.patient_id)
                split = "test" if part == "test" else "val" if held_out else "train"
                rows.append(_labelled(row, split, found))
    tested = {row.patient_id for row in rows if row.split == "test"}
    kept = [row for row in rows if row.split == "test" or row.patient_id not in tested]
    remarks = [remark for remark in whole.remarks if "BBox_List" in remark]
    if len(kept) < len(rows):
        remarks.append(
            f"{len(rows) - len(kept)} pictures of the validation part were left out: they are of test patients."
        )
    named = sum(map(len, labels_of.values()))
    return Manifest(
        "nih_google",
        names,
        tuple(kept),
        "Pictures of NIH ChestX-ray14 (NIH Clinical Center, nihcc.app.box.com/v/ChestXray-NIHCC) with labels by "
        "radiologists of Google (Majkowska et al., Radiology 2019; Nabulsi et al., Scientific Reports 2021).",
        tuple(problems),
        (*release.completeness(named - sum(problem.kind == "missing" for problem in problems), named), *remarks),
        has_boxes=True,
        published=PUBLISHED[labels],
    )


def _labelled(row: Row, split: str, labels: tuple[int, ...]) -> Row:
    """The row of ChestX-ray14 as one of this set, with its origin for the guard against leaks."""
    origin = {
        "same_picture": (f"chestxray14:{row.image_id}",),
        "same_patient": (f"chestxray14:{row.patient_id}",),
    }
    return row._replace(split=split, labels=labels, **origin)


def _labels(
    download: release.Release, folder: str, part: str, names: Sequence[str], problems: list[Problem]
) -> dict[str, tuple[int, ...]]:
    """The labels of every picture of a part; those with a cell that is none are problems."""
    frame, path = download.table(f"{folder}_{part}_labels.csv", f"{folder}/{part}_labels.csv")
    images = column(frame, "Image Index" if names == FOUR else "Image ID", path)
    table = [column(frame, _COLUMNS.get(name, name), path) for name in names]
    made = {}
    for image_id, *cells in zip(images, *table, strict=True):
        found = [_LABELS.get(cell.upper()) for cell in cells]
        known = [label for label in found if label is not None]
        if len(known) < len(found):
            odd = cells[found.index(None)]
            problems.append(
                Problem(image_id, "row", f"{path.name} has the label {odd!r}; known are YES, NO and HEDGE.")
            )
            continue
        if "No Finding" in names:
            place = names.index("No Finding")
            known[place] = _NORMAL.get(known[place], known[place])
        made[image_id] = tuple(known)
    return made
