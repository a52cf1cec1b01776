"""Files of any kind by their content, and the raw files of JSRT by their name."""

import cv2
import numpy as np
import pytest

from cxrjax.imaging import reader
from cxrjax.imaging.pixels import UnreadablePicture
from tests import dicom_files


def raw(values):
    return values.astype(">u2").tobytes()


@pytest.fixture(scope="module")
def film():
    return np.random.default_rng(0).integers(0, 4096, (2048, 2048))


def test_content_decides_not_the_name(tmp_path):
    array = dicom_files.noise(np.uint8, 0, 255)
    dicom_files.write(tmp_path / "dicom.png", array, PatientSex="M")
    cv2.imwrite(str(tmp_path / "picture.png"), array)
    (tmp_path / "picture.png").rename(tmp_path / "picture.dcm")
    found = {name: reader.read(tmp_path / name) for name in ("dicom.png", "picture.dcm")}
    for picture in found.values():
        np.testing.assert_array_equal(picture.pixels, array)
    assert [picture.format for picture in found.values()] == ["dicom", "png"]
    assert found["dicom.png"].header["sex"] == "M" and found["picture.dcm"].header == {}


def test_deep_dicom_is_rounded_to_8_bits(tmp_path):
    array = dicom_files.noise(np.uint16, 0, 4095)
    path = dicom_files.write(tmp_path / "a.dcm", array, bits_stored=12)
    np.testing.assert_array_equal(reader.read(path, bits=16).pixels, dicom_files.robust(array.astype(float)))
    np.testing.assert_array_equal(reader.read(path).pixels, np.round(dicom_files.robust(array.astype(float)) / 257))


def test_a_broken_download_is_told_as_such(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"<html>403 Forbidden</html>")
    with pytest.raises(UnreadablePicture, match="HTML or XML page, perhaps from a failed download"):
        reader.read(tmp_path / "a.dcm")


@pytest.mark.parametrize("name", ["JPCLN001.IMG", "jpcnn002.img"])
def test_raw_jsrt_files_are_inverted_and_scaled_by_their_12_bits(tmp_path, film, name):
    (tmp_path / name).write_bytes(raw(film))
    picture = reader.read(tmp_path / name)
    assert np.abs(picture.pixels - (4095 - film) / 4095 * 255).max() <= 0.5
    assert (picture.format, picture.bits, picture.source_height) == ("img", 12, 2048)
    assert picture.steps[0].startswith("inverted: ") and "values 0 to 4095 (declared)" in picture.steps[1]
    deep = reader.read(tmp_path / name, bits=16)
    assert np.abs(deep.pixels - (4095 - film) / 4095 * 65535).max() <= 0.5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda film: raw(film)[:-2], "has 8388606 bytes; a picture of the JSRT database has 8388608"),
        (lambda film: film.astype("<u2").tobytes(), "value 65295; .* has 12 bits, big-endian"),
        (lambda film: raw(film * 0 + 7), "constant: every pixel is 7"),
    ],
)
def test_other_raw_files_are_refused(tmp_path, film, change, sentence):
    (tmp_path / "a.IMG").write_bytes(change(film))
    with pytest.raises(UnreadablePicture, match=sentence):
        reader.read(tmp_path / "a.IMG")
