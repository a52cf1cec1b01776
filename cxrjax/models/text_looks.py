"""A text encoder that also says where its [CLS] token looks in the last layer, which MGCA weighs words by."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cxrjax.models import regions, text_tower
from cxrjax.models.bert import VARIANTS, Bert, Block
from cxrjax.models.text_tower import TextTower


def make(text: Mapping[str, Any]) -> TextTower:
    """The tower of `text_tower.make`, whose `apply` returns "looks" b l as well: [CLS]'s attention, mean over heads.

    The last block runs by itself behind a shorter encoder, so that its input is known and nothing is computed twice.
    "looks" has no gradient and is 0 where there is padding.
    """
    tower, size = text_tower.make(text), VARIANTS[text["variant"]]
    dtype = jnp.dtype(text["dtype"])
    # The stack that the last block is in, see models/bert.py.
    name = "lower" if text["frozen_layers"] == size.depth else "layers"
    shorter = Bert(
        vocab_size=text["vocab_size"],
        width=size.width,
        depth=size.depth - 1,
        heads=size.heads,
        frozen_layers=min(text["frozen_layers"], size.depth - 1),
        dtype=dtype,
    )
    block = Block(size.heads, shorter.hidden or 4 * size.width, shorter.norm, shorter.eps, dtype)

    def apply(params, frozen, ids, mask):
        every = {**params, **frozen}
        last = jax.tree.map(lambda leaf: leaf[-1], every[name])
        below = {**every, name: jax.tree.map(lambda leaf: leaf[:-1], every[name])}
        x = shorter.apply({"params": below}, ids, mask)["tokens"].astype(dtype)
        lengths = jnp.maximum(mask.sum(-1), 1)
        tokens = block.apply({"params": last}, x, lengths).astype(jnp.float32)
        pooled = text_tower.pool(text["pool"], {"tokens": tokens, "cls": tokens[:, 0]}, mask[..., None])
        real = jnp.arange(ids.shape[1]) < lengths[:, None]
        looks = regions.looks(x, last["qkv"], size.heads, real).mean(axis=1)
        return {"tokens": tokens, "pooled": pooled, "looks": jnp.where(mask, looks, 0)}

    return TextTower(tower.init, apply, tower.width)
