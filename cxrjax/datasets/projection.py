"""Line integrals of ellipsoids, stacks of ellipses and tubes along parallel horizontal rays.

Patient coordinates in centimetres: x to the patient's left, y to the back, z to the head. A ray crosses a convex body
in one interval, so unions and differences of bodies are arithmetic on interval ends, in closed form and pixel by pixel.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np


class Rays(NamedTuple):
    """One parallel ray per pixel: point = column * across + depth * along, at the height of its row."""

    columns: np.ndarray  # (1, w) centimetres on the detector
    rows: np.ndarray  # (h, 1) body height z, falling
    across: np.ndarray  # (2,) horizontal body vector of one centimetre to the picture's right
    along: np.ndarray  # (2,) horizontal body vector of one centimetre of depth
    scale: np.ndarray  # (3,) centimetres of this patient per centimetre of the reference body

    @property
    def pixel(self) -> float:
        """Side of a pixel in centimetres."""
        return float(self.columns[0, 1] - self.columns[0, 0])


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
        """`points` (..., 3) -> bool (...)."""
        x, y, half_x, half_y = self.profile(points[..., 2])
        half_x, half_y = np.maximum(half_x, 1e-3), np.maximum(half_y, 1e-3)
        return ((points[..., 0] - x) / half_x) ** 2 + ((points[..., 1] - y) / half_y) ** 2 < 1


class Ellipsoid(NamedTuple):
    """The points p with |matrix (p - centre)| < 1."""

    centre: np.ndarray  # (3,)
    matrix: np.ndarray  # (3, 3)

    def quadratic(self, rays: Rays) -> tuple:
        """Coefficients (square, half_linear, constant) in the depth of |matrix (p - centre)|^2."""
        matrix = np.asarray(self.matrix, np.float32)
        along = matrix[:, :2] @ rays.along.astype(np.float32)
        from_centre = [
            (m[0] * rays.across[0] + m[1] * rays.across[1]) * rays.columns
            + (m[2] * rays.rows - float(m @ np.asarray(self.centre, np.float32)))
            for m in matrix
        ]
        half_linear = sum(f * a for f, a in zip(from_centre, along, strict=True))
        return float(along @ along), half_linear, sum(f * f for f in from_centre)

    def span(self, rays: Rays) -> Span:
        square, half_linear, constant = self.quadratic(rays)
        return _roots(square, half_linear, constant - 1)

    def gaussian_length(self, rays: Rays) -> np.ndarray:
        """Integral of exp(-|matrix (p - centre)|^2) along the rays: a body without an edge, h w centimetres."""
        square, half_linear, constant = self.quadratic(rays)
        return np.sqrt(np.pi / square) * np.exp(half_linear**2 / square - constant)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """`points` (..., 3) -> bool (...)."""
        return (((points - self.centre) @ np.asarray(self.matrix).T) ** 2).sum(-1) < 1


def ellipsoid(centre, half_axes, long_axis=(1.0, 0.0, 0.0)) -> Ellipsoid:
    """Ellipsoid whose first half-axis points along `long_axis` and whose second is horizontal where it can be."""
    first = np.asarray(long_axis, float) / np.linalg.norm(long_axis)
    second = np.cross((0.0, 0.0, 1.0), first)
    second = np.array((0.0, 1.0, 0.0)) if np.linalg.norm(second) < 1e-6 else second / np.linalg.norm(second)
    axes = np.stack([first, second, np.cross(first, second)])
    return Ellipsoid(np.asarray(centre, float), axes / np.asarray(half_axes, float)[:, None])


def _roots(square, half_linear, constant) -> Span:
    root = half_linear**2 - square * constant
    missed = root <= 0
    root = np.sqrt(np.maximum(root, 0))
    near, far = (-half_linear - root) / square, (-half_linear + root) / square
    far[missed] = near[missed] - 1
    return Span(near, far)


def common(*spans: Span) -> Span:
    """Intersection of spans."""
    near, far = spans[0]
    for span in spans[1:]:
        near, far = np.maximum(near, span.near), np.minimum(far, span.far)
    return Span(near, far)


def hull(*spans: Span) -> Span:
    """From the first entry to the last exit: the union of bodies that touch along the ray."""
    near = np.minimum.reduce([np.where(s.far > s.near, s.near, np.inf) for s in spans])
    far = np.maximum.reduce([np.where(s.far > s.near, s.far, -np.inf) for s in spans])
    empty = far <= near
    near[empty], far[empty] = 0, -1
    return Span(near, far)


def union_length(spans: Sequence[Span]) -> np.ndarray:
    """Length covered by at least one of a few spans (inclusion and exclusion), h w centimetres."""
    total = 0
    for count in range(1, len(spans) + 1):
        for chosen in combinations(spans, count):
            total = total + (1 if count % 2 else -1) * common(*chosen).length()
    return total


def remaining_length(span: Span, cuts: Sequence[Span]) -> np.ndarray:
    """Length of `span` that none of `cuts` covers, h w centimetres."""
    return np.maximum(span.length() - union_length([common(span, cut) for cut in cuts]), 0)


class Grains(NamedTuple):
    """Small volume elements that stand for tubes: their projected volume per pixel area is the line integral."""

    points: np.ndarray  # (n, 3)
    volumes: np.ndarray  # (n,) cubic centimetres times attenuation

    def weighted(self, factor) -> "Grains":
        return Grains(self.points, (self.volumes * factor).astype(np.float32))


def gather(grains: Sequence[Grains]) -> Grains:
    """One Grains from many."""
    return Grains(np.concatenate([g.points for g in grains]), np.concatenate([g.volumes for g in grains]))


def tubes(
    lines: np.ndarray, radii, spacing: float, *, hollow: float = 0.0, facing=(0.0, 0.0, 1.0), keep=None
) -> Grains:
    """Cut tubes of elliptical section into volume elements.

    lines: t n 3, centre lines in centimetres; radii: broadcastable to t n 2, half-widths along and across `facing`;
    spacing: about the distance of elements in centimetres; hollow: attenuation of the marrow as a fraction of the
    cortex (0 = a full tube of attenuation 1); facing: t n 3 or 3, direction of the first half-width;
    keep: tells for points (n, 3) of the centre lines whether the tube goes on there.
    """
    lines = _resample(np.asarray(lines, np.float32), spacing)
    radii = np.asarray(radii, np.float32)
    radii = _resample(radii, count=lines.shape[1]) if radii.ndim == 3 and radii.shape[1] > 1 else radii
    radii = np.broadcast_to(radii, (*lines.shape[:2], 2))
    steps = np.gradient(lines, axis=1)
    lengths = np.sqrt((steps**2).sum(-1, keepdims=True)) + 1e-6
    tangent = steps / lengths
    facing = np.broadcast_to(np.asarray(facing, np.float32), lines.shape)
    if keep is not None:
        kept = keep(lines.reshape(-1, 3)).reshape(lines.shape[:2])
        lines, radii, lengths, tangent, facing = (a[kept][None] for a in (lines, radii, lengths, tangent, facing))
    first = facing - (facing * tangent).sum(-1, keepdims=True) * tangent
    first /= np.sqrt((first**2).sum(-1, keepdims=True)) + 1e-6
    second = np.cross(tangent, first)
    offsets, shares = _section(float(radii.max(initial=0)), 1.5 * spacing, hollow)
    points = lines[:, :, None] + (radii[..., 0, None] * offsets[:, 0])[..., None] * first[:, :, None]
    points += (radii[..., 1, None] * offsets[:, 1])[..., None] * second[:, :, None]
    volumes = lengths * (np.pi * radii.prod(-1))[..., None] * shares
    return Grains(points.reshape(-1, 3), volumes.reshape(-1).astype(np.float32))


def _resample(lines: np.ndarray, spacing: float = 0.0, count: int = 0) -> np.ndarray:
    """Points at even parameter steps along lines (t n c), as many as the longest needs."""
    if not count:
        longest = np.linalg.norm(np.diff(lines, axis=1), axis=-1).sum(1).max()
        count = max(4, int(np.ceil(longest / spacing)) + 1)
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


def deposit(grains: Grains, rays: Rays) -> np.ndarray:
    """Line integral of the grains, h w: every volume element shared among its four nearest pixels."""
    height, width = rays.rows.size, rays.columns.size
    across = (rays.across * rays.scale[:2]).astype(np.float32)
    scaled = grains.points * rays.scale.astype(np.float32)
    column = (scaled[:, :2] @ across - rays.columns[0, 0]) / rays.pixel
    row = (rays.rows[0, 0] - grains.points[:, 2]) * float(rays.scale[2]) / rays.pixel
    inside = (column >= 0) & (column < width - 1) & (row >= 0) & (row < height - 1)
    column, row, volumes = column[inside], row[inside], grains.volumes[inside]
    left, top = column.astype(np.int32), row.astype(np.int32)
    right_share, down_share = column - left, row - top
    index = top * width + left
    lower = volumes * down_share
    upper = volumes - lower
    picture = np.zeros(height * width)
    for shift, weight in (
        (0, upper * (1 - right_share)),
        (1, upper * right_share),
        (width, lower * (1 - right_share)),
        (width + 1, lower * right_share),
    ):
        picture += np.bincount(index + shift, weight, height * width)
    return (picture * (rays.scale.prod() / rays.pixel**2)).astype(np.float32).reshape(height, width)
