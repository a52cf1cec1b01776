"""Pixels of real pictures through the probe reach what was measured on them by other code."""

import os
from pathlib import Path

import cv2
import numpy as np
import pandas
import pytest

from cxrjax.evals.base import FeatureTable, Task
from cxrjax.evals.probe import probe
from cxrjax.input import crops

FOLDER = os.environ.get("CXRJAX_REAL_DATA")


@pytest.mark.skipif(not FOLDER, reason="CXRJAX_REAL_DATA names no folder of real pictures")
@pytest.mark.parametrize(
    ("name", "positive", "negative", "expected"),
    [
        ("tb_lung_masks", ("Tuberculosis",), ("Normal",), 0.84),
        ("pediatric_pneumonia", ("Bacterial pneumonia", "Viral pneumonia"), ("Normal",), 0.98),
        ("pediatric_pneumonia", ("Bacterial pneumonia",), ("Viral pneumonia",), 0.89),
    ],
)
def test_ridge_on_32_px_reaches_the_reference_points(name, positive, negative, expected):
    rows = pandas.read_csv(Path(FOLDER) / name / "labels.csv", dtype=str)
    label_names = (*positive, *negative)
    tables = {}
    for split, part in rows.groupby("split"):
        pictures = [cv2.imread(str(Path(FOLDER) / name / file), cv2.IMREAD_GRAYSCALE) for file in part["file"]]
        tables[split] = FeatureTable(
            np.stack([crops.fit(picture, 32).ravel() for picture in pictures]).astype(np.float32),
            np.array([[label in text.split("|") for label in label_names] for text in part["labels"]], np.int8),
            part["patient_id"].to_numpy(str),
            part["file"].to_numpy(str),
        )
    result = probe(**tables, task=Task("binary", positive, negative), label_names=label_names, solver="ridge")
    found = result.metrics["auroc"]
    assert found.low < expected < found.high
    assert found.value == pytest.approx(expected, abs=0.05)
