"""Codes and swapped prediction: hand values, the listing's loop, masks, bfloat16, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import parallel
from cxrjax.losses import prototypes

RNG = np.random.default_rng(0)
SCORES = RNG.uniform(-1, 1, size=(16, 5)).astype(np.float32)


def looped(scores, epsilon, iterations):
    """SwAV's listing, Q of K rows and a column per sample."""
    q = np.exp(np.asarray(scores, np.float64) / epsilon).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(iterations):
        for i in range(k):
            q[i] /= q[i].sum() * k
        for j in range(b):
            q[:, j] /= q[:, j].sum() * b
    return (q * b).T


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_codes_are_the_listing(iterations, dtype):
    """The order of rows and columns shows at few iterations."""
    scores = jnp.asarray(SCORES, dtype)
    found = prototypes.codes(scores, epsilon=0.07, iterations=iterations)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, looped(scores.astype(jnp.float32), 0.07, iterations), atol=2e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    if iterations == 50:
        np.testing.assert_allclose(found.sum(axis=0), 16 / 5, rtol=0.05)


@pytest.mark.parametrize(("epsilon", "iterations"), [(1.0, 1), (1.0, 7)])
def test_codes_of_two_samples_by_hand(epsilon, iterations):
    found = prototypes.codes(jnp.eye(2), epsilon=epsilon, iterations=iterations)
    np.testing.assert_allclose(found, [[0.7311, 0.2689], [0.2689, 0.7311]], atol=5e-5)
    sharp = prototypes.codes(jnp.eye(2), epsilon=0.07, iterations=iterations)
    assert float(sharp[0, 1]) == pytest.approx(6.2487e-7, rel=1e-3)
    both = jnp.asarray([[2.0, 0], [1, 0]])
    assert float(prototypes.codes(both, epsilon=1, iterations=100)[0, 0]) == pytest.approx(0.62246, abs=1e-5)
    assert float(prototypes.codes(both, epsilon=1)[0, 0]) == pytest.approx(0.6224, abs=5e-5)
    np.testing.assert_allclose(prototypes.codes(jnp.asarray([[2.0, 0], [2, 0]]), epsilon=1), 0.5, atol=1e-6)


def test_uniform_scores_give_uniform_codes_and_log_k():
    scores = jnp.full((4, 500), 0.3)
    codes = prototypes.codes(scores, epsilon=0.07)
    np.testing.assert_allclose(codes, 1 / 500, rtol=1e-4)
    assert float(prototypes.assignment(scores, codes, 0.1)) == pytest.approx(6.2146, abs=1e-4)


def test_columns_of_500_prototypes_are_nearly_even_after_three_iterations():
    x, w = RNG.normal(size=(96, 512)), RNG.normal(size=(500, 512))
    x, w = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, w))
    sums = np.asarray(prototypes.codes(jnp.asarray(x @ w.T), epsilon=0.07)).sum(axis=0)
    np.testing.assert_allclose(sums, 96 / 500, rtol=0.15)


@pytest.mark.parametrize("iterations", [1, 3])
def test_what_codes_do_not_see(iterations):
    """A constant on all scores or on one prototype's: nothing. On one sample's: fades with the iterations."""
    codes = prototypes.codes(SCORES, epsilon=0.07, iterations=iterations)
    for shift in (np.float32(3), np.asarray([0.3, -0.2, 0, 0, 1], np.float32)):
        shifted = prototypes.codes(SCORES + shift, epsilon=0.07, iterations=iterations)
        np.testing.assert_allclose(shifted, codes, atol=2e-4)
    one = SCORES.copy()
    one[3] += 0.3
    assert np.abs(prototypes.codes(one, epsilon=0.07, iterations=iterations) - codes).max() > 0.01
    late, later = (prototypes.codes(s, epsilon=0.07, iterations=200) for s in (SCORES, one))
    np.testing.assert_allclose(later, late, atol=1e-3)


def test_high_scores_overflow_without_the_shift_alone():
    """Under jit, since a compiler may take a logarithm of an exponential for nothing."""
    high = SCORES + 7
    naive = jax.jit(lambda s: prototypes.codes(s, epsilon=0.07, shift=False))
    assert not np.isfinite(naive(high)).any()
    np.testing.assert_allclose(naive(SCORES), prototypes.codes(SCORES, epsilon=0.07), atol=1e-6)
    np.testing.assert_allclose(prototypes.codes(high, epsilon=0.07), looped(SCORES, 0.07, 3), atol=2e-4)
    assert np.isfinite(prototypes.codes(SCORES, epsilon=1e-4)).all()


def test_invalid_rows_change_nothing():
    valid = RNG.random(16) < 0.5
    noisy = np.where(valid[:, None], SCORES, RNG.normal(size=SCORES.shape).astype(np.float32) * 100)
    found = prototypes.codes(noisy, epsilon=0.07, valid=valid)
    np.testing.assert_allclose(found[valid], prototypes.codes(SCORES[valid], epsilon=0.07), atol=1e-6)
    assert not np.any(found[~valid])
    loss = prototypes.assignment(noisy, found, 0.1, valid)
    alone = prototypes.assignment(SCORES[valid], found[valid], 0.1)
    assert float(loss) == pytest.approx(float(alone), rel=1e-6)
    none = np.zeros(16, bool)
    empty = prototypes.codes(SCORES, epsilon=0.07, valid=none)
    assert not np.any(empty)
    value, gradient = jax.value_and_grad(prototypes.assignment)(SCORES, empty, 0.1, none)
    assert float(value) == 0 and not np.any(gradient)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_assignment_in_value_and_gradient(dtype):
    """Against PyTorch's cross-entropy with soft targets, whose gradient reaches the scores that predict alone."""
    torch = pytest.importorskip("torch")
    scores = jnp.asarray(SCORES, dtype)
    rounded = np.asarray(scores.astype(jnp.float32))
    target = np.asarray(prototypes.codes(SCORES[::-1], epsilon=0.07))
    value, gradient = jax.value_and_grad(prototypes.assignment)(scores, target, 0.1)
    theirs = torch.tensor(rounded, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(theirs / 0.1, torch.tensor(target))
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient.astype(jnp.float32), theirs.grad, atol=1e-6 if dtype == jnp.float32 else 4e-3)


def test_no_gradient_reaches_the_codes():
    def swapped(text):
        return prototypes.assignment(SCORES, prototypes.codes(text, epsilon=0.07), 0.1)

    assert not np.any(jax.grad(swapped)(SCORES[::-1].copy()))
    assert not np.any(jax.grad(lambda q: prototypes.assignment(SCORES, q, 0.1))(jnp.full((16, 5), 0.2)))


def test_swapped_prediction_where_some_lack_a_view():
    """Whoever does not predict learns nothing; a pair is that of the examples that have both views."""
    valid = np.arange(16) % 3 > 0
    scores = {"picture": SCORES, "report": SCORES[::-1].copy()}
    options = {"epsilon": 0.07, "temperature": 0.1, "valid": {"picture": valid}}

    def loss(scores, pairs):
        return prototypes.swapped(scores, pairs, **options)[0]

    one_way, both_ways = [("picture", "report")], [("picture", "report"), ("report", "picture")]
    value, gradient = jax.value_and_grad(loss)(scores, both_ways)
    text = prototypes.codes(scores["report"], epsilon=0.07)
    picture = prototypes.codes(SCORES[valid], epsilon=0.07)
    expected = [
        prototypes.assignment(SCORES[valid], text[valid], 0.1),
        prototypes.assignment(scores["report"][valid], picture, 0.1),
    ]
    assert float(value) == pytest.approx(float(sum(expected)) / 2, rel=1e-5)
    assert np.any(gradient["report"][valid]) and not any(np.any(g[~valid]) for g in gradient.values())
    assert not np.any(jax.grad(loss)(scores, one_way)["report"])


def test_codes_balance_over_all_devices():
    """Some devices hold no valid row."""
    valid = np.arange(16) % 8 < 3

    def both(scores, valid):
        return prototypes.assignment(scores, prototypes.codes(scores[:, ::-1], epsilon=0.07, valid=valid), 0.1, valid)

    step = jax.jit(jax.value_and_grad(both))
    shards = parallel.to_global([SCORES, valid], parallel.make_mesh({"data": 8}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), step(SCORES, valid), step(*shards))
