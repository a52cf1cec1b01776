"""What methods of pictures share behind their losses: how pictures are drawn, and the encoder under a head."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from cxrjax import rng
from cxrjax.config import names
from cxrjax.drawing.panels import Panel, rows
from cxrjax.input import augment, crops, device
from cxrjax.methods.base import Batch, Config, Encode, Params, State, encoder_params
from cxrjax.models import backbone, heads, lora
from cxrjax.models.vit import ViT

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

    def look(self, params: Params, state: State, batch: Batch, key: jax.Array) -> list[Panel]:
        """As `base.Look`: every view as a network reads it."""
        return rows("view", self.prepare(key, batch["image"]))


def pictures(config: Config, count: int = 2) -> Pictures:
    """As config.views, config.augment and config.standardise say; count: of the views.

    Raises ValueError for changes that are none, see `augment.check`.
    """
    crop, changes = crops.Crop(config.model.image_px, **config.views), augment.Augment(**config.augment)
    augment.check(changes, count)
    return Pictures(count * (crop,), changes, config.standardise)


class Crops(NamedTuple):
    """Random crops of two sizes of every picture: "image", the large ones, and "local", where there are any.

    specs: the views of each size. changes: on the device. scale: options of `device.standardise`. encoder: whose paths
    are dropped.
    """

    specs: Mapping[str, Sequence[crops.Crop]]
    changes: Mapping[str, augment.Augment]
    scale: Mapping[str, Any]
    encoder: backbone.Backbone

    def views(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """As `base.Views`: "image" uint8 v h w 1, and "local" likewise."""
        image = crops.decode(example["image"])
        return {name: crops.views(image, rng, *each) for name, each in self.specs.items()}

    def prepare(self, batch: Mapping[str, Any], key: jax.Array) -> dict[str, dict[str, Any]]:
        """By size, "images" b v h w 1 as a network reads them in training, and the "paths" that it drops, or None."""
        drop, found = rng.fold(key, "drop_path"), {}
        for name, change in self.changes.items():
            images = augment.augment(rng.fold(key, name), batch[name], change)
            paths = self.encoder.paths(rng.fold(drop, name), *images.shape[:2])
            found[name] = {"images": device.standardise(images, **self.scale), "paths": paths}
        return found

    def look(self, params: Params, state: State, batch: Batch, key: jax.Array) -> list[Panel]:
        """As `base.Look`: the crops of each size."""
        found = {name: each["images"] for name, each in self.prepare(batch, key).items()}
        names = {"image": "large crop", "local": "small crop"}
        return [panel for name, images in found.items() for panel in rows(names[name], images)]


def multi_crop(config: Config, encoder: backbone.Backbone, count: int = 2) -> Crops:
    """`count` crops as config.views says and config.local_views.count more, changed by config.augment.

    config.augment_local: of the local crops, where there is one. Raises ValueError for changes that are none, see
    `augment.check`.
    """
    local, specs = config.local_views, {"image": count * [crops.Crop(config.model.image_px, **config.views)]}
    changes = {"image": augment.Augment(**config.augment)}
    if local.count:
        specs["local"] = local.count * [specs["image"][0]._replace(px=local.px, scale=local.scale)]
        changes["local"] = augment.Augment(**config.get("augment_local", config.augment))
    for name, change in changes.items():
        augment.check(change, len(specs[name]))
    return Crops(specs, changes, config.standardise, encoder)


def pooled_crops(
    network: backbone.Backbone, params: Params, stats: State, crops_of: Mapping[str, Mapping[str, Any]]
) -> tuple[jax.Array, State]:
    """Vectors y b v d in training of the crops that `Crops.prepare` gives, those of one size after those of another.

    Crops of one size go through the network together. Returns its running statistics as well.
    """
    found = []
    for of_one_size in crops_of.values():
        images = rearrange(of_one_size["images"], "b v h w c -> (b v) h w c")
        y, stats = network.apply(params, stats, images, train=True, paths=of_one_size["paths"])
        found.append(rearrange(y["pooled"], "(b v) d -> b v d", b=len(of_one_size["images"])))
    return jnp.concatenate(found, axis=1), stats


class Projected(NamedTuple):
    """An encoder f with a projector g: z = g(f(x)).

    init: key → ({"encoder", "projector"}, running statistics under the same names).
    project: (params, statistics, y b d) → (z b out, statistics moved on), in training. Statistics of other parts pass
      through.
    """

    init: Callable[[jax.Array], tuple[Params, State]]
    project: Callable[[Params, State, jax.Array], tuple[jax.Array, State]]


def projected(encoder: backbone.Backbone, projector: heads.MLP) -> Projected:
    """The projector on what the encoder pools; both are learned."""

    def init(key):
        params, stats = {}, {}
        params["encoder"], stats["encoder"] = encoder.init(rng.fold(key, "encoder"))
        params["projector"], stats["projector"] = heads.start(projector, rng.fold(key, "projector"), encoder.width)
        return params, stats

    def project(params, stats, y):
        z, moved = heads.run(projector, params["projector"], stats["projector"], y, train=True)
        return z, {**stats, "projector": moved}

    return Projected(init, project)


def in_turn(forward: Callable, stats: State, views: Any) -> tuple[State, Any]:
    """One view after another: forward (statistics, trees b …) → (statistics moved on, trees b …), on trees b v ….

    Returns the statistics and trees b v …. It is a loop, so that the networks are compiled once.
    """
    first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), views)
    stats, found = jax.lax.scan(forward, stats, first)
    return stats, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), found)


def paths_of_views(encoder: backbone.Backbone, key: jax.Array, name: str, b: int) -> jax.Array | None:
    """What the encoder drops of two views, b v l 2, each with a stream of its own."""
    each = [encoder.paths(rng.fold(key, name, v), b) for v in range(2)]
    return None if each[0] is None else jnp.stack(each, axis=1)


def two_views(encoder: backbone.Backbone, pairs: Pictures) -> tuple[Callable, Callable]:
    """prepare and embed of a `Parts` whose features are the "y" and "y_prime" b d of two views.

    One view after the other: each is normalised by its own statistics, and the running ones move twice.
    """

    def prepare(batch, key):
        images = pairs.prepare(key, batch["image"])  # b v h w 1
        return {"images": images, "paths": paths_of_views(encoder, key, "drop_path", len(images))}

    def embed(params, state, prepared):
        features, stats = {}, state["batch_stats"]["encoder"]
        for v, name in enumerate(("y", "y_prime")):
            images, paths = (None if x is None else x[:, v] for x in (prepared["images"], prepared["paths"]))
            out, stats = encoder.apply(params["encoder"], stats, images, train=True, paths=paths)
            features[name] = out["pooled"]
        return features, stats

    return prepare, embed


def two_networks(encoder: backbone.Backbone, pairs: Pictures, online: str, target: str) -> tuple[Callable, Callable]:
    """prepare and embed of a `Parts` whose features are two views by two encoders: "online" and "target", b v d.

    The second is that of state["target"]; it normalises by its batch, and its running statistics are not kept. online,
    target: names of the streams of what they drop.
    """

    def prepare(batch, key):
        images = pairs.prepare(key, batch["image"])  # b v h w 1
        streams = {"online": online, "target": target}
        paths = {name: paths_of_views(encoder, key, stream, len(images)) for name, stream in streams.items()}
        return {"images": images, "paths": paths}

    def embed(params, state, prepared):
        of_online, of_target = (encoder_params(part, state) for part in (params, state["target"]))

        def forward(stats, view):
            images, paths = view
            y, moved = encoder.apply(of_online, stats, images, train=True, paths=paths["online"])
            of_copy, _ = encoder.apply(of_target, stats, images, train=True, paths=paths["target"])
            return moved, {"online": y["pooled"], "target": of_copy["pooled"]}

        views = prepared["images"], prepared["paths"]
        stats, features = in_turn(forward, state["batch_stats"]["encoder"], views)
        return features, stats

    return prepare, embed


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
    params: as `base.EncoderParams`, of the network as it is run.
    apply: (params, state, images b h w c float, *, train, paths=None, levels=False) -> (features, running statistics
      for state["batch_stats"]["encoder"]), as `backbone.Backbone.apply`.
    """

    init: Callable[[jax.Array], tuple[Params, State]]
    params: Callable[[Params, State], Params]
    apply: Callable[..., tuple[dict[str, jax.Array], State]]
    backbone: backbone.Backbone


def trunk(config: Config) -> Trunk:
    """The encoder of config.model, trained with its head or not, as config.encoder says.

    "learned": with the head. "frozen": parameters, running statistics of BatchNorm and every path stay as they start,
    so that features are those of the evaluated encoder. "drifting": the parameters stay, but a BatchNorm normalises by
    the batch and moves its statistics: what released code that only stops the gradients does (MGCA, MLVICX).
    With config.lora.rank above 0 the parameters of a ViT stay as well, and those of config.lora at params["lora"] are
    learned in their place, see `models.lora`.
    What never learns is in state["frozen"]["encoder"], see `encoder_params`. Raises ValueError for another word, and
    for a rank that does not go with it.
    """
    mode, encoder = config.encoder, backbone.make(config.model)
    if mode not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(map(repr, ENCODERS))}, got {mode!r}")
    rank = config.lora.rank if "lora" in config else 0
    if rank and (mode != "learned" or not isinstance(encoder.module, ViT)):
        raise ValueError(
            f"lora.rank={rank} adapts a Vision Transformer that learns; here model.variant={config.model.variant!r} "
            f"and encoder={mode!r}: give lora.rank=0, or a ViT with encoder='learned'"
        )

    def init(key):
        params, stats = encoder.init(key)
        state = {"batch_stats": {"encoder": stats}}
        if mode == "learned" and not rank:
            return {"encoder": params}, state
        learned = {"encoder": {}}
        if rank:
            learned["lora"] = lora.init(rng.fold(key, "lora"), params, rank, names(config.lora.kernels))
        return learned, {**state, "frozen": {"encoder": params}}

    def whole(params, state):
        found = encoder_params(params, state)
        return lora.merged(found, params["lora"], config.lora.alpha / rank) if rank else found

    def apply(params, state, images, *, train, paths=None, levels=False):
        network, stats = whole(params, state), state["batch_stats"]["encoder"]
        return encoder.apply(network, stats, images, train=train and mode != "frozen", paths=paths, levels=levels)

    return Trunk(init, whole, apply, encoder)
