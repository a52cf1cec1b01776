"""Whole PNG, JPEG and GIF files to pixels, or a refusal: decoders show most damaged files as if nothing were wrong.

A JPEG file is decoded by libjpeg-turbo (simplejpeg) with its warnings as errors. Pillow drops them, OpenCV fills what
is missing with grey; the pixels of a whole file are Pillow's bit for bit. No decoder minds a progressive file without
its last scans, or a PNG whose data end before its last row, so both are looked for. PNG has checksums, which Pillow
does not ask for. What cannot be known: damage inside a JPEG's coded data that still decodes to the right number of
blocks, above all a few changed bits, since JPEG has no checksums.
"""

import io
import struct
import warnings
import zlib
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

PNG_MARK = b"\x89PNG\r\n\x1a\n"
_SHAPING_CHUNKS = (b"tRNS", b"eXIf")  # optional chunks of a PNG that change what is seen: transparency, orientation

# The seven passes of an interlaced PNG: first column, first row, and the steps between columns and between rows.
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)


class UnreadablePicture(ValueError):
    """A file that gives no usable picture; the message is the reason, as a sentence."""


class Opened(NamedTuple):
    """A decoded file: Pillow's picture, and its pixels where Pillow has read the header only (h w or h w 3 uint8)."""

    image: Image.Image
    pixels: np.ndarray | None


def opened(data: bytes, file_format: str, steps: list[str] | None = None) -> Opened:
    """Decodes a whole "png", "jpeg" or "gif" file; adds to `steps` what was left out. Raises UnreadablePicture."""
    kind = file_format.upper()
    if file_format == "png":
        data = _sound_png(data, [] if steps is None else steps)
    elif file_format == "gif" and not data.rstrip(b"\0").endswith(b";"):
        raise UnreadablePicture("The GIF data are truncated or corrupt (their end is missing).")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=[file_format])
            if file_format == "jpeg":
                return Opened(image, _strict_jpeg(image, data))
            image.load()
            if file_format == "png":
                _refuse_missing_rows(image, data)
            return Opened(image, None)
    except UnidentifiedImageError:
        raise UnreadablePicture(f"The {kind} header is broken.") from None
    except Exception as error:  # Pillow and simplejpeg raise many kinds on damaged data
        raise UnreadablePicture(f"The {kind} data are truncated or corrupt ({str(error).rstrip('.')}).") from None


def _strict_jpeg(image: Image.Image, data: bytes) -> np.ndarray | None:
    """The pixels of an opened JPEG file, which is loaded instead where it has four channels.

    Raises ValueError with libjpeg's warning, or where scans are missing.
    """
    _refuse_missing_scans(data)
    space = {"L": "GRAY", "RGB": "RGB"}.get(image.mode, "CMYK")
    try:
        array = simplejpeg.decode_jpeg(data, space, strict=True)
    except ValueError:  # a second try, which a harmless oddity of the header no longer stops before the pixels
        array = simplejpeg.decode_jpeg(_plain_header(data), space, strict=True)
    if space == "CMYK":
        image.load()
        return None
    return np.squeeze(array, axis=2) if space == "GRAY" else array


def _refuse_missing_scans(data: bytes) -> None:
    """Raises ValueError where a progressive file never gives the last bit of some coefficient of its brightness."""
    missing, first, place = np.zeros(64, bool), -1, 2
    while 2 <= (place := data.find(b"\xff", place)) < len(data) - 4:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xD9:
            break
        if marker < 0xC0 or 0xD0 <= marker <= 0xD8 or marker == 0xFF:  # coded data, restarts and fill bytes
            place += 1
            continue
        segment = data[place : place + 2 + length]
        if marker in (0xC0, 0xC1):
            return
        if marker == 0xC2 and len(segment) > 10:
            missing[:], first = True, segment[10]
        elif marker == 0xDA and first in segment[5:-3:2]:
            begin, end, bits = segment[-3:]
            missing[begin : end + 1] = bits & 15 > 0
        place += 2 + length
    if missing.any():
        raise ValueError(f"its last scans are missing, for {missing.sum()} of 64 coefficients")


def _plain_header(data: bytes) -> bytes:
    """A JPEG file without what libjpeg warns of before the first scan although it changes no pixel.

    That is bytes between segments, another JFIF version than 1, and progression limits in a sequential scan.
    """
    kept, place, sequential = [data[:2]], 2, False
    while 2 <= (place := data.find(b"\xff", place)) < len(data) - 4:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker < 0xC0 or marker == 0xFF:
            place += 1
            continue
        segment = bytearray(data[place : place + 2 + length])
        sequential |= marker in (0xC0, 0xC1)
        if segment[4:9] == b"JFIF\0":
            segment[9] = 1
        if marker == 0xDA:
            if sequential:
                segment[-3:] = 0, 63, 0
            return b"".join((*kept, segment, data[place + 2 + length :]))
        kept.append(bytes(segment))
        place += 2 + length
    return data


def _refuse_missing_rows(image: Image.Image, data: bytes) -> None:
    """Raises ValueError where the data of a loaded PNG end before its pixels, which are then zeros.

    Only where one of the last two rows is black the data are inflated a second time: the last pass of an interlaced
    picture ends with either.
    """
    last = np.asarray(image.crop((0, image.height - 2, image.width, image.height)))
    if last.reshape(len(last), -1).any(axis=1).all():
        return
    width, height, depth, colour, *_, interlaced = struct.unpack_from(">IIBBBBB", data, len(PNG_MARK) + 8)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-((left - width) // across), -((top - height) // down)) for left, top, across, down in passes]
    wanted = sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0 and rows > 0)
    inflate, place, found = zlib.decompressobj(), len(PNG_MARK), 0
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            found += len(inflate.decompress(data[place + 8 : place + 8 + length], wanted))
        place += 12 + length
    if found < wanted:
        raise ValueError(f"{found} bytes of pixels, where {width} x {height} px take {wanted}")


def _sound_png(data: bytes, steps: list[str]) -> bytes:
    """A PNG file whose checksums hold up to its end, without the damaged chunks that do not change what is seen."""
    place, kept, damaged = len(PNG_MARK), [PNG_MARK], []
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(data[place + 4 : end]) == struct.unpack_from(">I", data, end)[0]:
            kept.append(data[place : end + 4])
        elif kind[:1].isupper() or kind in _SHAPING_CHUNKS:
            break
        else:
            damaged.append(kind.decode("ascii", "replace"))
        if kind == b"IEND" and not damaged:
            return data
        if kind == b"IEND":
            steps.append(f"damaged chunks without pixels left out: {', '.join(damaged)}")
            return b"".join(kept)
        place = end + 4
    raise UnreadablePicture("The PNG data are truncated or corrupt (their end is missing, or not what was written).")
