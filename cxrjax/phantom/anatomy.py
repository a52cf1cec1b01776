"""The phantom's body: a chest of ellipsoids, stacks of ellipses and tubes, drawn at random for a patient.

Reference centimetres of an adult: x to the patient's left, y to the back, z to the head, z = 0 near the carina; the
patient's size is `Anatomy.scale`. Sides are +1 for the patient's left and -1 for the right.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cxrjax.phantom.projection import Ellipsoid, Rays, Span, Stack, ellipsoid, hull

LEFT, RIGHT = 1, -1
SIDES = (RIGHT, LEFT)
APEX_Z = 13.0
SOFT, LUNG, FAT, BONE = 0.20, 0.045, 0.175, 0.40


class Anatomy(NamedTuple):
    """What differs between two healthy chests; the first half belongs to the patient, the second to the study."""

    scale: np.ndarray
    fat: float
    breast: float
    heart: float
    heart_tilt: float
    aorta: float
    mediastinum: float
    kyphosis: float
    bone: float
    rib_slope: float
    vessel_seed: int
    dome: tuple[float, float]
    stomach: float = 1.0
    vessel_gain: float = 1.0
    collapse: tuple[float, float] = (0.0, 0.0)
    fluid: tuple[float, float] = (0.0, 0.0)
    arms_raised: bool = False

    def on(self, pair: tuple[float, float], side: int) -> float:
        return pair[side > 0]


def draw_patient(rng: np.random.Generator) -> Anatomy:
    """The patient's own part of the anatomy."""
    female = rng.random() < 0.5
    size = rng.normal(0.95 if female else 1.02, 0.035)
    habitus = rng.gamma(2.0, 0.6)
    return Anatomy(
        scale=size * np.array([rng.normal(1.0, 0.04), rng.normal(0.97, 0.06), rng.normal(1.0, 0.04)]).clip(0.85, 1.15),
        fat=float(0.5 + min(habitus, 4.0)),
        breast=float(rng.uniform(0.55, 1.15) * (1 + 0.08 * habitus)) if female else 0.0,
        heart=float(rng.uniform(0.86, 1.02)),
        heart_tilt=float(rng.normal(0.0, 0.12)),
        aorta=float(rng.uniform(0.85, 1.25)),
        mediastinum=float(rng.uniform(0.9, 1.12)),
        kyphosis=float(rng.uniform(0.3, 1.6)),
        bone=float(rng.uniform(0.7, 1.2)),
        rib_slope=float(rng.uniform(0.85, 1.2)),
        vessel_seed=int(rng.integers(2**31)),
        dome=(-9.5, -10.4),
    )


def draw_study(patient: Anatomy, rng: np.random.Generator) -> Anatomy:
    """The same patient on one day: depth of the breath, filling of the vessels."""
    breath = rng.normal(0.0, 0.8)
    right = float(np.clip(-9.4 + breath, -11.0, -7.2))
    return patient._replace(
        dome=(right, right - float(rng.uniform(0.3, 1.6))),
        stomach=float(rng.choice((0.0, rng.uniform(0.4, 1.4)), p=(0.25, 0.75))),
        vessel_gain=float(rng.uniform(0.85, 1.15)),
    )


def _curve(knots, values):
    """A smooth function through knots: linear interpolation, then a moving mean over 2 cm."""
    fine = np.arange(-45, 45, 0.1)
    table = np.interp(fine, knots, values)
    table = np.convolve(np.pad(table, 10, mode="edge"), np.full(21, 1 / 21), "valid")
    return lambda z: np.interp(z, fine, table)


_torso_width = _curve(
    [-30, -16, -9, 0, 6, 9, 11.5, 13, 14.5, 16.5, 19, 30],
    [14.2, 14.6, 15.2, 15.5, 16.3, 17.6, 16.8, 14, 10.5, 7.6, 6.2, 5.6],
)
_torso_depth = _curve(
    [-30, -16, -9, 0, 6, 9, 11, 13, 15, 18, 30], [10.4, 10.9, 11.3, 11.0, 10.0, 9.4, 8.9, 8.0, 6.8, 5.8, 5.6]
)
_torso_centre = _curve([-30, -9, -2, 4, 9, 13, 18, 30], [-0.4, -0.5, -0.3, 0.5, 1.7, 2.6, 2.4, 2.0])
_mediastinum_width = _curve(
    [-30, -12, -7, -3, 0, 2, 4, 6.5, 9, 11, 14, 30], [2.1, 2.1, 2.1, 2.3, 2.9, 2.8, 2.3, 2.5, 2.7, 2.9, 3.6, 4.5]
)


def torso(body: Anatomy, depth: float = 0.0) -> list[Stack]:
    """Skin surface, or the surface `depth` centimetres below it: the trunk, its flat back and its flat front."""

    def layer(z):
        return body.fat * np.interp(z, [5, 14], [1.0, 0.45]) - depth

    def trunk(z):
        return 0.0, _torso_centre(z), _torso_width(z) + layer(z), _torso_depth(z) + 0.8 * layer(z)

    def quarter(side, face):
        def profile(z):
            half_y = 5.2 * np.interp(z, [8, 15], [1.0, 0.3])
            width = (0.54 if face > 0 else 0.5) * _torso_width(z)
            surface = 11.5 if face > 0 else _torso_depth(z) - _torso_centre(z) - 0.2
            return side * (width - 1.0), face * (surface - half_y), width + layer(z), half_y + 0.9 * layer(z)

        return Stack(profile)

    return [Stack(trunk)] + [quarter(side, face) for side in SIDES for face in (1, -1)]


def limbs(body: Anatomy) -> list[Ellipsoid]:
    """Upper arms, hanging on frontal pictures and raised on lateral ones."""
    girth = 4.0 + 0.45 * body.fat
    if body.arms_raised:
        return [ellipsoid((s * 14.5, -1.5, 17.0), (11, girth, girth), (s * 0.2, -0.75, 0.75)) for s in SIDES]
    return [
        ellipsoid((s * (20.0 + 0.5 * body.fat), 1.5, 2.0), (12.5, girth, girth), (s * 0.38, 0.1, -1.0)) for s in SIDES
    ]


def breasts(body: Anatomy) -> list[Ellipsoid]:
    if not body.breast:
        return []
    size, front = body.breast, -9.6 - 0.6 * body.fat
    return [
        ellipsoid(
            (side * 7.6, front, -5.5 - 1.5 * size), (5.4 * size, 3.6 * size, 4.8 * size), (1.0, 0.3 * side, 0.25 * side)
        )
        for side in SIDES
    ]


def _rounded(depth: float, flat: float, sharp: float) -> np.ndarray:
    """Rise from 0 at the apex to 1 at `depth` centimetres below it, on the grid _BELOW."""
    return (1 - (1 - np.minimum(_BELOW / depth, 1)) ** flat) ** (1 / sharp)


_BELOW = np.concatenate([np.arange(0, 1, 0.01), np.arange(1, 45, 0.1)])
_LATERAL = 5.4 + 8.5 * _rounded(21.0, 2.5, 1.75) - 0.03 * np.clip(_BELOW - 22, 0, None) ** 1.5
_MEDIAL = 5.4 - 4.9 * _rounded(7.0, 2.4, 1.8)
_HALF_Y = 10.0 * _rounded(20.0, 2.0, 2.0)


def lung_outline(
    z: np.ndarray | float, side: int | np.ndarray, drop: float = 0.0, shrink: np.ndarray | float = 1.0
) -> tuple[Any, Any, Any, Any]:
    """Ellipse of a lung's slice, as Stack.profile: numbers or arrays, as z is.

    `drop` lowers the apex, `shrink` draws the lateral wall inwards.
    """
    below = APEX_Z - drop - z
    medial = np.interp(below, _BELOW, _MEDIAL)
    half = (np.interp(below, _BELOW, _LATERAL) - medial) / 2 * shrink
    half_y = np.interp(below, _BELOW, _HALF_Y) * shrink**0.3
    centre_y = np.interp(below, [0, 10, 20, 30], [2.6, 0.4, 0.1, 0.6])
    return side * (medial + half), centre_y, np.where(below > 0, half, 0.0), half_y


def lung(side: int) -> Stack:
    """Inside of one half of the rib cage; the heart, the mediastinum and the diaphragm are cut out of it."""
    return Stack(lambda z: lung_outline(z, side))


def aerated(body: Anatomy, side: int, peel: float = 0.0) -> Stack | None:
    """The lung within its pleura where a pneumothorax has let it fall in, else None; `peel` centimetres smaller."""
    collapse = body.on(body.collapse, side)
    if not collapse:
        return None

    def profile(z):
        share = np.clip((APEX_Z - z) / 24.0, 0, 1)
        shrink = 1 - 0.85 * collapse * (1 - share) ** 0.8
        x, y, half, half_y = lung_outline(z, side, drop=6.5 * collapse + peel, shrink=shrink)
        return x, y, np.maximum(half - peel, 0), np.maximum(half_y - peel, 0)

    return Stack(profile)


def dry(body: Anatomy, side: int) -> Stack | None:
    """What an effusion leaves: below its level nothing, above it all but a rim that thins out upwards, else None."""
    height = body.on(body.fluid, side)
    if not height:
        return None
    level, rise = -15.0 + height, 2.0 + 0.35 * height

    def profile(z):
        x, y, half_x, half_y = lung_outline(z, side)
        above = np.clip((z - level) / rise, 0, 1)
        inner = np.where(z > level, 1 - np.exp(-4.0 * above) * (1 - above), 0.0)
        return x - side * (1 - inner) * half_x * 0.55, y, half_x * inner, half_y * inner

    return Stack(profile)


def stomach_gas(body: Anatomy, rays: Rays) -> np.ndarray:
    """Length of the rays in the air above the fluid in the stomach, h w centimetres."""
    if not body.stomach:
        return np.zeros((rays.rows.size, rays.columns.size), np.float32)
    size = np.array((3.0, 2.8, 2.2)) * body.stomach
    centre = np.array((6.8, -2.0, body.dome[1] - 0.8 - 0.9 * size[2]))
    return ellipsoid(centre, size).span(rays).length() * (rays.rows > centre[2] - 0.3 * size[2])


def mediastinum(body: Anatomy) -> Stack:
    return Stack(lambda z: (0.25, 1.5, _mediastinum_width(z) * body.mediastinum, 12.0))


def dome(body: Anatomy, side: int) -> Stack:
    """Diaphragm and everything below it on one side."""
    top = body.on(body.dome, side)
    height = 6.6

    def profile(z):
        above = np.clip((z - (top - height)) / height, 0, 1)
        round_ = np.sqrt(1 - above**2)
        below = 0.7 * np.clip(top - height - z, 0, None)
        return side * 6.6, -1.6, 8.0 * round_ + below, 10.2 * round_ + below

    return Stack(profile)


def heart(body: Anatomy) -> list[Ellipsoid]:
    """Ventricles with the apex to the left and front, right atrium, left atrium, root of the great vessels."""
    size, pivot = body.heart, np.array([0.6, -1.0, -2.5])
    low = (body.dome[1] + 10.4) * 0.6

    def part(centre, half_axes, long_axis=(1.0, 0.0, 0.0)):
        placed = pivot + (np.array(centre) - pivot) * size + (0, 0, low)
        return ellipsoid(placed, np.array(half_axes) * size, long_axis)

    return [
        part((2.5, -3.0, -5.6), (7.2, 4.9, 5.0), (0.76, -0.32, -0.56 + body.heart_tilt)),
        part((-1.7, -1.6, -4.4), (2.9, 3.6, 4.4)),
        part((0.4, 2.2, -2.6), (3.8, 2.9, 3.0)),
        part((1.0, -2.3, 1.2), (2.9, 2.5, 4.4)),
    ]


def heart_span(body: Anatomy, rays: Rays) -> Span:
    return hull(heart(body), rays)


def air_test(body: Anatomy) -> Callable[[np.ndarray], np.ndarray]:
    """A function that tells for points (3, n) whether they lie in aerated lung: bool (n)."""
    within = {side: [s for s in (lung(side), aerated(body, side), dry(body, side)) if s is not None] for side in SIDES}
    without = {side: [dome(body, side), mediastinum(body), *heart(body)] for side in SIDES}

    def in_air(points):
        inside = np.zeros(points.shape[1], bool)
        for side in SIDES:
            chosen = np.flatnonzero((points[0] > 0) == (side > 0))
            for limit in within[side]:
                chosen = chosen[limit.inside(points.take(chosen, axis=1))]
            for solid in without[side]:
                chosen = chosen[~solid.inside(points.take(chosen, axis=1))]
            inside[chosen] = True
        return inside

    return in_air


def bezier(points: np.ndarray, count: int = 16) -> np.ndarray:
    """Curves t n 3 through the first and last of their t 3 3 or t 4 3 control points."""
    t = np.linspace(0, 1, count)[:, None]
    if points.shape[1] == 3:
        basis = np.concatenate([(1 - t) ** 2, 2 * t * (1 - t), t**2], 1)
    else:
        basis = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], 1)
    return np.einsum("nc,tcx->tnx", basis, points)
