"""The text encoder of an image–text method as pure functions, what is learned apart from what stays as it is."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cxrjax.losses.extrema import largest
from cxrjax.models import linen
from cxrjax.models.bert import VARIANTS, Bert

FROZEN = ("embeddings", "lower")
POOLS = ("cls", "mean", "max")


class TextTower(NamedTuple):
    """init: key → (params, frozen), to be kept at params["text"] and state["frozen"]["text"].

    apply: (params, frozen, ids b l, mask b l bool) → {"tokens": b l d, "pooled": b d}, float32. width: d.
    module: what both run.
    """

    init: Callable
    apply: Callable
    width: int
    module: Bert


def make(text: Mapping[str, Any]) -> TextTower:
    """The encoder of config.text: variant, vocab_size, length, pool, frozen_layers, dtype.

    pool: what stands for the text: "cls", the first token; "mean" or "max" over all of its tokens. [CLS] of a BERT that
    starts from noise is nearly the same for every text, and contrast then collapses before it learns.
    With frozen_layers k the embeddings and the first k layers are not learned; they are no part of params then.
    Raises ValueError for an unknown variant or pool, and for layers or a length that BERT does not have.
    """
    if text["variant"] not in VARIANTS:
        raise ValueError(f"there is no text encoder {text['variant']!r}; there are {', '.join(VARIANTS)}")
    if text["pool"] not in POOLS:
        raise ValueError(f"text.pool must be one of {', '.join(POOLS)}, got {text['pool']!r}")
    size = VARIANTS[text["variant"]]
    if not 0 <= text["frozen_layers"] <= size.depth:
        raise ValueError(
            f"text.frozen_layers is {text['frozen_layers']}; of the {size.depth} layers of {text['variant']!r} 0 to "
            f"{size.depth} can be"
        )
    if not 2 < text["length"] <= Bert.max_length:
        raise ValueError(f"text.length must be from 3 to {Bert.max_length} tokens, got {text['length']}")
    encoder = Bert(
        vocab_size=text["vocab_size"],
        width=size.width,
        depth=size.depth,
        heads=size.heads,
        frozen_layers=text["frozen_layers"],
        dtype=jnp.dtype(text["dtype"]),
    )

    def init(key):
        blank = jnp.zeros((1, text["length"]), jnp.int32)
        params = linen.init(encoder, key, blank, blank > 0)
        frozen = {name: params[name] for name in FROZEN if text["frozen_layers"] and name in params}
        return {name: tree for name, tree in params.items() if name not in frozen}, frozen

    def apply(params, frozen, ids, mask):
        out = linen.apply(encoder, {**params, **frozen}, ids, mask)
        return {"tokens": out["tokens"], "pooled": pool(text["pool"], out, mask[..., None])}

    return TextTower(init, apply, size.width, encoder)


def pool(kind: str, out: Mapping[str, jax.Array], mask: jax.Array) -> jax.Array:
    """b d; a row of padding alone gives zeros, but for "cls"."""
    if kind == "cls":
        return out["cls"]
    if kind == "mean":
        return jnp.sum(out["tokens"] * mask, axis=1) / jnp.maximum(mask.sum(axis=1), 1)
    highest = largest(jnp.where(mask, out["tokens"], -jnp.inf), 1)
    return jnp.where(mask.any(axis=1), highest, 0.0)
