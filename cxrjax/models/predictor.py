"""I-JEPA's predictor: what a Transformer makes of the tokens of a context for the places of a block."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from cxrjax.models import linen, posemb
from cxrjax.models.transformer import LAYER_NORM_EPS, NORMAL, Block, Linear, gather, init_stacked, run_stacked


class Predictor(nn.Module):
    """Predicts the tokens of blocks of patches, each block by itself, from those of a context: → b m t out, float32.

    out: width of the encoder. width, depth, heads: of its blocks. dtype, remat, unroll: as in ViT.
    One learned token stands at every place of a block; fixed sine–cosine positions tell them apart.
    Source: I-JEPA (Assran et al., CVPR 2023), section 3 and released code.
    """

    out: int
    width: int = 384
    depth: int = 6
    heads: int = 12
    dtype: jnp.dtype = jnp.float32
    remat: str = "dots"
    unroll: bool = False

    @nn.compact
    def __call__(
        self,
        context: jax.Array,
        ids: jax.Array,
        count: jax.Array,
        targets: jax.Array,
        target_count: jax.Array,
        grid: tuple[int, int],
    ) -> jax.Array:
        """context: b k d, tokens of the patches ids int b k, of which the first count int b are there.

        targets: int b m t, places of m blocks, of which the first target_count int b are there; grid: p q. What is
        predicted beyond them means nothing.
        """
        (b, k), (m, t) = ids.shape, targets.shape[1:]
        positions = jnp.asarray(posemb.sincos_2d(grid, self.width), self.dtype)
        known = Linear(self.width, self.dtype, NORMAL, name="embed")(context) + positions[ids]  # b k w
        token = self.param("mask_token", NORMAL, (self.width,)).astype(self.dtype)
        asked = token + positions[targets]  # b m t w
        # Places first, then the context, then what fills up: attention then looks at so many of the first tokens.
        place = jnp.arange(t + k)
        taken = jnp.clip(place - target_count[:, None], 0, k - 1)  # b t+k
        behind = repeat(gather(known, taken), "b n w -> b m n w", m=m)
        is_place = rearrange(place < target_count[:, None], "b n -> b 1 n 1")
        x = jnp.where(is_place, jnp.pad(asked, ((0, 0), (0, 0), (0, k), (0, 0))), behind)
        # Pictures stay the slow axis, so that a sharded batch keeps its shards.
        x = rearrange(x, "b m n w -> (b m) n w")
        lengths = repeat(count + target_count, "b -> (b m)", m=m)

        block = Block(self.heads, self.dtype, NORMAL, NORMAL, parent=None)

        def layer(x, params):
            return linen.apply(block, params, x, lengths=lengths), None

        blocks = self.param("blocks", init_stacked(block, self.depth, jnp.zeros((1, 1, self.width))))
        x, _ = run_stacked(layer, x, blocks, self.remat, unroll=self.depth if self.unroll else 1)
        x = nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=self.dtype, name="norm")(x[:, :t])
        x = Linear(self.out, self.dtype, NORMAL, name="project")(x)
        return rearrange(x, "(b m) t d -> b m t d", b=b).astype(jnp.float32)
