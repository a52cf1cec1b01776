"""Key patches of a study's pictures: which tokens its own report calls for, drawn together into fewer ones.

    s_t = ⟨ḡ, v̂_t⟩ + ⟨c̄, v̂_t⟩         ḡ mean of the study's tokens, c̄ of its report's, all of unit length; no gradient
    K = the ⌈ρ n⌉ tokens of highest s;  D = the others
    P = softmax over K of (γ · MLP(LN(V_K)))ᵀ · V_K,    e = Σ_D softmax_D(s) V_D,    output [P; e]

The selection of LAPS (Fu et al., CVPR 2024), as F-L takes it. Tokens that a study lacks, those of a picture that was
not taken, keep their places and are marked, so that shapes do not change: n counts what is there.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxrjax.losses.pairs import NEVER, normalise
from cxrjax.models.transformer import TORCH_CONV, Linear, gelu

Count = TypeVar("Count", int, jax.Array)


def sizes(tokens: int, keep_ratio: float, gather_ratio: float) -> tuple[int, int]:
    """(kept, gathered): ⌈ρ n⌉ tokens are kept of n, and gathered into ⌊ratio · kept⌋.

    Counted in rationals. Raises ValueError where none would be dropped or gathered.
    """
    kept = kept_of(tokens, keep_ratio)
    gathered = int(kept * Fraction(str(gather_ratio)))
    if not 0 < kept < tokens or gathered < 1:
        raise ValueError(
            f"keep_ratio {keep_ratio} and gather_ratio {gather_ratio} keep {kept} of {tokens} tokens and make "
            f"{gathered} of them; at least one must be dropped and one made: change the ratios, or take more tokens"
        )
    return kept, gathered


def kept_of(count: Count, keep_ratio: float) -> Count:
    """⌈ρ · count⌉."""
    ratio = Fraction(str(keep_ratio))
    return -(-count * ratio.numerator // ratio.denominator)


def together(
    frontal: jax.Array, lateral: jax.Array, has_lateral: jax.Array, *, equal_scales: bool = True
) -> tuple[jax.Array, jax.Array]:
    """The tokens of both pictures of a study, b n+m d, and which of them exist, b n+m.

    frontal: b n d. lateral: b m d. has_lateral: b bool. equal_scales: every token is brought to mean 0 and deviation 1,
    so that neither picture's tokens are longer than the other's.
    """
    if equal_scales:
        frontal, lateral = (jax.nn.standardize(x, axis=-1, epsilon=1e-5) for x in (frontal, lateral))
    tokens, n = jnp.concatenate([frontal, lateral], axis=1), frontal.shape[1]
    return tokens, jnp.arange(tokens.shape[1]) < jnp.where(has_lateral, tokens.shape[1], n)[:, None]


def select(
    gather: Callable, tokens: jax.Array, there: jax.Array, words: jax.Array, counted: jax.Array, keep_ratio: float
) -> jax.Array:
    """[P; e]: b k d. gather: (tokens, kept) → P, a `Gather` with its parameters; the others as in `scores`."""
    s = scores(tokens, there, words, counted)
    kept = keep(s, there, keep_ratio)
    return jnp.concatenate([gather(tokens, kept), extra(tokens, s, there & ~kept)[:, None]], axis=1)


def scores(tokens: jax.Array, there: jax.Array, words: jax.Array, counted: jax.Array) -> jax.Array:
    """s: b n float32, without gradient.

    tokens: b n d, of which `there` (b n bool) says which exist. words: b l d, of the reports, of which `counted`
    (b l bool) enter the mean.
    """
    tokens, words = (jax.lax.stop_gradient(x).astype(jnp.float32) for x in (tokens, words))
    towards = normalise(_mean(tokens, there)) + normalise(_mean(words, counted))  # b d
    return jnp.einsum("bnd,bd->bn", normalise(tokens), towards, precision=jax.lax.Precision.HIGHEST)


def keep(scores: jax.Array, there: jax.Array, keep_ratio: float) -> jax.Array:
    """b n bool: the ⌈ρ · count⌉ tokens of highest score among those that are there; of equals the earlier."""
    rank = jnp.argsort(jnp.argsort(-jnp.where(there, scores, -jnp.inf), axis=-1), axis=-1)
    return rank < kept_of(there.sum(axis=-1, keepdims=True), keep_ratio)


def extra(tokens: jax.Array, scores: jax.Array, dropped: jax.Array) -> jax.Array:
    """e: b d, the dropped (b n bool) tokens (b n d) weighted by their scores (b n); 0 where none is."""
    weights = jax.nn.softmax(scores, axis=-1, where=dropped)
    return jnp.einsum("bn,bnd->bd", jnp.where(dropped, weights, 0.0), tokens)


class Gather(nn.Module):
    """P: the kept (b n bool) of tokens b n d drawn together into `count`, b count d, float32.

    Weights are 0 outside the kept, so no token has to be moved for it. γ starts at 1.
    """

    count: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, kept: jax.Array) -> jax.Array:
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(tokens)
        x = gelu(Linear(tokens.shape[-1] // 5, self.dtype, TORCH_CONV, name="fc1")(x))
        logits = Linear(self.count, self.dtype, TORCH_CONV, name="fc2")(x).astype(jnp.float32)  # b n count
        scale = self.param("scale", nn.initializers.ones, ())
        weights = jax.nn.softmax(jnp.where(kept[..., None], scale * logits, NEVER), axis=1)
        return jnp.einsum("bnm,bnd->bmd", weights, tokens)


class Adapter(nn.Module):
    """From the lateral encoder's tokens b n d to the width of the joint space, b n out, float32.

    Linear → tanh → Linear, then a LayerNorm, or with token_softmax a softmax over the n tokens, as released.
    """

    out: int
    token_softmax: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = jnp.tanh(Linear(tokens.shape[-1], self.dtype, TORCH_CONV, name="fc1")(tokens))
        x = Linear(self.out, self.dtype, TORCH_CONV, name="fc2")(x).astype(jnp.float32)
        return jax.nn.softmax(x, axis=1) if self.token_softmax else nn.LayerNorm(epsilon=1e-5, name="norm")(x)


def _mean(x: jax.Array, counted: jax.Array) -> jax.Array:
    """b n d → b d over the counted (b n bool); 0 where none is."""
    weights = counted.astype(x.dtype)[..., None]
    return jnp.sum(x * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)
