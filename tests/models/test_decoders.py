"""GMML's head; UNETR against PyTorch's own layers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cxrjax.models import decoders
from cxrjax.models.decoders import UNETR, Deconvolution, PixelHead
from cxrjax.models.vit import ViT


def count(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def noisy(params, seed=0):
    """Parameters of a size at which every one of them shows in the output."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), params)


def test_head_has_gmmls_parameters_and_leaves_tokens_apart():
    """13: 738 435. 10: a patch of pixels depends on its own token, and on nothing else."""
    full = jax.eval_shape(lambda k: PixelHead(16, 3).init(k, jnp.zeros((1, 4, 384)), (2, 2)), jax.random.key(0))
    assert count(full) == 738_435
    head = PixelHead(4, 2)
    tokens = jax.random.normal(jax.random.key(1), (1, 6, 8))
    params = noisy(jax.eval_shape(lambda k: head.init(k, tokens, (2, 3)), jax.random.key(0)))
    slope = np.abs(jax.jacobian(lambda t: head.apply(params, t, (2, 3)))(tokens)).sum(axis=(0, 3, 4, 6))  # h w n
    by_patch = slope.reshape(2, 4, 3, 4, 6).transpose(0, 2, 1, 3, 4).reshape(6, 16, 6)
    own = by_patch[np.arange(6), :, np.arange(6)]
    assert own.min() > 0 and by_patch.sum() == pytest.approx(own.sum())


def test_head_is_pytorchs():
    """Exact GELU three times, then ConvTranspose2d of kernel and stride 4; and 10: the same as a Linear."""
    head, grid = PixelHead(4, 2), (2, 3)
    tokens = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    params = noisy(jax.eval_shape(lambda k: head.init(k, tokens, grid), jax.random.key(0)))["params"]
    x = torch.tensor(tokens)
    for name in ("fc1", "fc2", "fc3"):
        x = F.gelu(x @ torch.tensor(params[name]["kernel"]) + torch.tensor(params[name]["bias"]))
    kernel, bias = (torch.tensor(params["pixels"][name]) for name in ("kernel", "bias"))
    maps = x.reshape(2, 2, 3, 8).permute(0, 3, 1, 2)
    expected = F.conv_transpose2d(maps, kernel.permute(0, 3, 1, 2), bias, stride=4).permute(0, 2, 3, 1)
    found = head.apply({"params": params}, tokens, grid)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    linear = x @ kernel.reshape(8, 32) + bias.repeat(16)
    patches = linear.reshape(2, 2, 3, 4, 4, 2).permute(0, 1, 3, 2, 4, 5).reshape(2, 8, 12, 2)
    np.testing.assert_allclose(found, patches, atol=1e-6 * float(patches.abs().max()))


def test_deconvolution_starts_as_pytorchs():
    kernel = Deconvolution(3, 16).init(jax.random.key(0), jnp.zeros((1, 1, 1, 384)))["params"]["kernel"]
    torch.manual_seed(0)
    theirs = torch.nn.ConvTranspose2d(384, 3, 16, 16).weight.detach()
    assert float(kernel.std()) == pytest.approx(float(theirs.std()), rel=0.01)
    assert float(jnp.abs(kernel).max()) == pytest.approx(float(theirs.abs().max()), rel=0.01)


def test_taps():
    assert decoders.unetr_taps(12, 16) == (4, 7, 10)
    assert decoders.unetr_taps(4, 8) == (2, 3)
    assert decoders.unetr_taps(2, 4) == (2,)
    for depth, patch in ((12, 14), (12, 2), (2, 16)):
        with pytest.raises(ValueError, match=f"patches of {patch} px and {depth} blocks do not fit"):
            decoders.unetr_taps(depth, patch)


def test_parameters_of_unetr_at_vit_s():
    """1 352 386 around MONAI 1.6's encoder (hidden 384, one channel in, two classes); and the widths on the way."""
    blocks, patches, images = jnp.zeros((12, 1, 197, 384)), jnp.zeros((1, 196, 384)), jnp.zeros((1, 224, 224, 1))
    net = UNETR(2)

    def run(key):
        return net.init_with_output(key, blocks, patches, images, capture_intermediates=True)

    logits, variables = jax.eval_shape(run, jax.random.key(0))
    assert count(variables["params"]) == 1_352_386 and logits.shape == (1, 224, 224, 2)
    between = {
        name: value["__call__"][0].shape[1:] for name, value in variables["intermediates"].items() if name[-1].isdigit()
    }
    assert [between[f"merge{i}"] for i in (3, 2, 1, 0)] == [(28, 28, 128), (56, 56, 64), (112, 112, 32), (224, 224, 16)]
    assert between["skip3_up1"] == (28, 28, 128)
    assert between["skip2_block2"] == (56, 56, 64)
    assert between["skip1_block3"] == (112, 112, 32)
    assert between["skip0"] == (224, 224, 16)


def torch_unetr(params, blocks, patches, images, taps):
    """MONAI's UNETR in two dimensions, for patches of 8 px, layer by layer in PyTorch."""
    params = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), params)

    def grid(tokens):
        return torch.tensor(tokens).reshape(-1, 4, 4, tokens.shape[-1]).permute(0, 3, 1, 2)

    def up(x, name):
        return F.conv_transpose2d(x, params[name]["kernel"].permute(0, 3, 1, 2), stride=2)

    def residual(x, name):
        p = {key: value["kernel"].permute(3, 2, 0, 1) for key, value in params[name].items()}
        y = F.leaky_relu(F.instance_norm(F.conv2d(x, p["conv1"], padding=1)), 0.01)
        y = F.instance_norm(F.conv2d(y, p["conv2"], padding=1))
        return F.leaky_relu(y + (F.instance_norm(F.conv2d(x, p["conv3"])) if "conv3" in p else x), 0.01)

    outer = residual(torch.tensor(images).permute(0, 3, 1, 2), "skip0")
    middle = residual(up(up(grid(blocks[taps[0] - 1][:, 1:]), "skip1_up1"), "skip1_up2"), "skip1_block2")
    inner = up(grid(blocks[taps[1] - 1][:, 1:]), "skip2_up1")
    x = grid(patches)
    for level, skip in ((2, inner), (1, middle), (0, outer)):
        x = residual(torch.cat([up(x, f"up{level}"), skip], dim=1), f"merge{level}")
    return x.permute(0, 2, 3, 1) @ params["logits"]["kernel"] + params["logits"]["bias"]


@pytest.mark.parametrize("taps", [(), (1, 4)])
def test_unetr_is_pytorchs(taps):
    rng = np.random.default_rng(0)
    blocks, patches = (
        rng.normal(size=(4, 2, 17, 24)).astype(np.float32),
        rng.normal(size=(2, 16, 24)).astype(np.float32),
    )
    images = rng.normal(size=(2, 32, 32, 1)).astype(np.float32)
    net = UNETR(3, patch_px=8, features=4, taps=taps)
    params = noisy(jax.eval_shape(net.init, jax.random.key(0), blocks, patches, images))["params"]
    expected = torch_unetr(params, blocks, patches, images, taps or (2, 3))
    apply = jax.jit(lambda blocks: net.apply({"params": params}, blocks, patches, images))
    found = apply(blocks)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_array_equal(apply(blocks[:, :, 1:]), found)  # an encoder without [CLS]
    for block in (1, 2, 3, 4):
        moved = blocks + np.float32(np.arange(1, 5) == block)[:, None, None, None] * rng.normal(size=blocks.shape)
        assert np.any(apply(np.float32(moved)) != found) == (block in (taps or (2, 3)))


def test_unetr_reads_the_streams_of_our_encoder():
    """19: what the ViT returns is what UNETR takes."""
    encoder, images = ViT("test", patch_px=4, image_px=16, initialisation="normal"), jnp.ones((1, 16, 16, 1))
    net = UNETR(2, patch_px=4, features=4)
    out = jax.eval_shape(lambda k: encoder.init_with_output(k, images, intermediates=True)[0], jax.random.key(0))
    assert decoders.unetr_taps(len(out["blocks"]), 4) == (2,)
    logits = jax.eval_shape(
        lambda k, out: net.init_with_output(k, out["blocks"], out["patches"], images)[0], jax.random.key(0), out
    )
    assert logits.shape == (1, 16, 16, 2) and logits.dtype == jnp.float32


def test_taps_that_do_not_lead_to_pixels_are_explained():
    blocks, patches, images = jnp.zeros((4, 1, 17, 8)), jnp.zeros((1, 16, 8)), jnp.zeros((1, 32, 32, 1))
    for taps, message in (
        ((2,), "lead from patches of 4 px to pixels, not from those of 8 px"),
        ((2, 5), "count blocks from 1"),
    ):
        with pytest.raises(ValueError, match=message):
            UNETR(2, patch_px=8, taps=taps).init(jax.random.key(0), blocks, patches, images)
