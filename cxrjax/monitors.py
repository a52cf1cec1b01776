"""What is watched but not optimised: numbers that show a collapse before a probe does. Global arrays, no gradient."""

import jax
import jax.numpy as jnp

from cxrjax.losses.contrastive import normalise, pairwise


def feature_std(x: jax.Array) -> jax.Array:
    """Mean over d of the batch deviation of unit-length rows, times √d: 1 when spread out, 0 when collapsed."""
    x = normalise(jax.lax.stop_gradient(x))
    return jnp.std(x, axis=0).mean() * jnp.sqrt(x.shape[-1])


def effective_rank(x: jax.Array) -> jax.Array:
    """Participation ratio (Σλ)² / Σλ² of the covariance spectrum of x (M d): 1 when collapsed, at most min(M−1, d).

    Needs no eigenvalues, so it costs one small product a step: Σλ = tr C and Σλ² = ‖C‖²; the Gram matrix of the
    centred rows has the same non-zero spectrum and is used when M < d.
    """
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    x = x - x.mean(axis=0)
    gram = pairwise(x, x) if len(x) < x.shape[-1] else pairwise(x.T, x.T)
    return jnp.trace(gram) ** 2 / (jnp.sum(gram * gram) + 1e-12)


def retrieval_top1(u: jax.Array, v: jax.Array) -> jax.Array:
    """Share of rows u_i whose most similar row of v is v_i (chance: 1/M)."""
    u, v = (normalise(jax.lax.stop_gradient(x)) for x in (u, v))
    return jnp.mean(jnp.argmax(pairwise(u, v), axis=1) == jnp.arange(len(u)))
