"""NIH ChestX-ray14: frontal radiographs with 14 findings mined from reports, and boxes for eight of them.

Source: the NIH Clinical Center, nihcc.app.box.com/v/ChestXray-NIHCC (also Kaggle nih-chest-xrays/data); Wang et al.,
ChestX-ray8, CVPR 2017.
Layout: the PNG files in one images/ or in images_001/images/ ..., Data_Entry_2017_v2020.csv or Data_Entry_2017.csv,
train_val_list.txt, test_list.txt and, for the boxes, BBox_List_2017.csv.
Ours: the validation part, a tenth of the patients of train_val_list; "Infiltrate" of the box list is written
Infiltration, as in the labels; boxes are scaled where a picture does not have the 1024 px that they are written in.
"""

from pathlib import Path

from cxrjax.datasets import release
from cxrjax.datasets.manifest import Box, Manifest, Problem, Row, listed
from cxrjax.datasets.schema import ABSENT, PRESENT
from cxrjax.datasets.table import column

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
)
LABELS = (*FINDINGS, "No Finding")
BOX_PX = 1024
PUBLISHED = {
    "pictures": 112120,
    "pictures in test": 25596,
    "patients": 30805,
    "projection PA": 67310,
    "projection AP": 44810,
    "boxes": 984,
    "label Atelectasis": 11559,
    "label Cardiomegaly": 2776,
    "label Consolidation": 4667,
    "label Edema": 2303,
    "label Effusion": 13317,
    "label Emphysema": 2516,
    "label Fibrosis": 1686,
    "label Hernia": 227,
    "label Infiltration": 19894,
    "label Mass": 5782,
    "label Nodule": 6331,
    "label Pleural_Thickening": 3385,
    "label Pneumonia": 1431,
    "label Pneumothorax": 5302,
    "label No Finding": 60361,
}


def manifest(raw: Path) -> Manifest:
    """Reads the download; raises LayoutError for another folder, TableError for a table that cannot be read."""
    download = release.Release("chestxray14", raw)
    frame, path = download.table("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
    fields = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender")
    cells = [column(frame, name, path) for name in (*fields, "View Position")]
    test = set(download.lines("test_list.txt")[0])
    train_val = set(download.lines("train_val_list.txt")[0])
    files = download.files(".png")
    problems: list[Problem] = []
    rows = []
    for name, findings, follow_up, patient, age, sex, projection in zip(*cells, strict=True):
        labels = set(findings.split("|"))
        unknown = sorted(labels - set(LABELS))
        if unknown:
            problems.append(Problem(name, "row", f"{path.name} gives it the finding {listed(unknown)}, which is none."))
        elif name not in test and name not in train_val:
            problems.append(Problem(name, "row", "It is in neither train_val_list.txt nor test_list.txt."))
        elif name not in files:
            problems.append(release.missing_picture(name))
        else:
            rows.append(
                Row(
                    files[name],
                    name,
                    patient,
                    f"{patient}_{follow_up}",
                    "test" if name in test else "val" if release.is_validation("chestxray14", patient) else "train",
                    projection if projection in ("PA", "AP") else "UNKNOWN",
                    tuple(PRESENT if label in labels else ABSENT for label in LABELS),
                    sex=release.sex(sex),
                    age=release.years(age),
                )
            )
    remarks = list(release.completeness(sum(name in files for name in cells[0]), len(frame)))
    boxes = _boxes(download, set(cells[0]), problems, remarks)
    unlisted = sorted(set(files) - set(cells[0]))
    if unlisted:
        remarks.append(f"{len(unlisted)} pictures are not in {path.name} and were left out: {listed(unlisted)}.")
    return Manifest(
        "chestxray14",
        LABELS,
        tuple(row._replace(boxes=tuple(boxes.get(row.image_id, ()))) for row in rows),
        "NIH ChestX-ray14 (NIH Clinical Center, nihcc.app.box.com/v/ChestXray-NIHCC; Wang et al., ChestX-ray8, CVPR "
        "2017). Frontal radiographs; labels mined from reports; boxes drawn by a radiologist.",
        tuple(problems),
        tuple(remarks),
        has_boxes=True,
        published=PUBLISHED,
    )


def _boxes(
    download: release.Release, names: set[str], problems: list[Problem], remarks: list[str]
) -> dict[str, list[Box]]:
    """The boxes of every picture."""
    found = download.optional_table("BBox_List_2017.csv")
    if found is None:
        remarks.append("There is no BBox_List_2017.csv: the set is written without its boxes.")
        return {}
    frame, path = found
    # The header names one column "Bbox [x,y,w,h]" without quotes: four columns to a reader.
    cells = [column(frame, name, path) for name in ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")]
    boxes: dict[str, list[Box]] = {}
    for name, label, *numbers in zip(*cells, strict=True):
        label = "Infiltration" if label == "Infiltrate" else label
        if name not in names or label not in FINDINGS:
            problems.append(Problem(name, "box", f"{path.name} has a box of {label!r} for it; one of them is unknown."))
            continue
        box = release.box(label, numbers)
        if box is None:
            problems.append(Problem(name, "box", f"A box of {path.name} is not four numbers: {numbers}."))
            continue
        boxes.setdefault(name, []).append(box._replace(frame=(BOX_PX, BOX_PX)))
    return boxes
