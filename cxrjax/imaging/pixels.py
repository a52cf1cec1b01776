"""PNG and JPEG files to one grey picture, with a record of every step that changed values or size.

decoding.py refuses damaged files. OpenCV decodes only what Pillow would cut down to 8 bits: 16-bit PNG with colour or
transparency.
reader.py reads DICOM too, and is what converters and commands call.
"""

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from cxrjax.imaging import orientation as orientations
from cxrjax.imaging.decoding import PNG_MARK, Opened, UnreadablePicture, opened

JPEG_QUALITY = 95
NEARLY_EQUAL = 8  # grey levels between channels that JPEG colour compression alone explains
SHORTEST_SIDE = 8
LARGEST_ASPECT = 8
LEAST_SPREAD = 1 / 4  # share of the grey levels for the middle 98 % of the pixels; 2,619 public pictures have 0.26 to 1
MIDDLE = (0.01, 0.99)
GREY_RANGE, LOW_CONTRAST = "grey range chosen anew", "low contrast"  # kinds of steps

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


class Picture(NamedTuple):
    """A grey picture and what was done to get it."""

    pixels: np.ndarray  # h w uint8, or uint16 where 16 bits are asked for
    format: str  # "png", "jpeg", "dicom" or "img", by content
    source_height: int
    source_width: int
    bits: int  # per channel, as stored
    steps: tuple[str, ...]  # every step beyond decoding 8-bit grey: "what" or "what: detail"
    header: dict = {}  # of a DICOM file: view (the projection), sex and age; of others: orientation, where it is not 1


def read(
    source: str | Path | bytes,
    value_range: tuple[int, int] | None = None,
    bits: int = 8,
    *,
    check_grey_range: bool = True,
) -> Picture:
    """Reads a PNG or JPEG file, recognised by its content, as one grey picture.

    source: path or the file's bytes.
    value_range: for pictures deeper than 8 bits, the stored values that become black and white. By default the 0.1 and
        99.9 percentiles of the picture, so that 12 bits in a 16-bit file are not black and one bright marker does not
        darken the rest.
    bits: 8 or 16, of the result; 8-bit values v become 257 v in 16 bits.
    check_grey_range: where those percentiles leave the middle 98 % of the pixels less than LEAST_SPREAD of the grey
        levels, as a bright marker on more than 0.1 % of them does, takes narrower ones (`fitted_range`).
    Colour becomes luma (0.299 R + 0.587 G + 0.114 B); transparency is laid on black; EXIF rotation is applied.
    Returns Picture with pixels h w uint8 or uint16. Raises UnreadablePicture.
    """
    data, _ = contents(source)
    file_format = _format(data)
    steps: list[str] = []
    file = opened(data, file_format, steps)
    array, stored_bits, turned = _array(file, data, file_format, steps)
    height, width = array.shape[:2]
    refuse_shape(height, width)
    grey = _grey(array, steps)
    if grey.min() == grey.max():
        raise UnreadablePicture(f"The picture is constant: every pixel is {int(grey.flat[0])}.")
    if grey.dtype != np.uint8:
        grey = to_bits(grey, value_range, bits, steps, check_grey_range)
    elif bits == 16:
        grey = grey.astype(np.uint16) * 257
    header = {} if turned == orientations.AS_STORED else {"orientation": turned}
    return Picture(grey, file_format, height, width, stored_bits, tuple(steps), header)


def contents(source: str | Path | bytes) -> tuple[bytes, str]:
    """The bytes of a file and its name ("" for bytes); raises UnreadablePicture."""
    if isinstance(source, bytes):
        return source, ""
    path = Path(source)
    try:
        return path.read_bytes(), path.name
    except FileNotFoundError:
        raise UnreadablePicture("The file does not exist.") from None
    except IsADirectoryError:
        raise UnreadablePicture("This is a folder, not a file.") from None
    except OSError as error:
        raise UnreadablePicture(f"The file cannot be read: {error.strerror or error}.") from None


def refuse_shape(height: int, width: int) -> None:
    """Raises UnreadablePicture where no radiograph has that many pixels a side."""
    if min(height, width) < SHORTEST_SIDE:
        raise UnreadablePicture(f"The picture is only {width} x {height} px (width x height).")
    if max(height, width) > LARGEST_ASPECT * min(height, width):
        raise UnreadablePicture(f"The picture is a strip of {width} x {height} px (width x height), not a radiograph.")


def to_bits(
    grey: np.ndarray,
    value_range: tuple[int, int] | None,
    bits: int,
    steps: list[str],
    check_grey_range: bool = True,
) -> np.ndarray:
    """Scales h w uint16 so that value_range, or its own robust range, fills 8 or 16 bits; adds the step to `steps`.

    check_grey_range: as `read`'s. Raises UnreadablePicture where that leaves a constant picture.
    """
    low, high, kind = *(value_range or (0, 0)), "declared"
    if value_range is None:
        counts, values = np.bincount(grey.ravel(), minlength=2**16), np.arange(2**16)
        low, high, kind = fitted_range(counts, values, steps) if check_grey_range else robust_range(counts, values)
    full = 2**bits - 1
    steps.append(f"more than 8 bits: values {low} to {high} ({kind}) became 0 to {full}")
    # A table of the 65,536 values is ten times faster than floating-point pixels.
    table = np.round(np.clip((np.arange(2**16) - low) * (full / (high - low)), 0, full))
    scaled = table.astype(np.uint8 if bits == 8 else np.uint16)[grey]
    if scaled.min() == scaled.max():
        raise UnreadablePicture(f"No pixel is inside the value range {value_range}; the result would be constant.")
    return scaled


def robust_range(counts: np.ndarray, values: np.ndarray) -> tuple[Any, Any, str]:
    """The 0.1 and 99.9 percentiles of a picture, or its extremes where those are equal, and which of them.

    counts: how often each of `values` occurs, both n; values in rising order.
    """
    low, high = _percentiles(counts, values, (0.001, 0.999))
    if low == high:
        return (*values[counts > 0][[0, -1]], "extremes")
    return low, high, "percentiles 0.1 and 99.9"


def fitted_range(counts: np.ndarray, values: np.ndarray, steps: list[str]) -> tuple[Any, Any, str]:
    """The robust range, or where it leaves the middle 98 % of the pixels less than LEAST_SPREAD, a narrower one.

    The narrower one is the middle 98 % and a tenth of it on each side, within the picture's values; `steps` says so.
    """
    low, high, kind = robust_range(counts, values)
    middle = _percentiles(counts, values, MIDDLE)
    spread = (middle[1] - middle[0]) / (high - low)
    if not 0 < spread < LEAST_SPREAD:
        return low, high, kind
    margin = (middle[1] - middle[0]) / 10
    # The nearest values that can be there, so that whole numbers stay whole.
    low, high = (values[np.abs(values - end).argmin()] for end in (middle[0] - margin, middle[1] + margin))
    steps.append(f"{GREY_RANGE}: {kind} left the middle 98 % of the pixels {spread:.1%} of the grey levels")
    return low, high, "percentiles 1 and 99, and a tenth on each side"


def spread(grey: np.ndarray) -> float:
    """The share of the grey levels that the middle 98 % of the pixels take up; grey: h w uint8 or uint16."""
    levels = grey if grey.dtype == np.uint8 else (grey >> 8).astype(np.uint8)
    counts = cv2.calcHist([levels], [0], None, [256], [0, 256]).ravel().astype(np.float64)
    low, high = _percentiles(counts, np.arange(256), MIDDLE)
    return float(high - low) / 255


def _percentiles(counts: np.ndarray, values: np.ndarray, shares: tuple[float, float]) -> list[Any]:
    below = np.cumsum(counts) / counts.sum()
    return [values[np.searchsorted(below, share)] for share in shares]


def resize_short(pixels: np.ndarray, short_side: int) -> np.ndarray:
    """Resizes h w uint8 or uint16 to a short side of exactly short_side px, aspect kept; smaller ones are enlarged."""
    height, width = pixels.shape
    scale = short_side / min(height, width)
    return resize(pixels, max(short_side, round(height * scale)), max(short_side, round(width * scale)))


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes h w uint8 or uint16 to height x width: area averaging to shrink, linear to enlarge."""
    if pixels.shape == (height, width):
        return pixels
    enlarges = height > pixels.shape[0] or width > pixels.shape[1]
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR if enlarges else cv2.INTER_AREA)


def read_mask(
    source: str | Path | bytes, orientation: int = orientations.AS_STORED, shape: tuple[int, int] = (1, 1)
) -> np.ndarray:
    """Reads a mask picture (PNG, JPEG or GIF) as h w uint8, 0 outside and 255 inside.

    Inside is every value above half of the largest one (0/255 and JPEG-blurred masks), or every value but 0 where the
    largest is below 16 (0/1 and numbered regions). A mask of zeros only is valid: nothing is marked.
    orientation, shape: EXIF orientation of its picture, and the picture's height and width after turning. A mask
        without an orientation of its own is turned along, unless only the turned picture has its proportions.
    Raises UnreadablePicture.
    """
    data, _ = contents(source)
    file_format = "gif" if data.startswith(b"GIF8") else _format(data)
    try:
        array, _, own = _array(opened(data, file_format), data, file_format, [])
    except UnreadablePicture as error:
        raise UnreadablePicture(f"The mask cannot be read: {error}") from None
    values = _grey(array, []).astype(np.float32)
    if own == orientations.AS_STORED and not (shape[0] != shape[1] and _alike(values.shape, shape) and orientation > 4):
        values = orientations.turn(values, orientation)
    largest = values.max()
    return np.where(values > (largest / 2 if largest >= 16 else 0), 255, 0).astype(np.uint8)


def _alike(shape: tuple[int, ...], other: tuple[int, int]) -> bool:
    """Whether two shapes have the same proportions, within 2 %."""
    return abs(shape[0] / shape[1] / (other[0] / other[1]) - 1) <= 0.02


def encode(pixels: np.ndarray, image_format: str) -> bytes:
    """Encodes h w uint8 as grey "png" or "jpeg" (quality 95); "png" takes uint16 as well."""
    if image_format == "png":
        done, buffer = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    elif image_format == "jpeg":
        done, buffer = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    else:
        raise ValueError(f"Image format {image_format!r} is not known; choose 'png' or 'jpeg'.")
    if not done:
        raise ValueError(f"A picture of shape {pixels.shape} and type {pixels.dtype} could not be encoded.")
    return buffer.tobytes()


def _format(data: bytes) -> str:
    if not data:
        raise UnreadablePicture("The file is empty (0 bytes).")
    if data.startswith(PNG_MARK):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[128:132] == b"DICM":
        raise UnreadablePicture("This is a DICOM file, which only cxrjax.imaging.reader reads.")
    for start, what in _OTHER_FORMATS:
        if data.startswith(start):
            raise UnreadablePicture(f"The file is {what}; only PNG, JPEG and DICOM are read.")
    if data.lstrip()[:1] == b"<":
        raise UnreadablePicture("The file is an HTML or XML page, perhaps from a failed download, not a picture.")
    if not data.strip(b"\0"):
        raise UnreadablePicture("The file holds zeros only, perhaps from an interrupted copy.")
    raise UnreadablePicture(f"The file is neither PNG, JPEG nor DICOM (it begins with bytes {data[:4].hex(' ')}).")


def _array(file: Opened, data: bytes, file_format: str, steps: list[str]) -> tuple[np.ndarray, int, int]:
    """h w or h w 3 array, uint8 or deeper, turned as its EXIF data say; stored bits per channel; the orientation."""
    bits = data[24] if file_format == "png" else 8
    try:
        orientation = int(file.image.getexif().get(orientations.TAG, orientations.AS_STORED))
    except Exception as error:  # whatever Pillow raises on damaged EXIF data
        raise UnreadablePicture(f"The EXIF data are broken, so which side is up is not known ({error}).") from None
    if orientation not in range(2, 9):  # 0 is written where nothing is known
        orientation = orientations.AS_STORED
    array = orientations.turn(_channels(file, data, bits, steps), orientation)
    if orientation != orientations.AS_STORED:
        steps.append("turned: as its EXIF orientation says")
    return array, bits, orientation


def _channels(file: Opened, data: bytes, bits: int, steps: list[str]) -> np.ndarray:
    """h w or h w 3 array as stored."""
    image = file.image
    if file.pixels is not None:
        return file.pixels
    if bits == 16 and image.mode not in ("I;16", "I;16B", "I"):
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if array is None or array.dtype != np.uint16:
            raise UnreadablePicture(f"This kind of 16-bit PNG (Pillow mode {image.mode}) cannot be decoded.")
        if array.ndim == 3 and array.shape[2] == 4:
            return _on_black(array[..., 2::-1], array[..., 3], steps)
        return array[..., ::-1] if array.ndim == 3 else array
    if image.mode in ("I;16", "I;16B", "I"):
        array = np.asarray(image).astype(np.uint16)
        if isinstance(value := image.info.get("transparency"), int) and (array == value).any():
            array[array == value] = 0
            steps.append("transparent pixels laid on black")
        return array
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layers = np.asarray(image.convert("RGBA"))
        return _on_black(layers[..., :3], layers[..., 3], steps)
    return np.asarray(image.convert("L" if image.mode in ("L", "1") else "RGB"))


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
