"""Thousands of damaged files: each is a usable picture or refused with a sentence, and one that was cut never passes.

The seeds are fixed, so that a failure comes back.
"""

import io
import struct
import zlib

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from cxrjax.imaging import codecs, pixels, reader
from cxrjax.imaging.pixels import UnreadablePicture
from tests import dicom_files

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # pydicom warns of what it is given here

MUTATIONS = 600
HEADER_MUTATIONS = 500
VALUES = {
    "Rows": [0, 1, 7, 39, 41, 65535],
    "Columns": [0, 1, 33, 35, 65535],
    "BitsAllocated": [0, 1, 8, 12, 16, 32, 64, 65535],
    "BitsStored": [0, 1, 7, 8, 10, 16, 17, 65535],
    "HighBit": [0, 7, 9, 15, 16, 65535],
    "PixelRepresentation": [0, 1, 2, 65535],
    "SamplesPerPixel": [0, 2, 3, 65535],
    "PhotometricInterpretation": ["MONOCHROME1", "RGB", "PALETTE COLOR", "YBR_FULL_422", "", "nonsense", "A\\B"],
    "NumberOfFrames": ["0", "1", "2", "-1", "1A", "999999999999"],
    "PixelPaddingValue": [0, 1, 4095, 65535],
    "PixelPaddingRangeLimit": [0, 4095, 65535],
    "WindowCenter": ["1e308", "-1e308", "nan", "inf", "abc", "", "0", "2048\\7\\x"],
    "WindowWidth": ["1e308", "1e-320", "nan", "-1", "abc", "0", "1", "4096"],
    "VOILUTFunction": ["SIGMOID", "LINEAR_EXACT", "nonsense", ""],
    "RescaleSlope": ["0", "1e308", "-1e308", "1e-320", "nan", "abc", "-1"],
    "RescaleIntercept": ["1e308", "-1024", "nan", "abc"],
    "PatientAge": ["-5Y", "YYYY", "9999999999Y", "\u00e9"],
    "PixelSpacing": ["0\\0", "a\\b", "nan\\1", "1"],
    "BodyPartExamined": ["CHEST", "", "\u00e9"],
    "Modality": ["DX", "", "nonsense"],
}


def saved(array, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def shades(dtype, high):
    """A picture with large and small structure, so that compressed data hold more than one block."""
    grey = np.add.outer(np.arange(40) * 3, np.arange(34) * 2) + np.random.default_rng(0).integers(0, 60, (40, 34))
    return (grey * (high / grey.max())).astype(dtype)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A good file of each kind, by name."""
    folder, eight, deep = tmp_path_factory.mktemp("whole"), shades(np.uint8, 255), shades(np.uint16, 4095)
    files = {
        "png 8": cv2.imencode(".png", eight)[1].tobytes(),
        "png 16": cv2.imencode(".png", deep * 16)[1].tobytes(),
        "png 16 rgb": cv2.imencode(".png", np.dstack([deep * 16] * 3))[1].tobytes(),
        "png palette": saved(eight, "PNG", transparency=3),
        "jpeg": saved(eight, "JPEG", quality=95),
        "jpeg progressive": saved(eight, "JPEG", progressive=True),
    }
    exif = Image.Exif()
    exif[0x0112] = 6
    files["jpeg exif"] = saved(eight, "JPEG", exif=exif)
    for syntax in dicom_files.TRANSFER_SYNTAXES:
        array, bits = (eight, 8) if syntax == "jpeg" else (deep, 12)
        tags = {"WindowCenter": 2000, "WindowWidth": 3000} if syntax in ("explicit", "jpeg_lossless") else {}
        path = dicom_files.write(folder / f"{syntax}.dcm", array, transfer_syntax=syntax, bits_stored=bits, **tags)
        files[f"dicom {syntax}"] = path.read_bytes()
    return files


KINDS = ["png 8", "png 16", "png 16 rgb", "png palette", "jpeg", "jpeg progressive", "jpeg exif"]
KINDS += [f"dicom {syntax}" for syntax in dicom_files.TRANSFER_SYNTAXES]


def mutated(data, rng):
    """The file with one to three bytes or stretches changed, inserted, removed, repeated or blanked."""
    changed = bytearray(data)
    # Half of the changes in the first part, where headers are.
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(changed) if rng.random() < 0.5 else min(len(changed), 700)))
        length = int(rng.integers(1, 17))
        match rng.integers(6):
            case 0:
                changed[at] ^= 1 << int(rng.integers(8))
            case 1:
                changed[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF]))
            case 2:
                changed[at:at] = rng.bytes(length)
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = changed[at : at + 8 * length]
            case 5:
                changed[at : at + length] = bytes(len(changed[at : at + length]))
    return bytes(changed)


def set_raw(dataset, keyword, value):
    """Sets an element to bytes that pydicom would not write."""
    tag, vr = Tag(keyword), dictionary_VR(keyword).split(" or ")[0]
    raw = struct.pack("<H", value) if isinstance(value, int) else value.encode("latin1")
    raw += b" " * (len(raw) % 2)
    dataset[tag] = RawDataElement(tag, vr, len(raw), raw, 0, False, True)


def judged(data, bits=8):
    """Reads a damaged file: the sentence that refuses it, or "" for a usable picture. Other exceptions are failures."""
    try:
        picture = reader.read(data, bits=bits)
    except UnreadablePicture as error:
        assert len(str(error)) > 10
        return str(error)
    assert picture.pixels.ndim == 2 and picture.pixels.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert picture.pixels.min() < picture.pixels.max()
    assert sorted(picture.pixels.shape) == sorted((picture.source_height, picture.source_width))
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_pictures_or_refused(whole, kind, monkeypatch):
    monkeypatch.setattr(codecs, "DECODE_SECONDS", 5)
    rng = np.random.default_rng(KINDS.index(kind))
    assert judged(whole[kind]) == ""
    verdicts = [judged(mutated(whole[kind], rng), bits=8 if number % 2 else 16) for number in range(MUTATIONS)]
    refused = sum(map(bool, verdicts))
    assert refused > MUTATIONS / 20, "the changes do not reach what is read"


def test_repaired_checksums_do_not_let_damaged_png_chunks_through(whole):
    """The same for PNG with right checksums, which decoders trust."""
    rng = np.random.default_rng(0)
    for number in range(MUTATIONS):
        data = bytearray(whole[("png 8", "png 16", "png 16 rgb", "png palette")[number % 4]])
        at = 8
        while at < len(data):
            length = struct.unpack(">I", data[at : at + 4])[0]
            if length and rng.random() < 0.7:
                data[at + 8 + int(rng.integers(length))] = int(rng.integers(256))
                data[at + 8 + length : at + 12 + length] = struct.pack(">I", zlib.crc32(data[at + 4 : at + 8 + length]))
            at += 12 + length
        judged(bytes(data))


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "jpeg", "jpeg_lossless", "jpeg2000_lossless", "rle"])
def test_damaged_headers_are_pictures_or_refused(whole, syntax, monkeypatch):
    monkeypatch.setattr(codecs, "DECODE_SECONDS", 5)
    rng = np.random.default_rng(0)
    for _ in range(HEADER_MUTATIONS):
        dataset = pydicom.dcmread(io.BytesIO(whole[f"dicom {syntax}"]))
        for keyword in rng.choice(list(VALUES), int(rng.integers(1, 4)), replace=False):
            set_raw(dataset, keyword, VALUES[keyword][int(rng.integers(len(VALUES[keyword])))])
        stream = io.BytesIO()
        dataset.save_as(stream)
        judged(stream.getvalue())


@pytest.mark.parametrize("kind", KINDS)
def test_cut_files_are_always_refused(whole, kind):
    data = whole[kind]
    rng = np.random.default_rng(0)
    cuts = {*range(len(data) - 40, len(data)), *rng.integers(1, len(data), 60).tolist(), 1, 132, 200}
    for cut in cuts:
        assert judged(data[:cut]), f"{kind}: the first {cut} of {len(data)} bytes passed as a picture"


def test_cut_masks_are_always_refused():
    mask = np.zeros((64, 64), np.uint8)
    mask[10:40, 20:50] = 255
    for data in (saved(mask, "GIF"), saved(mask, "PNG"), saved(mask, "JPEG")):
        assert pixels.read_mask(data).max() == 255
        for cut in range(1, len(data)):
            with pytest.raises(UnreadablePicture):
                pixels.read_mask(data[:cut])


def test_the_one_cut_that_nothing_tells_loses_no_pixels(tmp_path):
    """A DICOM file cut between two elements after its pixel data is a whole one without the second."""
    array = shades(np.uint8, 255)
    path = dicom_files.write(tmp_path / "a.dcm", array, DataSetTrailingPadding=bytes(32))
    data, element = path.read_bytes(), 12 + 32
    np.testing.assert_array_equal(reader.read(data[:-element]).pixels, array)
    for missing in range(1, element - 8):
        assert judged(data[:-missing])
