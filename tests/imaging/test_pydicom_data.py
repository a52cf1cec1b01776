"""Radiographs and lookup tables of the package pydicom-data: ours are what pydicom's own functions make of them."""

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from cxrjax.imaging import dicom

pytest.importorskip("data_store", reason="the package pydicom-data is not installed")
CODINGS = ("UNCI", "UNCR", "J2KI", "J2KR")  # uncompressed and JPEG 2000, lossy (I) and lossless (R)


def file(name):
    return get_testdata_file(name, download=False)


def shown(name):
    """What pydicom shows, 0 to 1: modality LUT, then VOI LUT or window, then inversion."""
    dataset = pydicom.dcmread(file(name))
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(float)
    if "VOILUTSequence" in dataset:
        table = np.asarray(dataset.VOILUTSequence[0].LUTData)
        low, high = table.min(), table.max()
    elif "WindowCenter" in dataset:
        low, high = 0, 2**dataset.BitsStored - 1
    else:
        low, high = np.percentile(values, [0.1, 99.9], method="inverted_cdf")
    brightness = np.clip((values - low) / (high - low), 0, 1)
    return 1 - brightness if dataset.PhotometricInterpretation == "MONOCHROME1" else brightness


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [f"RG{n}_{coding}.dcm" for n in (1, 3) for coding in CODINGS])
def test_radiographs_are_shown_as_pydicom_shows_them(name):
    picture, record = dicom.read(file(name), admit=["EXTREMITY"])
    assert np.abs(picture / 65535 - shown(name)).max() <= 1 / 255
    assert "inverted: MONOCHROME1" in record.steps and record.window


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "step"), [("mlut_18.dcm", "modality LUT of 4096"), ("vlut_04.dcm", "VOI LUT 1 of 1")])
def test_lookup_tables_are_pydicoms(name, step):
    picture, record = dicom.read(file(name))
    assert np.abs(picture / 65535 - shown(name)).max() <= 1 / 255
    assert record.steps[0].startswith(step) and not record.warnings


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [1, 3])
def test_all_codings_of_a_picture_are_equal(number):
    """The lossless ones bit for bit; JPEG 2000 that lost something is the same as its own decoded twin."""
    pictures = {coding: dicom.read(file(f"RG{number}_{coding}.dcm"), admit=["EXTREMITY"]).pixels for coding in CODINGS}
    for one, other in (("UNCR", "J2KR"), ("UNCI", "J2KI")):
        np.testing.assert_array_equal(pictures[one], pictures[other])
    assert np.abs(pictures["UNCR"].astype(int) - pictures["UNCI"]).mean() / 65535 < 1 / 255
