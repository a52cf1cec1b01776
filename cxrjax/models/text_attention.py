"""A text encoder that also says where its [CLS] token attends in the last layer, which MGCA weighs words by."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cxrjax.models import attention, linen, text_tower
from cxrjax.models.bert import Block
from cxrjax.models.text_tower import TextTower


def make(text: Mapping[str, Any]) -> TextTower:
    """The tower of `text_tower.make`; its `apply` also returns "attention" b l of [CLS], the mean over heads.

    The last block runs by itself behind a shorter encoder, so that its input is known and nothing is computed twice.
    "attention" has no gradient and is 0 where there is padding.
    """
    tower = text_tower.make(text)
    bert = tower.module
    # The stack that the last block is in, see models/bert.py.
    name = "lower" if bert.frozen_layers == bert.depth else "layers"
    shorter = bert.clone(depth=bert.depth - 1, frozen_layers=min(bert.frozen_layers, bert.depth - 1))
    block = Block(bert.heads, bert.hidden or 4 * bert.width, bert.norm, bert.eps, bert.dtype)

    def apply(params, frozen, ids, mask):
        every = {**params, **frozen}
        last = jax.tree.map(lambda leaf: leaf[-1], every[name])
        below = {**every, name: jax.tree.map(lambda leaf: leaf[:-1], every[name])}
        x = linen.apply(shorter, below, ids, mask)["tokens"].astype(bert.dtype)
        lengths = jnp.maximum(mask.sum(-1), 1)
        tokens = linen.apply(block, last, x, lengths).astype(jnp.float32)
        pooled = text_tower.pool(text["pool"], {"tokens": tokens, "cls": tokens[:, 0]}, mask[..., None])
        real = jnp.arange(ids.shape[1]) < lengths[:, None]
        weights = attention.of_first_token(x, last["qkv"], bert.heads, real).mean(axis=1)
        return {"tokens": tokens, "pooled": pooled, "attention": jnp.where(mask, weights, 0)}

    return tower._replace(apply=apply)
