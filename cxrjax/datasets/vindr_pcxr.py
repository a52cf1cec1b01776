"""VinDr-PCXR (PediCXR): 9,125 radiographs of children as DICOM, with diagnoses and boxes of findings.

Source: Nguyen et al., Scientific Data 2023 (PediCXR); physionet.org/content/vindr-pcxr.
Layout: that of VinDr-CXR at PhysioNet: train/, test/, image_labels_train.csv and image_labels_test.csv (15 diagnoses),
annotations_train.csv and annotations_test.csv (boxes of 36 findings). One reader read each picture.
Ours: the official test part is the test split, validation is cut from train. Patients are not given: every picture
counts as its own. The projection is what the DICOM header says.
"""

from pathlib import Path

from cxrjax.datasets import vindr_cxr
from cxrjax.datasets.manifest import Manifest, Problem
from cxrjax.datasets.release import Release, completeness

PUBLISHED = {"pictures": 9125, "pictures in test": 1397}


def manifest(raw: Path) -> Manifest:
    """Reads the download; raises LayoutError for another folder, TableError for a table that cannot be read."""
    release = Release("vindr_pcxr", raw)
    frame, path = release.table("image_labels_train.csv")
    problems: list[Problem] = []
    label_names, rows = vindr_cxr.physionet(release, frame, path, problems, "UNKNOWN")
    missing = sum(problem.kind == "missing" for problem in problems)
    return Manifest(
        "vindr_pcxr",
        label_names,
        tuple(rows),
        "VinDr-PCXR (PediCXR), chest radiographs of children with a radiologist's boxes and labels. Scientific Data "
        "2023 (physionet.org/content/vindr-pcxr, PhysioNet Credentialed Health Data License).",
        tuple(problems),
        (vindr_cxr.OWN_PATIENT, *completeness(len(rows), len(rows) + missing)),
        has_boxes=True,
        published=PUBLISHED,
    )
