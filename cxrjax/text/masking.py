"""Masked words: which pieces of a report are hidden for masked language modelling, drawn on the device."""

import jax
import jax.numpy as jnp
from einops import rearrange

IGNORED = 0  # the label of what is not masked: [PAD], which no text holds


def mask_words(
    key: jax.Array,
    ids: jax.Array,
    word_index: jax.Array,
    probability: float | jax.Array,
    mask_id: int,
    *,
    whole_words: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Hides words, each with its own probability and all of its pieces together.

    Each text draws from its own key, by its place in the batch: neither the other texts nor how they lie on devices
    change the draw. Where nothing is drawn the first word is hidden that may be; a text without such a word stays.

    ids: int b l. word_index: int b l, number of the word from 0, negative for [CLS], [SEP] and padding, which are never
    hidden. probability: one number, or b l, read at each word's first piece; a word with 0 is never hidden.
    whole_words: False draws each piece on its own, with its own probability, as code does that knows no words.
    Returns ids with `mask_id` where a piece is hidden, and the labels: the id where it is, 0 elsewhere.
    Source: whole-word masking (Google's BERT, release of May 2019). Every hidden piece becomes [MASK], as in F-L's
    released code, whereas BERT leaves or replaces a fifth of them.
    """
    b, length = ids.shape
    probability = jnp.broadcast_to(jnp.asarray(probability, jnp.float32), ids.shape)
    place = jnp.arange(length)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(b))
    draw = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys)
    first = jnp.broadcast_to(place, ids.shape)  # the piece that decides for each piece
    if whole_words:
        starts = word_index != jnp.pad(word_index, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
        first = jax.lax.cummax(jnp.where(starts, place, 0), axis=1)
    probability, draw = (jnp.take_along_axis(x, first, axis=1) for x in (probability, draw))
    allowed = (word_index >= 0) & (probability > 0)
    hidden = allowed & (draw < probability)
    earliest = jnp.min(jnp.where(allowed, first, length), axis=1)
    fallback = allowed & (first == rearrange(earliest, "b -> b 1"))
    hidden |= fallback & ~hidden.any(axis=1, keepdims=True)
    return jnp.where(hidden, mask_id, ids), jnp.where(hidden, ids, IGNORED)
