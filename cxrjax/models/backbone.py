"""One interface for the encoders that an image method can train: Vision Transformers, ResNets, ConvNeXts and Swins."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cxrjax import sizes
from cxrjax.models import convnext, linen, resnet, swin, vit
from cxrjax.models.convnext import ConvNeXt
from cxrjax.models.resnet import ResNet
from cxrjax.models.swin import Swin
from cxrjax.models.vit import ViT

_MODULE_OWN = {"parent", "name"}
_VARIANTS = {ViT: vit.VARIANTS, ResNet: resnet.VARIANTS, ConvNeXt: convnext.VARIANTS, Swin: swin.VARIANTS}
_FIELDS = {module: {f.name for f in dataclasses.fields(module)} - _MODULE_OWN for module in _VARIANTS}

POOLS = {"cls": "cls", "mean": "patches", "without_cls": "patches", "attention": "pooled"}
"""model.pool -> the output of a ViT that it takes."""
_NEEDED = {
    ViT: {"image_px", "patch_px", "pool", "dtype"},
    ResNet: {"image_px", "dtype"},
    ConvNeXt: {"image_px", "dtype"},
    Swin: {"image_px", "dtype"},
}


class Backbone(NamedTuple):
    """An encoder as pure functions.

    init: key → (params, state). params are exactly those of the Linen module, so that what a method keeps at
      params["encoder"] can be exported and started from; state are its running statistics, to be kept at
      state["batch_stats"]["encoder"]: the tree {"bn1": {"mean", "var"}, …} of a ResNet, {} of a ViT.
    apply: (params, state, images b h w c float, *, train, paths=None, levels=False, alone=False) → ({"pooled": b d,
      "patches": b p q d}, state), the features float32. train: a ResNet normalises by the batch and returns moved
      statistics; a ViT drops paths, which must be given where the config's drop_path is above 0. levels: adds "levels",
      what heads of segmentation and detection read: the outputs of a ViT's blocks before its last LayerNorm, l b p q d,
      or the five maps of a ResNet; of others a ValueError. alone: adds "alone" b p q d, patches for a projection
      that was learned on "pooled": those that a ViT calls so, and of the others the last map. Pictures of one channel
      are repeated over `channels`.
    paths: (key, b) or (key, b, v) → what a ViT or a Swin drops of so many pictures, see their `paths`; None of others.
    width: d. image_px: size of the pictures that the config names (`sizes.plain`); apply takes others as well.
    module: the Linen module itself, for more of its outputs.
    """

    init: Callable
    apply: Callable
    paths: Callable
    width: int
    image_px: int | tuple[int, int]
    module: ViT | ResNet | ConvNeXt | Swin


def make(model: Mapping[str, Any]) -> Backbone:
    """The encoder of config.model.

    model: `variant`, of the VARIANTS of vit, resnet, convnext or swin; image_px; dtype, as a word; of a ViT
    patch_px and pool: "cls", "mean" over the patch tokens, "without_cls", their mean in blocks that [CLS] is left out
    of, or "attention" of a learned query. Any other field of the four may be given by its name. Fields that only
    others have are left aside, so that one config serves all. The last map of a ResNet is its "patches",
    and their mean its "pooled".
    Raises ValueError for an unknown variant, pool, key or word of a key, listing what exists, and for a missing key.
    """
    options = dict(model)
    known = sorted(set().union(*_FIELDS.values(), {"pool"}))
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"unknown keys {unknown} in the model's config; there are {known}")
    family = _family(options.get("variant"))
    if missing := sorted(_NEEDED[family] - set(options)):
        raise ValueError(
            f"the encoder {options['variant']!r} also needs {', '.join(f'model.{key}' for key in missing)}; got the "
            f"keys {sorted(options)}. Start from a config with an encoder of the same family"
        )
    options["image_px"] = sizes.plain(options["image_px"])
    fields = {name: value for name, value in options.items() if name in _FIELDS[family]}
    fields["dtype"] = jnp.dtype(options["dtype"])
    if family is ViT:
        if options["pool"] == "attention":
            fields["attention_pool"] = True
        module = ViT(**fields)
        module.check()
        if options["pool"] == "cls" and not module.cls_token:
            raise ValueError("pool='cls', and the ViT has none (cls_token=False): pool by 'mean' or 'attention'")
        return _vit(module, options["pool"])
    if family is ConvNeXt:
        return _convnext(ConvNeXt(**fields), options["image_px"])
    if family is Swin:
        return _swin(Swin(**fields), options["image_px"])
    module = ResNet(**fields)
    module.check()
    return _resnet(module, options["image_px"])


def kind(variant: str) -> str:
    """ "ViT", "ResNet", "ConvNeXt" or "Swin"; raises ValueError for an unknown variant, listing those that exist."""
    return _family(variant).__name__


def _family(variant: Any) -> type:
    family = next((module for module, variants in _VARIANTS.items() if variant in variants), None)
    if family is None:
        known = "; ".join(f"{module.__name__}s: {', '.join(variants)}" for module, variants in _VARIANTS.items())
        raise ValueError(f"there is no encoder {variant!r}; {known}")
    return family


def make_vit(model: Mapping[str, Any]) -> tuple[Backbone, ViT]:
    """`make` for methods that give a ViT some of the tokens, and that ViT.

    Raises ValueError for a ResNet, and for another pool than "cls" and "mean".
    """
    if kind(model["variant"]) != "ViT" or model["pool"] not in ("cls", "mean") or not model.get("cls_token", True):
        raise ValueError(
            f"this method takes a ViT with [CLS]: got model.variant={model['variant']!r} and "
            f"model.pool={model['pool']!r}; variants: {', '.join(vit.VARIANTS)}; pools: 'cls', 'mean'"
        )
    encoder = make(model)
    assert isinstance(encoder.module, ViT)
    return encoder, encoder.module


def _vit(module: ViT, pool: str) -> Backbone:
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(map(repr, POOLS))}, got {pool!r}")
    drop_cls = pool == "without_cls"

    def init(key):
        return linen.init(module, key, _blank(module.image_px, module.channels)), {}

    def apply(params, state, images, *, train, paths=None, levels=False, alone=False):
        check_paths(module, train, paths)
        images = _repeat(images, module.channels)
        paths = paths if train else None
        wanted = {"intermediates": levels, "drop_cls": drop_cls, "alone": alone}
        out = linen.apply(module, params, images, paths=paths, **wanted)
        p, q = (side // module.patch_px for side in images.shape[1:3])
        pooled = out[POOLS[pool]] if pool in ("cls", "attention") else out["patches"].mean(axis=1)
        features = {"pooled": pooled, "patches": out["patches"].reshape(len(images), p, q, -1)}
        if levels:
            blocks = out["blocks"][:, :, -p * q :]
            features["levels"] = blocks.reshape(-1, *features["patches"].shape)
        if alone:
            features["alone"] = out["alone"].reshape(features["patches"].shape)
        return features, state

    return Backbone(init, apply, module.paths, module.size.width, module.image_px, module)


def check_paths(module: ViT | Swin, train: bool, paths: jax.Array | None) -> None:
    """Raises ValueError where an encoder that drops paths is to be trained without any."""
    if train and module.drop_path and paths is None:
        raise ValueError(f"drop_path={module.drop_path} needs to know what it drops: give apply its paths in training")


def _resnet(module: ResNet, image_px: int | tuple[int, int]) -> Backbone:
    def init(key):
        variables = module.init(key, _blank(image_px, module.channels), train=False)
        return variables["params"], variables["batch_stats"]

    def apply(params, state, images, *, train, paths=None, levels=False, alone=False):
        images, variables = _repeat(images, module.channels), {"params": params, "batch_stats": state}
        out, updated = module.apply(variables, images, train, mutable=["batch_stats"])
        features = {"pooled": out["pooled"], "patches": out["taps"][-1].astype(jnp.float32)}
        if levels:
            features["levels"] = out["taps"]
        if alone:
            features["alone"] = features["patches"]
        return features, updated["batch_stats"] if train else state

    return Backbone(init, apply, lambda key, *shape: None, module.size.widths[-1], image_px, module)


def _convnext(module: ConvNeXt, image_px: int | tuple[int, int]) -> Backbone:
    def init(key):
        return linen.init(module, key, _blank(image_px, module.channels)), {}

    def apply(params, state, images, *, train, paths=None, levels=False, alone=False):
        if levels:
            raise _without_levels(module)
        features = linen.apply(module, params, _repeat(images, module.channels))
        return features | ({"alone": features["patches"]} if alone else {}), state

    return Backbone(init, apply, lambda key, *shape: None, module.size.widths[-1], image_px, module)


def _swin(module: Swin, image_px: int | tuple[int, int]) -> Backbone:
    def init(key):
        return linen.init(module, key, _blank(image_px, module.channels)), {}

    def apply(params, state, images, *, train, paths=None, levels=False, alone=False):
        if levels:
            raise _without_levels(module)
        check_paths(module, train, paths)
        found = linen.apply(module, params, images, paths=paths if train else None)
        patches = found["patches"].reshape(len(images), *module.grid(*images.shape[1:3]), -1)
        return {"pooled": found["pooled"], "patches": patches} | ({"alone": patches} if alone else {}), state

    return Backbone(init, apply, module.paths, module.width, image_px, module)


def _without_levels(module: ConvNeXt | Swin) -> ValueError:
    return ValueError(
        f"the encoder is a {type(module).__name__}, {module.variant!r}: heads of segmentation and detection take a ViT "
        "or a ResNet"
    )


def _blank(px: sizes.Px, channels: int) -> jax.Array:
    return jnp.zeros((1, *sizes.sides(px), channels))


def _repeat(images: jax.Array, channels: int) -> jax.Array:
    """Grey pictures for an encoder of several channels; others as they are."""
    return jnp.broadcast_to(images, (*images.shape[:3], channels)) if images.shape[-1] == 1 else images
