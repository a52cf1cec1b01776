"""Whole PNG, JPEG and GIF files to pixels, or a refusal: decoders show most damaged files as if nothing were wrong.

A JPEG file is decoded by libjpeg-turbo (simplejpeg) with its warnings as errors. Pillow drops them, OpenCV fills what
is missing with grey; the pixels of a whole file are Pillow's bit for bit. PNG has checksums, which Pillow does not ask
for. What cannot be known: damage inside a JPEG's coded data that still decodes to the right number of blocks, above all
a few changed bits, since JPEG has no checksums.
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
            return Opened(image, None)
    except UnidentifiedImageError:
        raise UnreadablePicture(f"The {kind} header is broken.") from None
    except Exception as error:  # Pillow and simplejpeg raise many kinds on damaged data
        raise UnreadablePicture(f"The {kind} data are truncated or corrupt ({str(error).rstrip('.')}).") from None


def _strict_jpeg(image: Image.Image, data: bytes) -> np.ndarray | None:
    """The pixels of an opened JPEG file, which is loaded instead where it has four channels.

    Raises ValueError with libjpeg's warning.
    """
    space = {"L": "GRAY", "RGB": "RGB"}.get(image.mode, "CMYK")
    try:
        array = simplejpeg.decode_jpeg(data, space, strict=True)
    except ValueError:  # a second try, which a harmless oddity of the header no longer stops before the pixels
        array = simplejpeg.decode_jpeg(_plain_header(data), space, strict=True)
    if space == "CMYK":
        image.load()
        return None
    return np.squeeze(array, axis=2) if space == "GRAY" else array


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
