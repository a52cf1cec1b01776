"""The text towers of CLIP and SigLIP: word and position embeddings, pre-norm blocks, a last LayerNorm.

CLIP (Radford et al., ICML 2021) lets a token see those before it alone, and takes the end token for the whole text.
SigLIP (Zhai et al., ICCV 2023) lets every token see all places, padding among them, and takes the last place. `make`
gives BERTs the same form.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxrjax.models import linen
from cxrjax.models.bert import Bert
from cxrjax.models.transformer import NORMAL, Block, init_stacked, run_stacked

KINDS = ("clip", "siglip", "bert")


class TextTransformer(nn.Module):
    """length: positions. mlp_ratio, eps, activation, causal: as of `transformer.Block`."""

    vocab_size: int
    width: int
    depth: int
    heads: int
    length: int
    mlp_ratio: float
    eps: float
    activation: str
    causal: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """ids: int b l, of at most `length` tokens → float32 b l d."""
        word = self.param("word", NORMAL, (self.vocab_size, self.width))
        position = self.param("position", NORMAL, (self.length, self.width))
        x = (word[ids] + position[: ids.shape[1]]).astype(self.dtype)
        options = {"mlp_ratio": self.mlp_ratio, "eps": self.eps, "activation": self.activation, "causal": self.causal}
        block = Block(self.heads, self.dtype, NORMAL, NORMAL, **options, parent=None)
        blocks = self.param("blocks", init_stacked(block, self.depth, jnp.zeros((1, 1, self.width))))
        x, _ = run_stacked(lambda x, params: (linen.apply(block, params, x), None), x, blocks, "none")
        return nn.LayerNorm(epsilon=self.eps, dtype=jnp.float32, name="norm")(x.astype(jnp.float32))


class Reader(NamedTuple):
    """init: key → params. apply: (params, ids int b l, mask bool b l) → float32 b d, the text as a whole."""

    init: Callable
    apply: Callable


def make(text: Mapping[str, Any]) -> Reader:
    """The encoder of texts of these settings: kind, of KINDS, and the fields of TextTransformer but causal, or of Bert.

    A BERT is read by its first token.
    """
    if text["kind"] == "bert":
        return _bert(Bert(**{name: text[name] for name in Bert.__dataclass_fields__ if name in text}))
    fields = {name: text[name] for name in TextTransformer.__dataclass_fields__ if name in text}
    fields |= {"dtype": jnp.dtype(text["dtype"]), "causal": text["kind"] == "clip"}
    tower = TextTransformer(**fields)

    def apply(params, ids, mask):
        tokens = linen.apply(tower, params, ids)
        if text["kind"] == "siglip":
            return tokens[:, -1]
        end = jnp.maximum(mask.sum(axis=1) - 1, 0)
        return jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0]

    return Reader(lambda key: linen.init(tower, key, jnp.zeros((1, text["length"]), jnp.int32)), apply)


def _bert(encoder: Bert) -> Reader:
    encoder = encoder.clone(remat="none", dtype=jnp.dtype(encoder.dtype))

    def init(key):
        blank = jnp.zeros((1, encoder.max_length), jnp.int32)
        return linen.init(encoder, key, blank, blank == 0)

    return Reader(init, lambda params, ids, mask: linen.apply(encoder, params, ids, mask)["cls"])
