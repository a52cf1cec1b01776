"""The phantom's tubes: ribs, clavicles, shoulder blades, spine, airways, great vessels and the vessel trees."""

from collections.abc import Callable

import numpy as np

from cxrjax.phantom.anatomy import BONE, LEFT, LUNG, RIGHT, SIDES, SOFT, Anatomy, air_test, bezier, lung_outline
from cxrjax.phantom.projection import Grains, Rays, ellipsoid, tubes

RIB_END = np.radians([125, 138, 146, 148, 147, 145, 142, 136, 126, 114, 92, 70])
RIB_DROP = np.array([2.6, 4.4, 5.8, 6.8, 7.6, 8.3, 8.9, 9.2, 9.2, 8.8, 7.6, 5.5])
HILUM = {LEFT: np.array([4.0, 1.4, 1.4]), RIGHT: np.array([-3.6, 1.2, 0.4])}
RIB_TOP, RIB_STEP = 11.9, 2.1
VERTEBRA_STEP = 2.3


def spine_y(body: Anatomy, z: np.ndarray) -> np.ndarray:
    """Depth of the middle of the vertebral bodies at height z."""
    return 6.0 + body.kyphosis * (1 - ((z - 1.0) / 13.0) ** 2) + 0.02 * np.clip(-z - 12, 0, None) ** 1.5


def bones(body: Anatomy, spacing: float) -> list[Grains]:
    """Ribs, breast bone and the processes of the vertebrae; the vertebral bodies are in `vertebrae`."""
    parts = [_ribs(body, spacing), *_spinous_processes(body, spacing)]
    breast_bone = [[(0, -6.2, 8.4), (0, -8.4, 4.0), (0, -9.6, -1.0), (0, -10.4, -6.5)]]
    parts.append(
        tubes(bezier(np.array(breast_bone, float)), (1.7, 0.5), 0.7 * spacing, hollow=0.25, facing=(1.0, 0.0, 0.0))
    )
    return [part.weighted(BONE * body.bone) for part in parts]


def _ribs(body: Anatomy, spacing: float) -> Grains:
    share = np.linspace(0, 1, 40)
    lines = []
    for rib, (end, drop) in enumerate(zip(RIB_END, RIB_DROP, strict=True)):
        head = RIB_TOP - RIB_STEP * rib
        angle = 0.16 + share * (end - 0.16)
        z = head + 0.5 * np.sin(np.pi * np.minimum(share * 4, 1)) - drop * body.rib_slope * share**1.35
        centre, y, half, half_y = lung_outline(np.minimum(z, 12.2), LEFT)
        x = (centre + half + 0.45) * np.sin(angle) ** 0.8
        y = y + (half_y + 0.35) * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.9
        for side in SIDES:
            lines.append(np.stack([side * x, y, z], -1))
    return tubes(np.array(lines), (0.62, 0.36), spacing, hollow=0.22)


def _spinous_processes(body: Anatomy, spacing: float) -> list[Grains]:
    z = np.arange(-17, 16, VERTEBRA_STEP)
    y = spine_y(body, z)
    back = np.stack([np.stack([0 * z, y + 2.6, z], -1), np.stack([0 * z, y + 5.0, z - 1.9], -1)], 1)
    sides = [
        np.stack(
            [np.stack([s * 1.1 + 0 * z, y + 1.8, z + 0.3], -1), np.stack([s * 3.2 + 0 * z, y + 3.4, z + 0.6], -1)], 1
        )
        for s in SIDES
    ]
    return [
        tubes(back, (0.55, 0.3), spacing, hollow=0.4),
        tubes(np.concatenate(sides), (0.4, 0.3), spacing, hollow=0.3),
    ]


def shoulders(body: Anatomy, spacing: float) -> list[Grains]:
    """Collar bones, shoulder blades and upper arms, which move when the arms are raised."""

    def both(*points):
        left = np.array(points, float)
        return bezier(np.stack([left, left * (-1.0, 1.0, 1.0)]))

    up = 0.6 * (1.0 - body.scale[2] * 0.2)
    if body.arms_raised:
        blade = [(13.5, 3.5, 8.5), (13.0, 5.5, 3.0), (12.2, 7.0, -2.5), (9.5, 9.3, -1.0), (8.5, 9.5, 5.0)]
        arm = [(15.8, 0.6, 10.2), (16.5, -2.0, 13.0), (17.5, -7.0, 19.5)]
    else:
        blade = [(16.2, 3.2, 8.4), (15.2, 5.5, 3.5), (13.4, 7.6, -3.0), (11.6, 8.6, 0.0), (11.4, 8.8, 6.5)]
        arm = [(18.6, 1.2, 8.6), (19.4, 1.4, 4.0), (22.5, 2.0, -6.0)]
    clavicle = both((1.9, -5.6, 8.9), (7.0, -6.5, 9.2 + up), (10.0, 1.5, 12.0 + up), (16.2, -0.5, 11.3 + up))
    spine_of_blade = both((11.4, 8.9, 6.0), (14.0, 7.0, 8.8), (17.4, 2.0, 11.3))
    parts = [
        tubes(clavicle, (0.68, 0.62), spacing, hollow=0.5),
        tubes(both(*blade[:3]), (0.5, 0.45), spacing, hollow=0.3),
        tubes(both(*blade[2:]), (0.22, 0.22), spacing, hollow=0.6),
        tubes(spine_of_blade, (0.5, 0.3), spacing, hollow=0.3),
        tubes(both(*arm), (1.15, 1.15), 0.8 * spacing, hollow=0.2, facing=(1.0, 0.0, 0.0)),
    ]
    return [part.weighted(BONE * body.bone) for part in parts]


def bone_blobs(body: Anatomy) -> list:
    """Heads of the upper arms and flat blades of the shoulder as (ellipsoid, attenuation)."""
    blobs = []
    for side in SIDES:
        head = (side * 15.6, 0.4, 10.0) if body.arms_raised else (side * 17.9, 1.2, 9.0)
        blobs.append((ellipsoid(head, (2.3, 2.2, 2.3)), 0.3 * BONE * body.bone))
        middle = (side * 11.5, 7.5, 3.0) if body.arms_raised else (side * 13.6, 6.9, 3.4)
        direction = (side * 0.28, -0.3, 1.0)
        blobs.append((ellipsoid(middle, (6.0, 0.4, 2.2), direction), 0.35 * BONE * body.bone))
    return blobs


def vertebrae(body: Anatomy, rays: Rays) -> np.ndarray:
    """Line integral of the vertebral bodies: a rounded column, dense at the end plates and faint in the discs."""
    z = rays.rows
    facing_side = abs(rays.across[0]) < abs(rays.across[1])
    middle = spine_y(body, z)
    offset = rays.columns * (rays.across[1] if facing_side else rays.across[0]) - (middle if facing_side else 0.0)
    half, depth = (1.55, 1.75) if facing_side else (1.75, 1.55)
    near = (np.abs(offset) < 1.3 * half).any(0)  # columns of the picture that the vertebrae can reach
    offset = offset[:, near]
    slope = np.gradient(middle[:, 0], z[:, 0])[:, None] if facing_side else 0.0
    phase = (z - slope * offset) / VERTEBRA_STEP
    from_plate = np.abs(phase - np.floor(phase) - 0.5) * VERTEBRA_STEP
    half = half * (1 - 0.012 * z) * (0.9 + 0.1 * from_plate)
    chord = 2 * depth * np.clip(1 - np.abs(offset / half) ** 6, 0, None) ** (1 / 6)
    rim = np.clip(np.abs(offset / half) ** 8, 0, 1) * (chord > 0)
    height = VERTEBRA_STEP / 2 - 0.25
    bone = 1 / (1 + np.exp((from_plate - height) / 0.06))
    plate = np.exp(-(((from_plate - height + 0.1) / 0.1) ** 2))
    attenuation = BONE * body.bone * (0.10 * bone + 0.17 * plate + 0.08 * rim * bone)
    integral = np.zeros(rays.size, np.float32)
    integral[:, near] = chord * attenuation * float(rays.scale[0 if facing_side else 1])
    return integral


def airways(body: Anatomy, spacing: float) -> list[Grains]:
    """Windpipe and main bronchi: air in soft tissue."""
    trachea = bezier(np.array([[(0.1, 0.2, 20.0), (0.0, 0.6, 12.0), (-0.35, 2.2, 3.6)]]))
    bronchi = bezier(np.array([
        [(-0.3, 2.2, 3.8), (-1.6, 2.3, 2.6), (-3.6, 2.5, 0.6)],
        [(-0.3, 2.2, 3.8), (1.5, 2.4, 2.8), (4.3, 2.8, 1.4)],
    ]))  # fmt: skip
    parts = [tubes(trachea, (0.85, 0.85), spacing, facing=(1.0, 0.0, 0.0)), tubes(bronchi, (0.6, 0.6), spacing)]
    return [part.weighted(-SOFT) for part in parts]


def vessels(body: Anatomy, spacing: float) -> list[Grains]:
    """Aorta, upper vena cava and the lungs' vessel trees, as far as they lie in air."""
    wide, fine = 1.4 * body.aorta, 0.85 * spacing
    arch = [(0.3, -3.0, 3.0), (0.8, -2.6, 8.6), (3.9, 0.8, 8.6), (2.5 + 0.3 * body.aorta, 4.0, 3.5)]
    descending = [(2.5 + 0.3 * body.aorta, 4.0, 3.6), (2.4, 5.2, -3.0), (1.0, 5.0, -16.0)]
    cava = [(-2.4, -1.2, 11.0), (-2.3, -1.5, 6.0), (-2.2, -1.2, -1.0)]
    great = [
        tubes(bezier(np.array([arch])), (wide, wide), fine, facing=(1.0, 0.0, 0.0)),
        tubes(bezier(np.array([descending])), (wide * 0.92, wide * 0.92), fine, facing=(1.0, 0.0, 0.0)),
        tubes(bezier(np.array([cava])), (0.95, 0.95), fine, facing=(1.0, 0.0, 0.0)),
    ]
    in_air = air_test(body)
    parts = [part.among(in_air(part.points)) for part in great] + _trees(body, in_air, spacing)
    return [part.weighted((SOFT - LUNG) * 1.3) for part in parts]


def _trees(body: Anatomy, in_air: Callable, spacing: float) -> list[Grains]:
    """Arteries and veins of both lungs: trunks from the hilum, each level thinner and shorter than its parent."""
    rng = np.random.default_rng(body.vessel_seed)
    count, steps = 15, 10
    side = np.repeat(SIDES, count)
    hilum = np.where(side[:, None] > 0, HILUM[LEFT], HILUM[RIGHT])
    height = np.tile(np.linspace(10.5, -13.5, count), 2) + rng.uniform(-0.8, 0.8, 2 * count)
    angle = rng.uniform(-0.6, 0.6, 2 * count) * np.pi
    centre, y, half, half_y = lung_outline(height, side)
    reach = rng.uniform(0.35, 0.8, 2 * count)
    ends = np.stack([centre + side * reach * half * np.cos(angle), y + reach * half_y * np.sin(angle), height], -1)
    starts = hilum + np.stack([rng.normal(0, 0.4, 2 * count), rng.normal(0, 0.7, 2 * count), 0.12 * height], -1)
    bend = (starts + ends) / 2 + rng.normal(0, 0.7, (2 * count, 3))
    bend[:, 0] = starts[:, 0] + 0.35 * (ends[:, 0] - starts[:, 0])
    radius = np.clip(0.33 - 0.008 * height, 0.2, 0.42) * rng.uniform(0.8, 1.2, 2 * count) * body.vessel_gain
    lines = bezier(np.stack([starts, bend, ends], 1), steps)
    trunks = bezier(np.array([
        [HILUM[s] + (0, 0, 1.6), HILUM[s] + (s * 0.7, 0.3, -1), HILUM[s] + (s * 1.6, 1.2, -6.0)] for s in SIDES
    ]), steps)  # fmt: skip
    taper = np.linspace(1.0, 0.45, steps)[None, :, None]
    parts = [_branches(in_air, trunks, 0.75 * body.vessel_gain * taper, spacing)]
    parts.append(_branches(in_air, lines, radius[:, None, None] * taper, spacing))
    for children, length in ((5, 4.5), (4, 3.0), (2, 2.2)):
        parent = np.repeat(np.arange(len(lines)), children)
        node = rng.integers(3, steps, len(parent))
        hilum, starts = hilum[parent], lines[parent, node]
        course = _unit(starts - lines[parent, node - 1])
        direction = _unit(course + 0.4 * _unit(starts - hilum) + rng.normal(0, 0.55, (len(parent), 3)))
        reach = length * rng.uniform(0.5, 1.2, (len(parent), 1))
        radius = radius[parent] * (1 - 0.55 * node / steps) * rng.uniform(0.6, 0.85, len(parent))
        bend = starts + 0.42 * reach * (direction + 0.5 * course)
        lines = bezier(np.stack([starts, bend, starts + reach * direction], 1), steps)
        parts.append(_branches(in_air, lines, radius[:, None, None] * taper, spacing))
    return parts


def _branches(in_air: Callable, lines: np.ndarray, radius: np.ndarray, spacing: float) -> Grains:
    tested = lines[:, ::3]
    keep = in_air(np.moveaxis(tested.astype(np.float32), -1, 0).reshape(3, -1)).reshape(tested.shape[:2])
    chosen = keep.any(1)
    radius = np.broadcast_to(radius, (*lines.shape[:2], 1))[chosen]
    return tubes(lines[chosen], radius, spacing, keep=keep[chosen])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / (np.sqrt((vectors**2).sum(-1, keepdims=True)) + 1e-6)
