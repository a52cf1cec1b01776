"""Detectors on frozen or learned encoders: YOLOv3 on the maps of a ResNet, and a simple pyramid with a dense head on a
ViT. Every head gives raw maps for its loss (losses/detection.py), and its `decode_…` makes boxes of them.

Boxes are relative, y0 x0 y1 x1. `Candidates` are what a head finds before `nms`: boxes b n 4, scores b n c.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxrjax import sizes
from cxrjax.losses.boxes import iou
from cxrjax.models import linen
from cxrjax.models.backbone import Backbone
from cxrjax.models.batchnorm import BatchNorm
from cxrjax.models.decoders import Deconvolution
from cxrjax.models.resnet import ResNet
from cxrjax.models.transformer import TORCH_CONV, gelu
from cxrjax.models.vit import ViT

# (width, height) in pixels of 416: Redmon and Farhadi 2018, section 2.3; three for each of the levels, coarse to fine.
PRIORS = (((116, 90), (156, 198), (373, 326)), ((30, 61), (62, 45), (59, 119)), ((10, 13), (16, 30), (33, 23)))
SCORES = ("product", "object")
SCALES = (4, 2, 1, 0.5)
BASE_CELLS = 4.0  # side of the box that DenseHead gives before it learns, in cells of its level
START = 0.01  # probability of every class before DenseHead learns
MOST_GROWTH = math.log(1000 / 16)  # of a side in its logarithm, as in torchvision: beyond it exp runs over


class Candidates(NamedTuple):
    """Boxes b n 4 with the scores b n c of every class."""

    boxes: jax.Array
    scores: jax.Array


class Found(NamedTuple):
    """At most k boxes of each picture, by falling score: boxes b k 4, scores b k, classes b k.

    Where there are fewer, classes are −1 and all else 0.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array


class Detector(NamedTuple):
    """A head of some kind on some encoder, as pure functions.

    init: key -> (params, running statistics). apply: (params, statistics, features of `Backbone.apply`, train) ->
    (maps, statistics). decode: maps -> Candidates. kind: whose loss the maps are for, "dense" or "yolov3".
    levels: whether the features must have "levels".
    """

    init: Callable
    apply: Callable
    decode: Callable
    kind: str
    levels: bool


def make(head: Mapping[str, Any], encoder: Backbone, classes: int) -> Detector:
    """The head of config.head.

    head: kind, "dense" on a ViT, "yolov3" on a ResNet, or "" for the one that the encoder takes; width; layers and
    scales of a dense one; score of a YOLOv3. Raises ValueError for another kind, or one that the encoder does
    not take, another score, and scales that are none of SCALES.
    """
    module = encoder.module
    if not isinstance(module, ViT | ResNet):
        kind = type(module).__name__
        raise ValueError(f"the encoder is a {kind}, {module.variant!r}: detectors take a ViT or a ResNet")
    own = "yolov3" if isinstance(module, ResNet) else "dense"
    if (head["kind"] or own) != own:
        raise ValueError(
            f"head.kind is {head['kind']!r}; it is 'yolov3' on a ResNet, 'dense' on a ViT, or '' for either"
        )
    if head["score"] not in SCORES:
        raise ValueError(f"head.score must be one of {', '.join(SCORES)}, got {head['score']!r}")
    if isinstance(module, ResNet):
        return _yolo(head, module, encoder.image_px, classes)
    check_scales(head["scales"])
    return _dense(head, module, encoder.image_px, classes)


def _yolo(head: Mapping[str, Any], encoder: ResNet, px: sizes.Px, classes: int) -> Detector:
    module = YoloHead(classes, head["width"], encoder.dtype)
    height, width = sizes.sides(px)
    taps = [jnp.zeros((1, height // 2**i, width // 2**i, encoder.size.widths[i - 1])) for i in (3, 4, 5)]

    def init(key):
        variables = module.init(key, taps, False)
        return variables["params"], variables["batch_stats"]

    def apply(params, stats, features, train):
        variables = {"params": params, "batch_stats": stats}
        maps, moved = module.apply(variables, features["levels"][2:], train, mutable=["batch_stats"])
        return maps, moved["batch_stats"] if train else stats

    return Detector(init, apply, partial(decode_yolo, score=head["score"]), "yolov3", True)


def _dense(head: Mapping[str, Any], encoder: ViT, px: sizes.Px, classes: int) -> Detector:
    pyramid = SimplePyramid(head["width"], tuple(head["scales"]), encoder.dtype)
    module, grid = DenseHead(classes, head["width"], head["layers"], encoder.dtype), sizes.grid(px, encoder.patch_px)

    def init(key):
        one, other = jax.random.split(key)
        maps, variables = pyramid.init_with_output(one, jnp.zeros((1, *grid, encoder.size.width)))
        return {"pyramid": variables["params"], "places": linen.init(module, other, maps)}, {}

    def apply(params, stats, features, train):
        maps = linen.apply(pyramid, params["pyramid"], features["patches"])
        return linen.apply(module, params["places"], maps), stats

    return Detector(init, apply, lambda maps: decode_dense(*maps), "dense", False)


def check_scales(scales: Sequence[float]) -> None:
    """Raises ValueError unless the scales of a pyramid are some of SCALES, from the finest on."""
    if not scales or not set(scales) <= set(SCALES) or sorted(set(scales), reverse=True) != list(scales):
        raise ValueError(f"scales are of {', '.join(map(str, SCALES))}, from the finest on, got {tuple(scales)}")


def priors() -> jax.Array:
    """YOLOv3's shapes of boxes, l a 2: height and width, relative to the picture."""
    return jnp.asarray(PRIORS)[..., ::-1] / 416


class YoloHead(nn.Module):
    """YOLOv3's three branches on maps of 1/8, 1/16 and 1/32 of the picture, as MGCA puts them on a ResNet.

    classes: c. width: channels of the coarsest branch, halved on each finer one; twice that in its 3 × 3 convolutions.
    Returns l × b p q a 5+c logits, coarse to fine, in float32: x, y, w, h, object and the classes of every prior.
    Source: Redmon and Farhadi 2018 (1804.02767), section 2.3, with the widths of MGCA's released code at width 512.
    """

    classes: int
    width: int = 512
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, taps: Sequence[jax.Array], train: bool) -> list[jax.Array]:
        """taps: the three maps b p q d from fine to coarse, each with twice the sides of the next."""
        sides = [tap.shape[1:3] for tap in taps]
        if any(tuple(2 * side for side in after) != before for before, after in zip(sides, sides[1:], strict=False)):
            raise ValueError(f"maps of {sides} do not halve from one to the next: pictures need sides of 32, 64, 96 …")
        found, x = [], None
        for level, tap in enumerate(reversed(taps)):
            width = self.width // 2**level
            tap = tap.astype(self.dtype)
            if x is None:
                x = tap
            else:
                x = self._convolve(x, width, 1, train, f"up{level}")
                x = jnp.concatenate([jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), tap], axis=-1)
            for i in range(5):
                wide = i % 2
                x = self._convolve(x, width * (1 + wide), 1 + 2 * wide, train, f"branch{level}_{i}")
            y = self._convolve(x, 2 * width, 3, train, f"branch{level}_5")
            attributes = 5 + self.classes
            y = nn.Conv(len(PRIORS[level]) * attributes, (1, 1), kernel_init=TORCH_CONV, name=f"out{level}")(
                y.astype(jnp.float32)
            )
            found.append(y.reshape(*y.shape[:3], -1, attributes))
        return found

    def _convolve(self, x, features, side, train, name):
        options = {"use_bias": False, "dtype": self.dtype, "kernel_init": TORCH_CONV}
        x = nn.Conv(features, (side, side), name=name, **options)(x)
        return nn.leaky_relu(BatchNorm(dtype=self.dtype, name=f"{name}_norm")(x, train), 0.1)


def decode_yolo(maps: Sequence[jax.Array], score: str = "product") -> Candidates:
    """Boxes of YoloHead's maps: the middle σ(x) + cell, the sides eʷ · prior, at most 62.5 priors (MOST_GROWTH).

    score: "product", of the box being an object and the object being of the class (the paper); "object", the first
    alone for the likeliest class (released code of MGCA).
    """
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    boxes, scores = [], []
    for out, level in zip(maps, priors(), strict=True):
        b, p, q = out.shape[:3]
        cells = jnp.stack(jnp.indices((p, q)), axis=-1)[:, :, None]  # p q 1 2
        middle = (jax.nn.sigmoid(out[..., 1::-1]) + cells) / jnp.asarray((p, q))
        sides = jnp.exp(jnp.minimum(out[..., 3:1:-1], MOST_GROWTH)) * level
        present, kind = jax.nn.sigmoid(out[..., 4:5]), jax.nn.sigmoid(out[..., 5:])
        if score == "object":
            kind = jax.nn.one_hot(kind.argmax(axis=-1), kind.shape[-1])
        boxes.append(corners(middle, sides).reshape(b, -1, 4))
        scores.append((present * kind).reshape(b, -1, kind.shape[-1]))
    return Candidates(jnp.concatenate(boxes, axis=1), jnp.concatenate(scores, axis=1))


class SimplePyramid(nn.Module):
    """Maps of several scales from the one map of a ViT, b p q d → l × b p·s q·s width, fine to coarse.

    scales: 4, 2, 1 and ½ in the paper. Source: Li et al., ECCV 2022 (ViTDet, 2203.16527), section 3 and appendix A.2:
    transposed convolutions of stride 2 or a max-pool, then 1 × 1 and 3 × 3 convolutions, each with LayerNorm.
    """

    width: int = 256
    scales: tuple[float, ...] = (4, 2, 1, 0.5)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, patches: jax.Array) -> list[jax.Array]:
        check_scales(self.scales)
        options = {"use_bias": False, "dtype": self.dtype, "kernel_init": TORCH_CONV}
        width, maps = patches.shape[-1], []
        for level, scale in enumerate(self.scales):
            x = patches.astype(self.dtype)
            if scale == 4:
                x = Deconvolution(width // 2, 2, dtype=self.dtype, name=f"up{level}_0")(x)
                x = gelu(nn.LayerNorm(dtype=self.dtype, name=f"up{level}_norm")(x))
            if scale >= 2:
                x = Deconvolution(x.shape[-1] // 2, 2, dtype=self.dtype, name=f"up{level}_1")(x)
            elif scale == 0.5:
                if any(side % 2 for side in x.shape[1:3]):
                    raise ValueError(f"scale 0.5 halves the map of {x.shape[1]} × {x.shape[2]} patches; leave it out")
                x = nn.max_pool(x, (2, 2), (2, 2))
            for side in (1, 3):
                x = nn.Conv(self.width, (side, side), name=f"level{level}_{side}", **options)(x)
                x = nn.LayerNorm(dtype=self.dtype, name=f"level{level}_{side}_norm")(x)
            maps.append(x)
        return maps


class DenseHead(nn.Module):
    """One box and the quality of every class at each place of a pyramid, by the same weights on all levels.

    classes: c. layers: 3 × 3 convolutions, each with GroupNorm and ReLU, before either answer.
    Returns (logits, boxes): l × b p q c in float32, starting at the probability START, and l × b p q 4. The middle of a
    place's box may be anywhere, and its sides start with BASE_CELLS cells.
    Source: towers and start of RetinaNet and FCOS (Lin et al., ICCV 2017; Tian et al., ICCV 2019), no centre-ness as in
    GFL (Li et al., NeurIPS 2020). Middle and logarithms of the sides, in place of distances to the four edges, are our
    choice: these cannot place a box that lies between two places.
    """

    classes: int
    width: int = 256
    layers: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        def convolution(features, name, **options):
            return nn.Conv(features, (3, 3), kernel_init=nn.initializers.normal(0.01), name=name, **options)

        def tower(name):
            layers = [
                convolution(self.width, f"{name}{i}", use_bias=False, dtype=self.dtype) for i in range(self.layers)
            ]
            groups = math.gcd(32, self.width)
            norms = [nn.GroupNorm(groups, dtype=self.dtype, name=f"{name}{i}_norm") for i in range(self.layers)]
            return list(zip(layers, norms, strict=True))

        def climb(x, tower):
            for layer, norm in tower:
                x = nn.relu(norm(layer(x)))
            return x.astype(jnp.float32)

        towers = tower("quality"), tower("box")
        start = nn.initializers.constant(-math.log((1 - START) / START))
        quality, box = convolution(self.classes, "logits", bias_init=start), convolution(4, "boxes")
        logits, boxes = [], []
        for x in maps:
            logits.append(quality(climb(x, towers[0])))
            y = box(climb(x, towers[1]))
            grid = jnp.asarray(y.shape[1:3])
            middle = (jnp.stack(jnp.indices(y.shape[1:3]), axis=-1) + 0.5 + y[..., :2]) / grid
            boxes.append(corners(middle, BASE_CELLS * jnp.exp(jnp.minimum(y[..., 2:], MOST_GROWTH)) / grid))
        return logits, boxes


def decode_dense(logits: Sequence[jax.Array], boxes: Sequence[jax.Array]) -> Candidates:
    """All places of all levels as candidates; a score is the quality of a class."""
    scores = [jax.nn.sigmoid(level).reshape(len(level), -1, level.shape[-1]) for level in logits]
    boxes = [level.reshape(len(level), -1, 4) for level in boxes]
    return Candidates(jnp.concatenate(boxes, axis=1), jnp.concatenate(scores, axis=1))


def corners(middle: jax.Array, sides: jax.Array) -> jax.Array:
    """Boxes … 4 from middles and sides, … 2 each."""
    return jnp.concatenate([middle - sides / 2, middle + sides / 2], axis=-1)


def nms(
    candidates: Candidates,
    *,
    most: int,
    confidence: float,
    overlap: float,
    consider: int = 1000,
    longer: tuple[float, float] = (0.0, 0.0),
) -> Found:
    """Non-maximum suppression within each class: the best box stays, those of its class that overlap it go, and so on.

    most: k, boxes kept per picture over all classes. confidence: least score of a box. overlap: IoU from which on a box
    is another's double. consider: (box, class) pairs with the highest scores that are looked at. Equal scores are taken
    in the order of the candidates. Boxes are cut off at the picture's edge before they are compared. longer: by how
    much of the picture's height and width a box counts as longer in an IoU; a pixel in the released code of MGCA, which
    merges boxes of 10 px that lie 3.4 px apart at an overlap of 0.5.
    """

    def of_picture(boxes, scores):
        classes = scores.shape[-1]
        pairs = min(consider, scores.size)
        score, pair = jax.lax.top_k(scores.reshape(-1), pairs)
        boxes, kind = jnp.clip(boxes, 0, 1)[pair // classes], pair % classes
        long = boxes + jnp.asarray((0, 0, *longer))

        def pick(alive, _):
            i = jnp.argmax(alive)
            taken = ~(alive[i] < confidence)  # a NaN is taken, so that it shows
            double = (iou(long[i], long) >= overlap) & (kind == kind[i])
            alive = jnp.where(double | (jnp.arange(pairs) == i), -jnp.inf, alive)
            found = jnp.where(taken, boxes[i], 0), jnp.where(taken, score[i], 0), jnp.where(taken, kind[i], -1)
            return alive, found

        return jax.lax.scan(pick, score, None, length=most)[1]

    return Found(*jax.vmap(of_picture)(candidates.boxes, candidates.scores))
