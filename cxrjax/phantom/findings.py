"""The phantom's diseases: drawn at random, placed in the 3-D body, so that every projection shows the same finding."""

from typing import NamedTuple

import numpy as np

from cxrjax.phantom.anatomy import APEX_Z, LEFT, RIGHT, SIDES, Anatomy, air_test, lung_outline
from cxrjax.phantom.projection import Ellipsoid, Rays, ellipsoid, union_length

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Mass",
    "Nodule",
    "Pneumothorax",
)
LABELS = ("No Finding", *FINDINGS)
NORMAL_SHARE = 0.34
BOTH = 0
ZONES = {"upper": (4.5, 10.0), "middle": (-2.5, 4.5), "lower": (-9.5, -2.5)}
_WEIGHTS = {
    "Atelectasis": 0.15,
    "Cardiomegaly": 0.08,
    "Consolidation": 0.19,
    "Effusion": 0.15,
    "Mass": 0.12,
    "Nodule": 0.17,
    "Pneumothorax": 0.14,
}
_VISIBLE = {"Consolidation": 0.9, "Edema": 1.1, "Effusion": 0.7}
_PNEUMOTHORAX_SHARE = 0.5


class Finding(NamedTuple):
    """One disease on one side. Pleural and heart findings are changes of the body, the others are `solids` or `clouds`.

    side: +1 the patient's left, -1 right, 0 both; size: centimetres; grade: 0 slight, 1 moderate, 2 marked;
    density: share of the air in `solids` and `clouds` that is replaced.
    """

    label: str
    side: int
    zone: str
    size: float
    grade: int
    density: float = 1.0
    solids: tuple[Ellipsoid, ...] = ()
    clouds: tuple[Ellipsoid, ...] = ()


def draw_findings(body: Anatomy, rng: np.random.Generator) -> tuple[Anatomy, list[Finding]]:
    """Draws the diseases of a study; returns the changed body and the findings, none for a normal study."""
    chosen = _draw_labels(rng)
    plans = [(label, int(rng.choice(SIDES))) for label in chosen]
    if "Pneumothorax" in chosen:
        air_side = dict(plans)["Pneumothorax"]
        plans = [(label, -air_side if label == "Effusion" else side) for label, side in plans]
    if "Edema" in chosen:
        body = body._replace(vessel_gain=1.25 * body.vessel_gain)
    findings = []
    for label, side in sorted(plans, key=lambda plan: plan[0] not in _CHANGE_BODY):
        grade = int(rng.choice(3, p=(0.4, 0.38, 0.22)))
        if label in _CHANGE_BODY:
            body, finding = _CHANGE_BODY[label](body, side, grade, "Edema" in chosen, rng)
        else:
            finding = _PLACE[label](body, side, grade, rng)
        findings.append(finding)
    return body, findings


def _draw_labels(rng: np.random.Generator) -> list[str]:
    kind = rng.random()
    if kind < NORMAL_SHARE:
        return []
    if kind < NORMAL_SHARE + 0.13:
        failing = {"Cardiomegaly": 0.85, "Edema": 0.75, "Effusion": 0.5}
        drawn = [label for label, chance in failing.items() if rng.random() < chance]
        return drawn or ["Edema"]
    labels, weights = list(_WEIGHTS), np.array(list(_WEIGHTS.values()))
    count = int(rng.choice((1, 2, 3), p=(0.62, 0.29, 0.09)))
    return [str(label) for label in rng.choice(labels, count, replace=False, p=weights / weights.sum())]


def _enlarge_heart(body: Anatomy, side: int, grade: int, failing: bool, rng: np.random.Generator):
    heart = float(rng.uniform(*((1.1, 1.18), (1.18, 1.28), (1.28, 1.4))[grade]))
    return body._replace(heart=heart), Finding("Cardiomegaly", BOTH, "lower", 12.0 * heart, grade)


def _pour_fluid(body: Anatomy, side: int, grade: int, failing: bool, rng: np.random.Generator):
    height = float(rng.uniform(*((2.2, 4.0), (4.0, 7.5), (7.5, 13.0))[grade]))
    both = rng.random() < (0.6 if failing else 0.15) and body.collapse == (0.0, 0.0)
    if both:
        other = min(height * float(rng.uniform(0.6, 1.2)), 13.0)
        fluid = (height, other) if rng.random() < 0.5 else (other, height)
    else:
        fluid = (height, 0.0) if side == RIGHT else (0.0, height)
    return body._replace(fluid=fluid), Finding("Effusion", BOTH if both else side, "lower", height, grade)


def _let_lung_fall(body: Anatomy, side: int, grade: int, failing: bool, rng: np.random.Generator):
    share = float(rng.uniform(*((0.14, 0.24), (0.24, 0.42), (0.42, 0.7))[grade]))
    collapse = (share, 0.0) if side == RIGHT else (0.0, share)
    return body._replace(collapse=collapse), Finding("Pneumothorax", side, "upper", 10.0 * share, grade)


def _collapse_plates(body: Anatomy, side: int, grade: int, failing: bool, rng: np.random.Generator):
    raised = float(rng.uniform(0.2, 0.9) * (1 + grade))
    dome = (body.dome[0] + raised * (side == RIGHT), body.dome[1] + raised * (side == LEFT))
    body = body._replace(dome=dome)
    plates = []
    for _ in range(1 + grade):
        z = dome[side > 0] + rng.uniform(1.0, 4.5)
        x, y, half, half_y = (float(v) for v in lung_outline(z, side))
        centre = (x + side * half * rng.uniform(-0.1, 0.45), y + half_y * rng.uniform(-0.35, 0.45), z)
        width = rng.uniform(2.2, 3.6) * (1 + 0.15 * grade)
        tilt = rng.uniform(-0.45, 0.25)
        plates.append(ellipsoid(centre, (width, 0.75 * width, rng.uniform(0.2, 0.36)), (side, 0.0, tilt)))
    return body, Finding("Atelectasis", side, "lower", 7.0, grade, float(rng.uniform(0.75, 1.0)), tuple(plates))


def _place(body: Anatomy, side: int, zone: str, margin: float, rng: np.random.Generator) -> np.ndarray:
    """A point of aerated lung in a zone, about `margin` centimetres from the lung's surface where that can be."""
    lowest, highest = ZONES[zone]
    z = rng.uniform(lowest, highest, 200)
    x, y, half, half_y = lung_outline(np.minimum(z, APEX_Z - 1.0), side)
    angle, reach = rng.uniform(0, 2 * np.pi, 200), 0.9 * np.sqrt(rng.random(200))
    points = np.stack([x + reach * half * np.cos(angle), y + reach * half_y * np.sin(angle), z], -1)
    in_air = air_test(body)
    for gap in (margin, 0.5 * margin, 0.0):
        steps = gap * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])
        free = in_air((points + steps[:, None]).reshape(-1, 3).T).reshape(len(steps), -1).all(0)
        if free.any():
            return points[np.argmax(free)]
    return np.array([float(x[0]), float(y[0]), highest])


def _nodule(body: Anatomy, side: int, grade: int, rng: np.random.Generator) -> Finding:
    zone = str(rng.choice(list(ZONES)))
    radius = float(rng.uniform(*((0.4, 0.6), (0.6, 1.0), (1.0, 1.45))[grade]))
    centre = _place(body, side, zone, radius, rng)
    solid = ellipsoid(centre, radius * rng.uniform(0.85, 1.15, 3), rng.normal(size=3))
    density = float(rng.uniform(1.5, 2.4)) if rng.random() < 0.15 else float(rng.uniform(0.85, 1.1))
    return Finding("Nodule", side, zone, 2 * radius, grade, density, (solid,))


def _mass(body: Anatomy, side: int, grade: int, rng: np.random.Generator) -> Finding:
    zone = str(rng.choice(list(ZONES)))
    radius = float(rng.uniform(*((1.6, 2.0), (2.0, 2.7), (2.7, 3.6))[grade]))
    centre = _place(body, side, zone, 0.8 * radius, rng)
    lobes = tuple(
        ellipsoid(centre + rng.normal(0, 0.3 * radius, 3), radius * rng.uniform(0.65, 0.95, 3), rng.normal(size=3))
        for _ in range(3)
    )
    return Finding("Mass", side, zone, 2 * radius, grade, float(rng.uniform(0.85, 1.0)), lobes)


def _consolidation(body: Anatomy, side: int, grade: int, rng: np.random.Generator) -> Finding:
    zone = str(rng.choice(list(ZONES), p=(0.25, 0.3, 0.45)))
    spread = (1.2, 1.7, 2.4)[grade]
    centre = _place(body, side, zone, spread, rng)
    clouds = tuple(
        ellipsoid(
            centre + rng.normal(0, spread, 3) * (1.0, 1.0, 0.8),
            rng.uniform(0.8, 1.5, 3) * (1 + 0.3 * spread),
            rng.normal(size=3),
        )
        for _ in range(7 + 5 * grade)
    )
    return Finding("Consolidation", side, zone, 4 * spread, grade, float(rng.uniform(0.85, 1.25)), (), clouds)


def _edema(body: Anatomy, side: int, grade: int, rng: np.random.Generator) -> Finding:
    clouds = []
    for s in SIDES:
        for _ in range(8):
            z = rng.normal(-1.5, 3.2)
            x, y, half, half_y = (float(v) for v in lung_outline(z, s))
            centre = (x - s * half * rng.uniform(0.0, 0.75), y + half_y * rng.uniform(-0.5, 0.5), z)
            clouds.append(ellipsoid(centre, rng.uniform(2.0, 3.8, 3), rng.normal(size=3)))
    return Finding(
        "Edema", BOTH, "middle", 0.0, grade, (0.16, 0.25, 0.38)[grade] * rng.uniform(0.85, 1.2), (), tuple(clouds)
    )


_CHANGE_BODY = {
    "Cardiomegaly": _enlarge_heart,
    "Effusion": _pour_fluid,
    "Pneumothorax": _let_lung_fall,
    "Atelectasis": _collapse_plates,
}
_PLACE = {"Consolidation": _consolidation, "Edema": _edema, "Mass": _mass, "Nodule": _nodule}


def filled(finding: Finding, rays: Rays, air: np.ndarray) -> np.ndarray:
    """Centimetres of the rays' `air` (h w) that the finding's solids and clouds fill with tissue, h w."""
    thickness = np.zeros_like(air)
    if finding.solids:
        thickness += union_length([solid.span(rays) for solid in finding.solids])
    for cloud in finding.clouds:
        window = cloud.window(rays, margin=2.5)
        thickness[window] += cloud.gaussian_length(rays.cut(window))
    if finding.clouds:
        return air * (1 - np.exp(-finding.density * thickness / np.maximum(air, 0.5)))
    return np.minimum(thickness, air) * finding.density


def visible(finding: Finding, thickness: np.ndarray, space: np.ndarray, heart: np.ndarray) -> np.ndarray:
    """Where a reader would outline the finding: bool h w.

    thickness: centimetres of the ray that the finding fills; space: centimetres of the ray inside the rib cage beside
    heart and diaphragm; heart: its silhouette. All h w. A pneumothorax is outlined up to the edge of the fallen lung.
    """
    if finding.label == "Cardiomegaly":
        return heart
    if finding.label == "Pneumothorax":
        return thickness > np.maximum(_PNEUMOTHORAX_SHARE * space, 0.3)
    return thickness > _VISIBLE.get(finding.label, 0.15)


def label_vector(findings: list[Finding]) -> np.ndarray:
    """1 present and 0 absent under every name of LABELS: int8 (c,)."""
    present = {finding.label for finding in findings} or {"No Finding"}
    return np.array([name in present for name in LABELS], np.int8)
