"""ResNet-18, -34 and -50 as torchvision builds and initialises them. He, Zhang, Ren, Sun, CVPR 2016, table 1.

The bottleneck strides in its 3 × 3 convolution ("v1.5", torchvision and most self-supervised code), not in the first
1 × 1 as the paper's. Pictures are b h w c; parameters carry torchvision's names, "layer1/0/conv1" for
`layer1.0.conv1`, so that weights travel by renaming leaves.

Padding is explicit and symmetric: Flax's SAME would shift every strided convolution by a pixel.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cxrjax.models.batchnorm import STATISTICS, BatchNorm
from cxrjax.models.convolution import convolve
from cxrjax.models.pooling import max_pool
from cxrjax.models.transformer import REMATS


class Size(NamedTuple):
    """Blocks of the four layers; width of the stem, doubled in every layer after the first; kind of block."""

    blocks: tuple[int, int, int, int]
    stem: int = 64
    bottleneck: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the five taps: after the stem and after every layer."""
        expansion = BOTTLENECK_EXPANSION if self.bottleneck else 1
        return (self.stem, *(self.stem * 2**i * expansion for i in range(4)))


# `resnet_test` is ours.
VARIANTS = {
    "resnet_test": Size((1, 1, 1, 1), 16),
    "resnet18": Size((2, 2, 2, 2)),
    "resnet34": Size((3, 4, 6, 3)),
    "resnet50": Size((3, 4, 6, 3), bottleneck=True),
}

BOTTLENECK_EXPANSION = 4

# Statistics are kept in any case: they are small, and are exchanged between devices.
REMAT = {"dots": ("convolution", STATISTICS), "full": (STATISTICS,)}
"""What a block keeps for the backward pass, by the names of `checkpoint_name`."""


def kaiming_normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Kernel h w in out with deviation √(2 / (h·w·out)): PyTorch's kaiming_normal_(mode="fan_out") for ReLU.

    Drawn flat, which are the same numbers: XLA compiles the draw of a four-dimensional array four times as long.
    """
    deviation = (2 / (shape[0] * shape[1] * shape[3])) ** 0.5
    return deviation * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


class Convolution(nn.Module):
    """Convolution without bias, b h w c → b h' w' d, padded by side // 2 zeros on every edge."""

    features: int
    side: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.side, self.side, x.shape[-1], self.features)
        kernel = self.param("kernel", kaiming_normal, shape).astype(self.dtype)
        y = convolve(x.astype(self.dtype), kernel, self.stride, self.side // 2)
        return checkpoint_name(y, "convolution")


class Downsample(nn.Module):
    """The shortcut where a block changes size: 1 × 1 convolution and norm, named as in torchvision's Sequential."""

    features: int
    stride: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Convolution(self.features, 1, self.stride, self.dtype, name="0")(x)
        return BatchNorm(dtype=self.dtype, name="1")(x, train)


class Block(nn.Module):
    """Residual block, b h w c → b h/stride w/stride d; d is 4 × `features` in a bottleneck and `features` otherwise."""

    features: int
    stride: int
    bottleneck: bool
    zero_init_residual: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width, stride = self.features, self.stride
        if self.bottleneck:
            convolutions = [(width, 1, 1), (width, 3, stride), (width * BOTTLENECK_EXPANSION, 1, 1)]
        else:
            convolutions = [(width, 3, stride), (width, 3, 1)]
        y = x
        for i, (features, side, step) in enumerate(convolutions, 1):
            last = i == len(convolutions)
            y = Convolution(features, side, step, self.dtype, name=f"conv{i}")(y)
            init = nn.initializers.zeros if last and self.zero_init_residual else nn.initializers.ones
            y = BatchNorm(dtype=self.dtype, scale_init=init, name=f"bn{i}")(y, train)
            y = y if last else nn.relu(y)
        if stride != 1 or x.shape[-1] != y.shape[-1]:
            x = Downsample(y.shape[-1], stride, self.dtype, name="downsample")(x, train)
        return nn.relu(x + y)


class Layer(nn.Module):
    """Blocks of one width, the first of which strides."""

    blocks: int
    features: int
    stride: int
    bottleneck: bool
    zero_init_residual: bool = False
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        kind = Block
        if self.remat != "none":
            policy = jax.checkpoint_policies.save_only_these_names(*REMAT[self.remat])
            kind = nn.remat(Block, policy=policy, static_argnums=(2,))
        for i in range(self.blocks):
            block = kind(
                self.features,
                self.stride if i == 0 else 1,
                self.bottleneck,
                self.zero_init_residual,
                self.dtype,
                name=str(i),
            )
            x = block(x, train)
        return x


class ResNet(nn.Module):
    """Trunk without classifier, for pictures of any size; see the module's docstring.

    variant: key of VARIANTS. channels: of the pictures. zero_init_residual: every block starts as the identity (Goyal
    et al. 2017), as torchvision's option of that name. dtype: of the computation; parameters and the statistics of
    BatchNorm are float32. remat: what a block recomputes in the backward pass: "none" nothing, "dots" all but its
    convolutions, "full" everything. The running statistics are the collection "batch_stats".
    """

    variant: str = "resnet18"
    channels: int = 1
    zero_init_residual: bool = False
    dtype: jnp.dtype = jnp.float32
    remat: str = "dots"

    @property
    def size(self) -> Size:
        return VARIANTS[self.variant]

    def check(self) -> None:
        """Raises ValueError for a field that names nothing."""
        if self.remat not in REMATS:
            raise ValueError(f"remat must be one of {', '.join(REMATS)}, got {self.remat!r}")

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool, gate: Callable[[int, jax.Array], jax.Array] | None = None
    ) -> dict[str, jax.Array | tuple[jax.Array, ...]]:
        """Encodes pictures b h w c.

        train: normalise by the batch and move the running statistics.
        gate: (level, map b p q d) → map of the same shape, for level 0 (stem, before its max-pool) to 4 (layer4); what
        it returns is the tap and the input of what follows.

        Returns "pooled" b d, the mean over the last map, float32; and "taps", the five maps b p q d in `dtype`, of
        1/2, 1/4, 1/8, 1/16 and 1/32 of the picture's sides and `size.widths` channels.
        Raises ValueError where the pictures have another number of channels.
        """
        if images.shape[-1] != self.channels:
            raise ValueError(f"pictures of shape {images.shape} given to a ResNet of {self.channels} channel(s)")
        gate = gate or (lambda level, x: x)
        size = self.size
        x = Convolution(size.stem, 7, 2, self.dtype, name="conv1")(images)
        x = gate(0, nn.relu(BatchNorm(dtype=self.dtype, name="bn1")(x, train)))
        taps = [x]
        x = max_pool(x)
        for i, blocks in enumerate(size.blocks):
            layer = Layer(
                blocks,
                size.stem * 2**i,
                1 if i == 0 else 2,
                size.bottleneck,
                self.zero_init_residual,
                self.dtype,
                self.remat,
                name=f"layer{i + 1}",
            )
            x = gate(i + 1, layer(x, train))
            taps.append(x)
        return {"pooled": x.astype(jnp.float32).mean((1, 2)), "taps": tuple(taps)}
