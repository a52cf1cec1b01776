"""The max-pool of a ResNet, with a gradient that is fast on a CPU.

XLA's gradient of a maximum over windows looks for the largest place of each window once more; on a CPU it takes twenty
times as long as the pool. Here the forward pass notes which of the nine places was the largest, and the backward pass
reads it. Which one runs is decided by the platform that a program is lowered for.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

_PLACES = [(i, j) for i in range(3) for j in range(3)]


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """Largest of 3 × 3 places, every second one: b h w c → b ⌈h/2⌉ ⌈w/2⌉ c, padded by −∞, as PyTorch's.

    The gradient goes to the first of equal places.
    """
    return _library(x)


def _library(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]  (takes both)


def _forward(x: jax.Array):
    largest, place = jax.lax.platform_dependent(x, cpu=_noted, default=_unnoted)
    return largest, (x, place)


def _noted(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest values, and which of `_PLACES` each has; a NaN is larger than any number."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    largest = x[:, :height:2, :width:2]
    place = jnp.zeros(largest.shape, jnp.int8)
    for n, (i, j) in enumerate(_PLACES):
        here = x[:, i : i + height : 2, j : j + width : 2]
        larger = (here > largest) | (jnp.isnan(here) & ~jnp.isnan(largest))
        largest, place = jnp.where(larger, here, largest), jnp.where(larger, jnp.int8(n), place)
    return largest, place


def _unnoted(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    largest = _library(x)
    return largest, jnp.zeros(largest.shape, jnp.int8)


def _backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    def library(x, place, gradient):
        return jax.vjp(_library, x)[1](gradient)[0]

    return (jax.lax.platform_dependent(*kept, gradient, cpu=_to_noted, default=library),)


def _to_noted(x: jax.Array, place: jax.Array, gradient: jax.Array) -> jax.Array:
    """Each value of the gradient at its place. Even rows lie in one window, odd ones in two; so do columns."""
    windows = {"even": [(0, 1)], "odd": [(0, 2), (1, 0)]}  # (how many windows further, which of its three rows)
    b, height, width, c = gradient.shape

    def arrives(row: str, column: str) -> jax.Array:
        total = jnp.zeros_like(gradient)
        for down, i in windows[row]:
            for right, j in windows[column]:
                sent = jnp.where(place == _PLACES.index((i, j)), gradient, 0)
                total += jnp.pad(sent[:, down:, right:], ((0, 0), (0, down), (0, right), (0, 0)))
        return total

    rows = [jnp.stack([arrives(row, column) for column in windows], axis=3) for row in windows]
    whole = jnp.stack(rows, axis=2).reshape(b, 2 * height, 2 * width, c)
    return whole[:, : x.shape[1], : x.shape[2]]


max_pool.defvjp(_forward, _backward)
