"""Masked-language cross-entropy against a loop over tokens, and values known in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import parallel
from cxrjax.losses import masked

RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.normal(size=(8, 6, 11)).astype(np.float32)
# Rows of very different counts, so that a mean of means is another number.
LABELS = np.where(RNG.random((8, 6)) < np.linspace(0, 1, 8)[:, None], RNG.integers(1, 11, (8, 6)), 0)


def looped(logits, labels):
    """Value and gradient, a labelled token at a time."""
    total, count, gradient = 0.0, 0, np.zeros(logits.shape)
    for b, place in zip(*np.nonzero(labels), strict=True):
        row = np.float64(logits[b, place])
        softmax = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        total -= math.log(softmax[labels[b, place]])
        gradient[b, place] = softmax - (np.arange(len(row)) == labels[b, place])
        count += 1
    return total / count, gradient / count


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_is_the_loop_in_value_and_gradient(dtype):
    logits = LOGITS.astype(dtype)
    value, gradient = jax.value_and_grad(masked.masked_tokens)(logits, LABELS)
    expected, slope = looped(logits, LABELS)
    assert value.dtype == jnp.float32 and gradient.dtype == dtype
    assert float(value) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(np.float32(gradient), slope, atol=1e-7 if dtype == np.float32 else 2**-12)


def test_values_in_closed_form():
    """All logits equal: ln v, however far off they are; nothing labelled: 0 and no gradient; extremes stay finite."""
    assert float(masked.masked_tokens(jnp.full((8, 6, 11), 1e4), LABELS)) == pytest.approx(math.log(11), rel=1e-6)
    value, gradient = jax.value_and_grad(masked.masked_tokens)(LOGITS, np.zeros_like(LABELS))
    assert float(value) == 0 and not np.any(gradient)
    sure = 1e4 * jax.nn.one_hot(LABELS, 11)
    assert float(masked.masked_tokens(sure, LABELS)) == 0
    assert float(masked.masked_tokens(-sure, LABELS)) == pytest.approx(1e4 + math.log(10), rel=1e-6)


def test_tokens_without_label_change_nothing():
    noise = 9 * RNG.normal(size=LOGITS.shape).astype(np.float32) * (LABELS == 0)[..., None]
    before, after = (jax.value_and_grad(masked.masked_tokens)(LOGITS + n, LABELS) for n in (0, noise))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_splitting_over_devices_changes_nothing():
    whole = jax.value_and_grad(masked.masked_tokens)(LOGITS, LABELS)
    shards = parallel.to_global([LOGITS, LABELS], parallel.make_mesh({"data": 8}))
    split = jax.jit(jax.value_and_grad(masked.masked_tokens))(*shards)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), whole, split)
