"""Frozen encoders to judge: a trained method, and the two references that it should beat."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from cxrjax import parallel, sizes
from cxrjax.evals import attention, layers
from cxrjax.evals.base import Encoder, Joint, digest
from cxrjax.methods.base import Method
from cxrjax.runtime import hosts


def from_method(
    method: Method,
    params: Any,
    state: Any,
    *,
    name: str,
    step: int = 0,
    config: Mapping[str, Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    content: str | None = None,
    attention: bool = False,
) -> Encoder:
    """The encoder of a method with these parameters.

    name: in results, such as the run's; config: whatever beside the parameters decides on the features (variant, mean
    and deviation of the input); mesh: by default all devices, each of which gets a copy of the parameters.
    content: digest of parameters and state, where it is known.
    attention: whether pictures that a results page may show get a map of attention, which takes another compilation.
    One compilation per method serves every step and set.
    """
    mesh = parallel.make_mesh() if mesh is None else mesh
    content = content or digest(*map(hosts.whole, (params, state)))
    params, state = (jax.tree.map(partial(_on, mesh), tree) for tree in (params, state))
    compiled = _compiled(method.encode)
    px = sizes.plain(method.image_px)
    identity = digest(content, json.dumps(dict(config or {}), sort_keys=True, default=str), px)
    joint = None
    if method.joint is not None:
        image, text = _compiled(method.joint.image), _compiled(method.joint.text)
        joint = Joint(
            lambda images: image(params, state, images),
            lambda *tokens: text(params, state, *tokens),
            method.joint.tokens,
            method.joint.words,
        )
    described = px, identity, name, step, mesh, joint, method.answers, method.target
    layered = _layered(method.encode)
    found = Encoder(
        lambda images: compiled(params, state, images),
        *described,
        sees=method.sees,
        layers=lambda images, count, mean: layered(params, state, images, count, mean),
    )
    if not attention:
        return found
    watched = _watched(method.encode)
    return found._replace(attention=lambda images: watched(params, state, images))


def random_init(
    method: Method, key: jax.Array, batch: Mapping[str, Any], config: Mapping[str, Any] | None = None
) -> Encoder:
    """The method's encoder as it starts: what the architecture sees in pictures without any training.

    batch: as `method.init` takes it.
    """
    params, state = jax.jit(method.init)(key, batch)
    return from_method(method, params, state, name="random", config=config)


def pixels(px: int = 32) -> Encoder:
    """The picture itself, area-averaged to px px, as features: what a linear judge finds without any encoder.

    Sets whose classes differ in processing or exposure show here already.
    """

    @jax.jit
    def encode(images):
        values = images.astype(jnp.float32) / 255  # b h w 1
        return {"pooled": values.reshape(len(images), -1), "patches": values}

    return Encoder(encode, px, digest("pixels", px), f"pixels-{px}", 0)


@lru_cache(maxsize=16)
def _compiled(encode: Callable) -> Callable:
    return jax.jit(encode)


@lru_cache(maxsize=16)
def _layered(encode: Callable) -> Callable:
    return jax.jit(layers.vectors(encode), static_argnums=(3, 4))


@lru_cache(maxsize=16)
def _watched(encode: Callable) -> Callable:
    return jax.jit(attention.maps(encode))


def _on(mesh: jax.sharding.Mesh, leaf: Any) -> Any:
    """The leaf whole on every device, also where training keeps it in parts."""
    whole, placed = parallel.replicated(mesh), getattr(leaf, "sharding", None)
    is_there = placed is not None and placed.is_equivalent_to(whole, leaf.ndim)
    return leaf if is_there else jax.device_put(leaf, whole)
