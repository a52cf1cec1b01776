"""Pictures as Python has them to grey pictures: files, NumPy arrays and DICOM datasets, one or many."""

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from cxrjax.imaging import pixels, reader

Range = tuple[float, float]
FORMS = "give a path, a DICOM dataset, h w, b h w, or a list of these"


def separate(images: Any) -> list[Any]:
    """One picture or many as a list with an entry for each; raises ValueError for none, and for other shapes.

    images: path, DICOM dataset, array h w or b h w (b h w 1 as well), or a sequence of paths, datasets and arrays h w.
    """
    if isinstance(images, str | os.PathLike) or hasattr(images, "save_as"):
        return [images]
    if not hasattr(images, "ndim"):
        found = list(images)
    elif images.ndim == 2:
        return [images]
    elif images.ndim == 4 and images.shape[-1] == 1:
        found = list(images[..., 0])
    else:
        if images.ndim != 3 or images.shape[-1] in (3, 4):
            raise ValueError(_wrong_shape(tuple(images.shape)))
        found = list(images)
    if not found:
        raise ValueError(f"no picture was given: the batch is empty; {FORMS}")
    return found


def grey(image: Any, value_range: Range | None = None) -> np.ndarray:
    """One picture as h w uint8, bones white.

    image: path, DICOM dataset, or array h w: uint8 as it is; uint16 by value_range, or else by its own robust range as
    a 16-bit file is; other kinds by value_range.
    value_range: the values that become black and white. DICOM carries its own.
    Raises ValueError (UnreadablePicture for files and datasets) with the reason.
    """
    if isinstance(image, str | os.PathLike):
        return reader.read(os.fspath(image), None if value_range is None else _whole(value_range)).pixels
    if hasattr(image, "save_as"):
        return reader.read(_as_file(image)).pixels
    array = np.asarray(image)
    if array.ndim != 2:
        raise ValueError(_wrong_shape(array.shape))
    pixels.refuse_shape(*array.shape)
    if array.dtype == np.uint8 and value_range is None:
        return array
    if array.dtype == np.uint16 and value_range is None:
        if array.min() == array.max():
            raise ValueError(f"the picture is constant: every pixel is {array.flat[0]}")
        return pixels.to_bits(array, None, 8, [])
    if value_range is None or array.dtype.kind not in "uif":
        raise ValueError(
            f"pixels are {array.dtype}; give uint8, uint16, or numbers with value_range=(black, white): the values "
            "that become black and white, such as (0.0, 1.0)"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(array))} pixels are NaN or infinite")
    low, high = value_range
    if not low < high:
        raise ValueError(
            f"value_range is {value_range}: black must be below white; turn a picture whose bones are dark by taking "
            "its values from their sum first"
        )
    return np.round(np.clip((array.astype(np.float32) - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)


def _whole(value_range: Range) -> tuple[int, int]:
    return round(value_range[0]), round(value_range[1])


def _wrong_shape(shape: Sequence[int]) -> str:
    colour = len(shape) in (3, 4) and shape[-1] in (3, 4)
    said = "looks like colour, and a radiograph is grey: take one channel, images[..., 0]" if colour else FORMS
    return f"the shape is {tuple(shape)}: {said}"


def _as_file(dataset: Any) -> bytes:
    file = io.BytesIO()
    try:
        dataset.save_as(file, enforce_file_format=True)
    except (AttributeError, ValueError, TypeError) as error:
        raise pixels.UnreadablePicture(f"The DICOM dataset cannot be written as a file: {error}") from None
    return file.getvalue()
