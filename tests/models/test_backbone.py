"""Both kinds of encoder behind one face: what they return, keep and refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cxrjax.models import backbone, resnet, vit
from cxrjax.models.resnet import ResNet
from cxrjax.models.vit import ViT

VIT = {"variant": "test", "image_px": 32, "patch_px": 8, "channels": 1, "pool": "cls", "dtype": "float32"}
RESNET = {"variant": "resnet_test", "image_px": 32, "channels": 1, "dtype": "float32"}
IMAGES = np.random.default_rng(0).standard_normal((4, 32, 32, 1), np.float32)


def noisy(tree, seed=0):
    """Positive noise for every leaf, arrays or shapes, so that nothing is hidden by a zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.1 * rng.random(leaf.shape, np.float32), tree)


@pytest.fixture(scope="module")
def encoders():
    """name → (Backbone, params, state)"""
    found = {}
    for name, model in (("vit", VIT), ("resnet", RESNET)):
        encoder = backbone.make(ConfigDict(model))
        found[name] = (encoder, *(noisy(tree) for tree in jax.eval_shape(encoder.init, jax.random.key(0))))
    return found


def apply(encoder, params, state, images, train=False, key=None):
    paths = None if key is None else encoder.paths(key, len(images))
    return jax.jit(lambda p, s, x, k: encoder.apply(p, s, x, train=train, paths=k))(params, state, images, paths)


@pytest.mark.parametrize(("name", "grid", "width"), [("vit", 4, 64), ("resnet", 1, 128)])
def test_shapes_types_and_width(encoders, name, grid, width):
    encoder, params, state = encoders[name]
    for train in (False, True):
        out, new = jax.eval_shape(lambda t=train: encoder.apply(params, state, IMAGES, train=t))
        assert out["pooled"].shape == (4, width) and out["patches"].shape == (4, grid, grid, width)
        assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype("float32")}
        assert jax.tree.map(np.shape, new) == jax.tree.map(np.shape, state)
    assert (encoder.width, encoder.image_px) == (width, 32)
    assert (encoder.init, encoder.apply) == encoder[:2]


def test_parameters_are_those_of_the_modules_for_the_same_key(encoders):
    """Each pair in one program, which compiles the equal halves once."""
    vit_module, resnet_module = ViT("test", patch_px=8, image_px=32), ResNet("resnet_test")

    def vits(key):
        return encoders["vit"][0].init(key), (vit_module.init(key, IMAGES[:1])["params"], {})

    def resnets(key):
        variables = resnet_module.init(key, IMAGES[:1], False)
        return encoders["resnet"][0].init(key), (variables["params"], variables["batch_stats"])

    for pair in (vits, resnets):
        jax.tree.map(np.testing.assert_array_equal, *jax.jit(pair)(jax.random.key(3)))


def test_vit_features_are_its_tokens_in_raster_order(encoders):
    _, params, _ = encoders["vit"]
    out = jax.jit(ViT("test", patch_px=8, image_px=32).apply)({"params": params}, IMAGES)
    for pool, pooled in (("cls", out["cls"]), ("mean", out["patches"].mean(axis=1))):
        features, _ = apply(backbone.make({**VIT, "pool": pool}), params, {}, IMAGES)
        np.testing.assert_allclose(features["pooled"], pooled, atol=1e-6)
    for p, q in ((0, 3), (2, 1)):
        np.testing.assert_allclose(features["patches"][:, p, q], out["patches"][:, 4 * p + q], atol=1e-6)
    wide, _ = apply(encoders["vit"][0], params, {}, np.zeros((1, 16, 40, 1), np.float32))
    assert wide["patches"].shape == (1, 2, 5, 64)


def test_cls_can_be_left_out(encoders):
    _, params, _ = encoders["vit"]
    module, encoder = ViT("test", patch_px=8, image_px=32), backbone.make({**VIT, "pool": "without_cls"})
    out = jax.jit(lambda p: module.apply({"params": p}, IMAGES, drop_cls=True, intermediates=True))(params)
    features, _ = jax.jit(lambda p: encoder.apply(p, {}, IMAGES, train=False, levels=True))(params)
    np.testing.assert_allclose(features["pooled"], out["patches"].mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(features["levels"], out["blocks"].reshape(features["levels"].shape), atol=1e-6)


def test_resnet_uses_running_statistics_only_when_it_does_not_train(encoders):
    encoder, params, state = encoders["resnet"]
    variables = {"params": params, "batch_stats": state}
    for train in (False, True):
        module = ResNet("resnet_test")
        expected, moved = jax.jit(lambda v, x, t=train, m=module: m.apply(v, x, t, mutable=["batch_stats"]))(
            variables, IMAGES
        )
        features, new = apply(encoder, params, state, IMAGES, train)
        np.testing.assert_allclose(features["pooled"], expected["pooled"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(features["patches"], expected["taps"][-1], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(features["pooled"], features["patches"].mean((1, 2)), rtol=1e-5, atol=1e-5)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), new, moved["batch_stats"])
        changed = [np.any(a != b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True)]
        assert all(changed) if train else not any(changed)


def test_paths_are_dropped_by_the_key_and_in_training_only(encoders):
    _, params, _ = encoders["vit"]
    encoder = backbone.make({**VIT, "drop_path": 0.5})
    key = jax.random.key(5)
    kept, _ = apply(encoder, params, {}, IMAGES, False, key)
    np.testing.assert_allclose(kept["pooled"], apply(encoders["vit"][0], params, {}, IMAGES)[0]["pooled"], atol=1e-6)
    dropped, _ = apply(encoder, params, {}, IMAGES, True, key)
    assert np.abs(dropped["pooled"] - kept["pooled"]).max() > 1e-3
    with pytest.raises(ValueError, match="drop_path=0.5 needs to know what it drops: give apply its paths"):
        encoder.apply(params, {}, IMAGES, train=True)


@pytest.mark.parametrize("model", [VIT, RESNET])
def test_grey_pictures_are_repeated_over_the_channels(model):
    encoder = backbone.make({**model, "channels": 3})
    params, state = (noisy(tree) for tree in jax.eval_shape(encoder.init, jax.random.key(0)))
    grey, _ = apply(encoder, params, state, IMAGES)
    repeated, _ = apply(encoder, params, state, np.repeat(IMAGES, 3, axis=-1))
    np.testing.assert_array_equal(grey["pooled"], repeated["pooled"])
    assert np.abs(grey["pooled"]).max() > 0


def test_one_config_serves_both_families():
    """A ViT's config becomes a ResNet's by its variant alone, as --config.model.variant=resnet18 does."""
    model = {**VIT, "remat": "dots", "unroll": False, "pool": "mean", "dtype": "bfloat16"}
    assert backbone.make({**model, "variant": "resnet18"}).width == 512
    assert backbone.make({**model, "variant": "resnet50"}).width == 2048
    assert backbone.make({**model, "zero_init_residual": True}).width == 64


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"variant": "resnet19"}, "no encoder 'resnet19'; ViTs: test, .*B, L.*; ResNets: resnet_test, resnet18"),
        ({"patch": 8}, r"unknown keys \['patch'\] .*'patch_px'"),
        ({"variant": "resnet_test", "dtype": None}, "the encoder 'resnet_test' also needs model.dtype; got"),
        ({"pool": None, "patch_px": None}, "the encoder 'test' also needs model.patch_px, model.pool; got"),
        ({"pool": "max"}, "pool must be one of 'cls', 'mean', 'without_cls', 'attention', got 'max'"),
    ],
)
def test_mistakes_are_explained(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        backbone.make({key: value for key, value in {**VIT, **change}.items() if value is not None})


def test_no_variant_is_both():
    assert not set(vit.VARIANTS) & set(resnet.VARIANTS)
