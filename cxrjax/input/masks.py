"""A picture's mask, on the host: read from its record, and cut, turned and resized together with the picture."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cxrjax.input import boxes, crops

BOXES = "boxes"


def mask(example: Mapping[str, Any], target: str, shape: tuple[int, int]) -> tuple[np.ndarray, bool]:
    """The mask of a picture of `shape` h w: uint8 h w, 255 inside, and whether it is known.

    target: a field of the set, "mask", "finding_mask" or "mask_<name>", or "boxes" for the union of the boxes to judge
    by. The mask of the lungs is not known where the record says so (`has_mask`), the mask of another organ where it is
    empty. An empty finding_mask, or no box, means that there is nothing to find.
    Raises ValueError for a target that the set does not have, naming those that it has.
    """
    if target not in example:
        has = [name for name in example if name == BOXES or (name.partition("_")[0] == "mask" or "_mask" in name)]
        raise ValueError(
            f"set {example['set']!r} has no {target!r}; it has {', '.join(n for n in has if n != 'has_mask') or 'none'}"
        )
    if target == BOXES:
        return union(boxes.of_example(example, ()).boxes, shape), True
    found = crops.decode(example[target])
    if found.shape != tuple(shape):
        raise ValueError(f"{target} of {example['image_id']!r} has {found.shape} px, its picture {tuple(shape)}")
    if target == "mask":
        return found, bool(example.get("has_mask", True))
    return found, bool(target == "finding_mask" or found.any())


def together(
    image: np.ndarray, inside: np.ndarray, geometry: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Picture and mask after the same geometry: uint8 h w and uint8 h w, 255 inside.

    geometry: from an array h w c to one of any size; both go through it as its two channels, so no draw can differ.
    Where it mixes pixels, a pixel is inside if at least half of it is.
    """
    both = geometry(np.stack([image, inside], axis=-1))
    return np.ascontiguousarray(both[..., 0]), np.where(both[..., 1] >= 128, 255, 0).astype(np.uint8)


def union(found: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The mask of relative boxes n 4 in a picture of `shape` h w: uint8 h w, 255 inside of any of them."""
    inside = np.zeros(shape, np.uint8)
    for top, left, bottom, right in found.astype(np.float64):
        rows, columns = (
            np.round(np.array(pair) * side).astype(int)
            for pair, side in zip(((top, bottom), (left, right)), shape, strict=True)
        )
        inside[slice(*rows), slice(*columns)] = 255
    return inside
