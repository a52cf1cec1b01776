"""Every operation against OpenCV or Pillow on one picture, how often and how strongly it is drawn, and sharding."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from cxrjax import parallel
from cxrjax.input import augment as ops
from cxrjax.input import device
from cxrjax.input.augment import Augment, augment

GREY_LEVEL = 1 / 255
blur = jax.jit(ops.blur, static_argnums=2)


def picture(height=40, width=48, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


def changed(pixels, settings, pictures, views=2, seed=0):
    """One picture many times over: pictures views h w float."""
    images = np.broadcast_to(pixels[None, None, ..., None], (pictures, views, *pixels.shape, 1))
    out = jax.jit(lambda key: augment(key, images, settings))(jax.random.key(seed))
    assert out.shape == images.shape and out.dtype == jnp.float32
    return np.asarray(out[..., 0], np.float64)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_jitter_matches_pillow(name, factor):
    pixels = np.stack([picture(), picture(seed=1) // 2])  # of two means
    oracles = [getattr(ImageEnhance, name.capitalize())(Image.fromarray(one)).enhance(factor) for one in pixels]
    found = getattr(ops, name)(jnp.asarray(pixels / 255, jnp.float32), jnp.full(2, factor))
    # Pillow cuts to whole grey levels, and rounds the mean to one before it uses it.
    np.testing.assert_allclose(found, np.stack(oracles) / 255, atol=1.6 * GREY_LEVEL)


def test_an_offset_of_brightness_is_byols():
    """x + δ, δ in ±0.4, cut to [0, 1]: black becomes grey, which no factor does."""
    grey = jnp.asarray([[0.0, 0.2, 0.5, 0.9]])
    np.testing.assert_allclose(ops.shift(grey, jnp.float32(0.4)), [[0.4, 0.6, 0.9, 1.0]], atol=1e-6)
    pixels = 110 + picture(24, 24) // 8  # so that nothing is cut
    moved = changed(pixels, Augment(jitter=0.8, brightness=0.4, contrast=0.0, brightness_kind="offset"), 2000)
    offset = (moved - pixels / 255).mean((2, 3))
    np.testing.assert_allclose(moved - pixels / 255, np.broadcast_to(offset[..., None, None], moved.shape), atol=1e-5)
    on = np.abs(offset) > 1e-5
    assert on.mean() == pytest.approx(0.8, abs=0.04) and np.abs(offset).max() == pytest.approx(0.4, abs=0.005)
    assert offset[on].std() == pytest.approx(0.8 / 12**0.5, rel=0.05)
    with pytest.raises(ValueError, match="brightness_kind must be 'factor' or 'offset', got 'sum'"):
        augment(jax.random.key(0), np.zeros((1, 1, 8, 8, 1), np.uint8), Augment(brightness_kind="sum"))


def test_solarise_matches_pillow():
    pixels = picture()
    oracle = np.asarray(ImageOps.solarize(Image.fromarray(pixels), threshold=128)) / 255
    np.testing.assert_allclose(ops.solarise(device.grey(jnp.asarray(pixels))), oracle, atol=1e-6)


@pytest.mark.parametrize(("sigma", "radius"), [(0.1, 3), (0.7, 3), (2.0, 11)])
def test_blur_matches_opencv(sigma, radius):
    pixels = picture().astype(np.float32) / 255
    oracle = cv2.GaussianBlur(pixels, (2 * radius + 1,) * 2, sigma, borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(blur(jnp.asarray(pixels), jnp.float32(sigma), radius), oracle, atol=2e-6)


def test_blur_of_several_pictures_is_each_by_its_own_deviation():
    pixels = jnp.stack([jnp.asarray(picture(seed=seed) / 255, jnp.float32) for seed in range(6)]).reshape(3, 2, 40, 48)
    sigma = jnp.array([[0.0, 0.5], [1.0, 1.5], [2.0, 0.0]])
    found = blur(pixels, sigma, 8)
    for index in np.ndindex(3, 2):
        np.testing.assert_allclose(found[index], blur(pixels[index], sigma[index], 8), atol=1e-6)
    np.testing.assert_array_equal(found[0, 0], pixels[0, 0])  # 0 is no blur, to the last bit
    np.testing.assert_array_equal(found[2, 1], pixels[2, 1])


def test_jitter_is_drawn_as_often_and_as_strongly_as_said():
    pixels = 40 + picture(24, 24) // 4  # so that nothing is cut at black or white
    brighter = changed(pixels, Augment(jitter=(0.8, 0.3), contrast=0.0), 2000)
    factor = brighter.mean((2, 3)) / (pixels / 255).mean()
    for view, probability in enumerate((0.8, 0.3)):
        on = np.abs(factor[:, view] - 1) > 1e-4
        assert on.mean() == pytest.approx(probability, abs=0.04)
        assert 0.6 <= factor[on, view].min() < 0.61 and 1.39 < factor[on, view].max() <= 1.4001
        assert factor[on, view].std() == pytest.approx(0.8 / 12**0.5, rel=0.08)
    both = changed(pixels, Augment(jitter=1.0, brightness=0.5, contrast=0.2), 2000)
    deviation = both.std((2, 3)) / (pixels / 255).std() / (both.mean((2, 3)) / (pixels / 255).mean())
    assert deviation.min() == pytest.approx(0.8, abs=0.005) and deviation.max() == pytest.approx(1.2, abs=0.005)
    factor = both.mean((2, 3))
    # Neither brightness and contrast, nor two views, nor neighbouring pictures share a draw.
    for one, other in ((factor, deviation), (factor[:, 0], factor[:, 1]), (factor[1:], factor[:-1])):
        assert abs(np.corrcoef(np.ravel(one), np.ravel(other))[0, 1]) < 0.08


def test_blur_is_drawn_as_often_and_as_strongly_as_said():
    impulse = np.zeros((33, 33), np.uint8)
    impulse[16, 16] = 255
    out = changed(impulse, Augment(blur=(1.0, 0.1), blur_sigma=(1.0, 2.0), blur_px=33), 1000)
    place = (np.arange(33) - 16.0) ** 2
    sigma = np.sqrt((out.sum(2) * place).sum(-1))  # b v, of what an impulse became
    np.testing.assert_allclose(out.sum((2, 3)), 1, atol=1e-5)
    assert np.mean(sigma[:, 1] > 0.1) == pytest.approx(0.1, abs=0.03)
    assert sigma[:, 0].min() == pytest.approx(1.0, abs=0.02) and sigma[:, 0].max() == pytest.approx(2.0, abs=0.02)
    assert sigma[:, 0].mean() == pytest.approx(1.5, abs=0.03)
    halved = changed(impulse, Augment(blur=1.0, blur_sigma=(2.0, 2.0), blur_px=66), 2)
    np.testing.assert_allclose(halved[0, 0], cv2.GaussianBlur(impulse / 255.0, (9, 9), 1.0), atol=1e-6)


def test_solarise_is_drawn_per_view_and_comes_last():
    pixels = picture(24, 24)
    out = changed(pixels, Augment(solarise=(0.0, 0.2)), 1000)
    np.testing.assert_allclose(out[:, 0], np.broadcast_to(pixels / 255, out[:, 0].shape), atol=1e-6)
    assert np.mean(out[:, 1].max((1, 2)) <= 0.5) == pytest.approx(0.2, abs=0.04)
    all_of_it = changed(pixels, Augment(jitter=1.0, blur=1.0, blur_px=24, solarise=1.0), 50)
    assert all_of_it.max() <= 0.5


def test_nothing_is_changed_by_default_and_every_stored_type_means_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 1), np.uint8)
    key = jax.random.key(0)
    np.testing.assert_array_equal(augment(key, pixels, Augment()), pixels.astype(np.float32) / 255)
    expected = augment(key, pixels, ops.PAIR)
    for images in (pixels * np.uint16(257), pixels.astype(np.float32) / 255):
        np.testing.assert_allclose(augment(key, images, ops.PAIR), expected, atol=1e-6)
    assert not np.allclose(augment(jax.random.key(1), pixels, ops.PAIR), expected, atol=1e-3)


def test_one_and_eight_devices_give_the_same_pictures():
    images = np.random.default_rng(0).integers(0, 256, (16, 2, 16, 16, 1), np.uint8)
    one, eight = (jax.devices()[:count] for count in (1, 8))

    def on(devices):
        whole = parallel.make_mesh({"data": len(devices)})
        batch = parallel.batch_sharding(whole)
        step = jax.jit(lambda key, x: augment(key, x, ops.PAIR._replace(blur_px=16)), out_shardings=batch)
        return step(jax.random.key(3), jax.device_put(images, batch))

    sharded = on(eight)
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_allclose(on(one), sharded, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Augment(jitter=80), r"jitter is a probability in \[0, 1\] for all views or one for each of the 2; got 80"),
        (Augment(blur=(1.0, 0.1, 0.5)), r"blur is a probability .* each of the 2; got \[1"),
        (Augment(blur_sigma=(2.0, 0.1)), r"blur_sigma is the least and greatest .* got \(2.0, 0.1\)"),
        (Augment(contrast=-0.1), "at least 0; got .* -0.1"),
    ],
)
def test_messages(settings, message):
    with pytest.raises(ValueError, match=message):
        augment(jax.random.key(0), np.zeros((1, 2, 4, 4, 1), np.uint8), settings)
    with pytest.raises(ValueError, match=r"pictures b v h w 1, got an array of shape \(2, 4, 4, 1\)"):
        augment(jax.random.key(0), np.zeros((2, 4, 4, 1), np.uint8), Augment())
