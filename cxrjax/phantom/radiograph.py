"""From the phantom's body to a picture: line integrals, scatter, noise, exposure, burned-in marker."""

from typing import NamedTuple

import cv2
import numpy as np

from cxrjax.phantom import anatomy, skeleton
from cxrjax.phantom.anatomy import FAT, LUNG, SIDES, SOFT, Anatomy
from cxrjax.phantom.findings import Finding, filled, visible
from cxrjax.phantom.projection import Grains, Rays, Span, common, deposit, hull, remaining_length, seen


class Radiograph(NamedTuple):
    """One picture and its truth.

    image, lungs, findings: uint8 h w (the masks 0 or 255); heart: bool h w; boxes: (label, (y0, x0, y1, x1)) with
    relative corners; rows: body height z of every row in centimetres (exact where `roll` is 0); roll: degrees.
    """

    projection: str
    image: np.ndarray
    lungs: np.ndarray
    findings: np.ndarray
    heart: np.ndarray
    boxes: list[tuple[str, tuple[float, float, float, float]]]
    rows: np.ndarray
    roll: float


class _Integrals(NamedTuple):
    """What the rays of one picture cross, all h w: attenuation (no unit), lung field, heart, one mask per finding."""

    attenuation: np.ndarray
    lungs: np.ndarray
    heart: np.ndarray
    findings: list[np.ndarray]


def shared_grains(body: Anatomy, spacing: float) -> list[Grains]:
    """The tubes that are the same in every picture of a study, of elements about `spacing` centimetres apart."""
    return [grains for part in (skeleton.bones, skeleton.airways, skeleton.vessels) for grains in part(body, spacing)]


def render(
    projection: str,
    short_side: int,
    body: Anatomy,
    findings: list[Finding],
    grains: list[Grains],
    rng: np.random.Generator,
) -> Radiograph:
    """Takes one picture.

    projection: "PA", "AP" or "LATERAL". short_side: pixels. grains: `shared_grains` of the body.
    """
    frontal = projection != "LATERAL"
    body = body._replace(arms_raised=not frontal)
    if projection == "AP":
        body = body._replace(heart=body.heart * 1.07)
    aspect = rng.uniform(0.92, 1.12) if frontal else rng.uniform(1.1, 1.3)
    height, width = (int(round(short_side * max(1.0, a))) for a in (aspect, 1 / aspect))
    size = height, width
    rays = _rays(frontal, size, body, rng)
    roll = float(rng.normal(0, 1.2))
    parts = _roll(_integrate(body, findings, grains, rays, rng), roll)
    image = _expose(parts, projection, rays.pixel, rng)
    masks = [mask for mask in parts.findings]
    boxes = [(f.label, _box(mask)) for f, mask in zip(findings, masks, strict=True) if mask.any()]
    union = np.any(masks, axis=0) if masks else np.zeros(size, bool)
    return Radiograph(
        projection,
        _burn_marker(image, projection, rng),
        parts.lungs.astype(np.uint8) * 255,
        union.astype(np.uint8) * 255,
        parts.heart,
        boxes,
        rays.rows[:, 0] * body.scale[2],
        roll,
    )


def _rays(frontal: bool, size: tuple[int, int], body: Anatomy, rng: np.random.Generator) -> Rays:
    height, width = size
    turn = rng.normal(0, 0.045)
    right = np.array([np.cos(turn), np.sin(turn)])
    away = np.array([-np.sin(turn), np.cos(turn)])
    if not frontal:
        right, away = away, right
    field = (rng.uniform(33.5, 38.5) if frontal else rng.uniform(28.0, 32.0)) * float(body.scale[:2].mean())
    pixel = max(field / width, 32.0 * float(body.scale[2]) / height)
    shift = rng.normal(0, 0.6) + (0.0 if frontal else 0.6)
    columns = (np.arange(width) - (width - 1) / 2) * pixel + shift
    rows = rng.uniform(15.6, 17.6) * body.scale[2] - np.arange(height) * pixel
    return Rays(
        columns[None].astype(np.float32),
        (rows[:, None] / body.scale[2]).astype(np.float32),
        (right / body.scale[:2]).astype(np.float32),
        (away / body.scale[:2]).astype(np.float32),
        body.scale.astype(np.float32),
        float(pixel),
    )


def _integrate(
    body: Anatomy, findings: list[Finding], grains: list[Grains], rays: Rays, rng: np.random.Generator
) -> _Integrals:
    total = _flesh(body, rays)
    heart = anatomy.heart_span(body, rays)
    field = np.zeros(total.shape, bool)
    air, space = np.zeros_like(total), np.zeros_like(total)
    pleural = {"Effusion": np.zeros_like(total), "Pneumothorax": np.zeros_like(total)}
    for side in SIDES:
        window, lung = seen(anatomy.lung(side), rays)
        here = rays.cut(window)
        cuts = [heart.cut(window), anatomy.mediastinum(body).span(here), anatomy.dome(body, side).span(here)]
        space_here = remaining_length(lung, cuts)
        field[window] |= _field(lung, cuts, space_here, rays)
        air_here = space_here
        change = -(SOFT - LUNG) * space_here
        inner, dry = anatomy.aerated(body, side), anatomy.dry(body, side)
        thinner = anatomy.aerated(body, side, peel=0.1)
        if inner is not None and thinner is not None:
            air_here = remaining_length(common(lung, inner.span(here)), cuts)
            pleura = np.maximum(air_here - remaining_length(common(lung, thinner.span(here)), cuts), 0)
            pleural["Pneumothorax"][window] += space_here - air_here
            change += SOFT * 0.8 * pleura - LUNG * (space_here - air_here)
            change += LUNG * 0.8 * body.on(body.collapse, side) * air_here
        if dry is not None:
            air_here = remaining_length(common(lung, dry.span(here)), cuts)
            pleural["Effusion"][window] += space_here - air_here
            change += (SOFT - LUNG) * (space_here - air_here)
        total[window] += change
        air[window] += air_here
        space[window] += space_here
    total += air * LUNG * 0.06 * _texture(total.shape, rays.pixel, rng, finest=0.35)
    masks = []
    for finding in findings:
        if finding.solids or finding.clouds:
            thickness = filled(finding, rays, air)
            grain = 1 + 0.2 * _texture(total.shape, rays.pixel, rng, finest=0.8) if finding.clouds else 1.0
            total += (SOFT - LUNG) * thickness * grain
        else:
            thickness = pleural.get(finding.label, air)
        masks.append(visible(finding, thickness, space, heart.far > heart.near))
    total += skeleton.vertebrae(body, rays)
    for blob, density in skeleton.bone_blobs(body):
        window, span = seen(blob, rays)
        total[window] += density * span.length()
    total += deposit([*grains, *skeleton.shoulders(body, rays.pixel)], rays)
    return _Integrals(np.maximum(total, 0), field, heart.length() > 0, masks)


def _flesh(body: Anatomy, rays: Rays) -> np.ndarray:
    """Attenuation of the body as if it had no air in the lungs and no bone."""
    skin = hull(anatomy.torso(body), rays)
    flesh = hull(anatomy.torso(body, depth=0.6 + 0.5 * body.fat), rays)
    total = FAT * skin.length() + (SOFT - FAT) * flesh.length()
    for outer, density in [(limb, SOFT) for limb in anatomy.limbs(body)] + [(b, FAT) for b in anatomy.breasts(body)]:
        window, span = seen(outer, rays)
        total[window] += density * (span.length() - common(span, skin.cut(window)).length())
    return total - SOFT * anatomy.stomach_gas(body, rays)


def _field(lung: Span, cuts: list[Span], space: np.ndarray, rays: Rays) -> np.ndarray:
    """The lung as a reader outlines it: frontal, beside heart and above diaphragm; lateral, wherever air shows.

    space: centimetres of `lung` that none of `cuts` covers.
    """
    if abs(rays.across[0]) < abs(rays.across[1]):
        return space > 1.0
    hidden = np.any([cut.far > cut.near for cut in cuts], axis=0)
    return (lung.far > lung.near) & ~hidden


def _texture(size: tuple[int, int], pixel: float, rng: np.random.Generator, finest: float) -> np.ndarray:
    """Smooth random field of about unit size, with structure from `finest` to 2 centimetres: h w."""
    height, width = size
    field = np.zeros(size, np.float32)
    for grain in (2.0, 0.8, 0.35):
        cells = [max(2, int(np.ceil(n * pixel / grain))) for n in size]
        noise = rng.standard_normal(cells, np.float32)
        if grain >= finest:
            field += 0.6 * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return field


def _roll(parts: _Integrals, degrees: float) -> _Integrals:
    """Turns the picture plane."""
    height, width = parts.attenuation.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)

    def turned(mask):
        return cv2.warpAffine(mask.astype(np.uint8), matrix, (width, height), flags=cv2.INTER_NEAREST) > 0

    total = cv2.warpAffine(
        parts.attenuation, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return _Integrals(total, turned(parts.lungs), turned(parts.heart), [turned(mask) for mask in parts.findings])


def _expose(parts: _Integrals, projection: str, pixel: float, rng: np.random.Generator) -> np.ndarray:
    """Beer-Lambert, scatter, quantum noise, logarithm, edge enhancement and a film-like curve: uint8 h w."""
    total = parts.attenuation
    lungs = parts.lungs if parts.lungs.any() else total > 0
    primary = np.exp(float(np.median(total[lungs])) - total)
    scattered = _wide_blur(np.minimum(primary, 2.0), 3.5 / pixel)
    portable = projection == "AP"
    intensity = primary + rng.uniform(0.10, 0.22) * (1.6 if portable else 1.0) * scattered
    blurred = cv2.GaussianBlur(intensity, (0, 0), max(0.45, 0.045 / pixel))
    noise = cv2.GaussianBlur(rng.standard_normal(total.shape, np.float32), (0, 0), 0.6)
    blurred += noise * rng.uniform(0.015, 0.05) * np.sqrt(blurred)
    signal = -np.log(np.maximum(blurred, 1e-3))
    signal += rng.uniform(0.2, 0.6) * (signal - _wide_blur(signal, 1.6 / pixel))
    inside = signal[total > np.minimum(0.6, total.max() / 2)]
    dark, bright = float(np.percentile(signal[lungs], 30)), float(np.percentile(inside, 96))
    at_dark = rng.uniform(0.24, 0.36) + {"PA": 0.0, "AP": 0.06, "LATERAL": 0.07}[projection]
    at_bright = rng.uniform(0.84, 0.93)
    logit_dark, logit_bright = np.log(at_dark / (1 - at_dark)), np.log(at_bright / (1 - at_bright))
    curve = logit_dark + (signal - dark) * (logit_bright - logit_dark) / max(bright - dark, 0.2)
    return np.round(255 / (1 + np.exp(-curve))).astype(np.uint8)


def _wide_blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of large sigma (pixels) done on a smaller picture."""
    step = max(1, int(sigma / 3))
    height, width = picture.shape
    small = cv2.resize(picture, (max(2, width // step), max(2, height // step)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / step, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _burn_marker(image: np.ndarray, projection: str, rng: np.random.Generator) -> np.ndarray:
    """Writes the side marker (and sometimes the projection) where a radiographer puts it."""
    height, width = image.shape
    short = min(height, width)
    scale = short / 256 * rng.uniform(0.45, 0.7)
    letter = "L" if projection == "LATERAL" or rng.random() < 0.6 else "R"
    x = rng.uniform(0.86, 0.93) if letter == "L" else rng.uniform(0.04, 0.1)
    if projection == "LATERAL":
        x = rng.choice((rng.uniform(0.03, 0.1), rng.uniform(0.87, 0.93)))
    y = rng.uniform(0.07, 0.16)
    brightness = int(rng.uniform(200, 255))
    thick = max(1, int(round(short / 256)))
    origin = (int(x * width), int(y * height))
    cv2.putText(image, letter, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, brightness, thick, cv2.LINE_AA)
    if projection == "AP" and rng.random() < 0.7:
        place = (int(rng.uniform(0.02, 0.06) * width), int(rng.uniform(0.9, 0.96) * height))
        cv2.putText(image, "AP PORTABLE", place, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * scale, brightness, thick, cv2.LINE_AA)
    return image


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Relative (y0, x0, y1, x1) of the pixels that are set."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    top, left = float(rows[0] / height), float(columns[0] / width)
    return top, left, float((rows[-1] + 1) / height), float((columns[-1] + 1) / width)
