"""The text encoder of an image–text method as pure functions, apart what is learned and what stays as it started."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from cxrjax.models.bert import VARIANTS, Bert

FROZEN = ("embeddings", "lower")


class TextTower(NamedTuple):
    """init: key → (params, frozen), to be kept at params["text"] and state["frozen"]["text"].

    apply: (params, frozen, ids b l, mask b l bool) → {"tokens": b l d, "cls": b d}, float32. width: d.
    """

    init: Callable
    apply: Callable
    width: int


def make(text: Mapping[str, Any]) -> TextTower:
    """The encoder of config.text: variant, vocab_size, length, frozen_layers, dtype.

    With frozen_layers k the embeddings and the first k layers are not learned; they are no part of params then.
    Raises ValueError for an unknown variant.
    """
    if text["variant"] not in VARIANTS:
        raise ValueError(f"there is no text encoder {text['variant']!r}; there are {', '.join(VARIANTS)}")
    size = VARIANTS[text["variant"]]
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
        params = encoder.init(key, blank, blank > 0)["params"]
        frozen = {name: params[name] for name in FROZEN if text["frozen_layers"] and name in params}
        return {name: tree for name, tree in params.items() if name not in frozen}, frozen

    def apply(params, frozen, ids, mask):
        return encoder.apply({"params": {**params, **frozen}}, ids, mask)

    return TextTower(init, apply, size.width)
