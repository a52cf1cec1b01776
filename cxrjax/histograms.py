"""How the parameters of a run are spread, for TensorBoard: counted on the devices that hold them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cxrjax import parallel

BINS = 48


class Histogram(NamedTuple):
    """counts: of BINS bins of equal width. edges: BINS + 1. total, squares: sums of the numbers and their squares."""

    counts: Any
    edges: Any
    total: Any
    squares: Any


def of(tree: Any, mesh: Any) -> dict[str, Histogram]:
    """By path, "encoder/blocks/…", of every leaf of a tree on a mesh. All processes must call it."""
    count = jax.jit(lambda leaves: list(map(_count, leaves)), out_shardings=parallel.replicated(mesh))
    named = jax.tree_util.tree_leaves_with_path(tree)
    found = jax.device_get(count([leaf for _, leaf in named]))
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in named]
    return dict(zip(paths, found, strict=True))


def _count(leaf: jax.Array) -> Histogram:
    values = leaf.astype(jnp.float32).ravel()
    return Histogram(*jnp.histogram(values, BINS), values.sum(), jnp.sum(values**2))
