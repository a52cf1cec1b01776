"""Detectors' heads against PyTorch layers, and what they make of their maps against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from cxrjax.models import detection

RNG = np.random.default_rng(0)


def noisy(tree, seed=0):
    """Parameters and statistics made irregular: biases that are 0 and scales that are 1 would hide mistakes."""
    rng = np.random.default_rng(seed)

    def change(path, leaf):
        wide = path[-1].key in ("scale", "var")
        return (
            np.abs(wide + 0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)
            if wide
            else (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)
        )

    return jax.tree.map_with_path(change, tree)


def kernel(array):
    return torch.tensor(np.asarray(array)).permute(3, 2, 0, 1)


def to_torch(array):
    return torch.tensor(np.asarray(array)).permute(0, 3, 1, 2)


def branch(x, params, stats, names):
    """Convolution, BatchNorm by running statistics, LeakyReLU 0.1, one after the other."""
    for name in names:
        weight = kernel(params[name]["kernel"])
        x = nn.functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
        norm, moved = params[f"{name}_norm"], stats[f"{name}_norm"]
        arrays = [torch.tensor(np.asarray(a)) for a in (moved["mean"], moved["var"], norm["scale"], norm["bias"])]
        x = nn.functional.leaky_relu(nn.functional.batch_norm(x, *arrays, training=False, eps=1e-5), 0.1)
    return x


def test_yolo_head_is_pytorchs():
    """The three branches as YOLOv3 joins them, with the shapes of its maps: 3 priors × (5 + classes) channels."""
    taps = [RNG.normal(size=(2, side, side, width)).astype(np.float32) for side, width in ((8, 6), (4, 8), (2, 10))]
    head = detection.YoloHead(classes=2, width=16)
    variables = jax.eval_shape(lambda: head.init(jax.random.key(0), taps, False))
    params, stats = noisy(variables["params"]), noisy(variables["batch_stats"], 1)
    found = jax.jit(lambda: head.apply({"params": params, "batch_stats": stats}, taps, False))()
    assert [out.shape for out in found] == [(2, side, side, 3, 7) for side in (2, 4, 8)]
    x = None
    for level, tap in enumerate(reversed(taps)):
        if x is None:
            x = to_torch(tap)
        else:
            x = nn.functional.interpolate(branch(x, params, stats, [f"up{level}"]), scale_factor=2, mode="nearest")
            x = torch.cat([x, to_torch(tap)], dim=1)
        x = branch(x, params, stats, [f"branch{level}_{i}" for i in range(5)])
        out = params[f"out{level}"]
        y = branch(x, params, stats, [f"branch{level}_5"])
        y = nn.functional.conv2d(y, kernel(out["kernel"]), torch.tensor(np.asarray(out["bias"])))
        expected = y.reshape(2, 3, 7, *y.shape[2:]).permute(0, 3, 4, 1, 2)
        np.testing.assert_allclose(found[level], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="do not halve"):
        head.init(jax.random.key(0), [taps[0], taps[1], taps[1]], False)


def test_mgcas_head_has_the_published_widths():
    """At width 512 on a ResNet-50's maps: 512, 256, 128 channels, and 18 for one class."""
    taps = [jax.ShapeDtypeStruct((1, side, side, d), np.float32) for side, d in ((28, 512), (14, 1024), (7, 2048))]
    shapes = jax.eval_shape(lambda *t: detection.YoloHead(1).init(jax.random.key(0), t, False), *taps)["params"]
    assert [shapes[f"branch{i}_0"]["kernel"].shape for i in range(3)] == [
        (1, 1, 2048, 512),
        (1, 1, 1024 + 256, 256),
        (1, 1, 512 + 128, 128),
    ]
    assert [shapes[f"branch{i}_5"]["kernel"].shape[-1] for i in range(3)] == [1024, 512, 256]
    assert all(shapes[f"out{i}"]["kernel"].shape[-1] == 18 for i in range(3))


@pytest.mark.parametrize("score", ["product", "object"])
def test_yolo_boxes_are_those_of_a_loop(score):
    maps = [RNG.normal(size=(2, p, p, 3, 7)).astype(np.float32) for p in (2, 4, 8)]
    found = jax.jit(lambda maps: detection.decode_yolo(maps, score))(maps)
    boxes, scores = [[], []], [[], []]
    for level, out in enumerate(maps):
        for b, row, column, prior in np.ndindex(out.shape[:4]):
            x, y, w, h, o, *kinds = out[b, row, column, prior].astype(float)
            sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
            wide, high = np.exp([w, h]) * np.array(detection.PRIORS[level][prior]) / 416
            cy, cx = (row + sigmoid(y)) / out.shape[1], (column + sigmoid(x)) / out.shape[2]
            boxes[b].append([cy - high / 2, cx - wide / 2, cy + high / 2, cx + wide / 2])
            kinds = sigmoid(np.array(kinds)) if score == "product" else np.arange(2) == np.argmax(kinds)
            scores[b].append(sigmoid(o) * kinds)
    np.testing.assert_allclose(found.boxes, boxes, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4, atol=1e-6)


def test_decoding_undoes_what_the_loss_asks_for():
    """Logits that meet the targets of a box give that box, on every level and for sides that differ."""
    box = np.array([0.30, 0.42, 0.46, 0.66])
    maps = [np.full((1, p, p, 3, 6), -9.0, np.float32) for p in (2, 4, 8)]
    for level, out in enumerate(maps):
        p = out.shape[1]
        y, x = (box[0] + box[2]) / 2 * p, (box[1] + box[3]) / 2 * p
        wide, high = detection.PRIORS[level][1]
        logit = lambda v: np.log(v % 1 / (1 - v % 1))  # noqa: E731
        sides = np.log([(box[3] - box[1]) * 416 / wide, (box[2] - box[0]) * 416 / high])
        out[0, int(y), int(x), 1] = [logit(x), logit(y), *sides, 9, 9]
    found = jax.jit(detection.decode_yolo)(maps)
    np.testing.assert_allclose(found.boxes[0][found.scores[0, :, 0] > 0.9], [box] * 3, atol=1e-5)
    with pytest.raises(ValueError, match="score must be"):
        detection.decode_yolo(maps, "objectness")


def test_pyramid_is_pytorchs():
    """Its four scales from one map, by transposed convolutions, a max-pool, convolutions and norms over channels."""
    patches = RNG.normal(size=(2, 4, 4, 8)).astype(np.float32)
    pyramid = detection.SimplePyramid(width=6)
    params = noisy(jax.eval_shape(lambda: pyramid.init(jax.random.key(0), patches))["params"])
    found = jax.jit(lambda: pyramid.apply({"params": params}, patches))()
    assert [out.shape for out in found] == [(2, side, side, 6) for side in (16, 8, 4, 2)]

    def raised(x, name):
        weight = torch.tensor(params[name]["kernel"]).permute(0, 3, 1, 2)  # d i j c to d c i j
        return nn.functional.conv_transpose2d(x, weight, torch.tensor(params[name]["bias"]), stride=2)

    def norm(x, name):
        weight, bias = (torch.tensor(params[name][part]) for part in ("scale", "bias"))
        y = nn.functional.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, eps=1e-6)
        return y.permute(0, 3, 1, 2)

    for level, out in enumerate(found):
        x = to_torch(patches)
        if level == 0:
            x = raised(nn.functional.gelu(norm(raised(x, "up0_0"), "up0_norm")), "up0_1")
        elif level == 1:
            x = raised(x, "up1_1")
        elif level == 3:
            x = nn.functional.max_pool2d(x, 2)
        for side in (1, 3):
            x = nn.functional.conv2d(x, kernel(params[f"level{level}_{side}"]["kernel"]), padding=side // 2)
            x = norm(x, f"level{level}_{side}_norm")
        np.testing.assert_allclose(out, x.permute(0, 2, 3, 1), rtol=1e-3, atol=2e-4)
    with pytest.raises(ValueError, match="from the finest on"):
        detection.SimplePyramid(scales=(1, 2)).init(jax.random.key(0), patches)
    with pytest.raises(ValueError, match="halves the map of 3 × 3"):
        detection.SimplePyramid(scales=(0.5,)).init(jax.random.key(0), patches[:, :3, :3])


def test_dense_head_starts_with_a_box_at_every_place():
    """Middles and sides by the grid of each level, qualities at the start's probability, weights shared by levels."""
    maps = [RNG.normal(size=(1, 8, 8, 16)).astype(np.float32), RNG.normal(size=(1, 4, 4, 16)).astype(np.float32)]
    head = detection.DenseHead(classes=3, width=16, layers=1)
    variables = jax.jit(lambda: head.init(jax.random.key(0), maps))()
    assert set(variables["params"]) >= {"quality0", "box0", "logits", "boxes"}
    params = jax.tree.map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if path[-1].key == "kernel" else leaf, variables["params"]
    )
    logits, boxes = jax.jit(lambda: head.apply({"params": params}, maps))()
    found = detection.decode_dense(logits, boxes)
    assert found.boxes.shape == (1, 80, 4) and found.scores.shape == (1, 80, 3)
    np.testing.assert_allclose(found.scores, detection.START, rtol=1e-5)
    np.testing.assert_allclose(boxes[0][0, 2, 5], np.array([0.5, 3.5, 4.5, 7.5]) / 8, atol=1e-6)
    np.testing.assert_allclose(boxes[1][0, 3, 0], np.array([1.5, -1.5, 5.5, 2.5]) / 4, atol=1e-6)


def looped_nms(boxes, scores, most, confidence, overlap):
    """All (score, box, class), best first, each kept unless a kept one of its class overlaps it."""
    boxes = np.clip(boxes, 0, 1).astype(np.float64)
    pairs = sorted(((-s, n, c) for (n, c), s in np.ndenumerate(scores) if s >= confidence))
    kept = []
    for negative, n, c in pairs:

        def share(m, n=n):
            high = max(0, min(boxes[n, 2], boxes[m, 2]) - max(boxes[n, 0], boxes[m, 0]))
            wide = max(0, min(boxes[n, 3], boxes[m, 3]) - max(boxes[n, 1], boxes[m, 1]))
            areas = [np.prod(boxes[i, 2:] - boxes[i, :2]) for i in (n, m)]
            return high * wide / (sum(areas) - high * wide)

        if all(c != other or share(m) < overlap for _, m, other in kept):
            kept.append((negative, n, c))
    return [(boxes[n], -negative, c) for negative, n, c in kept[:most]]


@pytest.mark.parametrize(("most", "confidence"), [(6, 0.0), (40, 0.3)])
def test_nms_is_the_loop(most, confidence):
    middle, side = RNG.uniform(0, 1, (3, 60, 2)), RNG.uniform(0.1, 0.5, (3, 60, 2))
    boxes = np.concatenate([middle - side / 2, middle + side / 2], axis=-1).astype(np.float32)
    scores = RNG.uniform(0, 1, (3, 60, 2)).astype(np.float32)
    options = {"most": most, "confidence": confidence, "overlap": 0.4}
    found = jax.jit(lambda *c: detection.nms(detection.Candidates(*c), **options))(boxes, scores)
    assert found.boxes.shape == (3, most, 4) and found.classes.dtype == np.int32
    for b in range(3):
        expected = looped_nms(boxes[b], scores[b], **options)
        count = len(expected)
        assert (found.classes[b] >= 0).sum() == count
        for k, (box, score, kind) in enumerate(expected):
            np.testing.assert_allclose(found.boxes[b, k], box, atol=1e-6)
            assert float(found.scores[b, k]) == pytest.approx(score) and int(found.classes[b, k]) == kind
        assert not np.any(found.scores[b, count:]) and not np.any(found.boxes[b, count:])


def test_nms_looks_at_the_best_pairs_only():
    boxes = np.float32([[[0, 0, 0.1, 0.1], [0.5, 0.5, 0.6, 0.6], [0.8, 0.8, 0.9, 0.9]]])
    scores = np.float32([[[0.9], [0.7], [0.8]]])
    options = {"most": 3, "confidence": 0.0, "overlap": 0.5}
    found = detection.nms(detection.Candidates(boxes, scores), consider=2, **options)
    np.testing.assert_allclose(found.scores, [[0.9, 0.8, 0.0]])
    assert found.classes.tolist() == [[0, 0, -1]]


def test_nms_of_boxes_that_are_a_pixel_longer():
    """Boxes of 10 px, 3.4 px apart: IoU 6.6/13.4 as they are, 7.6·11/(2·11² − 7.6·11) with a pixel more."""
    boxes, scores = np.float32([[[0, 0, 10, 10], [3.4, 0, 13.4, 10]]]) / 100, np.float32([[[0.9], [0.8]]])
    options = {"most": 2, "confidence": 0.0, "overlap": 0.5}
    for longer, kept in (((0.0, 0.0), [0, 0]), ((1 / 100, 1 / 100), [0, -1])):
        found = detection.nms(detection.Candidates(boxes, scores), longer=longer, **options)
        assert found.classes[0].tolist() == kept
