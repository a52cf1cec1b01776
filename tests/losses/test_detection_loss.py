"""The losses of detectors against loops over boxes and places, in value and gradient."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from cxrjax.losses import detection
from cxrjax.losses.boxes import iou

RNG = np.random.default_rng(0)
GRIDS = (2, 4, 8)  # coarse to fine
PRIORS = np.float32([[[0.5, 0.6], [0.8, 0.7]], [[0.3, 0.2], [0.25, 0.4]], [[0.05, 0.06], [0.12, 0.1]]])  # h w
MAPS = [RNG.normal(size=(3, grid, grid, 2, 7)).astype(np.float32) for grid in GRIDS]  # two classes
# The first two share a middle and a best prior but not a class; the third is unlike every prior; a large one.
BOXES = np.float32(
    [
        [[0.3, 0.3, 0.42, 0.41], [0.31, 0.3, 0.41, 0.42], [0.1, 0.6, 0.12, 0.95]],
        [[0.15, 0.2, 0.93, 0.92], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    ]
)
CLASSES = np.int32([[0, 1, 1], [0, -1, -1], [-1, -1, -1]])


@partial(jax.jit, static_argnames=("assign", "inclusive_iou", "object_is_background"))
def yolo(maps, boxes=BOXES, classes=CLASSES, **options):
    return detection.yolo(maps, boxes, classes, jnp.asarray(PRIORS), **options)


dense, assigned = jax.jit(detection.dense), jax.jit(detection.assigned, static_argnums=0)


def shape_iou(a, b, more):
    shared = (min(a[0], b[0]) + more) * (min(a[1], b[1]) + more)
    return shared / ((a[0] + more) * (a[1] + more) + (b[0] + more) * (b[1] + more) - shared)


def looped_yolo(maps, assign, inclusive, object_is_background):
    """The terms on PyTorch tensors b p q a 7, by targets written one box after the other, and PyTorch's own means."""
    terms = dict.fromkeys(("place", "size", "object", "class"), 0.0)
    for level, out in enumerate(maps):
        b, p, q, a, _ = out.shape
        one, background = torch.zeros(b, p, q, a), torch.ones(b, p, q, a)
        place, size, kinds = torch.zeros(b, p, q, a, 2), torch.zeros(b, p, q, a, 2), torch.zeros(b, p, q, a, 2)
        for i in range(b):
            for (y0, x0, y1, x1), kind in zip(BOXES[i].astype(float), CLASSES[i], strict=True):
                if kind < 0:
                    continue
                height, width = y1 - y0, x1 - x0
                y, x = (y0 + y1) / 2 * p, (x0 + x1) / 2 * q
                row, column = int(y), int(x)
                overlaps = []
                for grid, shapes in zip(GRIDS, PRIORS.astype(float), strict=True):
                    scale = grid if inclusive else 1
                    cells = [(height * scale, width * scale), *(scale * shapes)]
                    overlaps.append([shape_iou(cells[0], prior, int(inclusive)) for prior in cells[1:]])
                for prior in range(a):
                    if overlaps[level][prior] > 0.5:
                        background[i, row, column, prior] = 0
                best = (level, int(np.argmax(overlaps[level])))
                if assign == "best_prior":
                    best = np.unravel_index(np.argmax(overlaps), (3, 2))
                if best[0] != level:
                    continue
                place[i, row, column, best[1]] = torch.tensor([x - column, y - row])
                h, w = PRIORS[level][best[1]]
                size[i, row, column, best[1]] = torch.tensor([math.log(width / w), math.log(height / h)])
                one[i, row, column, best[1]] = 1
                kinds[i, row, column, best[1], kind] = 1
        if not object_is_background:
            background = background * (1 - one)
        answer, mask = torch.sigmoid(out), one[..., None]
        for axis in range(2):
            terms["place"] += 2.5 * functional.binary_cross_entropy(answer[..., axis] * one, place[..., axis] * one)
            terms["size"] += 2.5 * functional.mse_loss(out[..., 2 + axis] * one, size[..., axis] * one)
        terms["object"] += functional.binary_cross_entropy(answer[..., 4] * one, one)
        terms["object"] += 0.5 * functional.binary_cross_entropy(answer[..., 4] * background, torch.zeros_like(one))
        terms["class"] += functional.binary_cross_entropy(answer[..., 5:] * mask, kinds * mask)
    return terms


@pytest.mark.parametrize("assign", ["best_prior", "best_of_level"])
@pytest.mark.parametrize(("inclusive", "object_is_background"), [(False, False), (True, True)])
def test_yolo_is_the_loop_in_value_and_gradient(assign, inclusive, object_is_background):
    options = {"inclusive_iou": inclusive, "object_is_background": object_is_background}

    @jax.jit
    def loss(maps):
        terms = yolo(maps, assign=assign, **options)
        return sum(terms.values()), terms

    (_, terms), gradient = jax.value_and_grad(loss, has_aux=True)(MAPS)
    tensors = [torch.tensor(out, requires_grad=True) for out in MAPS]
    expected = looped_yolo(tensors, assign, inclusive, object_is_background)
    sum(expected.values()).backward()
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value.item(), rel=1e-5), name
    for found, tensor in zip(gradient, tensors, strict=True):
        np.testing.assert_allclose(found, tensor.grad, rtol=1e-4, atol=1e-7)


def test_the_defects_of_the_released_code_change_the_loss():
    """One at a time: a defect that a box of these triggers is not silently without effect."""

    def objects(**options):
        return float(yolo(MAPS, **options)["object"])

    values = [objects(), objects(assign="best_of_level"), objects(inclusive_iou=True)]
    values.append(objects(object_is_background=True))
    assert len({round(value, 6) for value in values}) == 4
    with pytest.raises(ValueError, match="assign must be one of best_prior, best_of_level, got 'all'"):
        objects(assign="all")


def test_pictures_without_a_box_teach_the_background_only():
    terms = yolo(MAPS, np.zeros_like(BOXES), np.full_like(CLASSES, -1))
    expected = sum(0.5 * np.mean(np.logaddexp(0, out[..., 4])) for out in MAPS)
    assert float(terms.pop("object")) == pytest.approx(expected, rel=1e-5)
    assert all(float(value) == 0 for value in terms.values())


def looped_assignment(grids):
    """Places (level, row, column) of every box of BOXES, by the words of `dense`."""
    places = {}
    for i, m in np.ndindex(CLASSES.shape):
        if CLASSES[i, m] < 0:
            continue
        y0, x0, y1, x1 = BOXES[i, m].astype(float)
        fitting = [level for level, grid in enumerate(grids) if max(y1 - y0, x1 - x0) * grid <= 8]
        level = fitting[0] if fitting else len(grids) - 1
        grid = grids[level]
        y, x = (y0 + y1) / 2 * grid, (x0 + x1) / 2 * grid
        found = {(level, int(y), int(x))}
        for row, column in np.ndindex(grid, grid):
            inside = y0 * grid <= row + 0.5 <= y1 * grid and x0 * grid <= column + 0.5 <= x1 * grid
            if inside and max(abs(row + 0.5 - y), abs(column + 0.5 - x)) < 1.5:
                found.add((level, row, column))
        places[i, m] = found
    return places


def test_boxes_are_found_where_they_are():
    """On the level of their size, near their middle; a box that no place is inside of at the nearest one."""
    grids = (32, 16, 8)
    found = [np.asarray(level) for level in assigned(tuple((g, g) for g in grids), BOXES, CLASSES)]
    expected = looped_assignment(grids)
    for i, m in np.ndindex(CLASSES.shape):
        here = {(level, int(row), int(c)) for level in range(3) for row, c in np.argwhere(found[level][i, m])}
        assert here == expected.get((i, m), set())
    tiny = np.float32([[[0.51, 0.51, 0.513, 0.512]]])
    alone = assigned(tuple((g, g) for g in grids), tiny, np.zeros((1, 1), np.int32))
    assert [int(level.sum()) for level in alone] == [1, 0, 0] and bool(alone[0][0, 0, 16, 16])
    assert [int(level.sum()) for level in assigned(((4, 4),), BOXES, CLASSES)] == [1 + 1 + 1 + 9]


@pytest.mark.parametrize(("cells", "level"), [(7.5, 0), (8.0, 0), (8.5, 1)])
def test_a_box_of_eight_cells_is_the_largest_of_its_level(cells, level):
    boxes = np.asarray([[[0.25, 0.25, 0.25 + cells / 32, 0.3]]], np.float32)
    found = assigned(((32, 32), (16, 16)), boxes, np.zeros((1, 1), np.int32))
    assert [bool(np.asarray(places).any()) for places in found] == [level == 0, level == 1]


def test_dense_is_the_loop():
    grids = (16, 8)
    logits = [RNG.normal(size=(3, g, g, 2)).astype(np.float32) for g in grids]
    middles = [RNG.uniform(0.1, 0.9, (3, g, g, 2)) for g in grids]
    found = [
        np.concatenate([m - 0.1, m + RNG.uniform(0.02, 0.2, m.shape)], axis=-1).astype(np.float32) for m in middles
    ]
    terms = dense(logits, found, BOXES, CLASSES)

    def measures(a, b):
        def size(box):
            return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

        inner = [max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])]
        outer = [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]
        union = size(a) + size(b) - size(inner)
        return size(inner) / union, size(inner) / union - (size(outer) - union) / size(outer)

    claims = looped_assignment(grids)
    count, quality, box = 0, 0.0, 0.0
    for i in range(3):
        for level, grid in enumerate(grids):
            for place in np.ndindex(grid, grid):
                mine = [m for m in range(3) if (level, *place) in claims.get((i, m), set())]
                target = np.zeros(2)
                if mine:
                    sizes = [np.prod(BOXES[i, m, 2:] - BOXES[i, m, :2]) for m in mine]
                    m = mine[int(np.argmin(sizes))]
                    overlap, general = measures(found[level][i][place], BOXES[i, m])
                    target[CLASSES[i, m]], count, box = overlap, count + 1, box + 2 * (1 - general)
                s = logits[level][i][place].astype(float)
                probability = 1 / (1 + np.exp(-s))
                each = -target * np.log(probability) - (1 - target) * np.log(1 - probability)
                quality += float(((target - probability) ** 2 * each).sum())
    assert count > 4
    assert float(terms["quality"]) == pytest.approx(quality / count, rel=1e-5)
    assert float(terms["box"]) == pytest.approx(box / count, rel=1e-5)


def test_the_quality_is_a_target():
    """No box is moved by the quality that its place is told; scores learn from it, their own weight included (GFL)."""
    rng = np.random.default_rng(4)
    middle, side = np.stack(np.meshgrid(*2 * [(np.arange(4) + 0.5) / 4], indexing="ij"), axis=-1), 0.15
    found = np.concatenate([middle - side, middle + side], axis=-1)[None] + rng.uniform(-0.05, 0.05, (1, 4, 4, 4))
    found, logits = found.astype(np.float32), rng.normal(size=(1, 4, 4, 1)).astype(np.float32)
    boxes, classes = np.float32([[[0.1, 0.1, 0.45, 0.4]]]), np.zeros((1, 1), np.int32)

    def term(name):
        return jax.grad(lambda s, b: dense([s], [b], boxes, classes)[name], argnums=(0, 1))(logits, found)

    by_logits, by_boxes = term("quality")
    assert not np.any(by_boxes)
    mine = np.asarray(assigned(((4, 4),), boxes, classes)[0][0, 0])
    assert 1 < mine.sum() < 16
    t = np.where(mine, np.asarray(iou(found[0], boxes[0, 0])), 0.0)
    s = logits[0, ..., 0].astype(np.float64)
    p = 1 / (1 + np.exp(-s))
    cross_entropy = -t * np.log(p) - (1 - t) * np.log(1 - p)
    slope = -2 * (t - p) * p * (1 - p) * cross_entropy + (t - p) ** 2 * (p - t)
    np.testing.assert_allclose(by_logits[0, ..., 0], slope / mine.sum(), atol=1e-6)
    to_nothing, by_boxes = term("box")
    assert not np.any(to_nothing)
    np.testing.assert_array_equal(np.any(by_boxes[0], axis=-1), mine)


def test_dense_stays_finite_without_boxes():
    logits, found = [np.zeros((2, 4, 4, 1), np.float32)], [np.zeros((2, 4, 4, 4), np.float32)]
    empty = np.zeros((2, 3, 4), np.float32), np.full((2, 3), -1, np.int32)
    value, gradient = jax.value_and_grad(lambda x: sum(dense(*x, *empty).values()))((logits, found))
    assert float(value) == pytest.approx(2 * 16 * 0.25 * math.log(2))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
