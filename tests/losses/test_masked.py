"""Masked losses against loops written from the papers, and the values computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import parallel
from cxrjax.losses import masked
from tests.losses.test_contrastive import DTYPES, assert_gradient, rounded

RNG = np.random.default_rng(0)
TARGET = RNG.normal(size=(8, 2, 6, 6, 3)).astype(np.float32)  # b v h w c
PREDICTION = RNG.normal(size=TARGET.shape).astype(np.float32)
MASK = (RNG.random((8, 2, 6, 6, 1)) < 0.4).astype(np.uint8)


def looped_l1(prediction, target, mask):
    """Value and gradient of Σ m|x̂ − x| / Σ m, an element at a time."""
    total, count, gradient = 0.0, 0, np.zeros(prediction.shape)
    for place in np.ndindex(prediction.shape):
        if mask[place[:-1] + (0,)]:
            total += abs(float(prediction[place]) - float(target[place]))
            count += 1
            gradient[place] = np.sign(prediction[place] - target[place])
    return total / count, gradient / count


@pytest.mark.parametrize("dtype", DTYPES)
def test_l1_is_the_loop_in_value_and_gradient(dtype):
    cast, exact = rounded(dtype, PREDICTION, TARGET)
    value, gradient = jax.value_and_grad(masked.l1)(*cast, MASK)
    expected, slope = looped_l1(*exact, MASK)
    assert value.dtype == jnp.float32 and float(value) == pytest.approx(expected, rel=1e-5)
    assert_gradient(gradient, slope, dtype, atol=1e-8)


def test_l1_of_a_constant_error_and_of_what_is_not_masked():
    """Equal pictures 0; X + c gives |c| for any mask; values where m = 0 change neither value nor gradient."""
    assert float(masked.l1(TARGET, TARGET, MASK)) == 0
    assert float(masked.l1(TARGET - 0.75, TARGET, MASK)) == pytest.approx(0.75, rel=1e-5)
    before = jax.value_and_grad(masked.l1, argnums=(0, 1))(PREDICTION, TARGET, MASK)
    noise = 9 * RNG.normal(size=TARGET.shape).astype(np.float32) * (1 - MASK)
    after = jax.value_and_grad(masked.l1, argnums=(0, 1))(PREDICTION + noise, TARGET - noise, MASK)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_hand_case_of_two_devices():
    """One masked value of error 1 on A, three of error 0 on B: 1/4 over both, 1/2 as the mean of two means."""
    prediction, target = jnp.zeros((2, 4, 1)), jnp.zeros((2, 4, 1)).at[0, 0, 0].set(1.0)
    mask = jnp.asarray([[1, 0, 0, 0], [0, 1, 1, 1]], bool)[..., None]
    assert float(masked.l1(prediction, target, mask)) == 0.25
    assert float(masked.l1(prediction, target, mask, groups=2)) == 0.5


def test_groups_are_the_mean_of_their_own_losses_and_must_fit():
    alone = [looped_l1(PREDICTION[i : i + 2], TARGET[i : i + 2], MASK[i : i + 2])[0] for i in (0, 2, 4, 6)]
    assert float(masked.l1(PREDICTION, TARGET, MASK, groups=4)) == pytest.approx(np.mean(alone), rel=1e-5)
    with pytest.raises(ValueError, match="batch of 8 cannot be cut into 3 groups"):
        masked.l1(PREDICTION, TARGET, MASK, groups=3)


@pytest.mark.parametrize("loss", [masked.l1, masked.patch_mse])
def test_nothing_masked_is_zero_and_finite(loss):
    """The released code's mean of nothing is NaN."""
    x = jnp.asarray(PREDICTION.reshape(8, 2, -1))
    mask = jnp.zeros((8, 2, 1) if loss is masked.l1 else (8, 2))
    value, gradient = jax.value_and_grad(loss)(x, x + 1, mask)
    assert float(value) == 0 and not np.any(gradient)


@pytest.mark.parametrize("devices", [2, 8])
def test_splitting_over_devices_changes_nothing(devices):
    """For gradients too: masks of very different size on each device."""
    mask = MASK * (RNG.random((8, 1, 1, 1, 1)) < np.linspace(0.1, 1, 8).reshape(-1, 1, 1, 1, 1))
    whole = jax.value_and_grad(masked.l1)(PREDICTION, TARGET, mask)
    shards = parallel.to_global([PREDICTION, TARGET, mask], parallel.make_mesh({"data": devices}))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, jax.jit(jax.value_and_grad(masked.l1))(*shards)
    )


def looped_patch_mse(prediction, pixels, mask, normalise):
    total = 0.0
    for b, n in zip(*np.nonzero(mask), strict=True):
        target = pixels[b, n].astype(np.float64)
        if normalise:
            mean = sum(target) / len(target)
            variance = sum((t - mean) ** 2 for t in target) / (len(target) - 1)
            target = (target - mean) / (variance + 1e-6) ** 0.5
        total += sum((prediction[b, n] - target) ** 2) / len(target)
    return total / np.count_nonzero(mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalise", [True, False])
def test_patch_mse_is_the_loop_in_value_and_gradient(normalise, dtype):
    prediction, pixels = (RNG.normal(size=(3, 5, 12)).astype(np.float32) for _ in range(2))
    pixels[0, 0] = 0.3  # a flat patch, whose target is zeros
    mask = np.asarray([[1, 0, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]], bool)
    cast, (prediction, pixels) = rounded(dtype, prediction, pixels)
    value, gradient = jax.value_and_grad(masked.patch_mse)(*cast, mask, normalise)
    assert value.dtype == jnp.float32 and gradient.dtype == dtype
    assert float(value) == pytest.approx(looped_patch_mse(prediction, pixels, mask, normalise), rel=1e-5)
    for place in ((0, 0, 3), (1, 2, 0), (2, 4, 11), (0, 1, 5)):
        step = np.zeros_like(prediction)
        step[place] = 1e-4
        rise = [looped_patch_mse(prediction + s * step, pixels, mask, normalise) for s in (1, -1)]
        slope, rounding = (rise[0] - rise[1]) / 2e-4, 2**-8 if dtype == jnp.bfloat16 else 0
        assert float(gradient[place]) == pytest.approx(slope, abs=1e-6 + rounding * abs(slope))
