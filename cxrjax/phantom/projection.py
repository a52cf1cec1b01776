"""Line integrals of ellipsoids, stacks of ellipses and tubes along parallel horizontal rays.

Patient coordinates in centimetres: x to the patient's left, y to the back, z to the head. A ray crosses a convex body
in one interval, so unions and differences of bodies are arithmetic on interval ends, in closed form and pixel by pixel.
"""

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike

_SLICES = 600


class Rays(NamedTuple):
    """One parallel ray per pixel: point = column * across + depth * along, at the height of its row."""

    columns: np.ndarray  # (1, w) centimetres on the detector
    rows: np.ndarray  # (h, 1) body height z, falling
    across: np.ndarray  # (2,) horizontal body vector of one centimetre to the picture's right
    along: np.ndarray  # (2,) horizontal body vector of one centimetre of depth
    scale: np.ndarray  # (3,) centimetres of this patient per centimetre of the reference body

    pixel: float  # centimetres

    def cut(self, window: tuple[slice, slice]) -> "Rays":
        """The rays of some rows and columns."""
        return self._replace(rows=self.rows[window[0]], columns=self.columns[:, window[1]])


class Span(NamedTuple):
    """The depths at which every ray enters and leaves a convex body; empty where far <= near. Both h w."""

    near: np.ndarray
    far: np.ndarray

    def length(self) -> np.ndarray:
        return np.maximum(self.far - self.near, 0)


class Stack(NamedTuple):
    """A body whose every horizontal slice is an ellipse: `profile(z)` gives centre x, y and half-widths in x, y."""

    profile: Callable

    def span(self, rays: Rays) -> Span:
        x, y, half_x, half_y = (np.asarray(p, np.float32) for p in self.profile(rays.rows))
        half_x, half_y = np.maximum(half_x, 1e-3), np.maximum(half_y, 1e-3)
        along_x, along_y = rays.along[0] / half_x, rays.along[1] / half_y
        from_x = (rays.columns * rays.across[0] - x) / half_x
        from_y = (rays.columns * rays.across[1] - y) / half_y
        square = along_x**2 + along_y**2
        return _roots(square, from_x * along_x + from_y * along_y, from_x**2 + from_y**2 - 1)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """`points` (n, 3) -> bool (n); heights are rounded to the `_SLICES` levels between the outermost points."""
        if not len(points):
            return np.zeros(0, bool)
        lowest, highest = float(points[:, 2].min()), float(points[:, 2].max()) + 1e-3
        levels = np.linspace(lowest, highest, _SLICES)
        x, y, half_x, half_y = (np.broadcast_to(np.float32(p), levels.shape) for p in self.profile(levels))
        level = ((points[:, 2] - lowest) * ((_SLICES - 1) / (highest - lowest)) + 0.5).astype(np.int32)
        from_x = (points[:, 0] - x[level]) * (1 / np.maximum(half_x, np.float32(1e-3)))[level]
        from_y = (points[:, 1] - y[level]) * (1 / np.maximum(half_y, np.float32(1e-3)))[level]
        return from_x * from_x + from_y * from_y < 1


class Ellipsoid(NamedTuple):
    """The points p with |matrix (p - centre)| < 1."""

    centre: np.ndarray  # (3,)
    matrix: np.ndarray  # (3, 3)

    def quadratic(self, rays: Rays) -> tuple:
        """Coefficients (square, half_linear, constant) in the depth of |matrix (p - centre)|^2."""
        matrix = np.asarray(self.matrix, np.float32)
        along = matrix[:, :2] @ rays.along
        from_centre = [
            (m[0] * rays.across[0] + m[1] * rays.across[1]) * rays.columns
            + (m[2] * rays.rows - float(m @ np.asarray(self.centre, np.float32)))
            for m in matrix
        ]
        half_linear = sum(f * a for f, a in zip(from_centre, along, strict=True))
        return np.float32(along @ along), half_linear, sum(f * f for f in from_centre)

    def span(self, rays: Rays) -> Span:
        square, half_linear, constant = self.quadratic(rays)
        return _roots(square, half_linear, constant - 1)

    def window(self, rays: Rays, margin: float = 1.0) -> tuple[slice, slice]:
        """Rows and columns of the rays that can meet the ellipsoid, or `margin` times it."""
        to_body = np.linalg.inv(self.matrix)
        across = np.append(rays.across * rays.scale[:2] ** 2, 0.0)
        limits = []
        for axis, step in ((np.array((0.0, 0.0, -rays.scale[2])), 0), (across, 1)):
            start = -rays.rows[0, 0] * rays.scale[2] if step == 0 else rays.columns[0, 0]
            reach = margin * np.linalg.norm(axis @ to_body)
            middle, count = axis @ self.centre - start, (rays.rows.size, rays.columns.size)[step]
            first, last = (middle - reach) / rays.pixel, (middle + reach) / rays.pixel
            limits.append(slice(int(np.clip(first, 0, count - 1)), int(np.clip(last + 2, 1, count))))
        return tuple(limits)

    def gaussian_length(self, rays: Rays) -> np.ndarray:
        """Integral of exp(-|matrix (p - centre)|^2) along the rays: a body without an edge, h w centimetres."""
        square, half_linear, constant = self.quadratic(rays)
        return np.sqrt(np.float32(np.pi) / square) * np.exp(half_linear**2 / square - constant)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """`points` (n, 3) -> bool (n)."""
        matrix = self.matrix.astype(points.dtype)
        from_centre = (points - self.centre.astype(points.dtype)) @ matrix.T
        return np.einsum("ni,ni->n", from_centre, from_centre) < 1


def ellipsoid(
    centre: ArrayLike, half_axes: ArrayLike, long_axis: Sequence[float] | np.ndarray = (1.0, 0.0, 0.0)
) -> Ellipsoid:
    """Ellipsoid whose first half-axis points along `long_axis` and whose second is horizontal where it can be."""
    x, y, z = (float(part) for part in long_axis)
    length, level = math.sqrt(x * x + y * y + z * z), math.hypot(x, y)
    x, y, z = x / length, y / length, z / length
    along_x, along_y = (-y * length / level, x * length / level) if level > 1e-6 * length else (0.0, 1.0)
    axes = np.array([(x, y, z), (along_x, along_y, 0.0), (-z * along_y, z * along_x, x * along_y - y * along_x)])
    return Ellipsoid(np.asarray(centre, float), axes / np.asarray(half_axes, float)[:, None])


def _roots(square, half_linear, constant) -> Span:
    middle = half_linear * (-1 / square)
    root = middle * middle
    root -= constant / square
    # A ray that misses gets an interval of negative length.
    root = np.where(root > 0, np.sqrt(np.abs(root)), np.float32(-1))
    return Span(middle - root, middle + root)


def common(*spans: Span) -> Span:
    """Intersection of spans."""
    near, far = spans[0]
    for span in spans[1:]:
        near, far = np.maximum(near, span.near), np.minimum(far, span.far)
    return Span(near, far)


def hull(first: Span, *others: Span) -> Span:
    """From the first entry to the last exit: the union of bodies that touch along the ray."""
    near, far = first
    for span in others:
        here, there = near < far, span.near < span.far
        near = np.where(here & ~(there & (span.near < near)), near, span.near)
        far = np.where(here & ~(there & (span.far > far)), far, span.far)
    return Span(near, far)


def union_length(spans: Sequence[Span]) -> np.ndarray:
    """Length covered by at least one of a few spans (inclusion and exclusion), h w centimetres."""
    total = np.zeros((), np.float32)
    for count in range(1, len(spans) + 1):
        for chosen in combinations(spans, count):
            total = total + (1 if count % 2 else -1) * common(*chosen).length()
    return total


def remaining_length(span: Span, cuts: Sequence[Span]) -> np.ndarray:
    """Length of `span` that none of `cuts` covers, h w centimetres."""
    return np.maximum(span.length() - union_length([common(span, cut) for cut in cuts]), 0)


class Grains(NamedTuple):
    """Small volume elements that stand for tubes: their projected volume per pixel area is the line integral."""

    points: np.ndarray  # (3, n)
    volumes: np.ndarray  # (n,) cubic centimetres times attenuation

    def weighted(self, factor: float | np.ndarray) -> "Grains":
        return Grains(self.points, (self.volumes * factor).astype(np.float32))


def gather(grains: Sequence[Grains]) -> Grains:
    """One Grains from many."""
    return Grains(np.concatenate([g.points for g in grains], axis=1), np.concatenate([g.volumes for g in grains]))


def tubes(
    lines: np.ndarray,
    radii: ArrayLike,
    spacing: float,
    *,
    hollow: float = 0.0,
    facing: Sequence[float] = (0.0, 0.0, 1.0),
    keep: np.ndarray | None = None,
) -> Grains:
    """Cut tubes of elliptical section into volume elements.

    lines: t n 3, centre lines in centimetres; radii: broadcastable to t n 2, half-widths along and across `facing`;
    spacing: about the distance of elements in centimetres; hollow: attenuation of the marrow as a fraction of the
    cortex (0 = a full tube of attenuation 1); facing: direction (3) of the first half-width;
    keep: bool t m, whether the tubes go on at m even steps.
    """
    lines = np.asarray(lines, np.float32)
    half_widths = np.broadcast_to(np.asarray(radii, np.float32), (*lines.shape[:2], 2))
    longest = _norm(np.diff(lines, axis=1)).sum(1).max()
    count = max(4, int(np.ceil(longest / (1.25 * spacing))) + 1)
    steps = np.gradient(_resample(lines, count), axis=1)
    share = np.ones((len(lines), count, 1), np.float32)
    share[:, [0, -1]] = 0.5
    steps, share = steps.reshape(-1, 3), share.reshape(-1, 1)
    lines, half_widths = _resample(lines, count).reshape(-1, 3), _resample(half_widths, count).reshape(-1, 2)
    if keep is not None:
        kept = _resample(keep[..., None].astype(np.float32), count).reshape(-1) > 0.5
        lines, half_widths, steps, share = lines[kept], half_widths[kept], steps[kept], share[kept]
    lengths = _norm(steps) + 1e-6
    tangent = steps / lengths
    direction = np.asarray(facing, np.float32)
    first = direction - (tangent @ direction)[:, None] * tangent
    first /= _norm(first) + 1e-6
    second = cross(tangent, first)
    offsets, shares = _section(float(half_widths.max(initial=0)), (2.4 if hollow else 1.8) * spacing, hollow)
    first, second = first * half_widths[:, :1], second * half_widths[:, 1:]
    # Every section is turned against the one before, else their regular pattern shows.
    twist = (2.4 * np.arange(len(lines)) % (2 * np.pi)).astype(np.float32)[:, None]
    first, second = np.cos(twist) * first + np.sin(twist) * second, np.cos(twist) * second - np.sin(twist) * first
    points = np.empty((3, len(lines), len(shares)), np.float32)
    for axis in range(3):
        np.multiply(first[:, axis, None], offsets[:, 0], out=points[axis])
        points[axis] += second[:, axis, None] * offsets[:, 1]
        points[axis] += lines[:, axis, None]
    volumes = share * lengths * (np.pi * half_widths.prod(-1))[..., None] * shares
    return Grains(points.reshape(3, -1), volumes.reshape(-1).astype(np.float32))


def _norm(vectors: np.ndarray) -> np.ndarray:
    """Lengths of vectors (… 3) as (… 1)."""
    return np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]


def cross(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cross product over the last axis; numpy's own takes long for small arrays."""
    (a, b, c), (d, e, f) = np.moveaxis(left, -1, 0), np.moveaxis(right, -1, 0)
    return np.stack([b * f - c * e, c * d - a * f, a * e - b * d], -1)


def _resample(lines: np.ndarray, count: int) -> np.ndarray:
    """`count` points at even parameter steps along lines (t n c)."""
    position = np.linspace(0, lines.shape[1] - 1, count).astype(np.float32)
    left = np.minimum(position.astype(int), lines.shape[1] - 2)
    share = (position - left)[None, :, None]
    return lines[:, left] * (1 - share) + lines[:, left + 1] * share


def _section(radius: float, spacing: float, hollow: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of the unit disc (k 2) and the share of the section's attenuation that each carries (k)."""
    rings = max(1, int(np.ceil(radius / spacing)))
    edges = np.linspace(0, 1, rings + 1)
    offsets, shares = [], []
    for inner, outer in zip(edges[:-1], edges[1:], strict=True):
        middle = (inner + outer) / 2
        count = max(3, int(np.ceil(2 * np.pi * middle * radius / spacing))) if radius > spacing / 3 else 1
        angles = 2 * np.pi * (np.arange(count) + middle) / count
        cortex = np.clip((outer - 0.7) / (outer - inner), 0, 1) if hollow else 1.0
        density = cortex + (1 - cortex) * hollow
        radius_used = middle if count > 1 else 0.0
        offsets.append(radius_used * np.stack([np.cos(angles), np.sin(angles)], -1))
        shares.append(np.full(count, density * (outer**2 - inner**2) / count))
    return np.concatenate(offsets).astype(np.float32), np.concatenate(shares).astype(np.float32)


def deposit(parts: Sequence[Grains], rays: Rays) -> np.ndarray:
    """Line integral of the grains, h w: their volumes counted on a grid of half pixels, then blurred to pixels."""
    height, width = 2 * rays.rows.size, 2 * rays.columns.size
    across, per_cell = rays.across * rays.scale[:2] * rays.scale[:2], 2 / rays.pixel
    down = float(rays.scale[2]) * per_cell
    counted = np.zeros((height + 2) * (width + 2))
    for (x, y, z), volumes in parts:
        column = x * np.float32(across[0] * per_cell) + y * np.float32(across[1] * per_cell)
        column += np.float32(2 - rays.columns[0, 0] * per_cell)
        row = z * np.float32(-down)
        row += np.float32(2 + rays.rows[0, 0] * down)
        # What lies outside is counted in a margin of one cell.
        index = np.clip(row, 0, height + 1, out=row).astype(np.int64) * (width + 2)
        index += np.clip(column, 0, width + 1, out=column).astype(np.int64)
        counted += np.bincount(index, volumes, counted.size)
    fine = counted.astype(np.float32).reshape(height + 2, width + 2)[1:-1, 1:-1]
    fine = cv2.GaussianBlur(fine, (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE)
    coarse = cv2.resize(fine, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return coarse * np.float32(4 * rays.scale.prod() / rays.pixel**2)
