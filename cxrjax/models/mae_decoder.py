"""MAE's decoder: what a Transformer makes of the tokens of a few patches and of the places of the others."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxrjax.models import linen, posemb
from cxrjax.models.transformer import LAYER_NORM_EPS, NORMAL, Block, Linear, gather, init_stacked, run_stacked


class MAEDecoder(nn.Module):
    """Predicts every patch of a picture from the encoded tokens of some: → b n values, float32.

    values: P·P·c of a patch. width, depth, heads: of its blocks. dtype, remat, unroll: as in ViT.
    One learned token stands for every patch that is not known; fixed sine–cosine positions tell them apart.
    Source: MAE (He et al., CVPR 2022), section 3 and released code.
    """

    values: int
    width: int = 512
    depth: int = 8
    heads: int = 16
    dtype: jnp.dtype = jnp.float32
    remat: str = "dots"
    unroll: bool = False

    @nn.compact
    def __call__(self, cls: jax.Array, patches: jax.Array, ids_restore: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """cls: b d. patches: b k d, tokens of the kept patches, in any order. grid: p q of the picture, n = p·q.

        ids_restore: b n. The token of place i is patches[ids_restore[i]], or the learned one where that is k or more.
        Raises ValueError where the grid has another number of patches.
        """
        (b, kept), n = patches.shape[:2], ids_restore.shape[1]
        if grid[0] * grid[1] != n:
            raise ValueError(f"ids_restore places {n} patches, but a grid of {grid} has {grid[0] * grid[1]}")
        known = jnp.concatenate([cls[:, None], patches], axis=1)
        known = Linear(self.width, self.dtype, name="embed")(known)  # b 1+k d
        mask_token = self.param("mask_token", NORMAL, (self.width,)).astype(self.dtype)
        shuffled = jnp.concatenate([known[:, 1:], jnp.broadcast_to(mask_token, (b, n - kept, self.width))], axis=1)
        x = gather(shuffled, ids_restore)  # b n d
        x = x + jnp.asarray(posemb.sincos_2d(grid, self.width), self.dtype)
        x = jnp.concatenate([known[:, :1], x], axis=1)

        block = Block(self.heads, self.dtype, parent=None)

        def layer(x, params):
            return linen.apply(block, params, x), None

        blocks = self.param("blocks", init_stacked(block, self.depth, jnp.zeros((1, 1, self.width))))
        x, _ = run_stacked(layer, x, blocks, self.remat, unroll=self.depth if self.unroll else 1)
        x = nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=self.dtype, name="norm")(x)
        return Linear(self.values, self.dtype, name="pixels")(x)[:, 1:].astype(jnp.float32)
