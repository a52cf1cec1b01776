"""PNG and JPEG files to one grey uint8 picture, with a record of every step that changed values or size.

Decoding is Pillow's, which refuses truncated files; OpenCV fills the missing rows of a truncated JPEG with grey and
says nothing. OpenCV decodes only what Pillow would cut down to 8 bits: 16-bit PNG with colour or transparency.
"""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

JPEG_QUALITY = 95
NEARLY_EQUAL = 8  # grey levels between channels that JPEG colour compression alone explains
SHORTEST_SIDE = 8
LARGEST_ASPECT = 8

_OTHER_FORMATS = (
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer, not the picture itself (fetch it with `git lfs pull`)"),
)


class UnreadablePicture(ValueError):
    """A file that gives no usable picture; the message is the reason, as a sentence."""


class Picture(NamedTuple):
    """A grey picture and what was done to get it."""

    pixels: np.ndarray  # h w uint8
    format: str  # "png" or "jpeg", by content
    source_height: int
    source_width: int
    bits: int  # per channel, as stored
    steps: tuple[str, ...]  # every step beyond decoding 8-bit grey: "what" or "what: detail"


def read(source: str | Path | bytes, value_range: tuple[int, int] | None = None) -> Picture:
    """Reads a PNG or JPEG file, recognised by its content, as one grey picture.

    source: path or the file's bytes.
    value_range: for pictures deeper than 8 bits, the stored values that become 0 and 255. By default the 0.1 and 99.9
        percentiles of the picture, so that 12 bits in a 16-bit file are not black and one bright marker does not
        darken the rest.
    Colour becomes luma (0.299 R + 0.587 G + 0.114 B); transparency is laid on black; EXIF rotation is applied.
    Returns Picture with pixels h w uint8. Raises UnreadablePicture.
    """
    name = "" if isinstance(source, bytes) else Path(source).name
    data = source if isinstance(source, bytes) else _bytes(Path(source))
    file_format = _format(data, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(data), formats=[file_format])
            opened.load()
    except UnidentifiedImageError:
        raise UnreadablePicture(f"The {file_format.upper()} header is broken.") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadablePicture(f"The {file_format.upper()} data are truncated or corrupt ({error}).") from None
    steps: list[str] = []
    array, bits = _array(opened, data, file_format, steps)
    height, width = array.shape[:2]
    if min(height, width) < SHORTEST_SIDE:
        raise UnreadablePicture(f"The picture is only {width} x {height} px (width x height).")
    if max(height, width) > LARGEST_ASPECT * min(height, width):
        raise UnreadablePicture(f"The picture is a strip of {width} x {height} px (width x height), not a radiograph.")
    grey = _grey(array, steps)
    if grey.min() == grey.max():
        raise UnreadablePicture(f"The picture is constant: every pixel is {int(grey.flat[0])}.")
    if grey.dtype != np.uint8:
        grey = _to_eight_bits(grey, value_range, steps)
        if grey.min() == grey.max():
            raise UnreadablePicture(f"No pixel is inside the value range {value_range}; the result would be constant.")
    return Picture(grey, file_format, height, width, bits, tuple(steps))


def resize_short(pixels: np.ndarray, short_side: int) -> np.ndarray:
    """Resizes h w uint8 so that the short side is exactly short_side px, aspect kept; smaller pictures are enlarged."""
    height, width = pixels.shape
    scale = short_side / min(height, width)
    return resize(pixels, max(short_side, round(height * scale)), max(short_side, round(width * scale)))


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes h w uint8 to height x width: area averaging to shrink, linear to enlarge."""
    if pixels.shape == (height, width):
        return pixels
    enlarges = height > pixels.shape[0] or width > pixels.shape[1]
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR if enlarges else cv2.INTER_AREA)


def read_mask(source: str | Path | bytes) -> np.ndarray:
    """Reads a mask picture as h w uint8, 0 outside and 255 inside.

    Inside is every value above half of the largest one (0/255 and JPEG-blurred masks), or every value but 0 where the
    largest is below 16 (0/1 and numbered regions). A mask of zeros only is valid: nothing is marked.
    Raises UnreadablePicture.
    """
    name = "" if isinstance(source, bytes) else Path(source).name
    data = source if isinstance(source, bytes) else _bytes(Path(source))
    file_format = _format(data, name)
    try:
        opened = Image.open(io.BytesIO(data), formats=[file_format])
        opened.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadablePicture(f"The mask is truncated or corrupt ({error}).") from None
    values = _grey(_array(opened, data, file_format, [])[0], []).astype(np.float32)
    largest = values.max()
    return np.where(values > (largest / 2 if largest >= 16 else 0), 255, 0).astype(np.uint8)


def encode(pixels: np.ndarray, image_format: str) -> bytes:
    """Encodes h w uint8 as grey "png" or "jpeg" (quality 95)."""
    if image_format == "png":
        done, buffer = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    elif image_format == "jpeg":
        done, buffer = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    else:
        raise ValueError(f"Image format {image_format!r} is not known; choose 'png' or 'jpeg'.")
    if not done:
        raise ValueError(f"A picture of shape {pixels.shape} and type {pixels.dtype} could not be encoded.")
    return buffer.tobytes()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UnreadablePicture("The file does not exist.") from None
    except IsADirectoryError:
        raise UnreadablePicture("This is a folder, not a file.") from None
    except OSError as error:
        raise UnreadablePicture(f"The file cannot be read: {error.strerror or error}.") from None


def _format(data: bytes, name: str) -> str:
    if not data:
        raise UnreadablePicture("The file is empty (0 bytes).")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[128:132] == b"DICM" or name.lower().endswith((".dcm", ".dicom")):
        raise UnreadablePicture("This is a DICOM file; only PNG and JPEG are read here: export it as 16-bit PNG first.")
    for start, what in _OTHER_FORMATS:
        if data.startswith(start):
            raise UnreadablePicture(f"The file is {what}; only PNG and JPEG are read here.")
    if data.lstrip()[:1] == b"<":
        raise UnreadablePicture("The file is an HTML or XML page, perhaps from a failed download, not a PNG or JPEG.")
    if not data.strip(b"\0"):
        raise UnreadablePicture("The file holds zeros only, perhaps from an interrupted copy.")
    raise UnreadablePicture(f"The file is neither PNG nor JPEG (it begins with bytes {data[:4].hex(' ')}).")


def _array(opened: Image.Image, data: bytes, file_format: str, steps: list[str]) -> tuple[np.ndarray, int]:
    """h w or h w 3 array, uint8 or deeper, and the stored bits per channel."""
    bits = data[24] if file_format == "png" else 8
    if bits == 16 and opened.mode not in ("I;16", "I;16B", "I"):
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if array is None or array.dtype != np.uint16:
            raise UnreadablePicture(f"This kind of 16-bit PNG (Pillow mode {opened.mode}) cannot be decoded.")
        if array.ndim == 3 and array.shape[2] == 4:
            array = _on_black(array[..., 2::-1], array[..., 3], steps)
        elif array.ndim == 3:
            array = array[..., ::-1]
        return array, bits
    if opened.getexif().get(0x0112, 1) != 1:
        opened = ImageOps.exif_transpose(opened)
        steps.append("turned: as its EXIF orientation says")
    if opened.mode in ("I;16", "I;16B", "I"):
        return np.asarray(opened).astype(np.uint16), bits
    if opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info:
        layers = np.asarray(opened.convert("RGBA"))
        return _on_black(layers[..., :3], layers[..., 3], steps), bits
    return np.asarray(opened.convert("L" if opened.mode in ("L", "1") else "RGB")), bits


def _on_black(colour: np.ndarray, alpha: np.ndarray, steps: list[str]) -> np.ndarray:
    full = np.iinfo(alpha.dtype).max
    if alpha.min() == full:
        steps.append("opaque alpha channel dropped")
        return colour
    steps.append("transparent pixels laid on black")
    return np.round(colour * (alpha[..., None] / np.float32(full))).astype(colour.dtype)


def _grey(array: np.ndarray, steps: list[str]) -> np.ndarray:
    if array.ndim == 2:
        return array
    tolerance = NEARLY_EQUAL * (np.iinfo(array.dtype).max // 255)
    difference = array.max(axis=2) - array.min(axis=2)
    if difference.max() == 0:
        steps.append("3 equal channels to 1")
        return array[..., 0]
    coloured = float((difference > tolerance).mean())
    if coloured == 0:
        steps.append("3 nearly equal channels to luma")
    else:
        steps.append(f"colour to luma: {max(100 * coloured, 0.1):.1f} % of the pixels are coloured")
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.round(array.astype(np.float32) @ weights).astype(array.dtype)


def _to_eight_bits(grey: np.ndarray, value_range: tuple[int, int] | None, steps: list[str]) -> np.ndarray:
    """Scales h w uint16 through a table of its 65,536 values, ten times faster than through floating point pixels."""
    if value_range is None:
        below = np.cumsum(np.bincount(grey.ravel(), minlength=2**16)) / grey.size
        low, high = (int(np.searchsorted(below, share)) for share in (0.001, 0.999))
        if low == high:
            low, high = int(grey.min()), int(grey.max())
        kind = "percentiles 0.1 and 99.9"
    else:
        low, high = value_range
        kind = "declared"
    steps.append(f"more than 8 bits: values {low} to {high} ({kind}) became 0 to 255")
    scaled = (np.arange(2**16) - low) * (255 / (high - low))
    return np.round(np.clip(scaled, 0, 255)).astype(np.uint8)[grey]
