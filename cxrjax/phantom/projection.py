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
_THIN = 1e-3  # centimetres: slices of half-widths below this are none

Window = tuple[slice, slice]  # rows and columns of a picture


class Rays(NamedTuple):
    """One parallel ray per pixel: point = column * across + depth * along, at the height of its row."""

    columns: np.ndarray  # (1, w) centimetres on the detector
    rows: np.ndarray  # (h, 1) body height z, falling
    across: np.ndarray  # (2,) horizontal body vector of one centimetre to the picture's right
    along: np.ndarray  # (2,) horizontal body vector of one centimetre of depth
    scale: np.ndarray  # (3,) centimetres of this patient per centimetre of the reference body
    pixel: float  # centimetres

    @property
    def size(self) -> tuple[int, int]:
        return self.rows.size, self.columns.size

    def cut(self, window: Window) -> "Rays":
        """The rays of some rows and columns."""
        return self._replace(rows=self.rows[window[0]], columns=self.columns[:, window[1]])


class Span(NamedTuple):
    """The depths at which every ray enters and leaves a convex body, h w; empty where far <= near.

    Rays that miss the body enter at infinity and leave at minus infinity: `hull` and `common` need no masks.
    """

    near: np.ndarray
    far: np.ndarray

    def length(self) -> np.ndarray:
        return np.maximum(self.far - self.near, 0)

    def cut(self, window: Window) -> "Span":
        """The span of the rays of some rows and columns."""
        return Span(self.near[window], self.far[window])


class Shadow(NamedTuple):
    """The chords of a body whose every horizontal slice is an ellipse; all (h, 1) or numbers, centimetres.

    In each row, the chord of column c has its middle at the depth `slope` c + `middle`, and half its length is the
    square root of `level` - (`rate` (c - `centre`))^2.
    """

    slope: np.ndarray
    middle: np.ndarray
    rate: np.ndarray
    centre: np.ndarray
    level: np.ndarray

    def cut(self, window: Window) -> "Shadow":
        """The chords in some rows."""
        return Shadow(*(part[window[0]] if np.ndim(part) else part for part in self))

    def squares(self, rays: Rays) -> np.ndarray:
        """The squares of half the chords, h w; negative where a ray misses."""
        distance = rays.columns - np.float32(self.centre)
        distance *= np.float32(self.rate)
        distance *= distance
        return np.subtract(np.float32(self.level), distance, out=distance)

    def span(self, rays: Rays) -> Span:
        squares = self.squares(rays)
        half = np.where(squares > 0, np.sqrt(np.abs(squares)), np.float32(-np.inf))
        middle = np.float32(self.slope) * rays.columns + np.float32(self.middle)
        return Span(middle - half, middle + half)

    def window(self, rays: Rays) -> Window:
        """Rows and columns of the rays that can meet the body."""
        rate, centre, level = (np.broadcast_to(part, rays.rows.shape)[:, 0] for part in self[2:])
        met = np.flatnonzero(level > 0)
        if not len(met):
            return slice(0, 0), slice(0, 0)
        reach = np.sqrt(level[met]) / np.abs(rate[met])
        edges = np.array([(centre[met] - reach).min(), (centre[met] + reach).max()])
        # One column more on either side, for rounding.
        first, last = np.clip((edges - rays.columns[0, 0]) / rays.pixel + (-1, 2), 0, rays.columns.size)
        return slice(int(met[0]), int(met[-1]) + 1), slice(int(first), int(last))


class Stack(NamedTuple):
    """A body whose every horizontal slice is an ellipse: `profile(z)` gives centre x, y and half-widths in x, y."""

    profile: Callable

    def shadow(self, rays: Rays) -> Shadow:
        x, y, half_x, half_y = (np.asarray(part, float) for part in self.profile(rays.rows))
        there = (half_x > _THIN) & (half_y > _THIN)
        half_x, half_y = np.maximum(half_x, _THIN), np.maximum(half_y, _THIN)
        # In units of the half-widths the slice is the unit disc, and a ray is column * across + depth * along - place.
        across_x, across_y = rays.across[0] / half_x, rays.across[1] / half_y
        along_x, along_y = rays.along[0] / half_x, rays.along[1] / half_y
        place_x, place_y = x / half_x, y / half_y
        square = along_x**2 + along_y**2
        past = across_x * along_y - across_y * along_x
        return Shadow(
            slope=-(across_x * along_x + across_y * along_y) / square,
            middle=(place_x * along_x + place_y * along_y) / square,
            rate=past / square,
            centre=(place_x * along_y - place_y * along_x) / past,
            level=np.where(there, 1 / square, -1.0),
        )

    def span(self, rays: Rays) -> Span:
        return self.shadow(rays).span(rays)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """`points` (3, n) -> bool (n); heights are rounded to the `_SLICES` levels between the outermost points."""
        if not points.size:
            return np.zeros(0, bool)
        lowest, highest = float(points[2].min()), float(points[2].max()) + 1e-3
        levels = np.linspace(lowest, highest, _SLICES)
        x, y, half_x, half_y = (np.broadcast_to(np.float32(p), levels.shape) for p in self.profile(levels))
        level = ((points[2] - lowest) * ((_SLICES - 1) / (highest - lowest)) + 0.5).astype(np.int64)
        from_x = (points[0] - x[level]) * (1 / np.maximum(half_x, np.float32(_THIN)))[level]
        from_y = (points[1] - y[level]) * (1 / np.maximum(half_y, np.float32(_THIN)))[level]
        return from_x * from_x + from_y * from_y < 1


class Ellipsoid(NamedTuple):
    """The points p with |matrix (p - centre)| < 1."""

    centre: np.ndarray  # (3,)
    matrix: np.ndarray  # (3, 3)

    def shadow(self, rays: Rays, margin: float = 1.0) -> Shadow:
        """The chords of the ellipsoid, or of `margin` times it."""
        # In the body's own units it is the unit ball, and a ray is column * across + depth * along + height - centre.
        across, (x, y, z) = self.matrix[:, :2] @ rays.across, self.matrix[:, :2] @ rays.along
        along, times_along = np.array((x, y, z)), np.array(((0, -z, y), (z, 0, -x), (-y, x, 0)))
        square = along @ along
        from_centre = rays.rows * self.matrix[:, 2] - self.matrix @ self.centre  # h 3
        past, aside = across @ times_along, from_centre @ times_along  # the cross products with along
        centre = -(aside @ past) / (past @ past)
        nearest = aside + centre[:, None] * past  # of the row's rays to the centre, h 3
        return Shadow(
            slope=-(across @ along) / square,
            middle=-(from_centre @ along)[:, None] / square,
            rate=np.sqrt(past @ past) / square,
            centre=centre[:, None],
            level=(margin**2 / square - (nearest**2).sum(1) / square**2)[:, None],
        )

    def span(self, rays: Rays) -> Span:
        return self.shadow(rays).span(rays)

    def window(self, rays: Rays, margin: float = 1.0) -> Window:
        """Rows and columns of the rays that can meet the ellipsoid, or `margin` times it."""
        return self.shadow(rays, margin).window(rays)

    def gaussian_length(self, rays: Rays) -> np.ndarray:
        """Integral of exp(-|matrix (p - centre)|^2) along the rays: a body without an edge, h w centimetres."""
        along = self.matrix[:, :2] @ rays.along
        square = np.float32(along @ along)
        return np.sqrt(np.float32(np.pi) / square) * np.exp(square * self.shadow(rays).squares(rays) - 1)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """`points` (3, n) -> bool (n)."""
        from_centre = points - self.centre.astype(points.dtype)[:, None]
        from_centre = self.matrix.astype(points.dtype) @ from_centre
        return np.einsum("in,in->n", from_centre, from_centre) < 1


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


def seen(body: "Stack | Ellipsoid", rays: Rays) -> tuple[Window, Span]:
    """The window of a picture in which the body lies, and its span there."""
    shadow = body.shadow(rays)
    window = shadow.window(rays)
    return window, shadow.cut(window).span(rays.cut(window))


def common(*spans: Span) -> Span:
    """Intersection of spans."""
    near, far = spans[0]
    for span in spans[1:]:
        near, far = np.maximum(near, span.near), np.minimum(far, span.far)
    return Span(near, far)


def hull(bodies: Sequence["Stack | Ellipsoid"], rays: Rays) -> Span:
    """From the first entry to the last exit: the union of bodies that touch along the ray."""
    near, far = np.full(rays.size, np.inf, np.float32), np.full(rays.size, -np.inf, np.float32)
    for body in bodies:
        window, span = seen(body, rays)
        np.minimum(near[window], span.near, out=near[window])
        np.maximum(far[window], span.far, out=far[window])
    return Span(near, far)


def union_length(spans: Sequence[Span]) -> np.ndarray:
    """Length covered by at least one of a few spans (inclusion and exclusion), h w centimetres."""
    total = np.zeros_like(spans[0].near)
    for count in range(1, len(spans) + 1):
        for chosen in combinations(spans, count):
            (np.add if count % 2 else np.subtract)(total, common(*chosen).length(), out=total)
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

    def among(self, chosen: np.ndarray) -> "Grains":
        """Those of the grains that `chosen` (n) says."""
        return Grains(np.compress(chosen, self.points, axis=1), self.volumes[chosen])


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
    lines, half_widths = _resample(lines, count), _resample(half_widths, count).reshape(-1, 2)
    steps = np.gradient(lines, axis=1)
    share = np.ones((len(lines), count, 1), np.float32)
    share[:, [0, -1]] = 0.5
    lines, steps, share = lines.reshape(-1, 3), steps.reshape(-1, 3), share.reshape(-1, 1)
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
    in_frame = np.concatenate([offsets.T, np.ones((1, len(offsets)), np.float32)])
    for axis in range(3):
        frame = np.stack([first[:, axis], second[:, axis], lines[:, axis]], -1)
        np.matmul(frame, in_frame, out=points[axis])
    volumes = (share * lengths * (np.float32(np.pi) * half_widths.prod(-1, keepdims=True))) * shares
    return Grains(points.reshape(3, -1), volumes.reshape(-1))


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
    cells = []
    for (x, y, z), _ in parts:
        column = x * np.float32(across[0] * per_cell)
        column += y * np.float32(across[1] * per_cell)
        column += np.float32(2 - rays.columns[0, 0] * per_cell)
        row = z * np.float32(-down)
        row += np.float32(2 + rays.rows[0, 0] * down)
        # What lies outside is counted in a margin of one cell.
        cell = np.clip(row, 0, height + 1, out=row).astype(np.int64)
        cell *= width + 2
        cell += np.clip(column, 0, width + 1, out=column).astype(np.int64)
        cells.append(cell)
    volumes = np.concatenate([part.volumes for part in parts])
    counted = np.bincount(np.concatenate(cells), volumes, (height + 2) * (width + 2))
    fine = counted.reshape(height + 2, width + 2)[1:-1, 1:-1].astype(np.float32)
    fine = cv2.GaussianBlur(fine, (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE)
    coarse = cv2.resize(fine, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return coarse * np.float32(4 * rays.scale.prod() / rays.pixel**2)
