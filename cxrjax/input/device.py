"""The first step on the device: pixels as stored to standardised float32."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Mean and standard deviation of grey values (in [0, 1]) over the ChestX-ray14 training pictures.
MEAN, STD = 0.4978, 0.2449
MODES = ("fixed", "per_image")
GREY_LEVEL = 1 / 255


def grey(images: jax.Array) -> jax.Array:
    """Pixels as stored to grey values in [0, 1]: any shape, uint8, uint16 or float in [0, 1] → float32."""
    whole = jnp.issubdtype(images.dtype, jnp.integer)
    return images.astype(jnp.float32) / (jnp.iinfo(images.dtype).max if whole else 1)


def standardise(
    images: jax.Array, mean: float | Sequence[float] = MEAN, std: float | Sequence[float] = STD, mode: str = "fixed"
) -> jax.Array:
    """Scales grey values to zero mean and unit variance, for use under jit.

    images: ... h w 1, uint8, uint16 or float in [0, 1]. mean, std: in units of [0, 1], used by mode "fixed"; of c
        numbers each, one channel of the result, ... h w c, has each.
    mode: "fixed", or "per_image" for each picture's own mean and deviation; a deviation below one grey level counts
        as one level, so a constant picture becomes zeros.
    Returns float32 of the same shape, but for several channels. Raises ValueError for another mode.
    """
    if mode not in MODES:
        raise ValueError(f"Standardisation mode {mode!r} is not known; choose one of {', '.join(map(repr, MODES))}.")
    values = grey(images)
    if mode == "fixed":
        if isinstance(mean, int | float) and isinstance(std, int | float):
            return (values - mean) / std
        return (values - jnp.asarray(mean)) / jnp.asarray(std)
    pixels = (-3, -2, -1)
    centred = values - values.mean(pixels, keepdims=True)
    variance = jnp.mean(centred**2, pixels, keepdims=True)
    # The floor comes before the root, whose gradient at zero is infinite.
    return centred / jnp.sqrt(jnp.maximum(variance, GREY_LEVEL**2))
