"""The collapse monitors at their known extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import monitors


def test_collapsed_and_spread_features():
    spread = jax.random.normal(jax.random.key(0), (512, 16))
    collapsed = jnp.ones((64, 16)) + 1e-6 * spread[:64]
    assert float(monitors.feature_std(spread)) == pytest.approx(1, abs=0.05)
    assert float(monitors.feature_std(collapsed)) < 1e-3
    assert float(monitors.effective_rank(spread)) > 14
    line = jnp.linspace(-1, 1, 64)[:, None] * jnp.ones((1, 16))
    assert float(monitors.effective_rank(line)) == pytest.approx(1, abs=1e-3)


def test_effective_rank_is_the_participation_ratio_on_both_sides_of_the_gram_switch():
    for shape in ((40, 8), (8, 40)):
        x = jax.random.normal(jax.random.key(1), shape) * jnp.arange(1, shape[1] + 1)
        spectrum = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
        assert float(monitors.effective_rank(x)) == pytest.approx(spectrum.sum() ** 2 / (spectrum**2).sum(), rel=1e-4)


def test_retrieval():
    u = jax.random.normal(jax.random.key(2), (10, 32))
    assert float(monitors.retrieval_top1(u, 3 * u)) == 1
    assert float(monitors.retrieval_top1(u, jnp.roll(u, 1, axis=0))) == 0
    assert float(monitors.retrieval_top1(u, u.at[:5].set(jnp.roll(u[:5], 1, axis=0)))) == 0.5


def test_alignment_and_uniformity_against_plain_loops():
    rng = np.random.default_rng(0)
    u, v = 3 * rng.normal(size=(2, 9, 4))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (u, v))
    near = np.mean([np.sum((a[i] - b[i]) ** 2) for i in range(9)])
    pairs = [np.exp(-2 * np.sum((a[i] - a[j]) ** 2)) for i in range(9) for j in range(9) if i != j]
    assert float(monitors.alignment(u, v)) == pytest.approx(near, rel=1e-5)
    assert float(monitors.uniformity(u)) == pytest.approx(np.log(np.mean(pairs)), rel=1e-5)


def test_alignment_and_uniformity_at_their_extremes():
    spread = jax.random.normal(jax.random.key(0), (256, 512))
    assert float(monitors.uniformity(spread)) == pytest.approx(-4, abs=0.05)
    assert float(monitors.uniformity(jnp.ones((64, 16)))) == pytest.approx(0, abs=1e-5)
    opposite = jnp.array([[2.0, 0.0], [-1.0, 0.0]])
    assert float(monitors.uniformity(opposite)) == pytest.approx(-8, abs=1e-5)
    assert float(monitors.alignment(opposite, opposite[::-1])) == pytest.approx(4, abs=1e-5)
    assert float(monitors.alignment(spread, 5 * spread)) == pytest.approx(0, abs=1e-5)
    assert float(monitors.uniformity(spread[:1])) == 0


def test_embedding_reports_finite_numbers_and_passes_no_gradient():
    def total(u, v):
        return sum(monitors.embedding(u, v).values())

    u, v = jax.random.normal(jax.random.key(3), (2, 12, 6))
    assert list(monitors.embedding(u)) == ["feature_std", "effective_rank", "uniformity"]
    assert list(monitors.embedding(u, v))[3:] == ["alignment", "retrieval_top1"]
    for gradient in jax.grad(total, (0, 1))(u, v):
        np.testing.assert_array_equal(gradient, 0)
    for x in (jnp.zeros((4, 6)), jnp.ones((4, 6)), u[:1], u.astype(jnp.bfloat16)):
        assert all(np.isfinite(value) for value in monitors.embedding(x, x).values())


def test_own_report_first_counts_equal_reports():
    """The third row of four has no picture; the fourth finds another report, with other words."""
    g, t = jnp.eye(4)[jnp.asarray([1, 0, 2, 2])], jnp.eye(4)
    number, counted = jnp.asarray([5, 5, 6, 7]), jnp.asarray([True, True, False, True])
    assert float(monitors.own_report_first(g, t, number, counted)) == pytest.approx(2 / 3)
    assert float(monitors.own_report_first(g, t, number, counted & False)) == 0


def test_token_accuracy_is_of_hidden_tokens():
    guesses = jnp.asarray([[1, 2, 0], [3, 3, 1]])
    assert float(monitors.token_accuracy(guesses, jnp.asarray([[1, 3, 0], [0, 0, 1]]))) == pytest.approx(2 / 3)
    assert float(monitors.token_accuracy(guesses, jnp.zeros((2, 3), int))) == 0
