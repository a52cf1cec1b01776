"""What methods of pictures share behind their losses: how pictures are drawn, and the encoder under a head."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from cxrjax import rng
from cxrjax.input import augment, crops, device
from cxrjax.methods.base import Config, Encode, Params, State, encoder_params
from cxrjax.models import backbone, heads

ENCODERS = ("learned", "frozen", "drifting")


class Pictures(NamedTuple):
    """Random crops of every picture, which are then changed by draws of their own.

    specs: of the views, in order. changes: on the device. scale: options of `device.standardise`.
    """

    specs: tuple[crops.Crop, ...]
    changes: augment.Augment
    scale: Mapping[str, Any]

    def views(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """As `base.Views`: "image" uint8 v h w 1."""
        return {"image": crops.views(crops.decode(example["image"]), rng, *self.specs)}

    def prepare(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """What a network reads in training: b v h w 1 as `views` gave them → the same, changed and standardised."""
        return device.standardise(augment.augment(rng.fold(key, "augment"), images, self.changes), **self.scale)


def pictures(config: Config, count: int = 2) -> Pictures:
    """As config.views, config.augment and config.standardise say; count: of the views.

    Raises ValueError for changes that are none, see `augment.check`.
    """
    crop, changes = crops.Crop(config.model.image_px, **config.views), augment.Augment(**config.augment)
    augment.check(changes, count)
    return Pictures(count * (crop,), changes, config.standardise)


class Projected(NamedTuple):
    """An encoder f with a projector g: z = g(f(x)).

    init: key → ({"encoder", "projector"}, running statistics under the same names).
    apply: (params, statistics, images b h w c float, key) → (z b out, statistics moved on), in training. Statistics of
      other parts pass through.
    """

    init: Callable[[jax.Array], tuple[Params, State]]
    apply: Callable[[Params, State, jax.Array, jax.Array], tuple[jax.Array, State]]


def projected(encoder: backbone.Backbone, projector: heads.MLP) -> Projected:
    """The projector on what the encoder pools; both are learned."""

    def init(key):
        params, stats = {}, {}
        params["encoder"], stats["encoder"] = encoder.init(rng.fold(key, "encoder"))
        params["projector"], stats["projector"] = heads.start(projector, rng.fold(key, "projector"), encoder.width)
        return params, stats

    def apply(params, stats, images, key):
        y, moved = encoder.apply(params["encoder"], stats["encoder"], images, train=True, key=key)
        z, moved_head = heads.run(projector, params["projector"], stats["projector"], y["pooled"], train=True)
        return z, {**stats, "encoder": moved, "projector": moved_head}

    return Projected(init, apply)


def encode_by(encoder: backbone.Backbone, scale: Mapping[str, Any]) -> Encode:
    """`Method.encode` by the encoder alone, in evaluation. scale: options of `device.standardise`."""

    def encode(params, state, images):
        stats = state.get("batch_stats", {}).get("encoder", {})
        images = device.standardise(images, **scale)
        return encoder.apply(encoder_params(params, state), stats, images, train=False)[0]

    return encode


class Trunk(NamedTuple):
    """The encoder under a head that is trained on labels, on the params and state of the whole method.

    init: key -> (params, state), to which the method adds its head.
    apply: (params, state, images b h w c float, *, train, key=None, levels=False) -> (features, running statistics
      for state["batch_stats"]["encoder"]), as `backbone.Backbone.apply`.
    """

    init: Callable[[jax.Array], tuple[Params, State]]
    apply: Callable[..., tuple[dict[str, jax.Array], State]]
    backbone: backbone.Backbone


def trunk(config: Config) -> Trunk:
    """The encoder of config.model, trained with its head or not, as config.encoder says.

    "learned": with the head. "frozen": parameters, running statistics of BatchNorm and every path stay as they start,
    so that features are those of the evaluated encoder. "drifting": the parameters stay, but a BatchNorm normalises by
    the batch and moves its statistics: what released code that only stops the gradients does (MGCA, MLVICX).
    What never learns is in state["frozen"]["encoder"], see `encoder_params`. Raises ValueError for another word.
    """
    mode, encoder = config.encoder, backbone.make(config.model)
    if mode not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(map(repr, ENCODERS))}, got {mode!r}")

    def init(key):
        params, stats = encoder.init(key)
        state = {"batch_stats": {"encoder": stats}}
        if mode == "learned":
            return {"encoder": params}, state
        return {"encoder": {}}, {**state, "frozen": {"encoder": params}}

    def apply(params, state, images, *, train, key=None, levels=False):
        whole, stats = encoder_params(params, state), state["batch_stats"]["encoder"]
        return encoder.apply(whole, stats, images, train=train and mode != "frozen", key=key, levels=levels)

    return Trunk(init, apply, encoder)
