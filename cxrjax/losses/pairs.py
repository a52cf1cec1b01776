"""What losses on rows share: unit length, one scale, inner products, what is left out, and means over what counts."""

import jax
import jax.numpy as jnp

NEVER = -1e30
"""Logit of what is left out. It is finite, since −∞ less −∞ would be NaN in a row where all is left out."""


def normalise(x: jax.Array, axis: int = -1) -> jax.Array:
    """x scaled to unit length along an axis, in float32; zeros stay zeros and have a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=axis, keepdims=True) + 1e-12)


def standardise(x: jax.Array, epsilon: float) -> jax.Array:
    """x … d with mean 0 and variance 1 of every feature over all other axes, in float32.

    epsilon: added to the variance, so that a feature that is the same everywhere becomes 0.
    """
    x, others = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    x = x - x.mean(others)
    return x * jax.lax.rsqrt(jnp.mean(x * x, others) + epsilon)


@jax.named_scope("pairwise")
def pairwise(u: jax.Array, v: jax.Array) -> jax.Array:
    """Inner products of all rows, float32 at full precision: u M d, v M d → M M. Cost counts leave this scope out."""
    return jnp.matmul(u.astype(jnp.float32), v.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST)


def products(x: jax.Array, y: jax.Array) -> jax.Array:
    """Inner products of all rows within each example, at full precision: x b n d, y b m d → b n m."""
    return jnp.einsum("bnd,bmd->bnm", x, y, precision=jax.lax.Precision.HIGHEST)


def diagonal(size: int) -> jax.Array:
    """Bool size size: True where a row meets itself, or its own row of the other view."""
    return jnp.arange(size)[:, None] == jnp.arange(size)


def mean_where(values: jax.Array, counted: jax.Array) -> jax.Array:
    """Mean over what is counted (bool of the shape of values), 0 where nothing is. The rest may be any number."""
    return jnp.sum(jnp.where(counted, values, 0)) / jnp.maximum(counted.sum(), 1)
