"""What a detector's maps should be, and how far they are from it: YOLOv3 with priors, and one box per place without.

Boxes are relative, y0 x0 y1 x1, padded to m per picture: where classes b m is −1 there is none. Maps are lists over the
levels, each b p q …; whatever a place is to find is chosen by comparing every place with every box, so shapes are
static and two boxes that claim one place are settled by a rule and not by the order in which a device writes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cxrjax.losses.boxes import area, giou, iou

TERMS = ("place", "size", "object", "class")
ASSIGN = ("best_prior", "best_of_level")
IGNORE_IOU = 0.5  # priors that overlap a box more than this are not told to be background
SPAN = 8  # longest side of a box, in cells of the level that finds it; twice that goes to the next coarser level
RADIUS = 1.5  # cells around the middle of a box that learn to find it


def yolo(
    maps: Sequence[jax.Array],
    boxes: jax.Array,
    classes: jax.Array,
    priors: jax.Array,
    *,
    assign: str = "best_prior",
    inclusive_iou: bool = False,
    object_is_background: bool = False,
) -> dict[str, jax.Array]:
    """YOLOv3's loss in named terms; their sum is the loss.

        place       2.5 · BCE(σ(x), frac) for both coordinates of the middle within its cell
        size        2.5 · (s − log(side / prior's side))² for both sides
        object      BCE(σ(o), 1) where a box is, and 0.5 · BCE(σ(o), 0) where none is
        class       BCE of every class where a box is

    each divided by all places (and classes) of the level, with box or without, and summed over the levels.

    maps: l × b p q a 5+c logits (x, y, w, h, object, classes); boxes: b m 4; classes: b m; priors: l a 2 (h, w),
    relative. assign: "best_prior", the one of all priors whose shape overlaps the box most (the paper), or
    "best_of_level", one on every level. inclusive_iou: of shapes in cells, both sides one longer.
    object_is_background: where the best prior overlaps its box by no more than 0.5, its place is told both 1 and 0.
    Source: Redmon and Farhadi 2018 (1804.02767), section 2.1; weights, means and the threshold on shapes as in the
    released code of MGCA, whose assignment and the two defects the last three arguments give.
    """
    levels = []
    middle, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]  # b m 2
    overlaps = [_shape_iou(size, level, shape(out), inclusive_iou) for level, out in zip(priors, maps, strict=True)]
    chosen = best_priors(overlaps, assign)
    for out, level, overlap, best in zip(maps, priors, overlaps, chosen, strict=True):
        grid = jnp.asarray(shape(out))
        cell = jnp.floor(middle * grid)[:, :, None, None]  # b m 1 1 2
        here = (cell == jnp.stack(jnp.indices(shape(out)), axis=-1)).all(axis=-1)  # b m p q
        here = (here & (classes >= 0)[:, :, None, None])[..., None]
        mine = here & best[:, :, None, None, :]  # b m p q a
        ignored = here & (overlap > IGNORE_IOU)[:, :, None, None, :]
        one = mine.any(axis=1)  # b p q a
        background = ~ignored.any(axis=1) if object_is_background else ~(ignored | mine).any(axis=1)
        last = jnp.argmax(jnp.where(mine, jnp.arange(1, 1 + mine.shape[1])[:, None, None, None], 0), axis=1)
        inside = _of_box(middle * grid % 1, last)  # b p q a 2
        log_size = jnp.log(jnp.maximum(_of_box(size, last), 1e-16) / level)
        kinds = jnp.arange(out.shape[-1] - 5)
        labels = (mine[..., None] & (classes[:, :, None, None, None, None] == kinds)).any(axis=1)  # b p q a c

        def mean(values, counted):
            return jnp.where(counted, values, 0).mean()

        terms = {
            "place": 2.5 * 2 * mean(bce(out[..., :2], inside[..., ::-1]), one[..., None]),
            "size": 2.5 * 2 * mean((out[..., 2:4] - log_size[..., ::-1]) ** 2, one[..., None]),
            "object": mean(bce(out[..., 4], 1.0), one) + 0.5 * mean(bce(out[..., 4], 0.0), background),
            "class": mean(bce(out[..., 5:], labels), one[..., None]),
        }
        levels.append(terms)
    return {name: jnp.asarray(sum(terms[name] for terms in levels)) for name in TERMS}


def best_priors(overlaps: Sequence[jax.Array], assign: str) -> list[jax.Array]:
    """Per level bool b m a: the priors that are to find a box, of their overlaps in shape, l × b m a."""
    if assign == "best_of_level":
        return [jnp.arange(level.shape[-1]) == level.argmax(axis=-1)[..., None] for level in overlaps]
    if assign not in ASSIGN:
        raise ValueError(f"assign must be one of {', '.join(ASSIGN)}, got {assign!r}")
    sizes = [level.shape[-1] for level in overlaps]
    best = jnp.concatenate(overlaps, axis=-1).argmax(axis=-1)[..., None]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [jnp.arange(start, start + size) == best for start, size in zip(starts, sizes, strict=True)]


def dense(
    logits: Sequence[jax.Array], found: Sequence[jax.Array], boxes: jax.Array, classes: jax.Array
) -> dict[str, jax.Array]:
    """The loss of a head that gives one box per place, in named terms; their sum is the loss.

        quality     Σ |t − σ(s)|² BCE(σ(s), t) / n    t = IoU of the place's box and the one it is to find; else 0
        box         2 Σ (1 − GIoU) / n                over the n places of the batch that are to find one

    A box is found on the finest level where its longer side spans at most SPAN cells, at the places inside it that are
    within RADIUS cells of its middle, and in any case at the place nearest to it; the smallest of several boxes wins.

    logits: l × b p q c, from the finest level on; found: l × b p q 4; boxes: b m 4; classes: b m. t is a target: the
    quality has no gradient to the boxes, as in GFL's code.
    Source: levels and radius of FCOS (Tian et al., ICCV 2019, and its code), the two terms of GFL (Li et al., NeurIPS
    2020, equation 2, β = 2, and section 4). The nearest place, for nodules smaller than a cell, is our choice.
    """
    grids = [shape(level) for level in found]
    mine = jnp.concatenate([flat.reshape(*classes.shape, -1) for flat in assigned(grids, boxes, classes)], axis=2)
    s, place = (jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in maps], axis=1) for maps in (logits, found))
    smallest = jnp.argmin(jnp.where(mine, area(boxes)[..., None], jnp.inf), axis=1)  # b n
    one = mine.any(axis=1)
    wanted, kind = _of_box(boxes, smallest), jnp.take_along_axis(classes, smallest, axis=1)
    quality = jax.lax.stop_gradient(iou(place, wanted))[..., None]
    target = jnp.where(one[..., None] & (kind[..., None] == jnp.arange(s.shape[-1])), quality, 0.0)  # b n c
    count = jnp.maximum(one.sum(), 1)
    weight = (target - jax.nn.sigmoid(s)) ** 2
    return {
        "quality": (weight * bce(s, target)).sum() / count,
        "box": 2 * jnp.where(one, 1 - giou(place, wanted), 0).sum() / count,
    }


def assigned(grids: Sequence[tuple[int, int]], boxes: jax.Array, classes: jax.Array) -> list[jax.Array]:
    """Per level bool b m p q: the places that are to find each box; see `dense`."""
    middle, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]  # b m 2
    fits = jnp.stack([(size * jnp.asarray(grid)).max(axis=-1) <= SPAN for grid in grids])  # l b m
    level = jnp.where(fits.any(axis=0), fits.argmax(axis=0), len(grids) - 1)
    found = []
    for number, (p, q) in enumerate(grids):
        cells, grid = jnp.stack(jnp.indices((p, q)), axis=-1), jnp.asarray((p, q))
        corners = boxes.reshape(*classes.shape, 1, 1, 2, 2) * grid  # in cells
        places, target = cells + 0.5, (middle * grid)[:, :, None, None]  # p q 2, b m 1 1 2
        inside = ((corners[..., 0, :] <= places) & (places <= corners[..., 1, :])).all(axis=-1)
        nearest = (cells == jnp.clip(jnp.floor(target), 0, grid - 1)).all(axis=-1)
        near = ((jnp.abs(places - target) < RADIUS).all(axis=-1) & inside) | nearest
        found.append(near & ((level == number) & (classes >= 0))[:, :, None, None])
    return found


def shape(out: jax.Array) -> tuple[int, int]:
    """p, q of a level's map b p q …."""
    return out.shape[1], out.shape[2]


def bce(logits: jax.Array, target: jax.Array | float) -> jax.Array:
    """Binary cross-entropy of logits with targets in [0, 1]."""
    return jax.nn.softplus(logits) - logits * target


def _shape_iou(size: jax.Array, priors: jax.Array, grid: tuple[int, int], inclusive: bool) -> jax.Array:
    """IoU b m a of sizes b m 2 and priors a 2, one laid upon the other."""
    one, other = size[:, :, None], jnp.asarray(priors)
    if inclusive:
        one, other = one * jnp.asarray(grid) + 1, other * jnp.asarray(grid) + 1
    shared = jnp.minimum(one, other).prod(axis=-1)
    return shared / (one.prod(axis=-1) + other.prod(axis=-1) - shared)


def _of_box(values: jax.Array, number: jax.Array) -> jax.Array:
    """values b m k of the box that number b … names: b … k."""
    index = number.reshape(len(number), -1, 1)
    return jnp.take_along_axis(values, index, axis=1).reshape(*number.shape, values.shape[-1])
