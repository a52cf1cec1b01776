"""Variance and covariance: values computed by hand, and plain loops for value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import parallel
from cxrjax.losses import redundancy
from cxrjax.speed import flops
from tests.losses.test_contrastive import DTYPES, assert_gradient, rounded

A = np.asarray([(1, 0), (-1, 0), (0, 1), (0, -1)], np.float32)
HINGE = 1 - np.sqrt(2 / 3 + 1e-4)


def loop_vicreg(u, v, groups=1):
    """The official code's three terms before weighting, entry by entry, in float64."""
    total = np.zeros(3)
    for pair in zip(np.split(np.float64(u), groups), np.split(np.float64(v), groups), strict=True):
        u, v = pair
        n, d = u.shape
        total[0] += sum((u[i, j] - v[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)
        for x in (u, v):
            x = x - x.mean(axis=0)
            for j in range(d):
                deviation = np.sqrt(sum(x[i, j] ** 2 for i in range(n)) / (n - 1) + 1e-4)
                total[1] += max(0, 1 - deviation) / d / 2
                for k in range(d):
                    if k != j:
                        total[2] += (sum(x[i, j] * x[i, k] for i in range(n)) / (n - 1)) ** 2 / d
    return total / groups


def loop_barlow(u, v, groups=1):
    """Zbontar et al., eq. 1 and 2, before weighting, with BatchNorm's ε."""
    total = np.zeros(2)
    for pair in zip(np.split(np.float64(u), groups), np.split(np.float64(v), groups), strict=True):
        u, v = pair
        n, d = u.shape
        u, v = ((x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5) for x in (u, v))
        for j in range(d):
            for k in range(d):
                c = sum(u[i, j] * v[i, k] for i in range(n)) / n
                total[int(j != k)] += (1 - c) ** 2 if j == k else c**2
    return total / groups


def numeric_gradient(f, x, eps=1e-5):
    x = np.float64(x)
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[index] = eps
        gradient[index] = (f(x + step) - f(x - step)) / (2 * eps)
    return gradient


def normal(seed, *shape, scale=1.0):
    return np.float32(scale * np.random.default_rng(seed).standard_normal(shape))


def ordered(terms):
    """The terms in the order of the loops above: names are sorted by jax.vmap and jax.jit."""
    names = ("invariance", "variance", "covariance", "on_diagonal", "off_diagonal")
    return [float(terms[name]) for name in names if name in terms]


def compiled(loss, **options):
    """(u, v) -> the terms in the order of the loops above, and the gradient of their sum."""

    def objective(u, v):
        terms = loss(u, v, **options)
        return sum(terms.values()), terms

    gradient = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))

    def evaluate(u, v):
        (_, terms), gradients = gradient(jnp.asarray(u), jnp.asarray(v))
        assert all(value.dtype == jnp.float32 for value in terms.values())
        return ordered(terms), gradients

    return evaluate


_PARTS = {groups: compiled(redundancy.vicreg, sim=1, std=1, cov=1, groups=groups) for groups in (1, 8)}


def vicreg(u, v, groups=1):
    """s, v, c unweighted."""
    return _PARTS[groups](np.float32(u), np.float32(v))[0]


@pytest.mark.parametrize(
    ("u", "v", "terms", "loss"),
    [
        (A, A, (0, HINGE, 0), 4.586055),
        (A, A[:, ::-1], (1, HINGE, 0), 29.586055),
        ([(1, 1), (-1, -1)], [(1, 1), (-1, -1)], (0, 0, 8), 8),
        ([(0.5, 0.5), (-0.5, -0.5)], [(0.5, 0.5), (-0.5, -0.5)], (0, 0.2928225, 0.5), 7.820563),
        (np.full((4, 3), 7.0), np.full((4, 3), 7.0), (0, 0.99, 0), 24.75),
    ],
)
def test_hand_computed(u, v, terms, loss):
    np.testing.assert_allclose(vicreg(u, v), terms, atol=1e-6)
    weighted = redundancy.vicreg(np.float32(u), np.float32(v))
    assert float(sum(weighted.values())) == pytest.approx(loss, abs=1e-5)


def test_collapse_has_a_finite_gradient():
    """ε lies inside the root, where √Var has no gradient at zero."""
    for loss in (redundancy.vicreg, redundancy.barlow):
        _, gradients = compiled(loss)(np.ones((4, 3)), np.ones((4, 3)))
        assert np.isfinite(gradients).all()


def test_covariance_of_noise():
    """(D−1)/(N−1) = 65.0 per view for independent normal values, 64 × 4096."""
    u, v = normal(0, 64, 4096), normal(1, 64, 4096)
    assert vicreg(u, v)[2] / 2 == pytest.approx(65.0, rel=0.01)


def test_batch_normalised_embeddings_have_no_variance_term():
    """BatchNorm's variance is N/(N−1) with M−1, so the hinge is shut; only a scale γ below 1 opens it."""
    x = normal(0, 64, 256, scale=3.0)
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    terms, gradients = compiled(redundancy.vicreg, sim=0, cov=0)(x, x)
    assert terms[1] == 0 and not np.any(gradients)
    assert vicreg(0.5 * x, 0.5 * x)[1] == pytest.approx(1 - np.sqrt(0.25 * 64 / 63 + 1e-4), abs=1e-5)


def test_invariances():
    u, v = normal(0, 12, 5, scale=0.7), normal(1, 12, 5, scale=0.7)
    s, hinge, c = vicreg(u, v)
    scaled = vicreg(3 * u, 3 * v)
    np.testing.assert_allclose([scaled[0], scaled[2]], [9 * s, 81 * c], rtol=1e-5)
    np.testing.assert_allclose(vicreg(u + 2, v - 1)[1:], [hinge, c], rtol=1e-4)
    np.testing.assert_allclose(vicreg(v, u), [s, hinge, c], rtol=1e-5)
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_allclose(vicreg(u[order], v[order]), [s, hinge, c], rtol=1e-5)
    one_view = vicreg(u[order], v)
    np.testing.assert_allclose(one_view[1:], [hinge, c], rtol=1e-5)
    assert abs(one_view[0] - s) > 0.02
    rotation = np.linalg.qr(normal(2, 5, 5))[0]
    rotated = vicreg(u @ rotation, v @ rotation)
    assert rotated[0] == pytest.approx(s, rel=1e-5)
    assert abs(rotated[1] - hinge) > 1e-3 and abs(rotated[2] - c) > 1e-3


@pytest.mark.parametrize(("n", "d"), [(8, 40), (12, 12), (40, 8)])
def test_small_and_large_matrices_give_the_same(n, d):
    """Fewer rows than dimensions goes through M M products; value and gradient are those of the d d form."""
    u, v = normal(0, n, d), normal(1, n, d)
    off = 1 - jnp.eye(d)

    def direct_vicreg(u, v):
        tilde = [x - x.mean(axis=0) for x in (u, v)]
        return sum(jnp.sum(off * (x.T @ x / (n - 1)) ** 2) / d for x in tilde)

    def direct_barlow(u, v):
        u, v = ((x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5) for x in (u, v))
        return jnp.sum(off * (u.T @ v / n) ** 2)

    for ours, direct in (
        (lambda u, v: redundancy.vicreg(u, v)["covariance"], direct_vicreg),
        (lambda u, v: redundancy.barlow(u, v, lambd=1.0)["off_diagonal"], direct_barlow),
    ):
        value, gradient = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(u, v)
        expected, expected_gradient = jax.jit(jax.value_and_grad(direct, argnums=(0, 1)))(u, v)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        for found, wanted in zip(gradient, expected_gradient, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(("n", "d"), [(8, 64), (16, 64), (64, 32)])
def test_covariance_floor(n, d):
    """d unit variances on M−1 ranks; a simplex of M points reaches the floor exactly."""
    floor = redundancy.covariance_floor(n, d)
    x = normal(0, n, d)
    x = (x - x.mean(0)) / x.std(0, ddof=1)
    assert vicreg(x, x)[2] / 2 >= floor
    assert redundancy.covariance_floor(64, 4096) == pytest.approx(64.0, abs=0.02)
    assert redundancy.covariance_floor(256, 4096) == pytest.approx(15.06, abs=0.01)


def test_the_floor_is_reached():
    n, copies = 4, 5
    basis = np.linalg.qr(np.concatenate([np.ones((n, 1)), np.eye(n)[:, 1:]], axis=1))[0][:, 1:] * np.sqrt(n - 1)
    x = np.tile(basis, (1, copies))  # every direction as often: C has equal eigenvalues
    assert vicreg(x, x)[2] / 2 == pytest.approx(redundancy.covariance_floor(n, (n - 1) * copies), rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), [((6, 4), 1), ((4, 6), 1), ((6, 4), 2)])
def test_vicreg_against_the_loop(shape, groups, dtype):
    """At 0.9 some deviations are above and some below 1, so the hinge is on both sides."""
    cast, (u, v) = rounded(dtype, normal(3, *shape, scale=0.9), normal(4, *shape, scale=0.9))
    weights = np.asarray([25, 25, 1.0])
    terms, (to_u, to_v) = compiled(redundancy.vicreg, groups=groups)(*cast)
    np.testing.assert_allclose(terms, weights * loop_vicreg(u, v, groups), rtol=1e-5, atol=1e-6)
    assert_gradient(to_u, numeric_gradient(lambda x: weights @ loop_vicreg(x, v, groups), u), dtype, atol=2e-4)
    assert_gradient(to_v, numeric_gradient(lambda x: weights @ loop_vicreg(u, x, groups), v), dtype, atol=2e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), [((6, 4), 1), ((4, 6), 1), ((6, 4), 2)])
def test_barlow_against_the_loop(shape, groups, dtype):
    cast, (u, v) = rounded(dtype, normal(3, *shape), normal(4, *shape))
    weights = np.asarray([1, 0.1])
    terms, (to_u, to_v) = compiled(redundancy.barlow, lambd=0.1, groups=groups)(*cast)
    np.testing.assert_allclose(terms, weights * loop_barlow(u, v, groups), rtol=1e-5, atol=1e-6)
    assert_gradient(to_u, numeric_gradient(lambda x: weights @ loop_barlow(x, v, groups), u), dtype, atol=2e-4)
    assert_gradient(to_v, numeric_gradient(lambda x: weights @ loop_barlow(u, x, groups), v), dtype, atol=2e-4)


def test_barlow_hand_computed():
    """Equal views: C = I from A's columns, so nothing is left; swapped columns: C is the exchange matrix."""
    equal = redundancy.barlow(A, A, lambd=0.5)
    np.testing.assert_allclose(ordered(equal), [0, 0], atol=1e-6)
    swapped = redundancy.barlow(A, A[:, ::-1], lambd=0.5)
    np.testing.assert_allclose(ordered(swapped), [2, 1], rtol=1e-4)
    scaled = redundancy.barlow(A, A[:, ::-1], lambd=0.5, scale=0.024)
    np.testing.assert_allclose(ordered(scaled), [0.048, 0.024], rtol=1e-4)
    collapsed = redundancy.barlow(np.ones((4, 3)), np.ones((4, 3)))
    np.testing.assert_allclose(ordered(collapsed), [3, 0], atol=1e-6)


@pytest.mark.parametrize("loss", [redundancy.vicreg, redundancy.barlow])
def test_one_device_is_eight(loss):
    """Value and gradient with the batch on 1 and on 8 devices: no factor of 8 from a gather."""
    u, v = normal(0, 64, 16), normal(1, 64, 16)
    objective = jax.value_and_grad(lambda u, v: sum(loss(u, v).values()))
    results = []
    for devices in (1, 8):
        sharding = parallel.batch_sharding(parallel.make_mesh({"data": devices}))
        results.append(jax.device_get(jax.jit(objective)(*jax.device_put((u, v), sharding))))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)


def test_statistics_of_one_device_are_another_loss():
    """64 × 16 normal values in 8 slices give c ≈ 2.0, v ≈ 0.12 where the batch gives ≈ 0.2 and 0.03."""
    draws = np.asarray([vicreg(u := normal(i, 64, 16), u, groups=g)[1:] for i in range(8) for g in (1, 8)])
    (v_batch, c_batch), (v_slices, c_slices) = draws.reshape(8, 2, 2).mean(axis=0)
    assert c_batch / 2 == pytest.approx(15 / 63, rel=0.15) and c_slices / 2 == pytest.approx(15 / 7, rel=0.15)
    assert v_batch < 0.05 and v_slices > 0.09


def test_duplicated_shards_change_only_the_unbiased_factor():
    """K copies of the rows keep the mean; Var changes by K(N−1)/(KN−1)."""
    x = normal(0, 8, 5)
    copied = redundancy.deviation(np.tile(x, (4, 1))) ** 2 - 1e-4
    np.testing.assert_allclose(copied, (redundancy.deviation(x) ** 2 - 1e-4) * (4 * 7 / 31), rtol=1e-5)


def test_products_between_pictures_are_counted_apart():
    for shape, products in (((8, 40), 8 * 8 * 40), ((40, 8), 8 * 8 * 40)):
        x = jax.ShapeDtypeStruct(shape, np.float32)
        assert flops.count(redundancy.vicreg, x, x) == (0, 2 * products)
        gradient = jax.grad(lambda u, v: sum(redundancy.barlow(u, v).values()))
        found = flops.count(gradient, x, x)
        assert found.single == 0 and found.pairwise > 0


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="variances over 1 row"):
        redundancy.vicreg(jnp.ones((4, 3)), jnp.ones((4, 3)), groups=4)
