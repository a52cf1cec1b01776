"""Stored values of every transfer syntax that can be written here, and decoders that are missing, crash or hang."""

import io
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest
from PIL import Image

from cxrjax.imaging import codecs, dicom, reader
from cxrjax.imaging.pixels import UnreadablePicture
from tests import dicom_files
from tests.dicom_files import noise, robust

LOSSLESS = [name for name in dicom_files.TRANSFER_SYNTAXES if name not in ("jpeg", "jpeg2000")]


def smooth(dtype, high):
    return np.linspace(0, high, 40 * 34).reshape(40, 34).astype(dtype)


def smooth_square(side):
    return np.linspace(0, 127, side * side).reshape(side, side).astype(np.uint8)


def read(tmp_path, array, **options):
    return dicom.read(dicom_files.write(tmp_path / "picture.dcm", array, **options))


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


def test_a_declared_overlay_bit_next_to_the_stored_ones_is_no_value(tmp_path):
    array = noise(np.uint16, 0, 4095)
    path = dicom_files.write(tmp_path / "a.dcm", array | np.uint16(0x1000), bits_stored=12)
    dataset = pydicom.dcmread(path)
    dataset.add_new((0x6000, 0x0010), "US", 40)
    dataset.add_new((0x6000, 0x0102), "US", 12)
    dataset.save_as(path)
    np.testing.assert_array_equal(dicom.read(path).pixels, robust(array.astype(float)))


def test_negative_values_need_not_be_extended_beyond_the_stored_bits(tmp_path):
    """12 bits of a signed picture with zeros above them, as some machines write, are whole."""
    array = noise(np.int16, -2048, 2047)
    path = dicom_files.write(tmp_path / "a.dcm", array, bits_stored=12)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = (array.view(np.uint16) & 0x0FFF).tobytes()
    dataset.save_as(path)
    picture, record = dicom.read(path)
    np.testing.assert_array_equal(picture, robust(array.astype(float)))
    assert record.warnings == ()


@pytest.mark.parametrize("syntax", ["explicit", "rle"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_values_beyond_the_stored_bits_do_not_wrap_round(tmp_path, syntax, dtype):
    """They did: 1,200 in 10 bits became 176, so that bright bones were dark."""
    array = noise(dtype, 0 if dtype == np.uint16 else -1200, 1200)
    picture, record = read(tmp_path, array, bits_stored=10, transfer_syntax=syntax)
    np.testing.assert_array_equal(picture, robust(array.astype(float)))
    assert record.bits_stored == 10
    assert len(record.warnings) == 1 and "need more than the 10 bits of BitsStored" in record.warnings[0]


def test_big_endian_words_of_8_bit_pixels_are_swapped(tmp_path):
    array = noise(np.uint8, 0, 255)
    path = dicom_files.write(tmp_path / "a.dcm", array, transfer_syntax="big_endian")
    dataset = pydicom.dcmread(path)
    dataset.PixelData = array.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.PixelData = np.frombuffer(array.tobytes(), "<u2").byteswap().tobytes()
    dataset.save_as(path)
    np.testing.assert_array_equal(dicom.read(path).pixels, array.astype(int) * 257)


@pytest.mark.parametrize("syntax", ["jpeg", "jpeg_lossless", "jpeg_ls", "jpeg2000_lossless"])
def test_a_frame_of_another_size_than_the_header_says_is_refused(tmp_path, syntax):
    with pytest.raises(UnreadablePicture, match="frame is 34 x 40 px, but the header says 34 x 30"):
        read(tmp_path, noise(np.uint8, 0, 255), transfer_syntax=syntax, Rows=30)


@pytest.mark.parametrize("syntax", ["jpeg_lossless", "jpeg_ls", "jpeg2000_lossless"])
def test_compressed_pixels_beyond_the_declared_bits_are_refused(tmp_path, syntax):
    array = noise(np.uint16, 0, 4095)
    with pytest.raises(UnreadablePicture, match="(more than the 10 bits|cannot be decoded)"):
        read(tmp_path, array, transfer_syntax=syntax, bits_stored=12, BitsStored=10, HighBit=9)


def test_a_jpeg_frame_without_its_end_is_refused(tmp_path):
    path = dicom_files.write(tmp_path / "a.dcm", noise(np.uint8, 0, 255), transfer_syntax="jpeg")
    dataset = pydicom.dcmread(path)
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) // 2]])
    dataset.save_as(path)
    with pytest.raises(UnreadablePicture, match="JPEG Baseline .* truncated: their end marker is missing"):
        dicom.read(path)


@pytest.mark.parametrize("syntax", ["jpeg", "jpeg_lossless", "jpeg_ls", "rle"])
@pytest.mark.parametrize("damage", ["zeros", "foreign", "half"])
def test_damage_in_the_middle_of_a_frame_is_refused(tmp_path, syntax, damage):
    """All of these decoded to a picture, with a warning that nobody saw."""
    rng = np.random.default_rng(0)
    array = rng.integers(0, 255, (120, 120), np.uint8) // 2 + smooth_square(120)
    path = dicom_files.write(tmp_path / "a.dcm", array, transfer_syntax=syntax)
    dicom.read(path)
    dataset = pydicom.dcmread(path)
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    middle, end = len(frame) // 2, len(frame) // 2 + 1024
    changed = {
        "zeros": frame[:middle] + bytes(1024) + frame[end:],
        "foreign": frame[:middle] + rng.bytes(1024) + frame[end:],
        "half": frame[:middle] + b"\xff\xd9",
    }
    dataset.PixelData = pydicom.encaps.encapsulate([changed[damage]])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    with pytest.raises(UnreadablePicture, match="corrupt|cannot be decoded|wrong"):
        dicom.read(path)


@pytest.mark.parametrize("syntax", ["explicit", "jpeg", "jpeg_ls", "rle"])
def test_padding_after_the_pixels_is_no_damage(tmp_path, syntax):
    path = dicom_files.write(tmp_path / "a.dcm", noise(np.uint8, 0, 255), transfer_syntax=syntax)
    expected = dicom.read(path).pixels
    dataset = pydicom.dcmread(path)
    if syntax == "explicit":
        dataset.PixelData = dataset.PixelData + b"\xff" * 64
    else:
        frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
        dataset.PixelData = pydicom.encaps.encapsulate([frame + bytes(64)])
        dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    np.testing.assert_array_equal(dicom.read(path).pixels, expected)


def test_a_missing_pydicom_or_decoder_is_told_with_the_command(tmp_path, monkeypatch):
    array = noise(np.uint8, 0, 255)
    lossless = dicom_files.write(tmp_path / "a.dcm", array, transfer_syntax="jpeg_lossless")
    monkeypatch.setattr(codecs, "PLUGINS", ())
    with pytest.raises(UnreadablePicture, match=r"JPEG Lossless.*1\.2\.840\S*70.*pip install 'cxrjax\[dicom\]'"):
        dicom.read(lossless)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UnreadablePicture, match=r"pydicom.*is not installed: pip install 'cxrjax\[dicom\]'"):
        reader.read(lossless)


@pytest.mark.parametrize(
    ("syntax", "sentence"),
    [
        ("1.2.840.10008.1.2.4.100", "MPEG2 .*are not read here"),
        ("1.2.3.4", "transfer syntax 1.2.3.4 are not read here"),
        ("1.2.840.10008.1.2.4.51", "JPEG Extended .* more than 8 bits .*pip install pylibjpeg-libjpeg"),
    ],
)
def test_syntaxes_that_nothing_decodes_are_named(tmp_path, monkeypatch, syntax, sentence):
    tags = {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}
    path = dicom_files.write(tmp_path / "a.dcm", noise(np.uint8, 0, 255), transfer_syntax="jpeg", **tags)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)
    monkeypatch.setattr(codecs, "PLUGINS", ("gdcm",))
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
        start = time.monotonic()
        with pytest.raises(UnreadablePicture, match="decoder gdcm crashed or hung"):
            dicom.read(path)
        assert time.monotonic() - start < 30
        assert codecs._idle == []
    np.testing.assert_array_equal(dicom.read(path).pixels, array.astype(int) * 257)


def test_decoder_processes_are_used_again_but_no_dead_or_foreign_one(tmp_path, monkeypatch):
    array = noise(np.uint8, 0, 255)
    path = dicom_files.write(tmp_path / "a.dcm", array, transfer_syntax="jpeg_lossless")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    monkeypatch.setattr(codecs, "_idle", [(os.getpid(), dead), (0, None)])
    np.testing.assert_array_equal(dicom.read(path).pixels, array.astype(int) * 257)
    first = list(codecs._idle)
    np.testing.assert_array_equal(dicom.read(path).pixels, array.astype(int) * 257)
    assert codecs._idle == first and len(first) == 1 and first[0][1] is not dead
    codecs._end(first[0][1])


def test_threads_get_their_own_pictures(tmp_path):
    arrays = [noise(np.uint8, 0, 255) // divisor for divisor in range(1, 9)]
    paths = [
        dicom_files.write(tmp_path / f"{index}.dcm", array, transfer_syntax="jpeg2000_lossless")
        for index, array in enumerate(arrays)
    ]
    with ThreadPoolExecutor(4) as pool:
        pictures = list(pool.map(dicom.read, paths * 5))
    for array, picture in zip(arrays * 5, pictures, strict=True):
        np.testing.assert_array_equal(picture.pixels, array.astype(int) * 257)
