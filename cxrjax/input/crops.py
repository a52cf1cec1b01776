"""Crops, flips and small rotations of one grey picture on the host: encoded bytes -> uint8 h w -> uint8 v px px 1.

px px is the size asked for: one number for a square, or two, height and width (`sizes.Px`).
"""

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from cxrjax.sizes import Px, plain, sides

# Grain's threads are the parallelism; OpenCV's own pool inside them only makes threads wait for each other.
cv2.setNumThreads(0)

RATIO = (3 / 4, 4 / 3)


class Undecodable(ValueError):
    """Bytes that are not a whole picture."""


def decode(encoded: bytes, bits: int = 8) -> np.ndarray:
    """Decodes PNG or JPEG bytes to uint8 h w, or to uint16 for bits=16, in the orientation in which they are stored.

    A set stored with 16 bits gives its upper eight by default, so that methods see the same grey values of every set;
    a method that windows its pictures asks for 16 (pictures stored with 8 bits then become 257 v).
    Raises Undecodable for bytes that are not a whole picture.
    """
    # OpenCV before version 5 fills the missing part of a cut JPEG with grey and says nothing.
    cut = not encoded or (encoded[:2] == b"\xff\xd8" and encoded.rfind(b"\xff\xd9") < 0)
    # Masks and boxes are in stored pixels, so a rotation noted in EXIF must not be applied.
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    if bits == 16:
        flags |= cv2.IMREAD_ANYDEPTH
    image = None if cut else cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if image is None:
        raise Undecodable(f"These {len(encoded)} bytes are not a whole PNG or JPEG picture.")
    return image * np.uint16(257) if bits == 16 and image.dtype == np.uint8 else image


def resize(image: np.ndarray, height: int, width: int, nearest: bool = False) -> np.ndarray:
    """Resizes h w to height width: area average where it shrinks, bicubic where it grows, or nearest (masks)."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    smooth = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    # INTER_NEAREST shifts by half a pixel against the other modes; the exact one keeps masks on their picture.
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST_EXACT if nearest else smooth)


def resize_short(image: np.ndarray, px: int, nearest: bool = False) -> np.ndarray:
    """Resizes h w so that the short side is px; the aspect is kept."""
    return resize(image, *shorter(image.shape, px), nearest)


def shorter(shape: tuple[int, ...], px: int) -> tuple[int, int]:
    """Height and width of a picture of this shape when its short side is px."""
    height, width = shape[:2]
    scale = px / min(height, width)
    return max(px, round(height * scale)), max(px, round(width * scale))


def resize_over(image: np.ndarray, px: Px, nearest: bool = False) -> np.ndarray:
    """Resizes h w to the smallest size that covers px px; the aspect is kept."""
    return resize(image, *covering(image.shape, px), nearest)


def covering(shape: tuple[int, ...], px: Px) -> tuple[int, int]:
    """Height and width of a picture of this shape at the smallest size that covers px px."""
    wanted, given = sides(px), shape[:2]
    scale = max(side / old for side, old in zip(wanted, given, strict=True))
    height, width = (max(side, round(old * scale)) for side, old in zip(wanted, given, strict=True))
    return height, width


def center_crop(image: np.ndarray, px: Px) -> np.ndarray:
    """Cuts px px out of the middle of h w. Raises ValueError if a side is shorter than that."""
    height, width = image.shape[:2]
    rows, columns = sides(px)
    if height < rows or width < columns:
        raise ValueError(
            f"Cannot cut {rows} x {columns} px out of a picture of {height} x {width} px; resize it first."
        )
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[top : top + rows, left : left + columns]


def fit(image: np.ndarray, px: Px, nearest: bool = False) -> np.ndarray:
    """Evaluation geometry: as small as still covers px px, then the px px in the middle. `nearest=True` for masks."""
    return center_crop(resize_over(image, px, nearest), px)


def fit_as(image: np.ndarray, px: Px, how: str = "image", nearest: bool = False) -> np.ndarray:
    """A picture h w as an encoder is judged with it, px px; "image" is `fit`, what our own are judged with.

    how: "image<N>", such as "image256": short side to N px, or more where px px asks for it, then the px px in the
    middle. "whole": stretched to px px. "padded": as large as px px holds, in the middle of black.
    nearest: for masks. Raises ValueError for another word.
    """
    height, width, top, left = placed(image.shape, px, how)
    resized = resize(image, height, width, nearest)
    if how != "padded":
        return center_crop(resized, px)
    padded = np.zeros((*sides(px), *image.shape[2:]), image.dtype)
    padded[top : top + height, left : left + width] = resized
    return padded


def placed(shape: tuple[int, ...], px: Px, how: str = "image") -> tuple[int, int, int, int]:
    """Where `fit_as` puts a picture of this shape: its height and width, and its top and left in px px.

    Top and left are at most 0 where the picture is cut. Raises ValueError for another word than `fit_as` knows.
    """
    rows, columns = sides(px)
    if how == "whole":
        return rows, columns, 0, 0
    if how == "padded":
        side, filled = _first_filled(px, shape)
        height, width = (max(round(length * side / filled), 1) for length in shape[:2])
        return height, width, (rows - height) // 2, (columns - width) // 2
    short = how.removeprefix("image")
    if not how.startswith("image") or not (short.isdigit() or not short):
        raise ValueError(f"pictures are fitted as 'image', 'image<N>', 'whole' or 'padded', not as {how!r}")
    height, width = shorter(shape, int(short)) if short else (0, 0)
    if height < rows or width < columns:
        height, width = covering(shape, px)
    return height, width, -((height - rows) // 2), -((width - columns) // 2)


def _first_filled(px: Px, shape: tuple[int, ...]) -> tuple[int, int]:
    """The side of px px that a picture h w fills first as it grows, and the picture's own side there."""
    return min(zip(sides(px), shape[:2], strict=True), key=lambda pair: Fraction(*pair))


class Crop(NamedTuple):
    """One random view of a picture: a window of it, turned, resized to px (`sizes.Px`), and perhaps mirrored.

    scale, ratio: of the window, as `random_resized_crop` takes them. rotation_degrees: the greatest angle, either way.
    flip: probability of the mirror image; 0 unless asked for, since it moves the heart to the other side.
    """

    px: Px
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = RATIO
    flip: float = 0.0
    rotation_degrees: float = 0.0


def views(image: np.ndarray, rng: np.random.Generator, *specs: Crop) -> np.ndarray:
    """Several independent views of one decoded picture h w: uint8 v px px 1, in the order of the specs.

    One call per size: `views(image, rng, *2 * [large])` and `views(image, rng, *6 * [small])` decode the picture once.
    Raises ValueError for no spec, for specs of several sizes, and as `random_resized_crop` does.
    """
    if len({plain(spec.px) for spec in specs}) != 1:
        raise ValueError(
            f"crops of {[spec.px for spec in specs]} px cannot be stacked: give at least one, all of one size, and "
            "call once for every size"
        )
    return np.stack([crop(image, rng, spec) for spec in specs])[..., None]


def crop(image: np.ndarray, rng: np.random.Generator, spec: Crop) -> np.ndarray:
    """One random view of h w: px px. What the spec leaves out draws nothing from rng."""
    cut = random_resized_crop(image, rng, spec.px, spec.scale, spec.ratio, spec.rotation_degrees)
    return hflip(cut, rng, spec.flip) if spec.flip else cut


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    px: Px,
    scale: tuple[float, float],
    ratio: tuple[float, float] = RATIO,
    rotation_degrees: float = 0.0,
) -> np.ndarray:
    """Cuts a random window out of h w and resizes it to px px.

    scale: least and greatest share of the picture's area. ratio: least and greatest width / height of the window over
    that of px px, so that 1 keeps the aspect of what is shown; drawn log-uniformly. After ten draws that do not fit,
    the largest middle window within `ratio` is taken.
    rotation_degrees: the window is turned about its middle by an angle from ± this, drawn uniformly.
    Raises ValueError for a scale that is not a range in (0, 1].
    Source: Szegedy et al. 2015, as in torchvision's RandomResizedCrop; turning the window is our choice, see `_turned`,
    and so are ratios of what is no square: torchvision's would distort every such view.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale is the least and greatest share of the picture's area, in (0, 1]; got {tuple(scale)}")
    full_height, full_width = image.shape[:2]
    top, left, height, width = random_window(full_height, full_width, rng, scale, relative(ratio, px))
    if rotation_degrees:
        degrees = rng.uniform(-rotation_degrees, rotation_degrees)
        return resize(_turned(image, top, left, height, width, degrees), *sides(px))
    return resize(image[top : top + height, left : left + width], *sides(px))


def relative(ratio: tuple[float, float], px: Px) -> tuple[float, float]:
    """The width / height of windows that are shown as px px with their aspect changed by `ratio`."""
    height, width = sides(px)
    return ratio[0] * width / height, ratio[1] * width / height


def _turned(image: np.ndarray, top: int, left: int, height: int, width: int, degrees: float) -> np.ndarray:
    """The content of a window after turning the picture counter-clockwise about the window's middle; bilinear.

    The corners come from the picture around the window, and from its mirror image only beyond its edge: a black wedge
    would tell the angle, which views of one picture must not share, and shift the picture's own mean.
    """
    middle = (left + (width - 1) / 2, top + (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(middle, degrees, 1.0)
    matrix[:, 2] -= (left, top)
    # At the scale of the source, so that `resize` can then average over the area.
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def random_window(
    full_height: int,
    full_width: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """The window of `random_resized_crop` (see there): its top, left, height and width in pixels of the picture."""
    log_ratio = np.log(ratio)
    for _ in range(10):
        area = full_height * full_width * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*log_ratio))
        height, width = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
        if 0 < height <= full_height and 0 < width <= full_width:
            top = int(rng.integers(full_height - height + 1))
            left = int(rng.integers(full_width - width + 1))
            return top, left, height, width
    height = min(full_height, round(full_width / ratio[0]))
    width = min(full_width, round(full_height * ratio[1]))
    return (full_height - height) // 2, (full_width - width) // 2, height, width


def hflip(image: np.ndarray, rng: np.random.Generator, probability: float = 0.5) -> np.ndarray:
    """Mirrors h w left to right with this probability."""
    return cv2.flip(image, 1) if rng.random() < probability else image


def transform(kind: str, px: Px) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """The function (image uint8 h w, rng) -> uint8 px px of a kind; it can be pickled.

    kind: "none" (`fit`, no draw), "mild" (crop of 50-100 % of the area), "crop_flip" (crop of 20-100 % and mirror),
        "crop_turn_flip" (of 60-100 %, turned by up to 20° either way, and mirror, after ConVIRT),
        "pad_crop" (as large as 8/7 of px px holds, zeros around it, a crop: 256 and 224 px in MGCA's code).
    Raises ValueError naming the kinds for another one.
    """
    whole = {"none": _none, "pad_crop": _pad_crop}
    if kind in whole:
        return partial(whole[kind], px=px)
    if kind not in _CROPS:
        known = ", ".join(map(repr, (*whole, *_CROPS)))
        raise ValueError(f"Transform {kind!r} is not known; choose one of {known}.")
    return partial(crop, spec=Crop(px, **_CROPS[kind]))


def _none(image: np.ndarray, rng: np.random.Generator, px: Px) -> np.ndarray:
    return fit(image, px)


def _pad_crop(image: np.ndarray, rng: np.random.Generator, px: Px) -> np.ndarray:
    rows, columns = sides(px)
    around = round(rows * 8 / 7), round(columns * 8 / 7)
    side, filled = _first_filled(around, image.shape)
    height, width = (max(length * side // filled, 1) for length in image.shape)
    padded = np.zeros(around, image.dtype)
    top, left = (around[0] - height) // 2, (around[1] - width) // 2
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    padded[top : top + height, left : left + width] = resized
    # Of a square one scalar bound draws other numbers than two equal ones would.
    free = around[0] - rows + 1, around[1] - columns + 1
    y, x = rng.integers(free[0] if free[0] == free[1] else free, size=2)
    return padded[y : y + rows, x : x + columns]


_CROPS = {
    "mild": {"scale": (0.5, 1.0)},
    "crop_flip": {"scale": (0.2, 1.0), "flip": 0.5},
    "crop_turn_flip": {"scale": (0.6, 1.0), "flip": 0.5, "rotation_degrees": 20.0},
}
