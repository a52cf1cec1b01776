"""The DICOM reader against plain NumPy: what each element of the header does to the values, and what is refused."""

import io
import json
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from cxrjax.imaging import codecs, dicom, header, reader
from cxrjax.imaging.pixels import UnreadablePicture
from tests import dicom_files

LOSSLESS = [name for name in dicom_files.TRANSFER_SYNTAXES if name not in ("jpeg", "jpeg2000")]


def noise(dtype, low, high, shape=(40, 34), seed=0):
    """Values low to high (included), each extreme once at least."""
    values = np.random.default_rng(seed).integers(low, high, shape, endpoint=True)
    values[0, :2] = low, high
    return values.astype(dtype)


def smooth(dtype, high):
    return np.linspace(0, high, 40 * 34).reshape(40, 34).astype(dtype)


def sixteen(share):
    """0 to 1, clipped, on the 16-bit scale."""
    return np.round(np.clip(share, 0, 1) * 65535)


def robust(values, counted=...):
    """Between the 0.1 and 99.9 percentiles of the counted values, on the 16-bit scale."""
    low, high = np.percentile(values[counted], [0.1, 99.9], method="inverted_cdf")
    return sixteen((values - low) / (high - low))


def read(tmp_path, array, **options):
    return dicom.read(dicom_files.write(tmp_path / "picture.dcm", array, **options))


def lut(values, first, bits=16, explanation=None):
    item = Dataset()
    item.LUTDescriptor = [len(values) % 65536, first, bits]
    item.LUTData = np.asarray(values, "<u2").tobytes()
    item["LUTData"].VR = "OW"
    if explanation:
        item.LUTExplanation = explanation
    return item


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("kind", ["8 bit", "12 in 16", "signed 16", "signed 12"])
def test_every_lossless_syntax_gives_the_stored_values(tmp_path, syntax, kind):
    dtype, bits, low, high = {
        "8 bit": (np.uint8, 8, 0, 255),
        "12 in 16": (np.uint16, 12, 0, 4095),
        "signed 16": (np.int16, 16, -32768, 32767),
        "signed 12": (np.int16, 12, -2048, 2047),
    }[kind]
    array = noise(dtype, low, high)
    picture, record = read(tmp_path, array, transfer_syntax=syntax, bits_stored=bits)
    expected = array.astype(int) * 257 if bits == 8 else robust(array.astype(float))
    assert picture.dtype == np.uint16
    np.testing.assert_array_equal(picture, expected)
    assert dicom_files.TRANSFER_SYNTAXES[syntax] in record.transfer_syntax
    assert (record.rows, record.columns, record.bits_stored) == (40, 34, bits)


def test_jpeg_is_bit_identical_to_its_decoded_frame(tmp_path):
    array = noise(np.uint8, 0, 255)
    path = dicom_files.write(tmp_path / "a.dcm", array, transfer_syntax="jpeg")
    frame = next(pydicom.encaps.generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))
    decoded = np.asarray(Image.open(io.BytesIO(frame)))
    np.testing.assert_array_equal(dicom.read(path).pixels, decoded.astype(int) * 257)
    eight = reader.read(path)
    np.testing.assert_array_equal(eight.pixels, decoded)
    assert eight.pixels.dtype == np.uint8 and (eight.format, eight.bits, eight.steps) == ("dicom", 8, ())
    np.testing.assert_array_equal(reader.read(path, bits=16).pixels, decoded.astype(int) * 257)


def test_an_8_bit_jpeg_in_a_12_bit_header_is_read_as_12_bits(tmp_path):
    array = smooth(np.uint8, 250)
    path = dicom_files.write(
        tmp_path / "a.dcm", array, transfer_syntax="jpeg", BitsAllocated=16, BitsStored=12, HighBit=11
    )
    frame = next(pydicom.encaps.generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))
    decoded = np.asarray(Image.open(io.BytesIO(frame))).astype(float)
    np.testing.assert_array_equal(dicom.read(path).pixels, robust(decoded))


def test_lossy_jpeg2000_is_close(tmp_path):
    array = smooth(np.uint16, 4095)
    picture, _ = read(tmp_path, array, transfer_syntax="jpeg2000", bits_stored=12)
    assert np.abs(picture - robust(array.astype(float))).max() < 100


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


def test_stored_bits_may_be_the_upper_ones(tmp_path):
    array = noise(np.uint16, 0, 4095)
    shifted, _ = read(tmp_path, array << 4, bits_stored=12, HighBit=15)
    np.testing.assert_array_equal(shifted, robust(array.astype(float)))
    signed = noise(np.int16, -2048, 2047)
    shifted, record = read(tmp_path, signed << 4, bits_stored=12, HighBit=15)
    np.testing.assert_array_equal(shifted, robust(signed.astype(float)))
    assert record.warnings == ()


def test_overlay_bits_above_the_stored_ones_are_masked_and_said(tmp_path):
    array = noise(np.uint16, 0, 4095)
    with_overlay = array.copy()
    with_overlay[10:20] |= 0x8000
    picture, record = read(tmp_path, with_overlay, bits_stored=12)
    np.testing.assert_array_equal(picture, robust(array.astype(float)))
    assert record.warnings == ("bits above the 12 stored ones, set in 25.0% of the pixels, are ignored",)


def test_big_endian_words_of_8_bit_pixels_are_swapped(tmp_path):
    array = noise(np.uint8, 0, 255)
    path = dicom_files.write(tmp_path / "a.dcm", array, transfer_syntax="big_endian")
    dataset = pydicom.dcmread(path)
    dataset.PixelData = array.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.PixelData = np.frombuffer(array.tobytes(), "<u2").byteswap().tobytes()
    dataset.save_as(path)
    np.testing.assert_array_equal(dicom.read(path).pixels, array.astype(int) * 257)


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
def test_voi_lut_is_taken_before_a_window(tmp_path, syntax):
    array = noise(np.int16, -1000, 1000)
    table = np.arange(1500) ** 2 // 40
    picture, record = read(
        tmp_path,
        array,
        transfer_syntax=syntax,
        bits_stored=12,
        VOILUTSequence=[lut(table, -700, explanation="NORMAL"), lut(table[::-1], 0)],
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


def test_the_record_is_plain_and_has_the_facts(tmp_path):
    _, record = read(
        tmp_path,
        noise(np.uint8, 0, 255),
        ViewPosition="PA",
        ImageLaterality="L",
        PatientSex="F",
        PatientAge="057Y",
        ImagerPixelSpacing=[0.143, 0.144],
        Manufacturer="ACME",
        BurnedInAnnotation="YES",
        PresentationIntentType="FOR PROCESSING",
    )
    assert (record.view, record.laterality, record.sex, record.age) == ("PA", "L", "F", 57)
    assert (record.pixel_spacing, record.manufacturer) == ((0.143, 0.144), "ACME")
    assert record.steps[0] == "burned-in annotation: the header says YES"
    assert "FOR PROCESSING" in record.warnings[0]
    assert json.loads(json.dumps(record._asdict()))["age"] == 57
    picture = reader.read(tmp_path / "picture.dcm")
    assert picture.header == {"view": "PA", "sex": "F", "age": 57} and picture.steps == record.steps
    _, bare = read(tmp_path, noise(np.uint8, 0, 255), Modality=None, BodyPartExamined=None)
    assert (bare.view, bare.laterality, bare.sex, bare.age) == ("UNKNOWN", "", "", -1)
    assert (bare.pixel_spacing, bare.manufacturer, bare.warnings) == ((), "", ())


@pytest.mark.parametrize(
    ("age", "years"),
    [("057Y", 57), ("57", 57), ("006M", 0), ("030M", 2), ("104W", 2), ("700D", 1)]
    + [("000Y", -1), ("414Y", -1), ("", -1), ("Y", -1), ("5 Y", -1)],
)
def test_ages(age, years):
    assert header.years(age) == years


@pytest.mark.parametrize(
    ("position", "meaning", "view"),
    [
        ("PA", "", "PA"),
        ("ap", "", "AP"),
        ("AP SUPINE", "", "AP"),
        ("LL", "", "LATERAL"),
        ("RL", "", "LATERAL"),
        ("LATERAL", "", "LATERAL"),
        ("LLO", "", "UNKNOWN"),
        ("", "postero-anterior", "PA"),
        ("", "Antero-posterior projection", "AP"),
        ("", "left lateral", "LATERAL"),
        ("", "lateral", "LATERAL"),
        ("", "Postero-anterior oblique", "UNKNOWN"),
        ("", "left lateral decubitus", "UNKNOWN"),
        ("AP", "postero-anterior", "AP"),
        ("PAAP", "", "UNKNOWN"),
    ],
)
def test_views(position, meaning, view):
    assert header.view(position, meaning) == view


def test_the_view_code_stands_in_for_a_missing_view_position(tmp_path):
    code = Dataset()
    code.CodeMeaning = "postero-anterior"
    assert read(tmp_path, noise(np.uint8, 0, 255), ViewCodeSequence=[code]).record.view == "PA"


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        ({"Modality": "CT"}, "Modality is CT; radiographs have CR, DX"),
        ({"Modality": "MG"}, "Modality is MG"),
        ({"BodyPartExamined": "HAND"}, "BodyPartExamined is HAND, not the chest"),
        ({"SamplesPerPixel": 3}, "has colour .*SamplesPerPixel 3"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "has colour .*PALETTE COLOR"),
        ({"NumberOfFrames": 5}, r"several frames \(NumberOfFrames 5\)"),
        ({"Rows": None}, "header lacks Rows;"),
        ({"BitsStored": None, "HighBit": None}, "header lacks BitsStored, HighBit;"),
        ({"PhotometricInterpretation": None}, "header lacks PhotometricInterpretation"),
        ({"PixelData": None}, "no pixel data"),
        ({"Rows": 0}, "only 34 x 0 px"),
        ({"Columns": 4}, "only 4 x 40 px"),
        ({"Rows": 41}, "truncated: 1360 bytes where 34 x 41 px of 8 bits take 1394"),
        ({"Rows": 30}, "hold 1360 bytes, but 34 x 30 px of 8 bits take 1020"),
        ({"Rows": 65535, "Columns": 65535}, "declares 65535 x 65535 px .* too many"),
        ({"BitsAllocated": 32}, "BitsAllocated is 32; 8 and 16"),
        ({"BitsStored": 12}, "contradicts itself: BitsAllocated 8, BitsStored 12"),
        ({"HighBit": 5}, "contradicts itself: .*HighBit 5"),
        ({"PixelPaddingValue": 7, "PixelPaddingRangeLimit": 255}, None),
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 255}, "constant: every pixel is padding"),
    ],
)
def test_what_is_no_chest_radiograph_is_refused_by_name(tmp_path, tags, sentence):
    path = dicom_files.write(tmp_path / "a.dcm", noise(np.uint8, 0, 255), **tags)
    if sentence is None:
        assert dicom.read(path).record.padding
        return
    with pytest.raises(UnreadablePicture, match=sentence):
        reader.read(path)


def test_constant_pictures_are_refused(tmp_path):
    with pytest.raises(UnreadablePicture, match="constant: every pixel is 7"):
        read(tmp_path, np.full((40, 34), 7, np.uint8))
    with pytest.raises(UnreadablePicture, match="constant: every pixel is -5"):
        read(tmp_path, np.full((40, 34), -5, np.int16))
    flat = lut(np.full(256, 9), 0)
    with pytest.raises(UnreadablePicture, match="constant after the modality LUT"):
        read(tmp_path, noise(np.uint8, 0, 255), ModalityLUTSequence=[flat])


def test_colour_is_refused(tmp_path):
    colour = np.repeat(noise(np.uint8, 0, 255)[..., None], 3, axis=2)
    with pytest.raises(UnreadablePicture, match="has colour .*RGB"):
        read(tmp_path, colour, photometric="RGB")


@pytest.mark.parametrize("syntax", ["jpeg", "jpeg_lossless", "jpeg_ls", "jpeg2000_lossless"])
def test_a_frame_of_another_size_than_the_header_says_is_refused(tmp_path, syntax):
    with pytest.raises(UnreadablePicture, match="frame is 34 x 40 px, but the header says 34 x 30"):
        read(tmp_path, noise(np.uint8, 0, 255), transfer_syntax=syntax, Rows=30)


@pytest.mark.parametrize("syntax", ["jpeg_lossless", "jpeg_ls", "jpeg2000_lossless"])
def test_compressed_pixels_beyond_the_declared_bits_are_refused(tmp_path, syntax):
    array = noise(np.uint16, 0, 4095)
    with pytest.raises(UnreadablePicture, match="(more than the 10 bits|cannot be decoded)"):
        read(tmp_path, array, transfer_syntax=syntax, bits_stored=12, BitsStored=10, HighBit=9)


@pytest.mark.filterwarnings("ignore:End of file reached")
def test_files_cut_short_are_refused(tmp_path):
    data = dicom_files.write(tmp_path / "a.dcm", noise(np.uint8, 0, 255)).read_bytes()
    with pytest.raises(UnreadablePicture, match="truncated: they end inside element .7FE0,0010"):
        dicom.read(data[:-1])
    with pytest.raises(UnreadablePicture, match="no pixel data"):
        dicom.read(data[: -1360 - 12])
    with pytest.raises(UnreadablePicture, match="truncated or broken"):
        dicom.read(data[:132])
    data = dicom_files.write(tmp_path / "a.dcm", noise(np.uint8, 0, 255), transfer_syntax="jpeg").read_bytes()
    with pytest.raises(UnreadablePicture, match="truncated: they end inside element .7FE0,0010"):
        dicom.read(data[:-1])
    with pytest.raises(UnreadablePicture, match="truncated or broken"):
        dicom.read(data[:-8])


def test_a_jpeg_frame_without_its_end_is_refused(tmp_path):
    path = dicom_files.write(tmp_path / "a.dcm", noise(np.uint8, 0, 255), transfer_syntax="jpeg")
    dataset = pydicom.dcmread(path)
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) // 2]])
    dataset.save_as(path)
    with pytest.raises(UnreadablePicture, match="JPEG Baseline .* truncated: their end marker is missing"):
        dicom.read(path)


def test_old_files_without_the_mark_are_read(tmp_path):
    array = noise(np.uint8, 0, 255)
    path = dicom_files.write(tmp_path / "a.dcm", array, transfer_syntax="implicit")
    bare = path.read_bytes()[132:]
    np.testing.assert_array_equal(reader.read(bare).pixels, array)
    without_meta = bare[12 + int.from_bytes(bare[8:12], "little") :]
    picture = reader.read(without_meta)
    np.testing.assert_array_equal(picture.pixels, array)
    assert "TransferSyntaxUID is missing" in picture.steps[-1]


def test_a_deflated_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    path = dicom_files.write(tmp_path / "a.dcm", np.eye(300, dtype=np.uint8), transfer_syntax="deflated")
    assert dicom.read(path).record.rows == 300
    monkeypatch.setattr(dicom, "LARGEST_INFLATED", 80_000)
    with pytest.raises(UnreadablePicture, match="hold more than 80000 bytes"):
        dicom.read(path)


def test_a_missing_pydicom_or_decoder_is_told_with_the_command(tmp_path, monkeypatch):
    array = noise(np.uint8, 0, 255)
    lossless = dicom_files.write(tmp_path / "a.dcm", array, transfer_syntax="jpeg_lossless")
    monkeypatch.setattr(codecs, "PLUGINS", ())
    with pytest.raises(UnreadablePicture, match=r"JPEG Lossless.*1\.2\.840\S*70.*pip install 'cxrjax\[dicom\]'"):
        dicom.read(lossless)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UnreadablePicture, match=r"pydicom.*is not installed: pip install 'cxrjax\[dicom\]'"):
        reader.read(lossless)


def test_an_unknown_syntax_and_12_bit_jpeg_are_named(tmp_path):
    path = dicom_files.write(tmp_path / "a.dcm", noise(np.uint8, 0, 255), transfer_syntax="jpeg")
    dataset = pydicom.dcmread(path)
    for syntax, sentence in (
        ("1.2.840.10008.1.2.4.100", "MPEG2"),
        ("1.2.3.4", "transfer syntax 1.2.3.4 are not read"),
    ):
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)
        with pytest.raises(UnreadablePicture, match=sentence):
            dicom.read(path)


@pytest.mark.parametrize("program", ["import os; os.abort()", "import time; time.sleep(60)"])
def test_a_decoder_that_crashes_or_hangs_costs_one_picture_and_no_process(tmp_path, monkeypatch, program):
    array = noise(np.uint8, 0, 255)
    path = dicom_files.write(tmp_path / "a.dcm", array, transfer_syntax="jpeg_lossless")
    (tmp_path / "decoder.py").write_text(program)
    with monkeypatch.context() as patched:
        patched.setattr(codecs, "_idle", [])
        patched.setattr(codecs, "DECODER", tmp_path / "decoder.py")
        patched.setattr(codecs, "DECODE_SECONDS", 0.5)
        with pytest.raises(UnreadablePicture, match="decoder gdcm crashed or hung"):
            dicom.read(path)
        assert codecs._idle == []
    np.testing.assert_array_equal(dicom.read(path).pixels, array.astype(int) * 257)
