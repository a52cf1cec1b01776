"""What an encoder makes of the patches of a radiograph: their main components, its heads, and what is like a patch."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cxrjax.drawing import style
from cxrjax.evals import attention, figures
from cxrjax.evals.figures import Marks
from cxrjax.methods.base import Method

ENDS = (2, 98)  # percentiles of a component that are drawn as none and all of a colour


def components(patches: np.ndarray) -> np.ndarray:
    """The first three principal components of patches p q d, as red, green and blue from 0 to 1: p q 3.

    Each goes over its own range, so the colours say which patches are alike and nothing of how far apart they are.
    """
    p, q, d = patches.shape
    rows = patches.reshape(p * q, d).astype(np.float64)
    rows -= rows.mean(axis=0)
    _, _, directions = np.linalg.svd(rows, full_matrices=False)
    found = rows @ directions[:3].T
    found = np.pad(found, ((0, 0), (0, 3 - found.shape[1])))
    low, high = np.percentile(found, ENDS, axis=0)
    return np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1).reshape(p, q, 3)


def similarity(patches: np.ndarray, row: int, column: int) -> np.ndarray:
    """Cosines of every patch of p q d with one of them: p q."""
    unit = patches / np.maximum(np.linalg.norm(patches, axis=-1, keepdims=True), 1e-12)
    return unit @ unit[row, column]


def looker(method: Method, params: Any, state: Any) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    """Picture uint8 h w → its patches p q d, and the attention of [CLS] by head, heads p q, where there is one."""
    encode, heads = jax.jit(method.encode), jax.jit(attention.maps(method.encode, by_head=True))

    def look(picture):
        images = picture[None, :, :, None]
        patches = np.asarray(encode(params, state, images)["patches"][0], np.float32)
        by_head = heads(params, state, images)
        return patches, None if by_head is None else np.asarray(by_head[0], np.float32)

    return look


def sheet(
    picture: np.ndarray, patches: np.ndarray, heads: np.ndarray | None, marks: Marks, at: tuple[float, float]
) -> np.ndarray:
    """Components, similarity to the patch at `at` (y, x from 0 to 1), and heads, over a picture: uint8 h w 3."""
    p, q, _ = patches.shape
    row, column = min(int(at[0] * p), p - 1), min(int(at[1] * q), q - 1)
    (height, width), alike, none = picture.shape, similarity(patches, row, column), Marks((), {})
    scale = float(alike.min()), float(alike.max())
    cross = round((row + 0.5) * height / p - 0.5), round((column + 0.5) * width / q - 0.5)
    panels = [
        figures.panel(picture, "picture", marks),
        figures.panel(picture, "patches: first three components", none, colours=components(patches)),
        figures.panel(picture, "cosine with the patch at the cross", none, alike, scale, cross=cross),
    ]
    for number, found in enumerate(() if heads is None else heads):
        ends = float(found.min()), float(found.max())
        panels.append(figures.panel(picture, f"attention of [CLS], head {number + 1}", none, found, ends))
    return style.laid_out(panels, figures.COLUMNS)
