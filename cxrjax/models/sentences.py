"""Sentences of reports: their pool, and what each of them sees of a picture through a gate. FaNe's two modules.

Source: Zhang et al., AAAI 2026 (2511.12215), released code. Sentences are the first of a fixed number of places.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from cxrjax.models.attention import attend
from cxrjax.models.transformer import Linear


class SentencePool(nn.Module):
    """One vector of a report's sentences, b s d → b d: what their mean finds in them and itself, no positions."""

    heads: int = 8
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, sentences: jax.Array, count: jax.Array) -> jax.Array:
        """count: int b, how many of the s there are; with none the vector is that of a mean of zeros."""
        d, there = sentences.shape[-1], jnp.arange(sentences.shape[1]) < count[:, None]
        mean = jnp.sum(sentences * there[..., None], axis=1) / jnp.maximum(count, 1)[:, None]
        x = jnp.concatenate([mean[:, None], sentences], axis=1)
        q = Linear(d, self.dtype, name="q")(x[:, :1])
        k, v = (Linear(d, self.dtype, name=name)(x) for name in ("k", "v"))
        return Linear(d, self.dtype, name="out")(attend(q, k, v, self.heads, count + 1))[:, 0].astype(jnp.float32)


class GatedAttention(nn.Module):
    """What each sentence sees of a picture's patches: e b s d, p b n d → (c b s d, gate b s n), float32.

        q = W_q e, k = W_k p, u = W_v p;   G = σ(MLP([q; k])), of every sentence and patch
        A = σ((q kᵀ ⊙ G) / √d), which is no softmax;   c = LN(W_o (A u))

    The MLP's first layer is linear in q and in k, so it is applied to each of them: [q; k] b s n 2d is never made.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, sentences: jax.Array, patches: jax.Array) -> tuple[jax.Array, jax.Array]:
        d = sentences.shape[-1]
        q = Linear(d, self.dtype, name="q")(sentences)
        k, u = (Linear(d, self.dtype, name=name)(patches) for name in ("k", "v"))
        of_both = rearrange(Linear(d, self.dtype, name="gate_q")(q), "b s d -> b s 1 d")
        of_both = of_both + rearrange(
            nn.Dense(d, use_bias=False, dtype=self.dtype, name="gate_k")(k), "b n d -> b 1 n d"
        )
        gate = jax.nn.sigmoid(Linear(1, self.dtype, name="gate_out")(nn.relu(of_both))[..., 0].astype(jnp.float32))
        scores = jnp.einsum("bsd,bnd->bsn", q, k, preferred_element_type=jnp.float32)
        attention = jax.nn.sigmoid(scores * gate * d**-0.5).astype(self.dtype)
        seen = Linear(d, self.dtype, name="out")(jnp.einsum("bsn,bnd->bsd", attention, u))
        return nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm")(seen), gate
