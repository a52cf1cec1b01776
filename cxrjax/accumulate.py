"""The gradient of a batch that does not fit into memory at once: slice after slice, and that of the whole batch.

A loss that is a mean over examples has the mean of the slices' gradients. Others compare the examples of a batch, and a
mean over slices would be another loss. For these the slices are gone through twice, as GradCache does (Gao, Zhang, Han,
Callan, RepL4NLP 2021, arXiv 2101.06983):

    1. embed every slice without keeping what a gradient needs
    2. the loss on the embeddings of all, its gradient for each of them, and for the heads
    3. embed every slice once more, and take the gradient of its embeddings back to the encoder

so that memory holds the encoder's activations of one slice, for the price of one more forward pass. Which parts a loss
has, `methods.base.Parts` says. Everything is drawn for the whole batch at once, so a step draws what it does without
slices. Slice i of N holds the examples i, i + N, …: of a batch over several devices every device has its part of each
slice, and no example moves.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cxrjax import parallel
from cxrjax.methods.base import Config, Method, Parts, State, with_statistics

BATCH_NORM = ("whole", "slice")


def check(config: Config, method: Method, state: State, mesh: Mesh) -> None:
    """Raises ValueError where config.accumulate does not cut the batch, or the step would not be that of the batch.

    state: of the method, arrays or their shapes.
    """
    count, batch, parts = config.accumulate, config.batch_size, parallel.batch_parts(mesh)
    if config.accumulate_batch_norm not in BATCH_NORM:
        raise ValueError(f"accumulate_batch_norm must be 'whole' or 'slice', got {config.accumulate_batch_norm!r}")
    if count == 1:
        return
    if batch % (count * parts):
        fitting = [n for n in range(1, batch + 1) if batch % (n * parts) == 0]
        raise ValueError(
            f"accumulate = {count} does not cut batch_size = {batch} into slices that divide over the {parts} "
            f"device(s) of the batch; choose one of {', '.join(map(str, fitting))}"
        )
    said = f"accumulate = {count} would change the training of {config.method!r}"
    instead = "set accumulate=1, and against want of memory model.remat=full, more devices, or a mesh with fsdp"
    if not isinstance(method.parts, Parts):
        raise ValueError(f"{said}: {method.parts}; {instead}")
    statistics = jax.tree.leaves(state.get("batch_stats", {}).get("encoder", {}))
    if statistics and not method.parts.keeps_statistics and config.accumulate_batch_norm == "whole":
        raise ValueError(
            f"{said}: the BatchNorm in its encoder normalises by the batch, and would by the {batch // count} examples "
            f"of a slice; take an encoder without one (a ViT), or {instead}; or set accumulate_batch_norm='slice', "
            "which says that it may"
        )


def value_and_grad(method: Method, slices: int) -> Callable:
    """(params, state, batch, key, step) → ((loss, Aux), gradient) of method.loss, over so many slices of the batch."""
    if slices == 1:
        return jax.value_and_grad(method.loss, has_aux=True)
    parts = method.parts
    if not isinstance(parts, Parts):
        raise ValueError(f"the gradient of this method cannot be accumulated: {parts}")
    gradient_of = _over_embeddings if method.couples_batch else _mean

    def run(params, state, batch, key, step):
        prepared = parts.prepare(batch, key)
        return gradient_of(parts, params, state, prepared, jax.tree.map(partial(_cut, slices), prepared), step)

    return run


def _mean(parts, params, state, prepared, cut, step):
    """Of a loss that is a mean over examples, by their weights: one pass."""

    def one(carry, part):
        total, weights, stats = carry

        def loss(params):
            features, moved = parts.embed(params, with_statistics(state, stats), part)
            return parts.loss_of(params, state, features, part, step)[0], (features, moved)

        (_, (features, moved)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        weight = jnp.asarray(parts.weight(part), jnp.float32)
        total = jax.tree.map(lambda total, leaf: total + weight * leaf, total, gradient)
        return (total, weights + weight, moved), features

    start = jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32), _statistics(state)
    (total, weights, stats), features = jax.lax.scan(one, start, cut)
    features, state = jax.tree.map(_join, features), with_statistics(state, stats)
    gradient = jax.tree.map(lambda leaf: leaf / jnp.where(weights > 0, weights, 1), total)
    return parts.loss_of(params, state, features, prepared, step), gradient


def _over_embeddings(parts, params, state, prepared, cut, step):
    """Of any loss: two passes."""

    def embed(stats, part):
        features, moved = parts.embed(params, with_statistics(state, stats), part)
        return moved, features

    stats, features = jax.lax.scan(embed, _statistics(state), cut)
    smooth, rest, whole = _apart(jax.tree.map(_join, features))

    def loss(params, smooth):
        return parts.loss_of(params, with_statistics(state, stats), whole(smooth, rest), prepared, step)

    found, (direct, cotangents) = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, smooth)

    def again(total, inputs):
        part, cotangents = inputs
        _, back = jax.vjp(lambda params: _apart(parts.embed(params, state, part)[0])[0], params)
        return jax.tree.map(jnp.add, total, back(cotangents)[0]), None

    cotangents = jax.tree.map(partial(_cut, len(jax.tree.leaves(cut)[0])), cotangents)
    gradient, _ = jax.lax.scan(again, direct, (cut, cotangents))
    return found, gradient


def _statistics(state: State) -> State:
    return state.get("batch_stats", {}).get("encoder", {})


def _cut(slices: int, x: jax.Array) -> jax.Array:
    """b … → slices b/slices …"""
    return jnp.moveaxis(x.reshape(-1, slices, *x.shape[1:]), 1, 0)


def _join(x: jax.Array) -> jax.Array:
    """The inverse of `_cut`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(-1, *x.shape[2:])


def _apart(tree: Any) -> tuple[list[jax.Array], list[jax.Array], Callable]:
    """The leaves that have a gradient, the others (masks, numbers of words), and what puts both back into the tree."""
    leaves, structure = jax.tree.flatten(tree)
    is_smooth = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]

    def whole(smooth, rest):
        smooth, rest = iter(smooth), iter(rest)
        return jax.tree.unflatten(structure, [next(smooth if each else rest) for each in is_smooth])

    pairs = list(zip(leaves, is_smooth, strict=True))
    return [leaf for leaf, each in pairs if each], [leaf for leaf, each in pairs if not each], whole
