"""Masked words: pieces of a word go together, each word with its own probability, each text with its own draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import parallel
from cxrjax.text import masking

MASK_ID = 4
# [CLS], five words of 1, 3, 1, 2 and 1 pieces, [SEP], padding.
INDEX = np.array([-1, 0, 1, 1, 1, 2, 3, 3, 4, -1, -1, -1], np.int32)
IDS = np.array([2, *range(10, 18), 3, 0, 0], np.int32)


def masked(seed, probability, b=64, whole_words=True, index=INDEX):
    ids, index = np.tile(IDS, (b, 1)), np.tile(index, (b, 1))
    run = jax.jit(masking.mask_words, static_argnames=("mask_id", "whole_words"))
    found, labels = run(jax.random.key(seed), ids, index, probability, mask_id=MASK_ID, whole_words=whole_words)
    found, labels = np.asarray(found), np.asarray(labels)
    np.testing.assert_array_equal(labels, np.where(found == MASK_ID, ids, 0))
    np.testing.assert_array_equal(found, np.where(labels > 0, MASK_ID, ids))
    return labels > 0


@pytest.mark.parametrize("probability", [0.15, 0.7])
def test_words_are_hidden_whole_and_as_often_as_asked(probability):
    hidden = masked(0, probability, b=4000)
    assert not hidden[:, INDEX < 0].any()
    words = np.stack([hidden[:, INDEX == word].any(1) for word in range(5)], 1)
    np.testing.assert_array_equal(hidden[:, INDEX >= 0], words[:, INDEX[INDEX >= 0]])
    # Where nothing was drawn the first word is hidden: that adds (1 − p)⁵ to its share.
    expected = probability + np.array([(1 - probability) ** 5, 0, 0, 0, 0])
    np.testing.assert_allclose(words.mean(0), expected, atol=4 * (0.25 / 4000) ** 0.5)
    assert hidden.any(1).all()
    joint = np.mean(words[:, 1] & words[:, 2]) - words[:, 1].mean() * words[:, 2].mean()
    assert abs(joint) < 0.03


def test_each_word_has_the_probability_of_its_first_piece():
    probability = np.zeros((64, 12), np.float32)
    probability[:, [2, 7]] = 1  # the first piece of the second word, the second piece of the fourth
    np.testing.assert_array_equal(masked(0, probability), np.tile(INDEX == 1, (64, 1)))
    # Of words that may be hidden the first one is, not one whose probability is 0.
    probability = np.where(INDEX >= 2, 1e-9, 0).astype(np.float32) * np.ones((64, 1), np.float32)
    np.testing.assert_array_equal(masked(0, probability), np.tile(INDEX == 2, (64, 1)))


def test_pieces_on_their_own():
    hidden = masked(0, 0.5, b=4000, whole_words=False)
    assert not hidden[:, INDEX < 0].any()
    np.testing.assert_allclose(hidden[:, 2:9].mean(0), 0.5, atol=0.035)
    assert 0.4 < (hidden[:, 2] == hidden[:, 3]).mean() < 0.6
    np.testing.assert_array_equal(masked(0, 1e-9, whole_words=False), np.tile(np.arange(12) == 1, (64, 1)))


def test_a_text_without_words_stays_as_it_is():
    assert not masked(0, 0.9, index=np.full(12, -1, np.int32)).any()


def test_the_draw_is_the_texts_own():
    """Not that of the texts beside it, nor of their number or devices; another key or place gives another."""
    few, many = masked(3, 0.5, b=8), masked(3, 0.5, b=64)
    np.testing.assert_array_equal(many[:8], few)
    assert len(np.unique(many, axis=0)) > 10
    assert (masked(4, 0.5) != many).any()
    batch = parallel.to_global([np.tile(IDS, (64, 1)), np.tile(INDEX, (64, 1))], parallel.make_mesh({"data": 8}))
    split = jax.jit(lambda ids, index: masking.mask_words(jax.random.key(3), ids, index, 0.5, MASK_ID))(*batch)[0]
    np.testing.assert_array_equal(np.asarray(split) == MASK_ID, many)
    assert jnp.asarray(split).dtype == jnp.int32
