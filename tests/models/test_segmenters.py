"""Heads of segmentation against PyTorch's own layers, and their sizes against the public ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cxrjax.models import backbone, segmenters
from tests.models.test_backbone import RESNET, VIT

RNG = np.random.default_rng(0)
FINE = {**VIT, "patch_px": 4}  # UNETR needs a block for every doubling


def count(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def noise(tree):
    """Parameters and statistics of a size at which every one of them shows."""

    def one(path, leaf):
        around = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return np.float32(around + 0.2 * RNG.random(leaf.shape))

    return jax.tree.map_with_path(one, tree)


def maps(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def to_torch(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def convolve(x, params, side):
    kernel, bias = params["kernel"], params.get("bias")
    bias = None if bias is None else torch.tensor(bias)
    return F.conv2d(x, torch.tensor(kernel).permute(3, 2, 0, 1), bias, padding=side // 2)


def block(x, params, stats, side=3):
    """Convolution, BatchNorm with running statistics, ReLU."""
    norm = [torch.tensor(stats["norm"][k]) for k in ("mean", "var")]
    norm += [torch.tensor(params["norm"][k]) for k in ("scale", "bias")]
    return F.relu(F.batch_norm(convolve(x, params["conv"], side), *norm, eps=1e-5))


def run(module, *given):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *given, False))
    variables = noise(shapes)
    found = jax.jit(lambda v, *g: module.apply(v, *g, False), static_argnums=3)(variables, *given)
    return variables["params"], variables["batch_stats"], found


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("size", [(6, 10), (7, 4), (3, 5)])
def test_bilinear_is_pytorchs(aligned, size):
    x = maps(2, 3, 5, 4)
    expected = F.interpolate(to_torch(x), size, mode="bilinear", align_corners=aligned).permute(0, 2, 3, 1)
    np.testing.assert_allclose(segmenters.resize(jnp.asarray(x), size, aligned), expected, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_pools_are_pytorchs(k):
    """Parts of unequal size where the side does not divide."""
    x = maps(1, 7, 4, 2)
    expected = F.adaptive_avg_pool2d(to_torch(x), k).permute(0, 2, 3, 1)
    np.testing.assert_allclose(segmenters.pool(jnp.asarray(x), k), expected, atol=1e-5)


def test_unet_is_pytorchs():
    levels = tuple(maps(2, side, side, 3 + i) for i, side in enumerate((16, 8, 4, 2, 1)))
    params, stats, found = run(segmenters.UNet(2), levels, levels[-1], (32, 32))
    x = to_torch(levels[-1])
    for i, skip in enumerate([*reversed(levels[:-1]), None], 1):
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = x if skip is None else torch.cat([x, to_torch(skip)], dim=1)
        for j in (1, 2):
            x = block(x, params[f"up{i}_conv{j}"], stats[f"up{i}_conv{j}"])
    expected = convolve(x, params["logits"], 3).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_setr_pup_is_pytorchs():
    patches = maps(2, 3, 3, 8)
    params, stats, found = run(segmenters.SETRPUP(4, patch_px=4), patches[None], patches, (12, 12))
    x = to_torch(patches @ params["fc"]["kernel"] + params["fc"]["bias"])
    for i in (1, 2):
        x = block(x, params[f"conv{i}"], stats[f"conv{i}"])
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    expected = convolve(x, params["logits"], 3).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    assert (params["conv1"]["conv"]["kernel"].shape[-1], params["conv2"]["conv"]["kernel"].shape[-1]) == (8, 4)


def test_upernet_is_pytorchs():
    levels = maps(12, 1, 4, 4, 6)
    params, stats, (found, auxiliary) = run(segmenters.UPerNet(5, patch_px=4), levels, levels[-1], (16, 16))

    def up(x, name):
        kernel, bias = (torch.tensor(params[name][k]) for k in ("kernel", "bias"))
        return F.conv_transpose2d(x, kernel.permute(0, 3, 1, 2), bias, stride=2)

    def named(x, name, side=1):
        return block(x, params[name], stats[name], side)

    def like(x, y):
        return F.interpolate(x, y.shape[2:], mode="bilinear", align_corners=False)

    first, second, third, last = (to_torch(levels[i]) for i in (3, 5, 7, 11))
    norm = [torch.tensor(stats["norm4"][k]) for k in ("mean", "var")]
    norm += [torch.tensor(params["norm4"][k]) for k in ("scale", "bias")]
    first = up(F.gelu(F.batch_norm(up(first, "up4"), *norm, eps=1e-5)), "up4_again")
    pyramid = [first, up(second, "up2"), third, F.max_pool2d(last, 2)]
    pools = [like(named(F.adaptive_avg_pool2d(pyramid[3], k), f"pool{k}"), pyramid[3]) for k in (1, 2, 3, 6)]
    sums = [named(x, f"lateral{i}") for i, x in enumerate(pyramid[:3], 1)]
    sums.append(named(torch.cat([pyramid[3], *pools], dim=1), "context", 3))
    for i in (2, 1, 0):
        sums[i] = sums[i] + like(sums[i + 1], sums[i])
    fine = [named(x, f"smooth{i}", 3) for i, x in enumerate(sums[:3], 1)] + sums[3:]
    x = named(torch.cat([like(y, sums[0]) for y in fine], dim=1), "fuse", 3)
    side = named(pyramid[2], "auxiliary_conv", 3)
    for ours, y, name in ((found, x, "logits"), (auxiliary, side, "auxiliary_logits")):
        y = F.interpolate(convolve(y, params[name], 1), (16, 16), mode="bilinear", align_corners=False)
        np.testing.assert_allclose(ours, y.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("variant", "expected"), [("resnet34", 3_151_697), ("resnet50", 9_013_073)])
def test_parameters_of_unet_are_those_of_segmentation_models_pytorch(variant, expected):
    """24 436 369 and 32 521 105 in all, less torchvision's trunks of 21 284 672 and 23 508 032."""
    encoder = backbone.make({**RESNET, "variant": variant, "image_px": 64, "channels": 3})
    head = segmenters.make({"kind": "unet", "features": 0, "widths": "", "taps": ""}, encoder)
    params, _ = jax.eval_shape(head.init, jax.random.key(0))
    assert count(params) == expected


def test_widths_of_setr_pup_at_vit_b_are_mgcas():
    encoder = backbone.make({**VIT, "variant": "B", "image_px": 224, "patch_px": 16})
    head = segmenters.make({"kind": "setr_pup", "features": 0, "widths": "", "taps": ""}, encoder)
    params, _ = jax.eval_shape(head.init, jax.random.key(0))
    assert [params[f"conv{i}"]["conv"]["kernel"].shape[2:] for i in (1, 2, 3, 4)] == [
        (768, 512), (512, 256), (256, 128), (128, 64)
    ]  # fmt: skip
    assert params["fc"]["kernel"].shape == (768, 768)


def test_setr_pup_takes_other_widths():
    head = {"kind": "setr_pup", "features": 4, "widths": "6,5", "taps": ""}
    params, _ = jax.eval_shape(segmenters.make(head, backbone.make(FINE)).init, jax.random.key(0))
    assert [params[f"conv{i}"]["conv"]["kernel"].shape[2:] for i in (1, 2)] == [(64, 6), (6, 5)]
    for changes, said in (
        ({"kind": "unetr"}, "widths are numbers, and SETR-PUP's alone"),
        ({"widths": "6,wide"}, "widths are numbers"),
        ({"widths": "6"}, "has 1 numbers; patches of 4 px need 2"),
    ):
        with pytest.raises(ValueError, match=said):
            jax.eval_shape(segmenters.make({**head, **changes}, backbone.make(FINE)).init, jax.random.key(0))


@pytest.mark.parametrize(("model", "kind"), [(FINE, ""), (FINE, "setr_pup"), (FINE, "upernet"), (RESNET, "")])
def test_every_head_makes_a_mask_of_the_pictures_size(model, kind):
    encoder = backbone.make(model)
    head = segmenters.make({"kind": kind, "features": 4, "widths": "", "taps": ""}, encoder)

    def masks(key, train):
        params, stats = encoder.init(key)
        images = jnp.zeros((2, 32, 32, 1))
        found, _ = encoder.apply(params, stats, images, train=False, levels=True)
        head_params, head_stats = head.init(key)
        return head.apply(head_params, head_stats, found, images, train), head_stats

    for train in (False, True):
        (logits, auxiliary, moved), before = jax.eval_shape(lambda k, train=train: masks(k, train), jax.random.key(0))
        assert logits.shape == (2, 32, 32, 1) and logits.dtype == jnp.float32
        assert (auxiliary is not None) == (kind == "upernet")
        assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, before)


def test_unetr_reads_the_blocks_that_are_named():
    encoder = backbone.make({**FINE, "variant": "Ti"})
    head = segmenters.make({"kind": "unetr", "features": 4, "widths": "", "taps": "3"}, encoder)
    params, _ = jax.eval_shape(head.init, jax.random.key(0))
    params, images = noise(params), maps(1, 32, 32, 1)
    patches, blocks = maps(1, 8, 8, 192), maps(12, 1, 8, 8, 192)

    @jax.jit
    def logits(blocks):
        return head.apply(params, {}, {"patches": patches, "levels": blocks}, images, False)[0]

    changed = [bool(np.abs(logits(blocks) - logits(blocks + (np.arange(12) == i)[:, None, None, None, None])).max() > 0)
               for i in range(12)]  # fmt: skip
    assert changed == [block == 3 for block in range(1, 13)]


def test_heads_that_do_not_fit_are_explained():
    for kind, taps in (("setr_pup", "3"), ("unetr", "third")):
        with pytest.raises(ValueError, match=f"head.taps = '{taps}' with {kind}: taps are numbers of blocks"):
            segmenters.make({"kind": kind, "features": 0, "widths": "", "taps": taps}, backbone.make(FINE))
    for model, kind in ((VIT, "unet"), (RESNET, "unetr"), (VIT, "u-net")):
        with pytest.raises(ValueError, match=f"head.kind = '{kind}' on .*: choose one of"):
            segmenters.make({"kind": kind, "features": 0, "widths": "", "taps": ""}, backbone.make(model))
    head = segmenters.make(
        {"kind": "", "features": 4, "widths": "", "taps": ""}, backbone.make({**RESNET, "image_px": 48})
    )
    with pytest.raises(ValueError, match="multiples of 32 px, got"):
        jax.eval_shape(head.init, jax.random.key(0))
