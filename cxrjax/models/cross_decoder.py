"""The decoder in which a report reads pictures, and the head that guesses its hidden words.

    h₀ = MHA(LN(q), LN(C), LN(C))                       text q asks, the pictures' tokens C answer
    h ← h + MHA(LN(h)),  h ← h + FFN(LN(h))             N times, FFN d → 4d → d with QuickGELU
    out = LN(h_N)

Without a residual from q the text decides only where to look: where all tokens are alike, every query reads the same.
IRRA's cross-modal decoder (Jiang & Ye, CVPR 2023), as F-L's released code has it.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxrjax.models import linen
from cxrjax.models.attention import attend
from cxrjax.models.transformer import Linear, init_stacked, run_stacked

LAYER_NORM_EPS = 1e-5  # PyTorch's


class CrossDecoder(nn.Module):
    """Queries b l d that read a context b n d → b l d, float32.

    depth: N. residual: adds the queries to what they read. cross_in_every_layer: reads the context before each of the
    N blocks, as F-L's figure may be read, instead of once; `residual` then holds for every reading.
    dtype: of the computation. remat: as in models/vit.py. Initial deviations: d^−½ into attention, (2d)^−½ into the
    FFN, (2dN)^−½ out of both.
    """

    depth: int
    heads: int = 8
    residual: bool = False
    cross_in_every_layer: bool = False
    dtype: jnp.dtype = jnp.float32
    remat: str = "dots"

    @nn.compact
    def __call__(self, queries: jax.Array, context: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """lengths: int b, how many queries of each row are words; later ones are padding that nobody attends to, and
        what comes out there means nothing. None: all are."""
        x, context = queries.astype(self.dtype), context.astype(self.dtype)
        lengths = None if lengths is None else jnp.maximum(lengths, 1)  # of an empty row one, for finite numbers
        block = Block(self.depth, self.heads, self.cross_in_every_layer, self.residual, self.dtype, parent=None)

        token = jnp.zeros((1, 1, x.shape[-1]))

        def layer(x, params):
            return linen.apply(block, params, x, context, lengths), None

        if not self.cross_in_every_layer:
            x = Read(self.depth, self.heads, self.residual, self.dtype, name="read")(x, context)
        x, _ = run_stacked(layer, x, self.param("blocks", init_stacked(block, self.depth, token, token)), self.remat)
        return _norm(jnp.float32, "norm")(x)


class Block(nn.Module):
    """Pre-norm self-attention and FFN of a decoder of `depth` blocks, after a reading of the context with `cross`."""

    depth: int
    heads: int
    cross: bool
    residual: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        d = x.shape[-1]
        if self.cross:
            x = Read(self.depth, self.heads, self.residual, self.dtype, name="read")(x, context)
        y = _norm(self.dtype, "norm1")(x)
        x = x + Attention(self.depth, self.heads, self.dtype, name="attention")(y, y, lengths)
        y = Linear(4 * d, self.dtype, _normal(2 * d), name="fc1")(_norm(self.dtype, "norm2")(x))
        return x + Linear(d, self.dtype, _normal(2 * d * self.depth), name="fc2")(quick_gelu(y))


class Read(nn.Module):
    """What queries b l d read in a context b n d → b l d, added to them with `residual`."""

    depth: int
    heads: int
    residual: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        attention = Attention(self.depth, self.heads, self.dtype, name="attention")
        heard = attention(_norm(self.dtype, "norm_queries")(x), _norm(self.dtype, "norm_context")(context))
        return x + heard if self.residual else heard


class Attention(nn.Module):
    """Multi-head attention of b l d to the first `lengths` (int b; None: all) tokens of b n d → b l d."""

    depth: int
    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        d = x.shape[-1]
        qkv = Linear(3 * d, self.dtype, _normal(d), name="qkv")
        k, v = jnp.split(qkv(context, slice(d, 3 * d)), 2, axis=-1)
        heard = attend(qkv(x, slice(0, d)), k, v, self.heads, lengths)
        return Linear(d, self.dtype, _normal(2 * d * self.depth), name="out")(heard)


class WordHead(nn.Module):
    """Logits of the vocabulary for each position, … d → … v, float32; its table is not that of the text encoder.

    Linear → QuickGELU → LayerNorm → Linear, F-L and IRRA, released code; kernels from N(0, 1/2d), there the last one's
    deviation is smaller by √depth of the decoder.
    """

    vocab_size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d = x.shape[-1]
        y = quick_gelu(Linear(d, self.dtype, _normal(2 * d), name="fc")(x))
        y = _norm(self.dtype, "norm")(y)
        return Linear(self.vocab_size, self.dtype, _normal(2 * d), name="words")(y).astype(jnp.float32)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x · σ(1.702 x), CLIP's GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


def _normal(variance_of: float) -> Callable:
    return nn.initializers.normal(variance_of**-0.5)


def _norm(dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=dtype, name=name)
