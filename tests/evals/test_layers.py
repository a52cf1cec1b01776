"""Vectors of the last blocks: against the blocks in NumPy, for ViTs of ours and of others; what has none is refused."""

import jax
import numpy as np
import pytest

from cxrjax import recipes
from cxrjax.config import ConfigDict
from cxrjax.evals import encoders, layers, shortcuts
from cxrjax.evals.base import Encoder, FeatureTable
from cxrjax.evals.judge import Opened
from cxrjax.evals.registry import JUDGES
from cxrjax.methods.base import Method
from cxrjax.methods.trunk import encode_by
from cxrjax.models import backbone, linen

ENTRY = {"layers": 2, "layers_mean": False}


def model(**changes):
    return ConfigDict(recipes.vit("test", 32, 8) | changes)


def normed(x, given):
    x = np.asarray(x, np.float64)
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(given["scale"]) + np.asarray(given["bias"])


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_scale": 1e-1, "registers": 3, "positions": "rope", "pool": "cls"},  # as DINOv3
        {"pool": "mean"},
        {"cls_token": False, "pool": "attention", "pre_norm": True},  # as SigLIP
    ],
    ids=("cls", "mean", "attention"),
)
def test_vectors_are_those_of_the_blocks_behind_the_last_norm(changes):
    encoder = backbone.make(model(**changes))
    params, _ = jax.jit(encoder.init)(jax.random.key(0))
    params["norm"] = {"scale": 1 + 0.1 * np.arange(64.0), "bias": np.linspace(-1, 1, 64)}
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1)).astype(np.uint8)
    encode = encode_by(encoder, recipes.standardise())
    x = ((images / 255 - recipes.standardise()["mean"]) / recipes.standardise()["std"]).astype(np.float32)
    of_cls, vectors = changes["pool"] == "cls", layers.vectors(encode)

    @jax.jit
    def everything(params):
        out = linen.apply(encoder.module, params, x, intermediates=True)["blocks"]
        given = {"encoder": params}, {}, images
        return out, vectors(*given, 2, of_cls), vectors(*given, 1, False), encode(*given)["pooled"]

    blocks, both, last, pooled = everything(params)
    blocks = normed(blocks, params["norm"])  # l b n d
    each = [block[:, 0] if of_cls else block[:, -16:].mean(axis=1) for block in blocks]
    expected = [*each, blocks[-1][:, -16:].mean(axis=1)] if of_cls else each
    np.testing.assert_allclose(both, np.concatenate(expected, axis=1), atol=2e-4)
    if not of_cls:
        with pytest.raises(ValueError, match="is the mean of its patches already"):
            jax.eval_shape(lambda: vectors({"encoder": params}, {}, images, 1, True))
        return
    np.testing.assert_allclose(last, pooled, atol=1e-5)
    with pytest.raises(ValueError, match="layers=3, and the encoder has 2 blocks"):
        jax.eval_shape(lambda: vectors({"encoder": params}, {}, images, 3, False))


def test_a_network_without_blocks_is_refused_and_references_without_a_network_stay():
    resnet = backbone.make(ConfigDict(recipes.resnet("resnet_test", 32)))
    shapes = jax.eval_shape(resnet.init, jax.random.key(0))
    encode = encode_by(resnet, recipes.standardise())
    with pytest.raises(ValueError, match=r"layers=4 takes the last blocks .* runs 0 of them: leave layers at 0"):
        jax.eval_shape(
            lambda params, stats: layers.vectors(encode)(
                {"encoder": params}, {"batch_stats": {"encoder": stats}}, np.zeros((1, 32, 32, 1), np.uint8), 4, False
            ),
            *shapes,
        )
    pixels = encoders.pixels(8)
    assert layers.of(pixels, ENTRY) is pixels
    for wrong in (-1, 2.0, True):
        with pytest.raises(ValueError, match=f"layers={wrong!r} must be a whole number"):
            layers.check({"layers": wrong, "layers_mean": False})
    with pytest.raises(ValueError, match="layers=0 takes none: give layers=1 or 4"):
        layers.check({"layers": 0, "layers_mean": True})


def test_the_encoder_of_a_method_gives_its_blocks_also_blurred():
    def encode(params, state, images):
        return {"pooled": images.reshape(len(images), -1)}

    method = Method(lambda *_: {}, lambda *_: ({}, {}), lambda *_: None, lambda *_: {}, encode, 32)
    made = encoders.from_method(method, {}, {}, name="none")
    with pytest.raises(ValueError, match="runs 0 of them"):
        made.layers(np.zeros((8, 32, 32, 1), np.uint8), 1, False)
    seen = []
    ours = Encoder(lambda images: {}, 32, "d", "ours", layers=lambda *given: seen.append(given))
    striped = np.zeros((1, 32, 32, 1), np.uint8)
    striped[:, ::2] = 200
    shortcuts.of("blur", ours).layers(striped, 4, True)
    ((images, *rest),) = seen
    assert rest == [4, True] and np.ptp(np.asarray(images)[0, 4:-4]) < 60


@pytest.mark.parametrize("name", ["probe", "knn"])
def test_probe_and_knn_judge_the_blocks_that_the_entry_asks_for(name):
    def of_blocks(images, count, mean):
        return np.full((len(images), 3), 10 * count + mean, np.float32)

    encoder = Encoder(lambda images: {"pooled": images}, 4, "d", "ours", layers=of_blocks)
    asked = []

    def features(encoder, source):
        asked.append((encoder.encode(np.zeros((2, 4, 4, 1)))["pooled"], encoder.digest))
        rng = np.random.default_rng(len(asked))
        ids = np.array([f"{len(asked)}-{row}" for row in range(40)])
        return FeatureTable(rng.normal(size=(40, 3)).astype(np.float32), rng.integers(0, 2, (40, 1)), ids, ids)

    class Set:
        class converted_set:
            label_names = ("Mass",)

    opened = Opened(dict.fromkeys(("train", "val", "test"), Set), features, 0, 0)
    entry = {**JUDGES[name].keys, "task": {"kind": "multilabel"}, "bootstrap": 5, "layers": 2, "layers_mean": True}
    JUDGES[name].judge(encoder, entry, opened)
    pooled, digest = asked[0]
    assert len(asked) == 3 and pooled.shape == (2, 3) and (pooled == 21).all() and digest != "d"
    JUDGES[name].judge(encoder, {**entry, "layers": 0, "layers_mean": False}, opened)
    assert asked[3][0].shape == (2, 4, 4, 1) and asked[3][1] == "d"
