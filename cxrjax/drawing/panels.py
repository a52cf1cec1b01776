"""The sheet of what a network sees: rows of pictures of the same few examples, each row with its name."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import jax
import numpy as np

from cxrjax.drawing import style

LEAST_PX = 160  # smaller pictures are enlarged by a whole number, so that their pixels can be told apart
MOST_PX = 256
TYPE_PX = 13
SCALE = (0.5, 99.5)  # percentiles that are drawn black and white


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["images", "hidden", "heat", "outline", "ids"],
    meta_fields=["label", "spell", "lines"],
)
@dataclasses.dataclass(frozen=True)
class Panel:
    """One row of a sheet: the same of every example.

    label: what it shows. images: b h w on any scale, or None for words alone. hidden: b p q bool, patches that are
    painted over. heat: b p q, colours over the picture, from its own lowest number to its highest. outline: b h w bool,
    what a line is drawn around. ids: int b l, tokens that stand under the picture, in so many lines at most, and spell:
    l of them → words.
    """

    label: str
    images: Any = None
    hidden: Any = None
    heat: Any = None
    outline: Any = None
    ids: Any = None
    spell: Callable[[Any], str] | None = None
    lines: int = 5


def rows(label: str, images: Any) -> list[Panel]:
    """A panel of every view, images b v h w c, of which the first channel is drawn."""
    count = images.shape[1]
    return [Panel(f"{label} {v + 1}" if count > 1 else label, images[:, v, ..., 0]) for v in range(count)]


def sheet(panels: Sequence[Panel], title: str) -> np.ndarray:
    """All panels below each other, uint8 h w 3: as tall and as wide for the same panels of other numbers.

    All pictures of one example share a scale of greys: that of its first one.
    """
    first = next(panel.images for panel in panels if panel.images is not None)
    wide = _width(*first.shape[1:])
    scales = [np.percentile(image, SCALE) for image in np.asarray(first, np.float32)]
    width = len(scales) * (wide + style.GAP_PX)
    parts = [_heading(title, width)]
    for panel in panels:
        parts.append(style.strip(panel.label, width, TYPE_PX))
        drawn = [_picture(panel, row, scale, wide) for row, scale in enumerate(scales)]
        parts.append(np.pad(np.concatenate(drawn, axis=1), ((0, style.GAP_PX), (0, 0), (0, 0)), constant_values=255))
    return np.concatenate(parts)


def _width(height: int, width: int) -> int:
    """The width that a picture is drawn with: its longer side is enlarged to about LEAST_PX, or shrunk to MOST_PX."""
    longer = max(height, width)
    return max(round(width * min(longer * max(1, round(LEAST_PX / longer)), MOST_PX) / longer), 1)


def side_by_side(start: np.ndarray | None, now: np.ndarray) -> np.ndarray | None:
    """The sheet of the start, the left part of a picture that was drawn before, and one of now.

    None where both show the same. start: None where there is none; one of other panels is left out.
    """
    if start is None or len(start) != len(now) or start.shape[1] < now.shape[1]:
        return now
    start, below = start[:, : now.shape[1]], _heading("", 1).shape[0]
    return None if np.array_equal(start[below:], now[below:]) else np.concatenate([start, now], axis=1)


def _heading(title: str, width: int) -> np.ndarray:
    return style.strip(title, width, round(1.3 * TYPE_PX))


def _picture(panel: Panel, row: int, scale: np.ndarray, wide: int) -> np.ndarray:
    """One example's picture and what stands under it, with a margin on the right."""
    parts = []
    if panel.images is not None:
        parts.append(drawn(panel, row, scale, wide))
    if panel.ids is not None and panel.spell is not None:
        parts.append(style.strip(panel.spell(panel.ids[row]), wide, TYPE_PX - 2, panel.lines, style.FAINT))
    return np.pad(np.concatenate(parts), ((0, 0), (0, style.GAP_PX), (0, 0)), constant_values=255)


def drawn(panel: Panel, row: int, scale: np.ndarray, wide: int) -> np.ndarray:
    """One example's picture of a panel with its marks, uint8 h w 3 in its own aspect.

    scale: the greys that are black and white. wide: w.
    """
    (low, high), (height, width) = scale, panel.images.shape[1:]
    shape = max(round(wide * height / width), 1), wide
    grey = (np.asarray(panel.images[row], np.float32) - low) / max(high - low, 1e-6)
    grey = np.clip(255 * grey + 0.5, 0, 255).astype(np.uint8)
    larger = shape[0] >= len(grey)
    grey = cv2.resize(grey, shape[::-1], interpolation=cv2.INTER_NEAREST if larger else cv2.INTER_AREA)
    canvas = np.repeat(grey[..., None], 3, axis=2)
    if panel.heat is not None:
        values = np.asarray(panel.heat[row], np.float32)
        canvas = style.over(canvas, style.enlarge(values, *shape), float(values.min()), float(values.max()))
    if panel.hidden is not None:
        canvas[_large(panel.hidden[row], shape)] = style.HIDDEN
    if panel.outline is not None:
        lines, _ = cv2.findContours(
            _large(panel.outline[row], shape).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        canvas = cv2.drawContours(np.ascontiguousarray(canvas), lines, -1, style.rgb(style.COLOURS[4]), 2)
    return canvas


def _large(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.resize(np.asarray(mask, np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT) > 0
