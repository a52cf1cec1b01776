"""The pixel reader: what becomes grey and how, and a sentence for every file that cannot be used."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from cxrjax.imaging import decoding, pixels
from cxrjax.imaging.pixels import UnreadablePicture


def gradient(height=40, width=48):
    return np.add.outer(np.arange(height) * 3, np.arange(width) * 2).astype(np.uint8)


def png(array):
    return cv2.imencode(".png", array)[1].tobytes()


def quantisation(data):
    """The first and the largest step of a JPEG file's brightness; both grow as the quality falls."""
    steps = Image.open(io.BytesIO(data)).quantization[0]
    return steps[0], max(steps)


def jpeg(array):
    return cv2.imencode(".jpg", array, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_grey_png_is_read_exactly(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(png(gradient()))
    picture = pixels.read(path)
    np.testing.assert_array_equal(picture.pixels, gradient())
    assert (picture.format, picture.bits, picture.steps) == ("png", 8, ())
    assert (picture.source_height, picture.source_width) == (40, 48)


def test_grey_jpeg_is_read_by_content_not_by_name(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(jpeg(gradient()))
    picture = pixels.read(path)
    assert picture.format == "jpeg"
    assert np.abs(picture.pixels.astype(int) - gradient()).max() <= 4


def test_equal_channels_are_one_channel():
    picture = pixels.read(png(np.repeat(gradient()[..., None], 3, axis=2)))
    np.testing.assert_array_equal(picture.pixels, gradient())
    assert picture.steps == ("3 equal channels to 1",)


def test_nearly_equal_channels_are_averaged_and_said():
    near = np.repeat(gradient()[..., None], 3, axis=2)
    near[::2, :, 0] += 3
    picture = pixels.read(png(near))
    assert np.abs(picture.pixels.astype(int) - gradient()).max() <= 1
    assert picture.steps == ("3 nearly equal channels to luma",)


def test_colour_is_luma_in_rgb_order_and_said():
    colour = np.repeat(gradient()[..., None], 3, axis=2)
    colour[:20] = (200, 100, 50)
    picture = pixels.read(saved(Image.fromarray(colour), "PNG"))
    assert picture.pixels[0, 0] == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert picture.steps == ("colour to luma: 50.0 % of the pixels are coloured",)


def test_transparent_pixels_are_black_whatever_colour_they_hide():
    layers = np.dstack([gradient()] * 3 + [np.full((40, 48), 255, np.uint8)])
    picture = pixels.read(saved(Image.fromarray(layers), "PNG"))
    np.testing.assert_array_equal(picture.pixels, gradient())
    assert picture.steps[0] == "opaque alpha channel dropped"
    layers[:, :10] = (255, 255, 255, 0)
    picture = pixels.read(saved(Image.fromarray(layers), "PNG"))
    assert picture.pixels[:, :10].max() == 0
    assert picture.steps[0] == "transparent pixels laid on black"


def test_sixteen_bits_fill_the_range_without_the_brightest_marker():
    deep = np.linspace(100, 4095, 200 * 200).reshape(200, 200).astype(np.uint16)
    deep[0, :10] = 65535
    picture = pixels.read(png(deep))
    assert picture.bits == 16
    assert "more than 8 bits: values" in picture.steps[0]
    assert picture.pixels[1:].min() <= 1 and picture.pixels[-1, -1] >= 254
    assert abs(int(picture.pixels[100, 100]) - 127) <= 2
    fine = pixels.read(png(deep), bits=16)
    low, high = np.sort(deep, axis=None)[[int(0.001 * deep.size), int(0.999 * deep.size)]]
    expected = np.clip((deep.astype(float) - low) / (int(high) - int(low)), 0, 1) * 65535
    assert fine.pixels.dtype == np.uint16 and np.abs(fine.pixels - expected).max() <= 65535 / (high - low) + 1
    assert fine.steps[0].endswith("became 0 to 65535")


@pytest.mark.parametrize("share", [0.002, 0.009])
def test_a_large_marker_does_not_darken_the_rest(share):
    deep = np.linspace(100, 4095, 200 * 200).reshape(200, 200).astype(np.uint16)
    deep[0].flat[:200] = 65535
    deep.flat[: int(share * deep.size)] = 65535
    picture = pixels.read(png(deep))
    rest = picture.pixels[4:]
    assert rest.min() < 30 and rest.max() > 225 and len(np.unique(rest)) > 200
    assert picture.steps[0].startswith("grey range chosen anew: percentiles 0.1 and 99.9 left the middle 98 %")
    assert pixels.read(png(deep), check_grey_range=False).pixels[4:].max() <= 16


def test_spread_is_the_share_of_the_levels_between_percentiles_1_and_99():
    grey = np.zeros((100, 100), np.uint8)
    grey[:, 50:] = 51
    grey[0, :50] = 255  # 0.5 % of the pixels
    assert pixels.spread(grey) == pytest.approx(0.2)
    assert pixels.spread(grey.astype(np.uint16) * 257) == pytest.approx(0.2)


def test_eight_bits_keep_their_grey_levels_in_sixteen():
    picture = pixels.read(png(gradient()), bits=16)
    assert picture.pixels.dtype == np.uint16
    np.testing.assert_array_equal(picture.pixels, gradient().astype(int) * 257)
    coded = pixels.read(pixels.encode(picture.pixels, "png"), value_range=(0, 65535), bits=16)
    np.testing.assert_array_equal(coded.pixels, picture.pixels)


def test_sixteen_bits_follow_a_declared_range():
    deep = np.linspace(0, 32768, 64 * 64).reshape(64, 64).astype(np.uint16)
    picture = pixels.read(png(deep), value_range=(0, 65535))
    assert picture.pixels[-1, -1] == round(32768 / 65535 * 255)
    assert picture.steps == ("more than 8 bits: values 0 to 65535 (declared) became 0 to 255",)
    with pytest.raises(UnreadablePicture, match=r"No pixel is inside the value range \(40000, 50000\)"):
        pixels.read(png(deep), value_range=(40000, 50000))


def test_sixteen_bit_colour_keeps_its_depth():
    deep = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint16)
    picture = pixels.read(png(np.repeat(deep[..., None], 3, axis=2)))
    assert len(np.unique(picture.pixels)) > 200


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = pixels.read(saved(Image.fromarray(gradient()), "JPEG", exif=exif, quality=95))
    assert picture.pixels.shape == (48, 40)
    assert picture.pixels[0, -1] < 10 and picture.pixels[-1, 0] > 200
    assert picture.steps == ("turned: as its EXIF orientation says",)


@pytest.mark.parametrize("encode", [png, jpeg, lambda a: saved(Image.fromarray(a), "JPEG", progressive=True)])
@pytest.mark.parametrize("missing", [0.5, 0.1, 13, 4, 1])
def test_truncated_files_are_refused(encode, missing):
    data = encode(np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8))
    with pytest.raises(UnreadablePicture, match="truncated or corrupt"):
        pixels.read(data[: -(missing if missing >= 1 else int(len(data) * missing))])


@pytest.mark.parametrize("damage", ["zeros", "half", "foreign", "removed", "of another picture"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_that_libjpeg_only_warns_of_is_refused(damage, progressive):
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 255, (160, 160), np.uint8) for _ in range(2))
    data, alien = (saved(Image.fromarray(each), "JPEG", quality=90, progressive=progressive) for each in (one, other))
    pixels.read(data)
    middle, end = len(data) // 2, len(data) // 2 + 2048
    changed = {
        "zeros": data[:middle] + bytes(2048) + data[end:],
        "half": data[:middle] + b"\xff\xd9",
        "foreign": data[:middle] + rng.bytes(2048) + data[end:],
        "removed": data[:middle] + data[end:],
        "of another picture": data[:middle] + alien[1000:3048] + data[end:],
    }
    with pytest.raises(UnreadablePicture, match="truncated or corrupt"):
        pixels.read(changed[damage])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_progressive_jpeg_without_its_last_scans_is_refused(mode):
    """Every prefix of scans decodes without a warning, to a coarser picture."""
    data = saved(Image.fromarray(gradient(64, 64)).convert(mode), "JPEG", progressive=True)
    starts = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    scans = [place for place in starts if mode == "L" or 1 in data[place + 5 : place + 5 + 2 * data[place + 4] : 2]]
    assert len(scans) > 3 and pixels.read(data).pixels.shape == (64, 64)
    for scan in scans[1:]:
        with pytest.raises(UnreadablePicture, match="last scans are missing, for [0-9]+ of 64 coefficients"):
            pixels.read(data[:scan] + b"\xff\xd9")
    assert pixels.read(data + data[: scans[1]]).pixels.shape == (64, 64), "what follows the end marker is no part"


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{"quality": 30}, {"progressive": True}, {"quality": 95, "subsampling": 0}])
def test_whole_jpeg_has_pillows_pixels(mode, options):
    colour = np.dstack([gradient(61, 83), gradient(61, 83)[::-1], gradient(61, 83)[:, ::-1]])
    data = saved(Image.fromarray(colour).convert(mode), "JPEG", **options)
    image, ours = decoding.opened(data, "jpeg")
    assert image.mode == mode and (ours is None) == (mode == "CMYK")
    theirs = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(image) if ours is None else ours, theirs)


def test_odd_jpeg_headers_are_no_damage():
    """A second JFIF version, progression limits in a sequential scan and bytes between segments change no pixel."""
    data = jpeg(gradient())
    expected = pixels.read(data).pixels
    scan = data.index(b"\xff\xda")
    limits = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big") - 3
    version, table = data.index(b"JFIF\0") + 5, data.index(b"\xff\xdb")
    for odd in (
        data[:version] + b"\2" + data[version + 1 :],
        data[:limits] + b"\0\0\0" + data[limits + 3 :],
        data[:table] + b"\0\0" + data[table:],
    ):
        np.testing.assert_array_equal(pixels.read(odd).pixels, expected)


def chunk(kind, data, damage=0):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ damage)


def written_png(lines, depth, interlaced, *chunks):
    """A grey PNG of 24 x 16 px (width x height) whose inflated data are `lines`."""
    head = struct.pack(">IIBBBBB", 24, 16, depth, 0, 0, 0, interlaced)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return decoding.PNG_MARK + b"".join(chunk(*part) for part in parts)


def scanlines(array, interlaced):
    passes = decoding._ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [array[top::down, left::across] for left, top, across, down in passes]
    return b"".join(b"\0" + line.tobytes() for part in parts for line in part)


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("depth", [8, 16])
def test_png_whose_data_end_before_the_last_row_is_refused(depth, interlaced):
    array = (gradient(16, 24) + 1).astype(f">u{depth // 8}")
    lines = scanlines(array, interlaced)
    whole = pixels.read(written_png(lines, depth, interlaced), (0, 255)).pixels
    np.testing.assert_array_equal(whole, array)
    line = 1 + 24 * depth // 8
    for missing, sentence in ((1, "truncated"), (line, f"where 24 x 16 px take {len(lines)}"), (6 * line, "truncated")):
        with pytest.raises(UnreadablePicture, match=sentence):
            pixels.read(written_png(lines[:-missing], depth, interlaced))
    array[-2:] = 0
    black = pixels.read(written_png(scanlines(array, interlaced), depth, interlaced), (0, 255)).pixels
    np.testing.assert_array_equal(black, array)


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_value_of_a_grey_png_is_black(depth):
    array = (gradient(16, 24) + 1).astype(f">u{depth // 8}")
    transparent = b"tRNS", struct.pack(">H", int(array[4, 5]))
    picture = pixels.read(written_png(scanlines(array, 0), depth, 0, transparent), (0, 255))
    assert "transparent pixels laid on black" in picture.steps
    np.testing.assert_array_equal(picture.pixels, np.where(array == array[4, 5], 0, array))


@pytest.mark.parametrize("kind", [b"tEXt", b"tIME", b"iCCP", b"gAMA", b"prVt"])
def test_a_damaged_png_chunk_without_pixels_is_left_out_and_said(kind):
    data = png(gradient())
    picture = pixels.read(data[:33] + chunk(kind, b"\0\1nothing\0", damage=1) + data[33:])
    np.testing.assert_array_equal(picture.pixels, gradient())
    assert picture.steps == (f"damaged chunks without pixels left out: {kind.decode()}",)


@pytest.mark.parametrize("kind", [b"tRNS", b"eXIf"])
def test_a_damaged_png_chunk_that_changes_the_picture_is_refused(kind):
    data = png(gradient())
    with pytest.raises(UnreadablePicture, match="truncated or corrupt"):
        pixels.read(data[:33] + chunk(kind, b"\0\1", damage=1) + data[33:])


def test_broken_exif_data_are_refused_with_a_sentence():
    data = png(gradient())
    with pytest.raises(UnreadablePicture, match="which side is up is not known"):
        pixels.read(data[:33] + chunk(b"eXIf", b"II*\0") + data[33:])


@pytest.mark.parametrize("encode", [png, jpeg])
def test_bytes_after_the_end_are_no_truncation(encode):
    np.testing.assert_array_equal(
        pixels.read(encode(gradient()) + b"\0\0rest").pixels, pixels.read(encode(gradient())).pixels
    )


def test_every_flipped_bit_of_a_pngs_pixels_is_noticed():
    """Pillow does not ask for the checksums of pixels, and shows some damaged pictures as if nothing were wrong."""
    data = png(gradient())
    start, end = data.index(b"IDAT") + 4, data.index(b"IEND") - 8
    for place in range(start, end):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(UnreadablePicture, match="truncated or corrupt"):
            pixels.read(bytes(damaged))


def test_a_broken_png_checksum_is_refused():
    data = bytearray(png(np.random.default_rng(0).integers(0, 255, (60, 60), np.uint8)))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(UnreadablePicture, match="truncated or corrupt"):
        pixels.read(bytes(data))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"hello", "neither PNG, JPEG nor DICOM .*68 65 6c 6c"),
        (b"\n<!DOCTYPE html>", "HTML or XML page, perhaps from a failed download"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
        (b"\0" * 128 + b"DICM" + b"\0" * 20, "DICOM file, which only cxrjax.imaging.reader reads"),
        (b"BM" + b"\0" * 30, "BMP picture; only PNG, JPEG and DICOM"),
        (b"GIF89a" + b"\0" * 30, "GIF picture; only PNG, JPEG and DICOM"),
        (b"II*\0" + b"\0" * 30, "TIFF picture; only PNG, JPEG and DICOM"),
        (b"\0" * 4096, "zeros only, perhaps from an interrupted copy"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, "PNG (header is broken|data are truncated or corrupt)"),
        (png(np.full((40, 40), 7, np.uint8)), "constant: every pixel is 7"),
        (png(gradient(4, 40)), "only 40 x 4 px"),
        (png(gradient(10, 100)), "strip of 100 x 10 px"),
    ],
)
def test_files_that_are_no_picture_get_a_sentence(data, sentence):
    with pytest.raises(UnreadablePicture, match=sentence):
        pixels.read(data)


def test_missing_files_and_folders_get_a_sentence(tmp_path):
    with pytest.raises(UnreadablePicture, match="does not exist"):
        pixels.read(tmp_path / "none.png")
    with pytest.raises(UnreadablePicture, match="a folder, not a file"):
        pixels.read(tmp_path)


def test_an_enormous_declared_size_is_refused():
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + header, b"IDAT" + zlib.compress(bytes(100)), b"IEND"):
        data += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(UnreadablePicture, match="truncated or corrupt .*decompression bomb"):
        pixels.read(data)


@pytest.mark.parametrize(
    ("shape", "expected"), [((300, 400), (64, 85)), ((400, 300), (85, 64)), ((30, 45), (64, 96)), ((64, 64), (64, 64))]
)
def test_the_short_side_is_exact_and_the_aspect_kept(shape, expected):
    assert pixels.resize_short(np.zeros(shape, np.uint8), 64).shape == expected


def test_shrinking_averages_areas():
    checkered = (np.indices((128, 128)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = pixels.resize_short(checkered, 64)
    assert set(np.unique(small)) <= {127, 128}
    # Linear interpolation would read two of the four columns, both of them black.
    striped = np.tile(np.uint8([255, 0, 0, 0]), (256, 64))
    assert set(np.unique(pixels.resize_short(striped, 64))) == {64}


@pytest.mark.parametrize("inside", [1, 2, 7, 255])
def test_masks_of_any_coding_become_0_and_255(inside):
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20] = inside
    mask[20:25] = min(inside, 3)  # a region by another number, or the blur of a JPEG
    read = pixels.read_mask(png(mask))
    there = mask > 0 if inside < 16 else mask == inside
    np.testing.assert_array_equal(read, np.where(there, 255, 0))


def test_gif_masks_are_read_and_gif_pictures_are_not():
    mask = np.zeros((40, 48), np.uint8)
    mask[10:20, 5:30] = 255
    data = saved(Image.fromarray(mask), "GIF")
    np.testing.assert_array_equal(pixels.read_mask(data), mask)
    for missing in (1, 2, len(data) // 4):
        with pytest.raises(UnreadablePicture, match="mask cannot be read: The GIF data are truncated"):
            pixels.read_mask(data[:-missing])
    with pytest.raises(UnreadablePicture, match="GIF picture"):
        pixels.read(data)


def test_an_empty_mask_is_a_mask_and_a_truncated_one_is_not():
    assert pixels.read_mask(png(np.zeros((40, 40), np.uint8))).max() == 0
    data = png(np.random.default_rng(0).integers(0, 2, (90, 90), np.uint8) * 255)
    with pytest.raises(UnreadablePicture, match="mask cannot be read: The PNG data are truncated"):
        pixels.read_mask(data[: len(data) // 2])


def test_encoding_is_grey_png_without_loss_or_jpeg():
    np.testing.assert_array_equal(pixels.read(pixels.encode(gradient(), "png")).pixels, gradient())
    coded = Image.open(io.BytesIO(pixels.encode(gradient(), "jpeg")))
    assert (coded.format, coded.mode) == ("JPEG", "L")
    with pytest.raises(ValueError, match="'webp' is not known"):
        pixels.encode(gradient(), "webp")


def test_jpeg_is_written_at_quality_95():
    by_pillow = saved(Image.fromarray(gradient()), "JPEG", quality=95)
    assert quantisation(pixels.encode(gradient(), "jpeg")) == quantisation(by_pillow)
    assert quantisation(pixels.encode(gradient(), "jpeg")) == (2, 12)
