"""Feature maps of several stages brought to one small grid."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from cxrjax.models.heads import uniform
from cxrjax.models.interpolation import both_axes, pool_matrix, resize_matrix


class LevelFusion(nn.Module):
    """Maps b h_l w_l c_l of levels l → b (features·grid·grid): the sum of the levels on one grid, flattened.

    Each map is resized to side × side (bilinear, half-pixel centres, not antialiased), sent through a 1×1 convolution
    of its own, and the sum is averaged over grid × grid cells. All of that is linear, so resizing and averaging are one
    constant matrix per level, applied first: x ← P_l x P_lᵀ, b grid grid c_l, exactly the same numbers from a fraction
    of the memory (4 × 4 instead of 64 × 64 positions of 512 features). fused=False runs the steps one by one.

    names: of the levels, one per map. The flat order is features, rows, columns, as in PyTorch.
    Parameters: <name>/kernel c_l features, <name>/bias features, initialised as PyTorch does.
    Source: MLVICX's released code; the fusion is ours.
    """

    names: Sequence[str]
    features: int = 512
    side: int = 64
    grid: int = 4
    fused: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> jax.Array:
        if len(maps) != len(self.names):
            raise ValueError(f"{len(maps)} maps for the {len(self.names)} levels {', '.join(self.names)}")
        pool, on_grid = pool_matrix(self.side, self.grid), []
        for name, x in zip(self.names, maps, strict=True):
            resize = [resize_matrix(size, self.side) for size in x.shape[1:3]]
            if self.fused:
                resize = [pool @ matrix for matrix in resize]
            x = _Projection(self.features, self.dtype, name=name)(both_axes(x.astype(self.dtype), *resize))
            on_grid.append(x if self.fused else both_axes(x, pool, pool))
        return rearrange(jnp.asarray(sum(on_grid)), "b p q c -> b (c p q)")


class _Projection(nn.Module):
    """1×1 convolution."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform(x.shape[-1] ** -0.5)
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        return x @ kernel.astype(self.dtype) + bias.astype(self.dtype)
