"""One study of the phantom, from (seed, index) to records: patient, diseases, two pictures, report."""

from typing import NamedTuple

import cv2
import numpy as np

from cxrjax.phantom.anatomy import Anatomy, draw_patient, draw_study
from cxrjax.phantom.dictation import Report, dictate
from cxrjax.phantom.findings import Finding, draw_findings, label_vector
from cxrjax.phantom.radiograph import Radiograph, render, shared_grains

# Patients come in blocks of ten with twenty studies, so that a study's patient needs no count of those before it.
BLOCK_PATIENTS, BLOCK_STUDIES = 10, 20
_STUDIES_OF_PATIENTS = (1, 1, 1, 2, 2, 2, 2, 3, 3, 3)
_SPLIT_OF_PATIENTS = ("train", "val", "test", "train", "train", "train", "test", "train", "train", "train")
FEWEST_STUDIES = 9
PORTABLE_SHARE = 0.22
JPEG_QUALITY = 95
# Streams of random numbers beside the study's own (seed, index).
_PATIENT_STREAM, _BLOCK_STREAM = 1, 2


class Study(NamedTuple):
    patient: int
    body: Anatomy
    findings: list[Finding]
    labels: np.ndarray
    report: Report
    radiographs: tuple[Radiograph, Radiograph]


def patient_of(seed: int, index: int) -> int:
    """The patient that study `index` belongs to; a patient has one to three studies."""
    block, place = divmod(index, BLOCK_STUDIES)
    sizes = np.random.default_rng((seed, block, _BLOCK_STREAM)).permutation(_STUDIES_OF_PATIENTS)
    return block * BLOCK_PATIENTS + int(np.searchsorted(np.cumsum(sizes), place, side="right"))


def split_of(seed: int, index: int) -> str:
    """Split of a study's patient: seven, one and two patients of every ten, so small sets have all three splits."""
    return _SPLIT_OF_PATIENTS[patient_of(seed, index) % BLOCK_PATIENTS]


def make_study(seed: int, index: int, short_side: int = 256) -> Study:
    """Renders a study; the anatomy, the diseases and the report do not depend on `short_side` (pixels)."""
    cv2.setNumThreads(0)
    patient = patient_of(seed, index)
    anatomy = draw_patient(np.random.default_rng((seed, patient, _PATIENT_STREAM)))
    rng = np.random.default_rng((seed, index))
    body, findings = draw_findings(draw_study(anatomy, rng), rng)
    report = dictate(findings, rng)
    frontal = "AP" if rng.random() < PORTABLE_SHARE else "PA"
    streams = rng.spawn(2)
    grains = shared_grains(body, 34.0 / short_side)
    pictures = [
        render(projection, short_side, body, findings, grains, stream)
        for projection, stream in zip((frontal, "LATERAL"), streams, strict=True)
    ]
    return Study(patient, body, findings, label_vector(findings), report, (pictures[0], pictures[1]))


def records(seed: int, index: int, short_side: int) -> list[dict]:
    """The study as two records of the schema, pictures encoded."""
    study = make_study(seed, index, short_side)
    study_id = f"phantom-{seed}-{index:06d}"
    report = {"findings": study.report.findings, "impression": study.report.impression, "text": study.report.text}
    return [
        {
            "image": cv2.imencode(".jpg", radiograph.image, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1].tobytes(),
            "image_id": f"{study_id}-{radiograph.projection}",
            "patient_id": f"phantom-{seed}-patient-{study.patient:06d}",
            "study_id": study_id,
            "view": radiograph.projection,
            "labels": study.labels,
            "mask": cv2.imencode(".png", radiograph.lungs)[1].tobytes(),
            "has_mask": True,
            "finding_mask": cv2.imencode(".png", radiograph.findings)[1].tobytes(),
            "boxes": [
                {"bbox": dict(zip(("ymin", "xmin", "ymax", "xmax"), box, strict=True)), "label": label}
                for label, box in radiograph.boxes
            ],
            "report": report,
        }
        for radiograph in study.radiographs
    ]
