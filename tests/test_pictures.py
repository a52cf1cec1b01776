"""The pictures of how DICOM is read: what the page shows is what is read, and what a wrong step does."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def pictures():
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dicom(pictures):
    return pictures.dicom_pictures()


def test_files_are_read_as_they_were_meant(pictures, dicom):
    meant = np.round(255 * pictures.phantom())
    for name in set(dicom) - {"voi_lut"}:
        assert np.abs(dicom[name][0] - meant).max() <= 3, name
    curve = dicom["voi_lut"][0].astype(float)
    assert np.corrcoef(curve.ravel(), meant.ravel())[0, 1] > 0.9 and curve.std() > 1.2 * meant.std()


def test_a_wrong_step_does_what_the_page_says(dicom):
    right, wrong = ({name: pair[at].astype(float) for name, pair in dicom.items()} for at in (0, 1))
    assert np.corrcoef(right["monochrome1"].ravel(), wrong["monochrome1"].ravel())[0, 1] < -0.99
    assert np.ptp(wrong["window"]) < 45 and np.ptp(wrong["voi_lut"]) < 45
    assert wrong["rescale"].min() == 255
    assert wrong["bits"].max() < 10
    assert len(np.unique(wrong["eight_bits"])) < 16 < len(np.unique(right["eight_bits"]))


def test_the_pages_have_these_pictures(pictures, dicom):
    stored = {file.stem: Image.open(file).convert("RGB") for file in (DOCS / "images" / "dicom").glob("*.webp")}
    assert stored.keys() == dicom.keys(), "python docs/pictures.py dicom makes them again"
    for name, pair in dicom.items():
        fresh = np.asarray(pictures.side_by_side(pair).convert("RGB"), float)
        assert np.abs(fresh - np.asarray(stored[name], float)).mean() < 4, f"{name}: python docs/pictures.py dicom"
    assert all(file.stat().st_size < 60_000 for file in (DOCS / "images").rglob("*.webp"))
