"""Random grey-value changes on the device, inside the jitted step: every picture and view by its own draw.

They work on grey values in [0, 1], so they come before `standardise`, which takes what they return:

    images = device.standardise(augment(key, batch["image"], settings), **config.standardise)

The order is that of the papers' code: brightness and contrast, then blur, then solarise. Hue, saturation and the turn
to grey, which papers on photographs list beside these, change nothing in a grey picture and are left out.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import rng
from cxrjax.input import device


class Augment(NamedTuple):
    """What is done to the views, and how often; by default nothing.

    jitter, blur, solarise: probability of each for a picture, one number for all views or one per view.
    brightness, contrast: a jittered picture's factors are uniform in [1 − this, 1 + this], from 0 up. brightness_kind:
        "factor", or "offset": what is added instead is uniform in [−brightness, brightness], as in BYOL's code.
    blur_sigma: range of the blur's deviation, in pixels of a picture of blur_px a side; it grows with the side.
    """

    jitter: float | Sequence[float] = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    brightness_kind: str = "factor"
    blur: float | Sequence[float] = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_px: int = 224
    solarise: float | Sequence[float] = 0.0


# Two views at 224 px of Barlow Twins, VICReg and MoCo v3, after BYOL (Grill et al. 2020, table 6), whose code has the
# offset of brightness. Grey pictures have no saturation and no hue to jitter.
PAIR = Augment(jitter=0.8, blur=(1.0, 0.1), solarise=(0.0, 0.2))


def augment(key: jax.Array, images: jax.Array, settings: Augment) -> jax.Array:
    """Changes every picture and view at random; the same key gives the same pictures on any number of devices.

    images: b v h w 1, uint8, uint16 or float in [0, 1]. Returns float32 of the same shape, in [0, 1].
    Raises ValueError for probabilities that are not in [0, 1] or not as many as views, and for ranges that do not go
    from low to high.
    """
    if images.ndim != 5 or images.shape[-1] != 1:
        raise ValueError(f"augment takes pictures b v h w 1, got an array of shape {images.shape}")
    check(settings, images.shape[1])
    grey = device.grey(images)[..., 0]  # b v h w

    def draw(stream, low=0.0, high=1.0):
        return jax.random.uniform(rng.fold(key, stream), grey.shape[:2], minval=low, maxval=high)

    def chosen(name):
        return draw(name) < jnp.asarray(getattr(settings, name), jnp.float32)

    if np.any(settings.jitter):
        jittered, strength = chosen("jitter"), settings.brightness
        if settings.brightness_kind == "offset":
            grey = shift(grey, jnp.where(jittered, draw("brightness", -strength, strength), 0.0))
        else:
            grey = brightness(grey, jnp.where(jittered, draw("brightness", *_factors(strength)), 1.0))
        grey = contrast(grey, jnp.where(jittered, draw("contrast", *_factors(settings.contrast)), 1.0))
    if np.any(settings.blur):
        low, high = (sigma * grey.shape[-1] / settings.blur_px for sigma in settings.blur_sigma)
        sigma = jnp.where(chosen("blur"), draw("sigma", low, high), 0.0)
        # Beyond four deviations lies less than a hundredth of a grey level.
        grey = blur(grey, sigma, radius=math.ceil(4 * high))
    if np.any(settings.solarise):
        grey = jnp.where(chosen("solarise")[..., None, None], solarise(grey), grey)
    return grey[..., None]


def brightness(grey: jax.Array, factor: jax.Array) -> jax.Array:
    """factor · x, cut to [0, 1]. grey: … h w in [0, 1]; factor: …, from 0 up; 1 leaves a picture as it is."""
    return jnp.clip(factor[..., None, None] * grey, 0, 1)


def shift(grey: jax.Array, offset: jax.Array) -> jax.Array:
    """x + offset, cut to [0, 1]; shapes as for `brightness`, 0 leaves a picture as it is."""
    return jnp.clip(grey + offset[..., None, None], 0, 1)


def contrast(grey: jax.Array, factor: jax.Array) -> jax.Array:
    """Moves grey values from their picture's mean by the factor, cut to [0, 1]; shapes as for `brightness`.

    It commutes with brightness but for the cut, so one order of the two serves where torchvision draws it.
    """
    factor = factor[..., None, None]
    return jnp.clip(factor * grey + (1 - factor) * grey.mean((-2, -1), keepdims=True), 0, 1)


def blur(grey: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
    """Gaussian blur of every picture by its own deviation, mirrored at the border.

    grey: … h w. sigma: …, in pixels; 0 leaves a picture as it is. radius: of the kernel, 2 · radius + 1 wide.
    """
    offset = jnp.arange(-radius, radius + 1)
    weight = jnp.exp(-0.5 * (offset / jnp.maximum(sigma, 1e-3)[..., None]) ** 2)
    weight = (weight / weight.sum(-1, keepdims=True))[..., None, None, :]  # … 1 1 k
    # A sum of shifted pictures stays elementwise: a convolution would have one group per picture and mix up shards.
    for axis in (-2, -1):
        size = grey.shape[axis]
        width = [(0, 0)] * grey.ndim
        width[axis] = (radius, radius)
        padded = jnp.pad(grey, width, mode="reflect")
        shifted = (jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in range(2 * radius + 1))
        grey = sum((weight[..., k] * part for k, part in enumerate(shifted)), start=jnp.zeros((), grey.dtype))
    return grey


def solarise(grey: jax.Array) -> jax.Array:
    """Inverts the brighter half of the grey values: 1 − x from 0.5 up. Any shape."""
    return jnp.where(grey >= 0.5, 1 - grey, grey)


def _factors(strength: float) -> tuple[float, float]:
    return max(0.0, 1 - strength), 1 + strength


def check(settings: Augment, views: int) -> None:
    """Raises ValueError for probabilities outside of [0, 1] or not as many as views, and for ranges that are none."""
    for name in ("jitter", "blur", "solarise"):
        value = np.asarray(getattr(settings, name))
        if value.shape not in ((), (views,)) or not np.all((0 <= value) & (value <= 1)):
            raise ValueError(
                f"{name} is a probability in [0, 1] for all views or one for each of the {views}; got {value}"
            )
    if settings.brightness_kind not in ("factor", "offset"):
        raise ValueError(f"brightness_kind must be 'factor' or 'offset', got {settings.brightness_kind!r}")
    low, high = settings.blur_sigma
    if not 0 < low <= high or min(settings.brightness, settings.contrast) < 0:
        raise ValueError(
            f"blur_sigma is the least and greatest deviation, above 0, and brightness and contrast are at least 0; got "
            f"{tuple(settings.blur_sigma)}, {settings.brightness}, {settings.contrast}"
        )
