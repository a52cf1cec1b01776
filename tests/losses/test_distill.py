"""Losses of online and target networks: hand values, plain loops, and no gradient into targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cxrjax.losses import distill
from tests.losses.test_contrastive import DTYPES, assert_gradient, rounded


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [((0, 0), 0), ((0, 60), 1), ((0, 90), 2), ((30, 210), 4), ((10, -10), 2 - 2 * np.cos(np.pi / 9))],
)
def test_byol_by_hand(degrees, expected):
    """2 − 2·cos of the angle, whatever the lengths."""
    q, z = (np.asarray([[np.cos(a), np.sin(a)]]) for a in np.deg2rad(degrees))
    for scale in (1, 0.01, 100):
        assert float(distill.byol(jnp.asarray(scale * q), jnp.asarray(5 * z))) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_byol_is_the_squared_distance_of_unit_vectors(dtype):
    """Eq. 2 in PyTorch, value and gradient; the target gets none."""
    keys = jax.random.split(jax.random.key(0))
    cast, (q, z) = rounded(dtype, *(jax.random.normal(key, (5, 3)) for key in keys))
    value, (to_q, to_z) = jax.value_and_grad(distill.byol, argnums=(0, 1))(*cast)
    ours, theirs = torch.tensor(q, requires_grad=True), torch.tensor(z)
    difference = ours / ours.norm(dim=1, keepdim=True) - theirs / theirs.norm(dim=1, keepdim=True)
    expected = (difference**2).sum(dim=1).mean()
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-6)
    assert_gradient(to_q, ours.grad, dtype, atol=1e-7)
    assert not np.any(to_z)


def test_byol_compares_half_precision_in_float32():
    q = jnp.asarray([[1.0, 1e-3]], jnp.bfloat16)
    loss = distill.byol(q, jnp.asarray([[1.0, 0.0]], jnp.bfloat16))
    assert loss.dtype == jnp.float32 and float(loss) == pytest.approx(1e-6, rel=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
def test_features_are_compared_by_cosine_and_smooth_l1(dtype):
    """Against PyTorch, value and gradient, over all vectors of b p q; the frozen network gets none."""
    keys = jax.random.split(jax.random.key(1))
    cast, (y, t) = rounded(dtype, *(2 * jax.random.normal(key, (3, 2, 2, 5)) for key in keys))

    def weighed(y, t):
        cosine, smooth_l1 = distill.features(y, t)
        return 0.9 * cosine + 0.1 * smooth_l1

    value, (to_y, to_t) = jax.value_and_grad(weighed, argnums=(0, 1))(*cast)
    ours, theirs = torch.tensor(y, requires_grad=True), torch.tensor(t)
    cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=-1)
    expected = 0.9 * (1 - cosine).mean() + 0.1 * torch.nn.functional.smooth_l1_loss(ours, theirs)
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    assert_gradient(to_y, ours.grad, dtype, atol=1e-7)
    assert not np.any(to_t)


def test_features_of_a_frozen_network_are_standardised_over_the_batch():
    """Also where their mean is large; a feature that is the same everywhere is 0 and no NaN."""
    x = np.random.default_rng(0).normal(100, 3, (4, 2, 3, 5)).astype(np.float32)
    x[..., 0] = 7
    found = np.asarray(distill.standardised(jnp.asarray(x)))
    rows = found.reshape(-1, 5).astype(np.float64)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(rows.std(0), [0, 1, 1, 1, 1], atol=1e-4)
    expected = (x - x.mean((0, 1, 2))) / np.maximum(x.std((0, 1, 2)), 1e-3)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert not np.any(jax.grad(lambda x: jnp.sum(distill.standardised(x) ** 2))(jnp.asarray(x)))
