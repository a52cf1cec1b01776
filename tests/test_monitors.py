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
