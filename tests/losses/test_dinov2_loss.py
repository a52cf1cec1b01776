"""iBOT's loss and KoLeo: values computed by hand, plain loops for value and gradient; targets of three iterations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.losses import distill
from tests.losses.test_contrastive import DTYPES, angles, assert_gradient, numeric_gradient, rounded

S = jnp.float32([[0.1, 0], [0, 0], [0, 0.2]])
Q = jnp.float32([[0.7, 0.3], [0.5, 0.5], [0.2, 0.8]])


def test_balanced_targets_by_hand():
    """The last thing done is to rows, so that columns are not quite even."""
    logits = jnp.float32([[0, 1], [2, 0], [1, 1]])
    once = [[0.17572106, 0.82427894], [0.81067296, 0.18932704], [0.36688325, 0.63311675]]
    thrice = [[0.21517695, 0.78482305], [0.84631706, 0.15368294], [0.42702547, 0.57297453]]
    for iterations, expected in ((1, once), (3, thrice)):
        np.testing.assert_allclose(distill.sinkhorn(logits, 1.0, iterations), expected, atol=1e-6)
    logits = jnp.float32([[0.1, 0.2, 0], [0.3, 0, 0.1], [0, 0.1, 0.2]])
    expected = [
        [0.08822692, 0.85380171, 0.05797137],
        [0.84076813, 0.02683795, 0.13239391],
        [0.01711846, 0.16566112, 0.81722043],
    ]
    for shift in (0, jnp.float32([[5, 0, -1]])):  # of prototypes
        np.testing.assert_allclose(distill.sinkhorn(logits + shift, 0.07), expected, atol=1e-4)


def test_ibot_by_hand():
    """Two crops of two and one hidden patches, alone and beside two crops without any."""
    for weights, expected in (([0.25, 0.25, 0.5], 0.59006622), ([0.125, 0.125, 0.25], 0.29503311)):
        assert float(distill.ibot(S, Q, jnp.float32(weights), 0.1)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_are_the_loops(dtype):
    rng = np.random.default_rng(0)
    (x, s), (x_exact, s_exact) = rounded(dtype, rng.normal(size=(6, 3)), rng.normal(size=(5, 4)))
    q, w = rng.dirichlet(np.ones(4), 5).astype(np.float32), rng.random(5).astype(np.float32)

    def loop_ibot(s):
        return sum(-w[j] * q[j] @ (s[j] / 0.1 - np.log(np.exp(s[j] / 0.1).sum())) for j in range(5))

    def loop_koleo(x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        near = [max((j for j in range(6) if j != i), key=lambda j: x[i] @ x[j]) for i in range(6)]
        return -np.mean([np.log(np.linalg.norm(x[i] - x[near[i]])) for i in range(6)])

    for ours, loop, given, exact in (
        (lambda s: distill.ibot(s, q, w, 0.1), loop_ibot, s, s_exact),
        (lambda x: distill.koleo(x)[0], loop_koleo, x, x_exact),
    ):
        value, gradient = jax.value_and_grad(ours)(given)
        assert float(value) == pytest.approx(loop(exact), rel=1e-5)
        assert_gradient(gradient, numeric_gradient(loop, exact), dtype, atol=1e-5)


def test_koleo_by_hand():
    assert float(distill.koleo(jnp.eye(2))[0]) == pytest.approx(-0.34657360, abs=1e-6)
    lengths = jnp.float32([[3], [1], [0.5]])
    assert float(distill.koleo(angles(0, 60, 180) * lengths)[0]) == pytest.approx(-0.18310205, abs=1e-6)
    loss, least = distill.koleo(angles(0, 90, 180, 270))
    assert float(loss) == pytest.approx(-0.34657359, abs=1e-6) and float(least) == pytest.approx(2**0.5, rel=1e-5)
    equal = jnp.ones((2, 4))
    assert float(distill.koleo(equal)[0]) == pytest.approx(17.322068, rel=1e-6)
    assert not np.any(jax.grad(lambda x: distill.koleo(x)[0])(equal))


def test_koleo_of_opposite_rows():
    """Each is the other's neighbour; the released code takes the first row for its own."""
    rows = jnp.float32([[1, 0], [-1, 0]])
    assert float(distill.koleo(rows)[0]) == pytest.approx(-0.69314718, abs=1e-6)
    assert float(distill.koleo(rows, itself=True)[0]) == pytest.approx(8.4230800, abs=1e-5)


def test_koleo_of_groups():
    x = jnp.float32(np.random.default_rng(0).normal(size=(8, 3)))
    halves = [distill.koleo(half) for half in (x[:4], x[4:])]
    loss, least = distill.koleo(x, groups=2)
    assert float(loss) == pytest.approx(float(halves[0][0] + halves[1][0]) / 2, rel=1e-5)
    assert float(least) == float(min(halves[0][1], halves[1][1]))


def test_gram_anchoring_is_the_loop():
    """Cosines of all pairs of patches, crop by crop, whatever the lengths; the anchor gets no gradient."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(2, 3, 4, 5)).astype(np.float32) for _ in range(2))

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    expected = np.zeros((2, 3))
    for b, v, i, j in np.ndindex(2, 3, 4, 4):
        expected[b, v] += (cosine(x[b, v, i], x[b, v, j]) - cosine(y[b, v, i], y[b, v, j])) ** 2 / 16
    np.testing.assert_allclose(distill.gram(jnp.asarray(3 * x), jnp.asarray(y)), expected, rtol=1e-5)
    to_x, to_y = jax.grad(lambda x, y: distill.gram(x, y).sum(), argnums=(0, 1))(jnp.asarray(x), jnp.asarray(y))
    assert np.any(to_x) and not np.any(to_y)
