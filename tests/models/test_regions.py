"""Maps for words, and [CLS]'s attention: recomputed weights must be those that made the block's output."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cxrjax.models import attention, backbone, regions, text_attention, text_tower
from cxrjax.models.bert import VARIANTS, Block
from cxrjax.models.heads import MLP
from cxrjax.models.heads import run as run_head
from cxrjax.models.heads import start as start_head

VIT = {"variant": "test", "image_px": 16, "patch_px": 4, "pool": "cls", "dtype": "float32"}
RESNET = {"variant": "resnet_test", "image_px": 32, "dtype": "float32"}
TEXT = {"variant": "test", "vocab_size": 40, "length": 9, "frozen_layers": 0, "dtype": "float32", "pool": "mean"}


def pictures(px, count=3):
    return np.random.default_rng(0).normal(size=(count, px, px, 1)).astype(np.float32)


def run(encoder, params, state, images):
    return jax.jit(partial(encoder.apply, train=True))(params, state, images)


def test_a_vit_gives_what_the_backbone_gives():
    encoder, plain = regions.make(VIT, attention=True), backbone.make(VIT)
    params, state = jax.jit(encoder.init)(jax.random.key(0))
    out, _ = run(encoder, params, state, pictures(16))
    expected, _ = run(plain, params, state, pictures(16))
    for name, value in expected.items():
        np.testing.assert_allclose(out[name], value, atol=1e-5)
    np.testing.assert_array_equal(out["regions"], out["patches"])
    assert (encoder.width, encoder.region_width) == (64, 64)


def heads_of(x, heads):
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)  # b a n d


def test_looks_of_a_vit_are_the_weights_of_its_last_block():
    """With them as weights of the values the last block gives the [CLS] that the encoder has."""
    encoder, module = regions.make(VIT, attention=True), backbone.make(VIT).module
    params, state = jax.jit(encoder.init)(jax.random.key(1))
    params = jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim == 3 else leaf, params)  # attention that is not flat
    see = jax.jit(lambda params: module.apply({"params": params}, pictures(16), intermediates=True))
    blocks = see(params)["blocks"]
    last = jax.tree.map(lambda leaf: leaf[-1], params["blocks"])
    x = blocks[-2]
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    y = y * last["norm1"]["scale"] + last["norm1"]["bias"]
    weights = attention.of_first_token(y, last["attention"]["qkv"], 2)  # b a n
    value = y @ last["attention"]["qkv"]["kernel"][:, 128:] + last["attention"]["qkv"]["bias"][128:]
    mixed = np.einsum("ban,band->bad", weights, heads_of(value, 2)).reshape(3, -1)
    z = x[:, 0] + mixed @ last["attention"]["out"]["kernel"] + last["attention"]["out"]["bias"]
    normed = (z - z.mean(-1, keepdims=True)) / jnp.sqrt(z.var(-1, keepdims=True) + 1e-6)
    hidden = torch.nn.functional.gelu(torch.tensor(np.array(normed @ last["mlp"]["fc1"]["kernel"]))).numpy()
    np.testing.assert_allclose(z + hidden @ last["mlp"]["fc2"]["kernel"], blocks[-1][:, 0], atol=2e-4)
    out, _ = run(encoder, params, state, pictures(16))
    np.testing.assert_allclose(out["attention"], weights.mean(1)[:, 1:], atol=1e-6)
    assert np.std(out["attention"]) > 1e-3
    apply = encoder.apply
    gradient = jax.jit(jax.grad(lambda p: apply(p, state, pictures(16), train=True)[0]["attention"].var()))(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_resnet_gives_layer3_beside_what_the_backbone_gives():
    encoder, plain = regions.make(RESNET), backbone.make(RESNET)
    params, state = jax.jit(encoder.init)(jax.random.key(0))
    out, moved = run(encoder, params, state, pictures(32))
    expected, expected_moved = run(plain, params, state, pictures(32))
    for name, value in expected.items():
        np.testing.assert_allclose(out[name], value, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved, expected_moved)
    assert out["regions"].shape == (3, 2, 2, encoder.region_width) and out["attention"] is None
    assert encoder.region_width == 64 and out["patches"].shape == (3, 1, 1, encoder.width)
    larger, _ = run(regions.make(RESNET, layer=2, enlarge_px=48), params, state, pictures(32))
    assert larger["regions"].shape == (3, 6, 6, 32)
    with pytest.raises(ValueError, match="layers 1 to 4, got layer=5"):
        regions.make(RESNET, layer=5)


def test_enlarged_is_torchs_with_aligned_corners():
    images = pictures(7)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(images).permute(0, 3, 1, 2), size=(11, 11), mode="bilinear", align_corners=True
    )
    np.testing.assert_allclose(regions.enlarged(images, 11), theirs.permute(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_text_is_read_as_ever_and_its_looks_are_the_weights_of_the_last_layer(frozen):
    text = TEXT | {"frozen_layers": frozen}
    tower, plain = text_attention.make(text), text_tower.make(text)
    params, kept = jax.tree.map(lambda leaf: leaf * 5, jax.jit(tower.init)(jax.random.key(0)))
    ids = np.random.default_rng(0).integers(5, 40, (3, 9))
    mask = np.arange(9) < np.array([[9], [4], [0]])
    out, expected = (jax.jit(reads.apply)(params, kept, ids, mask) for reads in (tower, plain))
    for name, value in expected.items():
        np.testing.assert_allclose(out[name], value, atol=1e-4)
    np.testing.assert_allclose(out["attention"][:2].sum(1), 1, rtol=1e-5)
    assert not np.any(out["attention"][~mask]) and np.all(out["attention"][mask] > 0)
    if frozen:
        return
    # The last layer without its MLP: norms of the input plus the values that the weights mix.
    last = jax.tree.map(lambda leaf: leaf[-1], params["layers"])
    x = np.random.default_rng(1).normal(size=(1, 6, 64)).astype(np.float32)
    weights = attention.of_first_token(jnp.asarray(x), last["qkv"], 2)
    value = heads_of(x @ last["qkv"]["kernel"][:, 128:] + last["qkv"]["bias"][128:], 2)
    mixed = np.einsum("ban,band->bad", weights, value).reshape(1, -1) @ last["out"]["kernel"] + last["out"]["bias"]
    size = VARIANTS["test"]
    block = Block(size.heads, 4 * size.width, "post", 1e-12)
    silent = {**last, "fc2": jax.tree.map(jnp.zeros_like, last["fc2"])}
    z = x[:, 0] + mixed
    expected = z
    for name in ("norm1", "norm2"):
        expected = (expected - expected.mean(-1, keepdims=True)) / expected.std(-1, keepdims=True)
        expected = expected * last[name]["scale"] + last[name]["bias"]
    np.testing.assert_allclose(block.apply({"params": silent}, x)[:, 0], expected, atol=1e-3)


def test_rows_that_do_not_count_change_no_statistics():
    """A head with BatchNorm over words: padding is normalised, but neither read nor kept in the running numbers."""
    head = MLP((8, 4), last_norm=True, last_affine="none")
    params, stats = start_head(head, jax.random.key(0), 6)
    rng = np.random.default_rng(0)
    words, mask = rng.normal(size=(3, 5, 6)).astype(np.float32), np.arange(5) < np.array([[5], [2], [0]])
    expected, moved = run_head(head, params, stats, words[mask], train=True)
    padded, found = run_head(head, params, stats, np.where(mask[..., None], words, 1e4), train=True, mask=mask)
    np.testing.assert_allclose(padded[mask], expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, moved)
    nothing, same = run_head(head, params, stats, words, train=True, mask=np.zeros_like(mask))
    assert np.all(np.isfinite(nothing))
    jax.tree.map(np.testing.assert_array_equal, same, stats)
