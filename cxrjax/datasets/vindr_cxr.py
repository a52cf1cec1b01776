"""VinDr-CXR: 18,000 PA radiographs as DICOM, with findings boxed and labelled by radiologists.

Source: Nguyen et al., Scientific Data 2022; physionet.org/content/vindr-cxr, or Kaggle (VinBigData).
Layout: PhysioNet has train/, test/, annotations_train.csv, annotations_test.csv, image_labels_train.csv and
image_labels_test.csv, with 22 boxed findings, 5 diagnoses and "No finding"; Kaggle has train/ and train.csv, with 14
findings and "No finding", and test/ without labels, which is left out. Three of 17 readers read each train picture;
PhysioNet's test part is the consensus of five.

Ours: the labels are those of the release that is read, present if more than half of the picture's readers gave them;
the boxes to judge by are those of `fusion.fuse`, and every reader's own boxes stay beside them under the reader's
name. A finding can be present without a box to judge by, where readers agree that it is there but not where.
PhysioNet's test part is the test split and validation is cut from its train part; Kaggle's is split 80/10/10.
Patients are not given: every picture counts as its own.
"""

import math
from pathlib import Path

import pandas

from cxrjax.datasets import fusion, schema
from cxrjax.datasets.manifest import Box, Manifest, Problem, Row
from cxrjax.datasets.release import Release, completeness, is_validation, missing_picture
from cxrjax.datasets.table import column

NAME = "vindr_cxr"
KAGGLE_LABELS = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Nodule/Mass",
    "Other lesion",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "No finding",
)
RENAMED = {"Other disease": "Other diseases"}  # the singular is in PhysioNet's test table only
PICTURES = (".dicom", ".dcm")
OWN_PATIENT = "No patient ids are given: every picture is its own patient, so a patient may be in two splits."

Said = dict[str, dict[str, set[str]]]  # image id -> reader -> labels


def manifest(raw: Path) -> Manifest:
    """Reads the PhysioNet or the Kaggle release, whichever is there."""
    release = Release(NAME, raw)
    frame, path = release.table("image_labels_train.csv", "train.csv")
    problems: list[Problem] = []
    remarks, published = [OWN_PATIENT], {"pictures": 15000}
    if path.name.startswith("image_labels"):
        label_names, rows = physionet(release, frame, path, problems)
        published = {"pictures": 18000, "pictures in test": 3000}
    else:
        label_names, rows = KAGGLE_LABELS, _kaggle(release, frame, path, problems)
        unlabelled = len(release.optional_files(*PICTURES, under="test"))
        if unlabelled:
            remarks.append(f"The {unlabelled} pictures in test/ have no labels in this release and are left out.")
    missing = sum(problem.kind == "missing" for problem in problems)
    return Manifest(
        NAME,
        label_names,
        tuple(rows),
        "VinDr-CXR, 18,000 PA chest radiographs with radiologists' boxes and labels. Nguyen et al., Scientific Data "
        "2022 (physionet.org/content/vindr-cxr, PhysioNet Credentialed Health Data License; "
        "Kaggle vinbigdata-chest-xray-abnormalities-detection, competition terms).",
        tuple(problems),
        (*remarks, *completeness(len(rows), len(rows) + missing)),
        has_boxes=True,
        published=published,
    )


def _kaggle(release: Release, frame: pandas.DataFrame, path: Path, problems: list[Problem]) -> list[Row]:
    said: Said = {}
    names = ("image_id", "rad_id", "class_name")
    for image_id, reader, label in zip(*(column(frame, name, path) for name in names), strict=True):
        if label in KAGGLE_LABELS:
            said.setdefault(image_id, {}).setdefault(reader, set()).add(label)
        else:
            problems.append(Problem(image_id, "row", f"{path.name} names the class {label!r}, which is not known."))
    boxes = _boxes(frame, path, problems)
    splits = {image_id: schema.assign_split(NAME, image_id) for image_id in said}
    return _rows(release, "train", said, boxes, KAGGLE_LABELS, splits, problems)


def physionet(
    release: Release, frame: pandas.DataFrame, path: Path, problems: list[Problem], projection: str = "PA"
) -> tuple[tuple[str, ...], list[Row]]:
    """Label names and rows of a release in the layout of PhysioNet; frame, path: its image_labels_train.csv."""
    tables = {"train": (frame, path), "test": release.table("image_labels_test.csv")}
    label_names = tuple(
        RENAMED.get(name, str(name)) for name in frame.columns if name.lower() not in ("", "image_id", "rad_id")
    )
    rows: list[Row] = []
    for part, (frame, path) in tables.items():
        frame = frame.rename(columns=RENAMED)
        said: Said = {}
        cells = zip(*(column(frame, name, path) for name in label_names), strict=True)
        for image_id, reader, given in zip(column(frame, "image_id", path), _readers(frame, path), cells, strict=True):
            present = {name for name, cell in zip(label_names, given, strict=True) if cell in ("1", "1.0")}
            said.setdefault(image_id, {}).setdefault(reader, set()).update(present)
        boxes = _boxes(*release.table(f"annotations_{part}.csv"), problems)
        splits = dict.fromkeys(said, "test")
        if part == "train":
            splits = {image_id: "val" if is_validation(release.name, image_id) else "train" for image_id in said}
        found = _rows(release, part, said, boxes, label_names, splits, problems)
        rows += [row._replace(view=projection) for row in found]
    return label_names, rows


def _readers(frame: pandas.DataFrame, path: Path) -> list[str]:
    """The reader of every row; "" in PhysioNet's test tables, which hold the consensus."""
    has = any(name.lower() == "rad_id" for name in frame.columns)
    return column(frame, "rad_id", path) if has else [""] * len(frame)


def _boxes(frame: pandas.DataFrame, path: Path, problems: list[Problem]) -> dict[str, list[Box]]:
    """Boxes by image id; rows without coordinates, as of "No finding" and diagnoses, are none."""
    boxes: dict[str, list[Box]] = {}
    corners = [column(frame, name, path) for name in ("x_min", "y_min", "x_max", "y_max")]
    ids, labels = (column(frame, name, path) for name in ("image_id", "class_name"))
    for image_id, label, reader, *cells in zip(ids, labels, _readers(frame, path), *corners, strict=True):
        if not any(cells):
            continue
        try:
            left, top, right, bottom = (float(cell) for cell in cells)
        except ValueError:
            left = top = right = bottom = math.nan
        if left < right and top < bottom:
            boxes.setdefault(image_id, []).append(Box(label, left, top, right - left, bottom - top, reader))
        else:
            problems.append(
                Problem(image_id, "box", f"A box of {label} in {path.name} has no area: {', '.join(cells)}.")
            )
    return boxes


def _rows(
    release: Release,
    folder: str,
    said: Said,
    boxes: dict[str, list[Box]],
    label_names: tuple[str, ...],
    splits: dict[str, str],
    problems: list[Problem],
) -> list[Row]:
    files = {path.stem: path for path in release.files(*PICTURES, under=folder).values()}
    rows = []
    for image_id, readers in said.items():
        if image_id not in files:
            problems.append(missing_picture(image_id))
            continue
        votes = [sum(name in given for given in readers.values()) for name in label_names]
        labels = tuple(schema.PRESENT if fusion.majority(vote, len(readers)) else schema.ABSENT for vote in votes)
        own = boxes.get(image_id, [])
        judged = fusion.fuse(own, len(readers)) if any(box.reader for box in own) else ()
        split = splits[image_id]
        rows.append(Row(files[image_id], image_id, image_id, image_id, split, "PA", labels, boxes=(*judged, *own)))
    for image_id in sorted(set(boxes) - set(said)):
        problems.append(Problem(image_id, "box", f"It has boxes in the table of {folder}, but no labels."))
    return rows
