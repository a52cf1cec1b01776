import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.input import device

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 9, 1), np.uint8)


def test_fixed_mode_matches_numpy_for_whole_numbers_and_floats():
    expected = (IMAGES / 255 - device.MEAN) / device.STD
    for images in (
        IMAGES,
        IMAGES * np.uint16(257),
        (IMAGES / 255).astype(np.float32),
        jnp.asarray(IMAGES / 255, jnp.bfloat16),
    ):
        out = jax.jit(device.standardise)(images)
        assert out.dtype == jnp.float32
        tolerance = 0.01 if images.dtype == jnp.bfloat16 else 1e-5
        np.testing.assert_allclose(out, expected, atol=tolerance)
    np.testing.assert_allclose(device.standardise(IMAGES, 0.5, 0.5), IMAGES / 127.5 - 1, atol=1e-6)


def test_per_image_mode_uses_each_picture_alone():
    out = jax.jit(lambda images: device.standardise(images, mode="per_image"))(IMAGES)
    values = IMAGES / 255
    mean, std = values.mean((2, 3, 4), keepdims=True), values.std((2, 3, 4), keepdims=True)
    np.testing.assert_allclose(out, (values - mean) / std, atol=1e-5)


@pytest.mark.parametrize("grey", [0.0, 0.3])
def test_constant_picture_becomes_zeros_with_a_finite_gradient(grey):
    constant = jnp.full((1, 6, 6, 1), grey, jnp.float32)

    def total(images):
        out = device.standardise(images, mode="per_image")
        return (out**2).sum(), out

    gradient, out = jax.grad(total, has_aux=True)(constant)
    np.testing.assert_allclose(out, 0, atol=1e-4)
    assert np.isfinite(gradient).all()


def test_unknown_mode_lists_the_modes():
    with pytest.raises(ValueError, match="'batch' is not known; choose one of 'fixed', 'per_image'"):
        device.standardise(IMAGES, mode="batch")
