"""FaNe's losses: which reports are the same, hardest negatives, and sentences, by hand and against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import optim
from cxrjax.losses import contrastive, mining
from tests.losses.test_contrastive import DTYPES, angles, assert_gradient, numeric_gradient, rounded

NONE = jnp.zeros((3, 3), bool)


def test_same_meaning_by_hand():
    """Two equal reports and another: o* = 0.745…, Ŝ = 1, 1, −2.9; strictly above the threshold."""
    r = jnp.float32([[1, 0], [1, 0], [0, 1]])
    offset = mining.centroid_cosine(r)
    assert float(offset) == pytest.approx(0.74535599, abs=1e-6)
    expected = [[True, True, False], [True, True, False], [False, False, True]]
    assert mining.same_meaning(r, offset, 0.95).tolist() == expected
    assert float(optim.ema(offset, 0.6, 0.95)) == pytest.approx(0.73808819, abs=1e-6)
    shares = (angles(0, 0, 90) @ angles(0, 0, 90).T - offset) / (1 - offset + 1e-6)
    np.testing.assert_allclose(shares[0], [0.99999607, 0.99999607, -2.9270395], rtol=1e-5)
    assert not mining.same_meaning(angles(0, 60), 0.0, 0.5 + 1e-6)[0, 1]
    assert mining.same_meaning(angles(0, 60), 0.0, 0.49)[0, 1]
    assert not np.any(jax.grad(lambda r: mining.centroid_cosine(r))(r))


def test_sigmoid_as_released_by_hand():
    """Slope 26.59 and β = −10 in the authors' sign, +10 in SigLIP's; then SigLIP's own at a slope of 1/0.07."""
    eye, options = jnp.eye(2), {"scale": jnp.log(1 / 0.07) / 0.1, "bias": 10.0}
    assert float(contrastive.sigmoid(eye, eye, **options)) == pytest.approx(10.000045, rel=1e-6)
    assert float(contrastive.sigmoid(eye, eye[::-1], **options)) == pytest.approx(36.592646, rel=1e-6)
    same = jnp.ones((2, 2), bool)
    assert float(contrastive.sigmoid(eye, eye, positives=same, **options)) == pytest.approx(4.5398899e-5, rel=1e-4)
    siglip = contrastive.sigmoid(eye, eye, scale=1 / 0.07, bias=-10.0)
    assert float(siglip) == pytest.approx(0.013715325, rel=1e-5)


def test_hard_negatives_by_hand():
    x = angles(0, 60, 90)
    own = jnp.eye(3, dtype=bool)
    assert float(mining.hard_negatives(x, own, 0.07)) == pytest.approx(10.628813, rel=1e-5)
    pair = own.at[0, 1].set(True).at[1, 0].set(True)
    assert float(mining.hard_negatives(x, pair, 0.07)) == pytest.approx(8.247861, rel=1e-5)
    value, gradient = jax.value_and_grad(mining.hard_negatives)(x, ~NONE, 0.07)
    assert float(value) == 0 and not np.any(gradient)


def test_sentences_by_hand():
    e, c = jnp.eye(2)[None], angles(0, 60)[None]
    assert float(mining.own_sentence(e, c, jnp.array([2]), 0.07)) == pytest.approx(0.0015349908, rel=1e-3)
    both = jnp.concatenate([e, e]), jnp.concatenate([c, c]), jnp.array([2, 1])
    for single, share in ((False, 1.0), (True, 0.5)):
        found = mining.own_sentence(*both, 0.07, single)
        assert float(found) == pytest.approx(share * 0.0015349908, rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_are_the_loops(dtype):
    rng = np.random.default_rng(0)
    (x, e, c), (x_, e_, c_) = rounded(
        dtype, rng.normal(size=(5, 3)), rng.normal(size=(3, 4, 3)), rng.normal(size=(3, 4, 3))
    )
    positives, count = np.eye(5, dtype=bool) | (rng.random((5, 5)) < 0.2), np.array([4, 1, 3])

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def loop_hard(x):
        x, total = unit(x), 0.0
        for i in range(5):
            logits = np.array([x[i] @ x[j] / 0.5 for j in range(5) if not positives[i, j]])
            total += np.sum(np.exp(logits / 0.5) / np.exp(logits / 0.5).sum() * logits) / 5
        return total

    def loop_sentences(e):
        found = []
        for b in (0, 2):
            m = unit(e[b, : count[b]]) @ unit(c_[b, : count[b]]).T / 0.5
            ce = [np.mean([np.log(np.exp(m[k]).sum()) - m[k, k] for k in range(count[b])]) for m in (m, m.T)]
            found.append(np.mean(ce))
        return np.mean(found)

    for ours, loop, given, exact in (
        (lambda x: mining.hard_negatives(x, positives, 0.5), loop_hard, x, x_),
        (lambda e: mining.own_sentence(e, c, count, 0.5), loop_sentences, e, e_),
    ):
        value, gradient = jax.value_and_grad(ours)(given)
        assert float(value) == pytest.approx(loop(exact), rel=1e-4)
        assert_gradient(gradient, numeric_gradient(loop, exact), dtype, atol=1e-5)
