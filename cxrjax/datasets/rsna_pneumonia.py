"""RSNA Pneumonia Detection Challenge: frontal radiographs of ChestX-ray14 with boxes of lung opacity and three classes.

Source: kaggle.com/c/rsna-pneumonia-detection-challenge (stage 2); Shih et al., Radiology: AI 2019.
Layout: stage_2_train_images/<patientId>.dcm, stage_2_train_labels.csv, stage_2_detailed_class_info.csv; beside them, if
it is there, RSNA's table of the NIH names, pneumonia-challenge-dataset-mappings_2018.json (from the challenge's page at
rsna.org). The pictures of stage_2_test_images have no labels and are left out. A "patientId" means one picture.
Labels: "Pneumonia" is the table's Target; the other three are its detailed classes.

Splits, by option; the set has no official one:
"patient" (ours): 80/10/10 by NIH patient where RSNA's table is there, else by picture.
"mgca_classification", "mgca_detection": by picture, as MGCA's released preprocessing draws them: patientIds in order,
scikit-learn's train_test_split with random_state 0, first the two held-out parts together, then their halves, test and
val. Classification holds out 30 % (18,678 / 4,003 / 4,003), detection 2 x 5,337 (16,010 / 5,337 / 5,337). The detection
sizes are the ones that later papers report for classification and segmentation too. Pictures of one NIH patient are in
several parts of both.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cxrjax.datasets import release
from cxrjax.datasets.manifest import Box, Manifest, Problem, Row, listed
from cxrjax.datasets.schema import ABSENT, PRESENT, assign_split
from cxrjax.datasets.table import column

CLASSES = ("Lung Opacity", "No Lung Opacity / Not Normal", "Normal")
LABELS = ("Pneumonia", *CLASSES)
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
PUBLISHED = {
    "pictures": 26684,
    "boxes": 9555,
    "label Pneumonia": 6012,
    "label Lung Opacity": 6012,
    "label No Lung Opacity / Not Normal": 11821,
    "label Normal": 8851,
}

_HELD_OUT_SHARE, _HELD_OUT = 0.3, 2 * 5337


def manifest(raw: Path, split: str = "patient") -> Manifest:
    """Reads the download; raises LayoutError for another folder, TableError for a table that cannot be read."""
    download = release.Release("rsna_pneumonia", raw)
    problems: list[Problem] = []
    targets, boxes = _targets_and_boxes(download, problems)
    class_frame, class_path = download.table("stage_2_detailed_class_info.csv")
    classes = dict(zip(*(column(class_frame, name, class_path) for name in ("patientId", "class")), strict=True))
    files = download.files(".dcm", under="stage_2_train_images")
    nih = _nih_names(download)
    splits = {} if split == "patient" else mgca_split(sorted(targets), split)
    rows = []
    for name, present in targets.items():
        file = f"{name}.dcm"
        if file not in files:
            problems.append(release.missing_picture(file))
            continue
        if present not in ({"0"}, {"1"}) or classes.get(name) not in CLASSES:
            said = f"Target {' and '.join(sorted(present))!r} and class {classes.get(name, '')!r}"
            problems.append(Problem(file, "row", f"The tables give it {said}; expected 0 or 1, and {listed(CLASSES)}."))
            continue
        picture, nih_patient = nih.get(name, ("", ""))
        patient = nih_patient or name if split == "patient" else name
        labels = (present == {"1"}, *(classes[name] == other for other in CLASSES))
        rows.append(
            Row(
                files[file],
                name,
                patient,
                name,
                splits[name] if splits else assign_split("rsna_pneumonia", patient),
                labels=tuple(PRESENT if label else ABSENT for label in labels),
                boxes=tuple(boxes.get(name, ())),
                same_picture=(f"chestxray14:{picture}",) if picture else (),
                same_patient=(f"chestxray14:{nih_patient}",) if picture else (),
            )
        )
    named = {f"{name}.dcm" for name in targets}
    unlabelled = len(set(download.optional_files(".dcm")) - named)
    remarks = [*release.completeness(len(named & set(files)), len(named))]
    if unlabelled:
        remarks.append(f"{unlabelled} pictures, as those of stage_2_test_images, have no labels and were left out.")
    return Manifest(
        "rsna_pneumonia",
        LABELS,
        tuple(rows),
        "RSNA Pneumonia Detection Challenge 2018 (Kaggle stage 2; Shih et al., Radiology: AI 2019): frontal "
        f"radiographs of NIH ChestX-ray14 with boxes of lung opacity. Split: {split}.",
        tuple(problems),
        (*remarks, *_said_of_patients(rows, split, bool(nih))),
        has_boxes=True,
        published=PUBLISHED,
    )


def _targets_and_boxes(
    download: release.Release, problems: list[Problem]
) -> tuple[dict[str, set[str]], dict[str, list[Box]]]:
    """What the label table says of each patientId: every Target that it has there, and its boxes."""
    frame, path = download.table("stage_2_train_labels.csv")
    cells = [column(frame, name, path) for name in ("patientId", "Target", "x", "y", "width", "height")]
    targets: dict[str, set[str]] = {}
    boxes: dict[str, list[Box]] = {}
    for name, present, *numbers in zip(*cells, strict=True):
        targets.setdefault(name, set()).add(present)
        if present != "1":
            continue
        box = release.box("Lung Opacity", numbers)
        if box is None:
            problems.append(Problem(name, "box", f"A box of {path.name} is not four numbers: {numbers}."))
        else:
            boxes.setdefault(name, []).append(box)
    return targets, boxes


def mgca_split(names: Sequence[str], split: str) -> dict[str, str]:
    """The part of every picture in MGCA's draw; see the module. names: all patientIds of the table, in order."""
    held_out = math.ceil(_HELD_OUT_SHARE * len(names)) if split == "mgca_classification" else _HELD_OUT
    if held_out >= len(names):
        raise ValueError(
            f"The split {split!r} holds out {held_out} pictures, but the table names only {len(names)}; "
            "use the whole table, or split=patient."
        )
    # The permutation of the legacy generator is what scikit-learn draws from, and NumPy keeps it as it is.
    order = np.random.RandomState(0).permutation(len(names)).tolist()
    rest = [names[int(position)] for position in order[:held_out]]
    half = math.ceil(held_out / 2)
    val = {rest[int(position)] for position in np.random.RandomState(0).permutation(held_out)[:half].tolist()}
    parts: dict[str, str] = dict.fromkeys(names, "train")
    parts.update(dict.fromkeys(rest, "test"))
    parts.update(dict.fromkeys(val, "val"))
    return parts


def _nih_names(download: release.Release) -> dict[str, tuple[str, str]]:
    """patientId -> picture and patient in ChestX-ray14; {} where RSNA's table is not there."""
    path = download.find(MAPPING)
    if path is None:
        return {}
    names = {}
    try:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            stem = Path(entry["img_id"]).stem
            names[entry["subset_img_id"]] = (f"{stem}.png", str(int(stem.split("_")[0])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise release.LayoutError(
            f"{path} is not RSNA's table of NIH names, a list of objects with subset_img_id and img_id "
            f"(00000001_000.png): {type(error).__name__} {error}."
        ) from None
    return names


def _said_of_patients(rows: Sequence[Row], split: str, has_mapping: bool) -> list[str]:
    if not has_mapping:
        return [
            f"{MAPPING} is not in the folder: every picture counts as its own patient, and which pictures of "
            "ChestX-ray14 these are is not known. Put RSNA's file beside the tables."
        ]
    said = []
    without = [row.image_id for row in rows if not row.same_picture]
    if without:
        said.append(f"{len(without)} pictures are not in {MAPPING}, so each is its own patient: {listed(without)}.")
    parts: dict[str, set[str]] = {}
    for row in rows:
        for patient in row.same_patient:
            parts.setdefault(patient, set()).add(row.split)
    shared = sum(len(found) > 1 for found in parts.values())
    if shared:
        said.append(f"{shared} NIH patients are in several parts of the split {split!r}, which was drawn by picture.")
    return said
