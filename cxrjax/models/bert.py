"""BERT: the Transformer that reads reports.

Devlin et al., NAACL 2019, in the form of Hugging Face's `BertModel` without its pooler: word, position and type
embeddings and their LayerNorm, post-norm blocks, exact GELU, LayerNorm ε = 1e-12, N(0, 0.02²) initialisation. No
dropout. As a text is always one segment, the type is one vector instead of a table. `norm="pre"` is the pre-norm block
of GPT-2 with a last LayerNorm, whose gradients need no warm-up (Xiong et al., ICML 2020).

Blocks are stacked on a leading layer axis and scanned. With `frozen_layers` = k the first k are a stack of their own:
{"embeddings", "lower"} are then what a method keeps as it started, and {"layers"} is what it learns.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxrjax.models import linen
from cxrjax.models.attention import attend
from cxrjax.models.transformer import NORMAL, Linear, gelu, init_stacked, run_stacked
from cxrjax.models.vit import Size

# `base` is BERT's own size, `base6` its lower half, which MGCA keeps of Bio_ClinicalBERT; `test` and `mini` are ours.
VARIANTS = {"test": Size(64, 2, 2), "mini": Size(128, 3, 4), "base6": Size(768, 6, 12), "base": Size(768, 12, 12)}

NORMS = ("post", "pre")


class Bert(nn.Module):
    """Text encoder; see the module's docstring.

    width, depth, heads: see VARIANTS. hidden: width within the MLPs, by default 4·width. max_length: positions.
    norm: "post" (BERT) or "pre". eps: of every LayerNorm. dtype: of the computation; parameters are float32.
    remat: what a block recomputes in the backward pass, as in models/vit.py. frozen_layers: k, see the module.
    """

    vocab_size: int
    width: int
    depth: int
    heads: int
    hidden: int | None = None
    max_length: int = 512
    norm: str = "post"
    eps: float = 1e-12
    dtype: jnp.dtype = jnp.float32
    remat: str = "dots"
    frozen_layers: int = 0

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """Reads texts, each padded at its end.

        ids: int b l. mask: bool b l, True for its tokens, which stand first. A row without a token is read as if it had
        one, so that it gives finite numbers.
        Returns float32 arrays "tokens" b l d, of no meaning where there is padding, and "cls" b d, the first token.
        Raises ValueError for fields that do not fit together, and for texts of more than max_length tokens.
        """
        self._check(ids)
        embeddings = Embeddings(self.vocab_size, self.width, self.max_length, self.eps, name="embeddings")
        x = embeddings(ids).astype(self.dtype)
        lengths = jnp.maximum(mask.sum(-1), 1)
        block = Block(self.heads, self.hidden or 4 * self.width, self.norm, self.eps, self.dtype, parent=None)
        for name, count in (("lower", self.frozen_layers), ("layers", self.depth - self.frozen_layers)):
            if count:
                x = self._run(
                    block, self.param(name, init_stacked(block, count, jnp.zeros((1, 1, self.width)))), x, lengths
                )
        if self.norm == "pre":
            x = _layer_norm(self.eps, jnp.float32, "norm")(x)
        x = x.astype(jnp.float32)
        return {"tokens": x, "cls": x[:, 0]}

    def _run(self, block, blocks, x, lengths):
        def layer(x, params):
            return linen.apply(block, params, x, lengths), None

        return run_stacked(layer, x, blocks, self.remat)[0]

    def _check(self, ids):
        if self.norm not in NORMS:
            raise ValueError(f"norm must be 'post' or 'pre', got {self.norm!r}")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        if not 0 <= self.frozen_layers <= self.depth:
            raise ValueError(f"frozen_layers is {self.frozen_layers}; of {self.depth} layers 0 to {self.depth} can be")
        if ids.shape[-1] > self.max_length:
            raise ValueError(
                f"texts of {ids.shape[-1]} tokens do not fit {self.max_length} positions: cut them, or set max_length"
            )


class Embeddings(nn.Module):
    """Word + position + type and their LayerNorm: ids b l → float32 b l d."""

    vocab_size: int
    width: int
    max_length: int
    eps: float

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        word = self.param("word", NORMAL, (self.vocab_size, self.width))
        position = self.param("position", NORMAL, (self.max_length, self.width))
        kind = self.param("type", NORMAL, (self.width,))
        return _layer_norm(self.eps, jnp.float32, "norm")(word[ids] + position[: ids.shape[-1]] + kind)


class Block(nn.Module):
    """Transformer block over padded texts, b l d → b l d."""

    heads: int
    hidden: int
    norm: str
    eps: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """lengths: int b, tokens of each text; None where all are whole."""
        d = x.shape[-1]
        norm1, norm2 = (_layer_norm(self.eps, self.dtype, name) for name in ("norm1", "norm2"))

        def attention(y):
            q, k, v = jnp.split(Linear(3 * d, self.dtype, NORMAL, name="qkv")(y), 3, axis=-1)
            return Linear(d, self.dtype, NORMAL, name="out")(attend(q, k, v, self.heads, lengths))

        def mlp(y):
            return Linear(d, self.dtype, NORMAL, name="fc2")(
                gelu(Linear(self.hidden, self.dtype, NORMAL, name="fc1")(y))
            )

        if self.norm == "pre":
            x = x + attention(norm1(x))
            return x + mlp(norm2(x))
        x = norm1(x + attention(x))
        return norm2(x + mlp(x))


def words(tokens: jax.Array, word_index: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The sum of each word's pieces, and which words there are.

    tokens: b l d. word_index: int b l, number of the word from 0, negative for what is none ([CLS], [SEP], padding).
    count: w, how many words to return; later ones are left out.
    Returns b w d, zeros where there is no word, and bool b w.
    Source: GLoRIA (Huang et al., ICCV 2021) and MGCA (Wang et al., NeurIPS 2022), released code.
    """
    belongs = word_index[:, None, :] == jnp.arange(count)[:, None]  # b w l
    # A product with zeros and ones is the exact sum only if the pieces are not rounded on their way.
    summed = jnp.einsum("bwl,bld->bwd", belongs.astype(tokens.dtype), tokens, precision="highest")
    return summed, belongs.any(-1)


def _layer_norm(eps: float, dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    # Trained BERTs have a few channels far above the others, which E[x²] − E[x]² would lose digits to.
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)
