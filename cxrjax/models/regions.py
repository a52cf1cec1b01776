"""An image encoder with the map that words are compared with, and where its [CLS] token attends.

GLoRIA and MGCA take layer3 of a ResNet-50, which is four times as fine as the last map, and let it see pictures of
224 px enlarged to 299; of a ViT they take the patches.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from cxrjax import sizes
from cxrjax.models import attention, backbone, linen
from cxrjax.models.interpolation import resize_matrix
from cxrjax.models.resnet import ResNet
from cxrjax.models.vit import ViT


class Regions(NamedTuple):
    """init: as a `backbone.Backbone`'s, with the same trees.

    apply: (params, state, images b h w c float, *, train, paths=None) → (features, state). Features are those of the
    backbone, "regions" b p q r and "attention" b n: how much [CLS] attends to each of the n = p·q patches, without
    gradient; None where there is no [CLS] or it is not asked for. paths: as a `backbone.Backbone`'s. width: d of
    "pooled". region_width: r.
    """

    init: Callable
    apply: Callable
    paths: Callable
    width: int
    region_width: int


def make(model: Mapping[str, Any], *, layer: int = 3, enlarge_px: int = 0, attention: bool = False) -> Regions:
    """The encoder of config.model (see `backbone.make`).

    layer: of a ResNet whose map the regions are, 1 to 4. enlarge_px: short side that pictures for a ResNet are brought
    to first, bilinearly and with corners on corners; 0 leaves them. attention: of a ViT, see `Regions`; then the inputs
    of all its blocks are kept. Raises ValueError for another layer, and for a ViT that pools by something else than
    [CLS] or the mean.
    """
    encoder = backbone.make(model)
    if isinstance(encoder.module, ViT):
        backbone.make_vit(model)
        apply = _vit(encoder.module, model["pool"], attention)
        return Regions(encoder.init, apply, encoder.paths, encoder.width, encoder.width)
    if not isinstance(encoder.module, ResNet):
        kind = type(encoder.module).__name__
        raise ValueError(f"the encoder is a {kind}, {model['variant']!r}: words are compared with a ViT or a ResNet")
    if layer not in (1, 2, 3, 4):
        raise ValueError(f"a ResNet has the layers 1 to 4, got layer={layer!r}")
    apply = _resnet(encoder.module, layer, enlarge_px)
    return Regions(encoder.init, apply, encoder.paths, encoder.width, encoder.module.size.widths[layer])


def enlarged_px(image_px: sizes.Px, short_px: int) -> tuple[int, int]:
    """Height and width of pictures of a size once their short side is short_px."""
    sides = sizes.sides(image_px)
    height, width = (round(side * short_px / min(sides)) for side in sides)
    return height, width


def enlarged(images: jax.Array, short_px: int) -> jax.Array:
    """b h w c as `enlarged_px` says, bilinear, the corner pixels staying the corners (torch's align_corners)."""
    wanted = enlarged_px(images.shape[1:3], short_px)
    for axis, formula in ((1, "bhwc,ih->biwc"), (2, "bhwc,jw->bhjc")):
        matrix = resize_matrix(images.shape[axis], wanted[axis - 1], aligned=True).astype(np.float32)
        images = jnp.einsum(formula, images, matrix, precision="highest")
    return images


def cls_attention(module: ViT, params: Mapping[str, Any], blocks: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """As `attention_of_heads`, mean over the heads: b n."""
    return attention_of_heads(module, params, blocks, grid).mean(axis=1)


def attention_of_heads(module: ViT, params: Mapping[str, Any], blocks: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """How much [CLS] attends to each of the n patches in a ViT's last block, by head: b heads n, no gradient.

    params: of the ViT; blocks: l b 1+r+n d, what it gives with `intermediates` of pictures of this grid. A row sums to
    1 less what [CLS] gives itself and the registers.
    """
    last = jax.tree.map(lambda leaf: leaf[-1], params["blocks"])
    norm = nn.LayerNorm(epsilon=module.eps, dtype=module.dtype, parent=None)
    y = linen.apply(norm, last["norm1"], blocks[-2])
    lead = 1 + module.registers
    angles = module.angles(grid)
    if angles is not None:
        angles = jnp.pad(angles, ((lead, 0), (0, 0)))
    found = attention.of_first_token(y, last["attention"]["qkv"], module.size.heads, angles=angles)
    return found[:, :, lead:]


def _vit(module, pool, wanted):
    def apply(params, state, images, *, train, paths=None):
        backbone.check_paths(module, train, paths)
        images = jnp.broadcast_to(images, (*images.shape[:3], module.channels))
        out = linen.apply(module, params, images, intermediates=wanted, paths=paths if train else None)
        p, q = (side // module.patch_px for side in images.shape[1:3])
        patches, pooled = out["patches"], out["cls"] if pool == "cls" else out["patches"].mean(axis=1)
        patches = rearrange(patches, "b (p q) d -> b p q d", p=p, q=q)
        features = {"pooled": pooled, "patches": patches, "regions": patches, "attention": None}
        if wanted:
            features["attention"] = cls_attention(module, params, out["blocks"], (p, q))
        return features, state

    return apply


def _resnet(module, layer, enlarge_px):
    def apply(params, state, images, *, train, paths=None):
        images = enlarged(images, enlarge_px) if enlarge_px else images
        images = jnp.broadcast_to(images, (*images.shape[:3], module.channels))
        variables = {"params": params, "batch_stats": state}
        out, updated = module.apply(variables, images, train, mutable=["batch_stats"])
        patches, regions = (out["taps"][i].astype(jnp.float32) for i in (-1, layer))
        features = {"pooled": out["pooled"], "patches": patches, "regions": regions, "attention": None}
        return features, updated["batch_stats"] if train else state

    return apply
