"""SIGReg: values computed by hand, plain loops for value and gradient, its floor, and what a collapse costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import parallel
from cxrjax.losses import gaussian
from tests.losses.test_contrastive import DTYPES, assert_gradient, numeric_gradient, rounded

A = np.array([[1, 0.6], [0, 0.8]], np.float32)
VIEWS = np.float32([[[1, 0], [0, 0]], [[0, 1], [0, 3]]])  # b v d


def looped(x, t_max=3.0, count=17):
    """The statistic of samples b, knot after knot in float64."""
    total, step = 0.0, t_max / (count - 1)
    for j in range(count):
        t, weight = j * step, step if j in (0, count - 1) else 2 * step
        phi = np.exp(-t * t / 2)
        total += weight * phi * ((np.cos(t * x).mean() - phi) ** 2 + np.sin(t * x).mean() ** 2)
    return len(x) * total


def test_knots():
    t, phi, weights = gaussian.knots()
    assert (t[1], phi[1]) == pytest.approx((0.1875, 0.98257547), abs=1e-8)
    np.testing.assert_allclose((weights * phi)[[0, 1, 16]], [0.1875, 0.3684658, 0.0020829369], atol=1e-7)
    assert np.sum(weights * phi) == pytest.approx(2.4996663, abs=1e-7)
    assert gaussian.floor() == pytest.approx(1.0524642, abs=1e-7)


@pytest.mark.parametrize(
    ("samples", "expected", "wide"),
    [
        ([0], 0.40204758, 0.4089216),
        ([0, 0, 0, 0], 1.6081903, 4 * 0.4089216),
        ([1], 1.1860058, 1.1930524),
        ([-1, 1], 0.20565923, 0.21871412),
        ([0, 1], 0.61539506, 0.61569346),
        ([3, 3], 7.1463202, 7.1603976),
        ([-2, 0, 2], 1.1305471, None),
        ([-1.5, -0.5, 0.5, 1.5], 0.22882836, None),
    ],
)
def test_epps_pulley_by_hand(samples, expected, wide):
    x = jnp.float32(samples)
    assert float(gaussian.epps_pulley(x)) == pytest.approx(expected, rel=2e-6)
    assert float(gaussian.epps_pulley(-x[::-1])) == pytest.approx(expected, rel=2e-6)
    assert float(gaussian.epps_pulley(x, rows=2 * len(x))) == pytest.approx(2 * expected, rel=2e-6)
    if wide is not None:
        assert float(gaussian.epps_pulley(x, t_max=5.0, count=41)) == pytest.approx(wide, rel=2e-6)


def test_gradients_by_hand():
    for samples, expected in (([0, 1], [1.5234238, -0.14303895]), ([-1, 1], [-0.70672649, 0.70672649])):
        np.testing.assert_allclose(jax.grad(gaussian.epps_pulley)(jnp.float32(samples)), expected, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_value_and_gradient_are_the_loops(dtype):
    (z,), (exact,) = rounded(dtype, np.random.default_rng(0).normal(0.3, 1.4, (5, 3, 4)))
    a = np.asarray(gaussian.directions(jax.random.key(1), 4, 6))

    def loop(z):
        x = z @ np.float64(a)
        return np.mean([[looped(x[:, v, k]) for k in range(6)] for v in range(3)])

    value, gradient = jax.value_and_grad(lambda z: gaussian.sigreg(z, a)[0])(z)
    assert float(value) == pytest.approx(loop(exact), rel=1e-5)
    assert_gradient(gradient, numeric_gradient(loop, exact), dtype, atol=1e-5)
    assert float(gaussian.sigreg(z, a)[1]) == pytest.approx(np.abs(exact @ np.float64(a)).max(), rel=1e-6)


def test_directions_and_views_by_hand():
    rows = np.float32([[1, 0], [0, 2], [-1, 1]])
    np.testing.assert_allclose(gaussian.epps_pulley(rows @ A), [0.0329465, 1.4099449], rtol=2e-6)
    assert float(gaussian.sigreg(rows[:, None], A)[0]) == pytest.approx(0.72144568, rel=2e-6)
    assert float(gaussian.to_centre(VIEWS, 2)) == 0.3125
    assert float(gaussian.sigreg(VIEWS, A)[0]) == pytest.approx(1.0385016, rel=2e-6)
    assert float(gaussian.sigreg(VIEWS, A, per_view=False)[0]) == pytest.approx(1.2127534, rel=2e-6)


def test_centres_by_hand():
    """Views 1, 3 and −1, the first two large: to the mean of all, and to the mean of the large ones."""
    z = jnp.float32([[[1], [3], [-1]]])
    assert float(gaussian.to_centre(z, 3)) == pytest.approx(8 / 3)
    assert float(gaussian.to_centre(z, 2)) == pytest.approx(11 / 3)
    # Through the centre as well: −1 is in no large crop, so that only its own distance has a gradient to it.
    np.testing.assert_allclose(jax.grad(lambda z: gaussian.to_centre(z, 2))(z)[0, :, 0], [1 / 3, 5 / 3, -2], rtol=1e-6)


def test_a_gaussian_has_the_floor():
    x = np.random.default_rng(0).standard_normal((256, 4000)).astype(np.float32)
    found = np.asarray(gaussian.epps_pulley(x))
    assert abs(found.mean() - gaussian.floor()) < 3 * found.std() / np.sqrt(4000) < 0.06


def test_a_collapse_is_no_minimum_and_far_rows_are_finite():
    z = jnp.asarray(1e-3 * np.random.default_rng(0).normal(size=(8, 1, 3)), jnp.float32)
    a = gaussian.directions(jax.random.key(0), 3, 16)
    assert float(gaussian.sigreg(0 * z, a)[0]) == pytest.approx(8 * 0.40204758, rel=1e-6)
    moved = z - 0.01 * jax.grad(lambda z: gaussian.sigreg(z, a)[0])(z)
    assert float(moved.std()) > 1.01 * float(z.std())
    value, gradient = jax.value_and_grad(lambda z: gaussian.sigreg(z, a)[0])(3e4 * z)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_directions_are_of_length_one_and_have_no_gradient():
    one, other = (gaussian.directions(jax.random.key(seed), 5, 7) for seed in range(2))
    np.testing.assert_allclose(np.linalg.norm(one, axis=0), 1, rtol=1e-6)
    assert np.abs(one - other).max() > 0.1
    assert not np.any(jax.grad(lambda a: gaussian.sigreg(jnp.ones((2, 1, 5)), a)[0])(one))


def test_the_sample_is_the_global_batch():
    """Halves by themselves would give another number."""
    x = jnp.float32([0, 1, 2, 3, 0.5, -1, 2.5, 1])[:, None]
    mesh = parallel.make_mesh({"data": 8})
    sharded = jax.device_put(x, parallel.batch_sharding(mesh))
    whole = float(gaussian.epps_pulley(x)[0])
    assert float(jax.jit(gaussian.epps_pulley)(sharded)[0]) == pytest.approx(whole, rel=1e-6)
    assert abs(float((gaussian.epps_pulley(x[:4]) + gaussian.epps_pulley(x[4:]))[0]) / 2 - whole) > 0.1
