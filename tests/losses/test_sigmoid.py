"""SigLIP's loss against hand values and a loop written from the paper's sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import parallel
from cxrjax.losses import contrastive


@pytest.fixture(scope="module")
def pair():
    return tuple(jax.random.normal(key, (6, 3)) for key in jax.random.split(jax.random.key(0), 2))


def loop(u, v, t, b, positives=None):
    """−1/M Σ_i Σ_j log 1 / (1 + exp(−z_ij (t u_i·v_j + b))) in float64 NumPy."""
    u, v = (np.float64(x) / np.linalg.norm(np.float64(x), axis=1, keepdims=True) for x in (u, v))
    total = 0.0
    for i in range(len(u)):
        for j in range(len(u)):
            z = 1 if i == j or (positives is not None and positives[i, j]) else -1
            total += np.log(1 + np.exp(-z * (t * (u[i] @ v[j]) + b)))
    return total / len(u)


def test_hand_values():
    """Orthonormal pairs, t = 10, b = −10: M pairs at logit 0, M²−M at −10. Its start is near ln 2 for that reason."""
    for m in (2, 4):
        expected = np.log(2) + (m - 1) * np.log1p(np.exp(-10))
        assert float(contrastive.sigmoid(jnp.eye(m), jnp.eye(m), scale=10.0, bias=-10.0)) == pytest.approx(expected)
    swapped = contrastive.sigmoid(jnp.eye(2), jnp.eye(2)[::-1], scale=2.0, bias=0.0)
    # Each row: its pair at 0, the other at 2 though it should be low.
    assert float(swapped) == pytest.approx(np.log(2) + np.log1p(np.exp(2)), rel=1e-6)


@pytest.mark.parametrize("doubled", [False, True])
def test_value_and_gradient_are_the_loops(pair, doubled):
    u, v = pair
    positives = np.zeros((6, 6), bool)
    positives[[1, 4, 0], [4, 1, 5]] = True
    given = positives if doubled else None

    def loss(u, v, t, b):
        return contrastive.sigmoid(u, v, scale=t, bias=b, positives=given)

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(u, v, 5.0, -2.0)
    arguments = [np.float64(u), np.float64(v), np.float64(5), np.float64(-2)]
    assert float(value) == pytest.approx(loop(*arguments, given), rel=1e-5)
    for place, gradient in enumerate(gradients):
        for index in np.ndindex(gradient.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [np.array(x) for x in arguments]
                moved[place][index] += step
                ends.append(loop(*moved, given))
            assert float(gradient[index]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=2e-5)


def test_far_logits_are_finite(pair):
    value, gradient = jax.value_and_grad(lambda t: contrastive.sigmoid(*pair, scale=t, bias=-1e4))(1e4)
    assert np.isfinite(value) and np.isfinite(gradient)


def test_bfloat16_vectors_are_compared_in_float32(pair):
    u, v = (x.astype(jnp.bfloat16) for x in pair)
    found = contrastive.sigmoid(u, v, scale=10.0, bias=-10.0)
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(loop(u.astype(jnp.float32), v.astype(jnp.float32), 10, -10), rel=1e-5)


def test_eight_devices_give_what_one_gives():
    u, v = (jax.random.normal(key, (16, 4)) for key in jax.random.split(jax.random.key(1), 2))
    loss = jax.jit(jax.value_and_grad(lambda u, v: contrastive.sigmoid(u, v, scale=5.0, bias=-2.0), argnums=(0, 1)))
    one, eight = loss(u, v), loss(*jax.device_put((u, v), parallel.batch_sharding(parallel.make_mesh())))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
