"""Overlap of boxes. A box is y0 x0 y1 x1; all functions take … 4 against … 4 and broadcast over the leading axes."""

import jax
import jax.numpy as jnp


def area(boxes: jax.Array) -> jax.Array:
    """… 4 → …, 0 where an end lies before its start."""
    return jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union in [0, 1]; 0 where both boxes are empty. a b m 1 4 and a b 1 n 4 give all pairs b m n."""
    shared = _intersection(a, b)
    return _divide(shared, area(a) + area(b) - shared)


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """IoU minus the share of the smallest box around both that neither covers, in (−1, 1].

    Boxes that do not meet still have a gradient towards each other. Source: Rezatofighi et al., CVPR 2019, algorithm 1.
    """
    shared = _intersection(a, b)
    union = area(a) + area(b) - shared
    start, end = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    around = area(jnp.concatenate([start, end], axis=-1))
    return _divide(shared, union) - _divide(around - union, around)


def _intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    start, end = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    return area(jnp.concatenate([start, end], axis=-1))


def _divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 with a gradient of 0 where b is 0."""
    there = b > 0
    return jnp.where(there, a / jnp.where(there, b, 1), 0)
