"""Losses that hold words against regions of a picture, on global arrays.

`gloria` compares every picture of the batch with every report, `token_alignment` the words of a report with each other
through the regions of its own picture. Similarities and log-sum-exps are float32 at full matmul precision. A report
without a single word is no pair: the losses are those of the batch without it, and 0 where no pair is left.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange

from cxrjax.losses.pairs import NEVER, diagonal, mean_where, normalise, products

AGGREGATES = ("sum", "mean")


def gloria(
    regions: jax.Array,
    words: jax.Array,
    word_mask: jax.Array,
    *,
    attention_scale: float = 4.0,
    word_scale: float = 5.0,
    pair_scale: float = 10.0,
    over_words: bool = True,
    aggregate: str = "sum",
    chunks: int = 1,
) -> jax.Array:
    """Local contrastive loss of GLoRIA: cross-entropy of pair_scale · Z over the reports and over the pictures, summed.

    regions: b n d. words: b w d. word_mask: b w, False is padding. The other arguments are those of `gloria_scores`.
    Returns the scalar −1/b Σ_i [log softmax_j(z_ij)_i + log softmax_j(z_ji)_i], z = pair_scale · gloria_scores(…).
    Source: released code of Huang et al., ICCV 2021, whose scales are reciprocals of the paper's temperatures.
    """
    options = {"attention_scale": attention_scale, "word_scale": word_scale, "over_words": over_words}
    scores = gloria_scores(regions, words, word_mask, aggregate=aggregate, chunks=chunks, **options)
    pair = word_mask.any(axis=1)
    logits = jnp.where(pair[:, None] & pair[None, :], pair_scale * scores, NEVER)
    # Not jnp.diag: taking a diagonal of a sharded matrix doubles the all-gathers.
    positive = jnp.sum(jnp.where(diagonal(len(logits)), logits, 0), axis=1)
    surprise = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0) - 2 * positive
    return mean_where(surprise, pair)


def gloria_scores(
    regions: jax.Array,
    words: jax.Array,
    word_mask: jax.Array,
    *,
    attention_scale: float = 4.0,
    word_scale: float = 5.0,
    over_words: bool = True,
    aggregate: str = "sum",
    chunks: int = 1,
) -> jax.Array:
    """How well every report fits every picture, b b: of picture i and report j log Σ_l exp(word_scale · cos(c_l, t_l)).

    regions: b n d, and words: b w d, of any length; word_mask: b w. c_l = Σ_n a_ln v_n is picture i as word l of
    report j sees it, a_l = softmax_n(attention_scale · s_nl).
    over_words: s_nl is the softmax of v_n·t_l over the words l, so that regions compete for words before words do for
    regions; without it s_nl is v_n·t_l, and attention_scale then has to be small.
    aggregate: "sum" over words as above, with which long reports fit everything better, or "mean".
    chunks: the reports are taken in so many chunks, one after another, and computed again in the backward pass. An
    array then has no more than b · b/chunks · w · n numbers at a time.

    A report without words scores 0. Source: released code of Huang et al., ICCV 2021. Attention over words first is
    AttnGAN's (Xu et al., CVPR 2018, eq. 8), whose logarithm is divided by word_scale (eq. 10): here, as in the released
    code, that is left to the scale of the loss.
    Raises ValueError for another aggregate, and for chunks that do not divide b.
    """
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate must be one of {', '.join(AGGREGATES)}, got {aggregate!r}")
    if chunks < 1 or len(words) % chunks:
        raise ValueError(f"{len(words)} reports do not divide into {chunks} chunks; take a divisor of {len(words)}")
    regions, words = regions.astype(jnp.float32), words.astype(jnp.float32)
    score = partial(_score, regions, attention_scale, word_scale, over_words, aggregate)
    if chunks == 1:
        return score((words, word_mask))
    # Every chunk takes reports from all over the batch: a chunk of neighbours would lie on few of the devices.
    split = [rearrange(x, "(j c) ... -> c j ...", c=chunks) for x in (words, word_mask)]
    return rearrange(jax.lax.map(jax.checkpoint(score), tuple(split)), "c i j -> i (j c)")


@jax.named_scope("pairwise")
def _score(regions, attention_scale, word_scale, over_words, aggregate, reports):
    words, mask = reports  # j w d, j w
    s = _einsum("ind,jwd->ijwn", regions, words)
    similarity = s
    if over_words:
        similarity = jax.nn.softmax(jnp.where(mask[..., None], s, NEVER), axis=2)
    attention = jax.nn.softmax(attention_scale * similarity, axis=-1)
    # c·t = Σ_n a_n v_n·t and ‖c‖² = aᵀ V Vᵀ a: the vectors c themselves, of d numbers for each word and picture, are
    # never made.
    inner = jnp.sum(attention * s, axis=-1)
    gram = _einsum("ind,imd->inm", regions, regions)
    squared = jnp.sum(attention * _einsum("ijwn,inm->ijwm", attention, gram), axis=-1)
    lengths = jnp.maximum(squared, 0) + 1e-12, jnp.sum(words * words, axis=-1) + 1e-12
    matches = word_scale * inner * jax.lax.rsqrt(lengths[0]) * jax.lax.rsqrt(lengths[1])
    pooled = jax.nn.logsumexp(jnp.where(mask, matches, NEVER), axis=-1)
    if aggregate == "mean":
        pooled = pooled - jnp.log(jnp.maximum(mask.sum(-1), 1))
    return jnp.where(mask.any(-1), pooled, 0.0)


def token_alignment(
    regions: jax.Array,
    words: jax.Array,
    word_mask: jax.Array,
    *,
    temperature: float = 0.1,
    region_weights: jax.Array | None = None,
    word_weights: jax.Array | None = None,
    raw_seen_words: bool = False,
    padding_is_negative: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Cross-attention-based token-wise alignment of MGCA: the losses of the words and of the regions, to be added.

    regions: b n d, words: b w d, any length (normalised here). word_mask: b w. Every word attends to the regions of its
    picture, c_l = Σ_n softmax_n(t_l·v_n / τ) v_n, and has to be told by it from the report's other words, both ways:
    Σ_l weight_l · ½ [CE_k(t_l·c_k / τ) + CE_k(c_l·t_k / τ)]; the regions likewise through the words. Means over pairs.
    region_weights: b n, word_weights: b w, no gradient; None is uniform, others are scaled to the sum 1 over what is
    not padding (see `clipped`).
    raw_seen_words: the words as a region sees them keep their length, which the released code does with a ViT.
    padding_is_negative: words of padding stand in the denominators of the words, as in the released code.
    Source: released code of Wang et al., NeurIPS 2022. It also has learned projections of the attention, which it does
    not use in training.
    """
    v, t = normalise(regions), normalise(words)
    pair = word_mask.any(axis=1)
    logits = products(t, v) / temperature
    seen_regions = normalise(_einsum("bwn,bnd->bwd", jax.nn.softmax(logits, axis=-1), v))
    attention = jax.nn.softmax(jnp.where(word_mask[..., None], logits, NEVER), axis=1)
    seen_words = _einsum("bwn,bwd->bnd", attention, t)
    seen_words = seen_words if raw_seen_words else normalise(seen_words)

    everywhere = jnp.ones(v.shape[:2], bool)
    negatives = jnp.ones_like(word_mask) if padding_is_negative else word_mask
    of_words = _told_apart(t, seen_regions, negatives, _weights(word_weights, word_mask), temperature)
    of_regions = _told_apart(v, seen_words, everywhere, _weights(region_weights, everywhere), temperature)
    return mean_where(of_words, pair), mean_where(of_regions, pair)


def clipped(weights: jax.Array, mask: jax.Array, *, low: float = 0.1, high: float = 0.9) -> jax.Array:
    """Weights b n ≥ 0 clipped to two quantiles of their row, and scaled to the sum 1, without gradient.

    mask: b n bool. Where it is False the result is 0, and what stood there changes nothing; a row without True stays 0.
    What MGCA does with the attention of [CLS] in the last layer.
    Source: released code of Wang et al., NeurIPS 2022.
    """
    weights = jax.lax.stop_gradient(weights.astype(jnp.float32))
    # A row without True would have no quantile.
    counted = jnp.where(mask | ~mask.any(axis=1, keepdims=True), weights, jnp.nan)
    ends = jnp.nanquantile(counted, jnp.array([low, high]), axis=1, keepdims=True)
    return _weights(jnp.clip(weights, ends[0], ends[1]), mask)


def _told_apart(own, seen, mask, weights, temperature):
    """Weighted cross-entropies of a row's tokens, own_l among all seen and seen_l among all own: b."""
    logits = products(own, seen) / temperature
    positive = jnp.sum(own * seen, axis=-1) / temperature
    of_own = jax.nn.logsumexp(jnp.where(mask[:, None, :], logits, NEVER), axis=2) - positive
    of_seen = jax.nn.logsumexp(jnp.where(mask[:, :, None], logits, NEVER), axis=1) - positive
    return jnp.sum(weights * (of_own + of_seen) / 2, axis=1)


def _weights(weights, mask):
    weights = jnp.ones(mask.shape) if weights is None else jax.lax.stop_gradient(weights.astype(jnp.float32))
    weights = jnp.where(mask, weights, 0)
    return weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-12)


def _einsum(formula, *arrays):
    return jnp.einsum(formula, *arrays, precision=jax.lax.Precision.HIGHEST)
