"""Heads that make a mask of an encoder's features: UNETR, SETR-PUP and UPerNet on a ViT, U-Net on a ResNet.

`make` gives all of them one interface. Convolutions are 3 × 3 with zeros around, BatchNorm is PyTorch's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxrjax import sizes
from cxrjax.config import names
from cxrjax.models.backbone import Backbone
from cxrjax.models.batchnorm import BatchNorm
from cxrjax.models.decoders import UNETR, Deconvolution
from cxrjax.models.interpolation import both_axes, pool_matrix, resize_matrix
from cxrjax.models.resnet import ResNet
from cxrjax.models.transformer import Linear
from cxrjax.models.vit import ViT

FEATURES = {"unetr": 16, "setr_pup": 64, "upernet": 512, "unet": 16}
"""Kind -> the `features` of its paper or code."""


class Segmenter(NamedTuple):
    """A head as pure functions.

    init: key -> (params, running statistics). apply: (params, statistics, features, images b h w c, train) ->
    (logits b h w 1 float32, auxiliary logits of the same shape or None, statistics); features: as a Backbone gives them
    with levels=True.
    """

    init: Callable
    apply: Callable


def make(head: Mapping[str, Any], encoder: Backbone) -> Segmenter:
    """The head of config.head on an encoder.

    head: kind, "" for UNETR on a ViT and U-Net on a ResNet; features: channels of the last level (of all levels of
    UPerNet), 0 for the paper's; widths: of SETR-PUP, "256,256,256,256" for the channels of each level, "" to double
    features; taps: of UNETR, blocks such as "3,6,9" (see `decoders.unetr_taps`), "" for MONAI's.
    Raises ValueError for a kind that does not exist, or not on such an encoder, and for widths and taps that are none
    of it.
    """
    if not isinstance(encoder.module, ViT | ResNet):
        kind = type(encoder.module).__name__
        raise ValueError(f"the encoder is a {kind}, {encoder.module.variant!r}: masks take a ViT or a ResNet")
    is_resnet = isinstance(encoder.module, ResNet)
    kinds = ("unet",) if is_resnet else ("unetr", "setr_pup", "upernet")
    kind = head["kind"] or kinds[0]
    if kind not in kinds:
        raise ValueError(f"head.kind = {kind!r} on {encoder.module.variant!r}: choose one of {', '.join(kinds)}, or ''")
    features, dtype, taps = head["features"] or FEATURES[kind], encoder.module.dtype, names(head["taps"])
    if taps and (kind != "unetr" or not all(tap.isdecimal() for tap in taps)):
        raise ValueError(
            f"head.taps = {head['taps']!r} with {kind}: taps are numbers of blocks, from 1, and UNETR's alone"
        )
    widths = names(head["widths"])
    if widths and (kind != "setr_pup" or not all(width.isdecimal() for width in widths)):
        raise ValueError(f"head.widths = {head['widths']!r} with {kind}: widths are numbers, and SETR-PUP's alone")
    if kind == "unet":
        module = UNet(features, dtype)
    elif kind == "unetr":
        module = UNETR(1, encoder.module.patch_px, features, tuple(int(tap) for tap in taps), dtype)
    elif kind == "setr_pup":
        module = SETRPUP(features, encoder.module.patch_px, tuple(int(width) for width in widths), dtype)
    else:
        module = UPerNet(features, encoder.module.patch_px, dtype)

    def inputs(found, images, train):
        if kind == "unetr":
            rows = found["patches"].reshape(len(images), -1, found["patches"].shape[-1])
            return found["levels"].reshape(-1, *rows.shape), rows, images
        return found["levels"], found["patches"], images.shape[1:3], train

    def init(key):
        params, stats = jax.eval_shape(encoder.init, key)
        images = jnp.zeros((1, *sizes.sides(encoder.image_px), 1))
        found, _ = jax.eval_shape(lambda *given: encoder.apply(*given, train=False, levels=True), params, stats, images)
        blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), found)
        variables = module.init(key, *inputs(blank, images, False))
        return variables["params"], variables.get("batch_stats", {})

    def apply(params, stats, found, images, train):
        variables = {"params": params, "batch_stats": stats}
        logits, moved = module.apply(variables, *inputs(found, images, train), mutable=["batch_stats"])
        logits, auxiliary = logits if isinstance(logits, tuple) else (logits, None)
        return logits, auxiliary, moved.get("batch_stats", {}) if train else stats

    return Segmenter(init, apply)


class ConvNormReLU(nn.Module):
    """Convolution → BatchNorm → ReLU, b p q d → b p q features; Kaiming-uniform, without a bias unless asked for."""

    features: int
    side: int = 3
    bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        init = nn.initializers.he_uniform()
        options = {"use_bias": self.bias, "dtype": self.dtype, "kernel_init": init, "name": "conv"}
        x = nn.Conv(self.features, (self.side, self.side), padding=self.side // 2, **options)(x)
        return nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train))


class UNet(nn.Module):
    """U-Net on the five maps of a ResNet, of pictures whose sides are multiples of 32 px → logits b h w 1.

    features: channels at full resolution, 16; 16 times as many deepest. Five times: nearest ×2, the map of that size
    beside it, two convolutions with BatchNorm. 3 151 697 parameters on ResNet-34.
    Source: Ronneberger et al. 2015, as segmentation_models_pytorch 0.2 has it, which MGCA takes.
    """

    features: int = 16
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, levels: Sequence[jax.Array], patches: jax.Array, size: tuple[int, int], train: bool
    ) -> jax.Array:
        *skips, x = levels
        if tuple(side // 32 * 32 for side in size) != tuple(size):
            raise ValueError(f"U-Net halves pictures five times: their sides are multiples of 32 px, got {size}")
        x = x.astype(self.dtype)
        for i, skip in enumerate([*reversed(skips), None]):
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            x = x if skip is None else jnp.concatenate([x, skip.astype(self.dtype)], axis=-1)
            for j in (1, 2):
                x = ConvNormReLU(self.features * 2 ** (4 - i), dtype=self.dtype, name=f"up{i + 1}_conv{j}")(x, train)
        return _logits(x, 3, "logits")


class SETRPUP(nn.Module):
    """Progressive upsampling of a ViT's patches: Linear, then convolution, BatchNorm, ReLU, ×2 until there are pixels.

    features: channels of the last level, 64; doubled with every halving: 512, 256, 128, 64 from patches of 16 px.
    widths: channels of all levels, in the place of these; the authors' code has 256 in each.
    Source: Zheng et al., CVPR 2021, fig. 1b, as MGCA's code has it (corners aligned).
    """

    features: int = 64
    patch_px: int = 16
    widths: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, levels: jax.Array, patches: jax.Array, size: tuple[int, int], train: bool) -> jax.Array:
        doublings = self.patch_px.bit_length() - 1
        if self.patch_px != 2**doublings:
            raise ValueError(f"SETR-PUP doubles the grid until it has pixels; patches of {self.patch_px} px do not fit")
        widths = self.widths or [self.features * 2 ** (doublings - i) for i in range(1, doublings + 1)]
        if len(widths) != doublings:
            raise ValueError(f"head.widths has {len(widths)} numbers; patches of {self.patch_px} px need {doublings}")
        x = Linear(patches.shape[-1], self.dtype, name="fc")(patches)
        for i, width in enumerate(widths, 1):
            x = ConvNormReLU(width, bias=True, dtype=self.dtype, name=f"conv{i}")(x, train)
            x = resize(x, (2 * x.shape[1], 2 * x.shape[2]), aligned=True)
        return _logits(x, 3, "logits")


class UPerNet(nn.Module):
    """UPerNet over four blocks of a ViT, and a small head on one of them for training: logits b h w 1, twice.

    features: channels of the pyramid, 512. The blocks' maps are brought to ×4, ×2, ×1 and ×½ of the patch grid; the
    last goes through a pyramid of pools, sums run from coarse to fine, and all levels are joined at the finest one.
    Blocks: 4, 6, 8 and 12 of twelve, counted from 1, and evenly so for other depths.
    Source: Xiao et al., ECCV 2018, with the pyramid of BEiT's segmentation, as MRM fine-tunes it (its code).
    """

    features: int = 512
    patch_px: int = 16
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, levels: jax.Array, patches: jax.Array, size: tuple[int, int], train: bool
    ) -> tuple[jax.Array, ...]:
        def conv(x, name, side=1):
            return ConvNormReLU(self.features, side, dtype=self.dtype, name=name)(x, train)

        maps = self._pyramid(levels, train)
        pools = [conv(pool(maps[3], k), f"pool{k}") for k in (1, 2, 3, 6)]
        context = [maps[3], *(resize(x, maps[3].shape[1:3]) for x in pools)]
        sums = [conv(x, f"lateral{i + 1}") for i, x in enumerate(maps[:3])]
        sums.append(conv(jnp.concatenate(context, axis=-1), "context", 3))
        for i in (2, 1, 0):
            sums[i] = sums[i] + resize(sums[i + 1], sums[i].shape[1:3])
        fine = [conv(x, f"smooth{i + 1}", 3) for i, x in enumerate(sums[:3])] + sums[3:]
        x = conv(jnp.concatenate([resize(x, sums[0].shape[1:3]) for x in fine], axis=-1), "fuse", 3)
        auxiliary = ConvNormReLU(max(self.features // 2, 1), dtype=self.dtype, name="auxiliary_conv")(maps[2], train)
        return tuple(resize(_logits(y, 1, name), size) for y, name in ((x, "logits"), (auxiliary, "auxiliary_logits")))

    def _pyramid(self, levels: jax.Array, train: bool) -> list[jax.Array]:
        depth, width = len(levels), levels.shape[-1]
        first, second, third, last = (
            levels[max(round(depth * block / 12), 1) - 1].astype(self.dtype) for block in (4, 6, 8, 12)
        )

        def double(x, name):
            return Deconvolution(width, 2, dtype=self.dtype, name=name)(x)

        first = nn.gelu(BatchNorm(dtype=self.dtype, name="norm4")(double(first, "up4"), train), approximate=False)
        return [double(first, "up4_again"), double(second, "up2"), third, nn.max_pool(last, (2, 2), (2, 2))]


def resize(x: jax.Array, size: Sequence[int], aligned: bool = False) -> jax.Array:
    """Bilinear resize of b p q d, as torch.nn.functional.interpolate(align_corners=aligned)."""
    if tuple(x.shape[1:3]) == tuple(size):
        return x
    return both_axes(x, *(resize_matrix(old, new, aligned) for old, new in zip(x.shape[1:3], size, strict=True)))


def pool(x: jax.Array, cells: int) -> jax.Array:
    """Means of b p q d over cells × cells parts, as torch.nn.AdaptiveAvgPool2d has them."""
    return both_axes(x, *(pool_matrix(side, cells) for side in x.shape[1:3]))


def _logits(x: jax.Array, side: int, name: str) -> jax.Array:
    return nn.Conv(1, (side, side), padding=side // 2, name=name)(x.astype(jnp.float32))
