"""What each element of a DICOM header does to the values, against plain NumPy."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from cxrjax.imaging import dicom, pixels
from cxrjax.imaging.pixels import UnreadablePicture
from tests import dicom_files
from tests.dicom_files import noise, robust


def sixteen(share):
    """0 to 1, clipped, on the 16-bit scale."""
    return np.round(np.clip(share, 0, 1) * 65535)


def read(tmp_path, array, **options):
    return dicom.read(dicom_files.write(tmp_path / "picture.dcm", array, **options))


def lut(values, first, bits=16, explanation=None):
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(values) % 65536, first, bits])
    item.LUTData = np.asarray(values, "<u2").tobytes()
    item["LUTData"].VR = "OW"
    if explanation:
        item.LUTExplanation = explanation
    return item


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", [None, "IDENTITY", "INVERSE"])
def test_inverted_once_for_either_reason(tmp_path, photometric, shape):
    array = noise(np.uint8, 3, 200)
    tags = {"PresentationLUTShape": shape} if shape else {}
    picture, record = read(tmp_path, array, photometric=photometric, **tags)
    inverted = photometric == "MONOCHROME1" or shape == "INVERSE"
    np.testing.assert_array_equal(picture, (255 - array.astype(int) if inverted else array.astype(int)) * 257)
    assert bool(record.inversion) == inverted
    assert (photometric in record.inversion) == (photometric == "MONOCHROME1")
    assert ("INVERSE" in record.inversion) == (shape == "INVERSE")
    assert any(step.startswith("inverted: ") for step in record.steps) == inverted


def test_inversion_covers_the_range_in_hand_not_the_declared_bits(tmp_path):
    array = noise(np.uint16, 500, 900)
    picture, _ = read(tmp_path, array, photometric="MONOCHROME1", bits_stored=16)
    assert np.abs(picture - (65535 - robust(array.astype(float)))).max() <= 1
    assert picture.min() == 0 and picture.max() == 65535


@pytest.mark.parametrize(
    ("function", "brightness"),
    [
        (None, lambda x: (x - (1500 - 0.5)) / (800 - 1) + 0.5),
        ("LINEAR", lambda x: (x - (1500 - 0.5)) / (800 - 1) + 0.5),
        ("LINEAR_EXACT", lambda x: (x - 1500) / 800 + 0.5),
        ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 1500) / 800))),
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_window_functions(tmp_path, function, brightness, photometric):
    array = noise(np.uint16, 0, 4095)
    tags = {"VOILUTFunction": function} if function else {}
    picture, record = read(
        tmp_path, array, bits_stored=12, photometric=photometric, WindowCenter=1500, WindowWidth=800, **tags
    )
    expected = sixteen(brightness(array.astype(float)))
    if photometric == "MONOCHROME1":
        expected = 65535 - expected
    assert np.abs(picture - expected).max() <= 1
    assert record.window == f"window 1 of 1: centre 1500, width 800, {function or 'LINEAR'}"
    assert record.scaling == "" and record.steps[0] == record.window


def test_first_of_several_windows_is_taken_and_named(tmp_path):
    array = noise(np.uint16, 0, 4095)
    picture, record = read(
        tmp_path,
        array,
        bits_stored=12,
        WindowCenter=[2000, 700],
        WindowWidth=[1001, 100],
        WindowCenterWidthExplanation=["NORMAL", "HARD"],
    )
    np.testing.assert_array_equal(picture, sixteen((array.astype(float) - 1999.5) / 1000 + 0.5))
    assert record.window == "window 1 of 2 (NORMAL): centre 2000, width 1001, LINEAR"


def test_the_whole_range_as_window_leaves_8_bits_as_they_are(tmp_path):
    array = noise(np.uint8, 0, 255)
    picture, _ = read(tmp_path, array, WindowCenter=128, WindowWidth=256)
    np.testing.assert_array_equal(picture, array.astype(int) * 257)


@pytest.mark.parametrize(
    ("centre", "width", "why"),
    [
        (9000, 100, "almost no contrast"),
        (-5, 10, "almost no contrast"),
        (2000, 1e7, "almost no contrast"),
        (2000, 4, "almost no contrast"),
        (2000, 1, "width is too small"),
        (2000, 0, "width is too small"),
        (2000, -400, "width is too small"),
    ],
)
def test_absurd_windows_fall_back_to_percentiles_and_warn(tmp_path, centre, width, why):
    array = noise(np.uint16, 0, 4095)
    picture, record = read(tmp_path, array, bits_stored=12, WindowCenter=centre, WindowWidth=width)
    np.testing.assert_array_equal(picture, robust(array.astype(float)))
    assert record.window == "" and "percentiles" in record.scaling
    assert len(record.warnings) == 1 and why in record.warnings[0]
    assert f"warning: {record.warnings[0]}" in record.steps


@pytest.mark.parametrize("name", ["window", "marker"])
def test_a_grey_range_that_leaves_few_levels_is_passed_over_and_said(tmp_path, name):
    """12 bits of values in a window of 16, or beside a full-scale marker on 0.5 % of the pixels."""
    array = noise(np.uint16, 200, 4000, (100, 100))
    tags = {"bits_stored": 12, "WindowCenter": 32768, "WindowWidth": 65536} if name == "window" else {}
    if name == "marker":
        array[0, :50] = 65535
    path = dicom_files.write(tmp_path / "a.dcm", array, **tags)
    picture, record = dicom.read(path, bits=8)
    assert len(np.unique(picture[1:])) > 200
    assert pixels.spread(picture) > 0.75
    said = [step for step in record.steps if step.startswith("grey range chosen anew: ")]
    assert len(said) == 1 and "left the middle 98 % of the pixels" in said[0]
    declared, record = dicom.read(path, bits=8, check_grey_range=False)
    assert declared[1:].max() <= 16
    assert not [step for step in record.steps if step.startswith("grey range")]


def test_a_window_that_is_only_dim_is_kept(tmp_path):
    array = noise(np.uint16, 0, 4095)
    _, record = read(tmp_path, array, bits_stored=12, WindowCenter=7000, WindowWidth=14000)
    assert record.window.startswith("window 1 of 1: centre 7000")


def test_rescaling_comes_before_the_window(tmp_path):
    array = noise(np.uint16, 0, 4095)
    picture, record = read(
        tmp_path, array, bits_stored=12, RescaleSlope=0.5, RescaleIntercept=-1000, WindowCenter=0, WindowWidth=1001
    )
    np.testing.assert_array_equal(picture, sixteen((array * 0.5 - 1000 + 0.5) / 1000 + 0.5))
    assert record.steps[:1] == ("rescaled: slope 0.5, intercept -1000",)


def test_a_negative_slope_turns_the_scale_round(tmp_path):
    array = noise(np.uint8, 0, 250)
    picture, _ = read(tmp_path, array, RescaleSlope=-1, RescaleIntercept=255)
    np.testing.assert_array_equal(picture, (255 - array.astype(int)) * 257)
    deep = noise(np.uint16, 0, 4095)
    picture, _ = read(tmp_path, deep, bits_stored=12, RescaleSlope=-2, RescaleIntercept=0)
    np.testing.assert_array_equal(picture, robust(deep * -2.0))


@pytest.mark.parametrize("slope", [0, 1e30])
def test_absurd_rescaling_is_ignored_with_a_warning(tmp_path, slope):
    array = noise(np.uint8, 0, 255)
    picture, record = read(tmp_path, array, RescaleSlope=slope, RescaleIntercept=0)
    np.testing.assert_array_equal(picture, array.astype(int) * 257)
    assert "absurd" in record.warnings[0] and record.rescaling == ""


def test_modality_lut_comes_before_the_window(tmp_path):
    array = noise(np.uint16, 0, 4095)
    table = (np.sqrt(np.arange(3000)) * 50).astype(int)
    picture, record = read(
        tmp_path, array, bits_stored=12, ModalityLUTSequence=[lut(table, 200)], WindowCenter=1400, WindowWidth=1001
    )
    values = table[np.clip(array.astype(int) - 200, 0, 2999)]
    np.testing.assert_array_equal(picture, sixteen((values - 1399.5) / 1000 + 0.5))
    assert record.rescaling == "modality LUT of 3000 entries"


@pytest.mark.parametrize("syntax", ["implicit", "explicit"])
@pytest.mark.parametrize("first", [-700, 65536 - 700])
def test_voi_lut_is_taken_before_a_window(tmp_path, syntax, first):
    array = noise(np.int16, -1000, 1000)
    table = np.arange(1500) ** 2 // 40
    picture, record = read(
        tmp_path,
        array,
        transfer_syntax=syntax,
        bits_stored=12,
        VOILUTSequence=[lut(table, first, explanation="NORMAL"), lut(table[::-1], 0)],
        WindowCenter=0,
        WindowWidth=500,
    )
    values = table[np.clip(array.astype(int) + 700, 0, 1499)]
    np.testing.assert_array_equal(picture, sixteen(values / table.max()))
    assert record.window == "VOI LUT 1 of 2 (NORMAL): 1500 entries"


def test_a_broken_voi_lut_leaves_the_window_and_a_broken_modality_lut_nothing(tmp_path):
    array = noise(np.uint16, 0, 4095)
    broken = lut(np.arange(100), 0)
    broken.LUTData = b"\0" * 20
    picture, record = read(
        tmp_path, array, bits_stored=12, VOILUTSequence=[broken], WindowCenter=2000, WindowWidth=1001
    )
    np.testing.assert_array_equal(picture, sixteen((array - 1999.5) / 1000 + 0.5))
    assert record.warnings == ("the VOI LUT is broken and ignored",)
    with pytest.raises(UnreadablePicture, match="modality LUT is broken"):
        read(tmp_path, array, bits_stored=12, ModalityLUTSequence=[broken])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("tags", "low", "high"),
    [
        ({"PixelPaddingValue": 4000}, 4000, 4000),
        ({"PixelPaddingValue": 3900, "PixelPaddingRangeLimit": 4095}, 3900, 4095),
        ({"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 3900}, 3900, 4095),
    ],
)
def test_padding_is_black_and_not_counted(tmp_path, photometric, tags, low, high):
    array = noise(np.uint16, 1000, 2000)
    array[:, :10] = noise(np.uint16, low, high, (40, 10))
    padded = (array >= low) & (array <= high)
    picture, record = read(tmp_path, array, bits_stored=12, photometric=photometric, **tags)
    expected = robust(array.astype(float), ~padded)
    expected = np.where(padded, 0, 65535 - expected if photometric == "MONOCHROME1" else expected)
    assert np.abs(picture - expected).max() <= 1 and picture[padded].max() == 0
    assert record.padding.startswith("29.4% of the pixels")


def test_padding_written_as_unsigned_is_known_among_signed_pixels(tmp_path):
    array = noise(np.int16, -500, 500)
    array[:, :10] = -2000
    path = dicom_files.write(tmp_path / "a.dcm", array, photometric="MONOCHROME1")
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)
    dataset.save_as(path)
    picture, _ = dicom.read(path)
    padded = array == -2000
    expected = np.where(padded, 0, 65535 - robust(array.astype(float), ~padded))
    assert np.abs(picture - expected).max() <= 1 and picture[padded].max() == 0


def test_padding_that_no_pixel_has_changes_nothing(tmp_path):
    array = noise(np.uint8, 10, 255)
    picture, record = read(tmp_path, array, PixelPaddingValue=0)
    np.testing.assert_array_equal(picture, array.astype(int) * 257)
    assert record.padding == "" and record.steps == ()


def test_constant_pictures_are_refused(tmp_path):
    with pytest.raises(UnreadablePicture, match="constant: every pixel is 7"):
        read(tmp_path, np.full((40, 34), 7, np.uint8))
    with pytest.raises(UnreadablePicture, match="constant: every pixel is -5"):
        read(tmp_path, np.full((40, 34), -5, np.int16))
    flat = lut(np.full(256, 9), 0)
    with pytest.raises(UnreadablePicture, match="constant after the modality LUT"):
        read(tmp_path, noise(np.uint8, 0, 255), ModalityLUTSequence=[flat])
    nearly = lut([0, 1] * 100 + [65535] * 56, 0)
    with pytest.raises(UnreadablePicture, match="differ by less than one of 256 grey levels"):
        read(tmp_path, noise(np.uint8, 0, 199), ModalityLUTSequence=[nearly])
