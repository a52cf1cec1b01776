"""Masks that official tables write as numbers instead of pictures: run lengths and drawn shapes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cxrjax.imaging.pixels import UnreadablePicture

SHAPES = ("rectangle", "ellipse", "polygon")


class RunLengths(NamedTuple):
    """Relative run lengths, column by column: pairs of (gap since the end of the last run, length of the run).

    This is the form of SIIM-ACR. The usual Kaggle form (absolute, one-based starts) is another one.
    """

    pairs: str
    height: int
    width: int


class Shape(NamedTuple):
    """A filled shape in pixels of the raw picture. points: x y x y ..., two corners for rectangle and ellipse."""

    kind: str
    points: tuple[float, ...]


MaskSource = Path | RunLengths | Shape


def draw(source: RunLengths | Shape, height: int, width: int) -> np.ndarray:
    """The mask as uint8, 255 inside: of height x width for a shape, of its own size for run lengths.

    Raises UnreadablePicture for numbers that are no mask.
    """
    return _runs(source) if isinstance(source, RunLengths) else _shape(source, height, width)


def run_lengths(mask: np.ndarray) -> RunLengths:
    """The inverse of `draw`: mask h w, everything but 0 is inside."""
    flat = np.concatenate([[0], (mask.T.ravel() > 0).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(flat))
    gaps = np.diff(edges, prepend=0)
    return RunLengths(" ".join(map(str, gaps.tolist())), *mask.shape)


def _runs(source: RunLengths) -> np.ndarray:
    try:
        numbers = np.array(source.pairs.split(), np.int64)
    except (ValueError, OverflowError):
        raise UnreadablePicture(f"The run lengths {source.pairs[:40]!r} are not whole numbers.") from None
    size = source.height * source.width
    if len(numbers) % 2 or not len(numbers):
        raise UnreadablePicture(f"The run lengths are {len(numbers)} numbers; they come in pairs of gap and length.")
    ends = np.cumsum(np.clip(numbers, -1, size + 1))
    if (numbers < 0).any() or ends[-1] > size:
        raise UnreadablePicture(
            f"The run lengths reach pixel {ends[-1]} of {size} ({source.width} x {source.height}): they are not "
            "relative run lengths of this picture."
        )
    flat = np.zeros(size, np.uint8)
    for start, end in zip(ends[0::2], ends[1::2], strict=True):
        flat[start:end] = 255
    return np.ascontiguousarray(flat.reshape(source.width, source.height).T)


def _shape(source: Shape, height: int, width: int) -> np.ndarray:
    if source.kind not in SHAPES:
        raise UnreadablePicture(f"The shape {source.kind!r} is not known; known are {', '.join(SHAPES)}.")
    mask = np.zeros((height, width), np.uint8)
    points = _points(source.points)
    if source.kind == "polygon":
        corners = points
    else:
        (left, top), (right, bottom) = points.min(0), points.max(0)
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    if source.kind == "ellipse":
        angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
        centre, radii = (points[0] + points[1]) / 2, np.abs(points[1] - points[0]) / 2
        corners = centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    limits = np.array([width, height])
    return cv2.fillPoly(mask, [np.round(np.clip(corners, -limits, 2 * limits)).astype(np.int32)], 255)


def _points(numbers: Sequence[float]) -> np.ndarray:
    points = np.array(numbers, np.float64)
    if len(points) % 2 or len(points) < 4 or not np.isfinite(points).all():
        raise UnreadablePicture(f"The corners {tuple(numbers)} of a shape are not pairs of numbers.")
    return points.reshape(-1, 2)
