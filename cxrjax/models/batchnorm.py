"""BatchNorm with PyTorch's conventions on the global batch. Ioffe and Szegedy, ICML 2015, algorithms 1 and 2.

On several devices each direction exchanges one array: the sums of x and x² forward, those of the gradient and of its
product with the normalised x backward. The gradient is written out, so that the backward pass keeps x as it came, in
half precision where that is so, and nothing in float32 but the statistics.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

STATISTICS = "batch_statistics"
"""What `jax.checkpoint` knows the statistics by: recomputing them would exchange them once more."""


class BatchNorm(nn.Module):
    """Normalises every feature over all axes but the last, b … d → b … d in `dtype`.

    Under jit over a mesh an array is the global one, so its statistics are those of all devices together. They are
    right to float32's digits, whatever the input and however large its mean.

    use_scale, use_bias: learn them. momentum: weight of the new statistics in the running ones; 0.1 here is Flax's 0.9.
    epsilon: under the root. scale_init: of the scale, ones by default.
    Parameters: scale d, bias d. Collection "batch_stats": mean d, and var d, which is the unbiased variance
    n / (n − 1) · var as in torch.nn.BatchNorm2d, while the batch is normalised by the biased one.
    """

    use_scale: bool = True
    use_bias: bool = True
    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """train: use the batch's statistics and move the running ones, which then must be mutable.

        mask: bool b …, False for rows that are normalised but not counted, such as the padding of texts; where none is
        counted the running statistics stay.
        Raises ValueError in training where each feature has one value only: its deviation is not defined.
        """
        features = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        scale = self.param("scale", self.scale_init, (features,)) if self.use_scale else None
        bias = self.param("bias", nn.initializers.zeros, (features,)) if self.use_bias else None
        if not train:
            factor = _factor(running_var.value, self.epsilon, scale)
            return _affine(x, running_mean.value, factor, bias).astype(self.dtype)
        if x.size // features < 2 and not self.is_initializing():
            raise ValueError(
                f"BatchNorm of an array of shape {x.shape} in training: one value per feature has no deviation; "
                "give a larger batch, or evaluate with train=False"
            )
        y, mean, var, count = _normalised(self.epsilon, self.dtype, x, scale, bias, mask)
        if not self.is_initializing():
            unbiased = var * (count / jnp.maximum(count - 1, 1))
            momentum = jnp.where(count > 0, self.momentum, 0.0)
            for running, new in ((running_mean, mean), (running_var, unbiased)):
                running.value = (1 - momentum) * running.value + momentum * new
        return y


def _normalise(
    epsilon: float, dtype: Any, x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The normalised x, and the statistics: mean c, biased variance c, count. No gradient flows into these three."""
    return _forward(epsilon, dtype, x, scale, bias, mask)[0]


def _forward(epsilon, dtype, x, scale, bias, mask):
    statistics = checkpoint_name(_statistics(x, mask), STATISTICS)
    mean, var, _ = statistics
    y = _affine(x, mean, _factor(var, epsilon, scale), bias).astype(dtype)
    return (y, *statistics), (x, scale, bias, mask, statistics)


def _backward(epsilon, dtype, kept, gradients):
    """With x̂ the normalised x, g the gradient and w = 1 for rows that count: factor · (g − w · (Σg + x̂ · Σg·x̂) / n)."""
    x, scale, bias, mask, (mean, var, count) = kept
    root, g = _factor(var, epsilon), gradients[0].astype(jnp.float32)
    normal = _affine(x, mean, root)
    inner = tuple(range(1, x.ndim - 1))
    of_bias, of_scale = jnp.split(jnp.concatenate([g.sum(inner), (g * normal).sum(inner)], axis=-1).sum(0), 2)
    through = (of_bias + normal * of_scale) / jnp.maximum(count, 1)
    through = through if mask is None else jnp.where(mask[..., None], through, 0)
    of_x = (root if scale is None else root * scale) * (g - through)
    return of_x.astype(x.dtype), scale if scale is None else of_scale, bias if bias is None else of_bias, None


# As a decorator, partial(custom_vjp, …) would hide from type checkers what is returned.
_normalised = jax.custom_vjp(_normalise, nondiff_argnums=(0, 1))
_normalised.defvjp(_forward, _backward)


def _statistics(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and biased variance of every feature, float32, and how many rows were counted; 0, 0 and 0 of none.

    E[x²] − E[x]² loses its digits where the mean is large. So each example is summed about its own first row, and the
    sums of the examples, few numbers, are moved to the common origin and added in float64.
    """
    inner = tuple(range(1, x.ndim - 1))
    wide = x.astype(jnp.float32)
    origin = wide[(slice(None), *(slice(0, 1) for _ in inner))]
    apart = wide - origin
    counts = jnp.full((len(x), 1), x[0, ..., 0].size, jnp.int32)
    if mask is not None:
        apart = jnp.where(mask[..., None], apart, 0)
        counts = mask.sum(inner).reshape(-1, 1)
    first, second = apart.sum(inner), jnp.square(apart).sum(inner)
    with jax.enable_x64(True):
        origin, first, second, n = (a.astype(jnp.float64) for a in (origin.reshape(first.shape), first, second, counts))
        sums = jnp.concatenate([first + n * origin, second + origin * (2 * first + n * origin), n], axis=-1).sum(0)
        count = sums[-1]
        mean, mean_square = jnp.split(sums[:-1] / jnp.maximum(count, 1), 2)
        var = jnp.maximum(mean_square - jnp.square(mean), 0)
        return mean.astype(jnp.float32), var.astype(jnp.float32), count.astype(jnp.float32)


def _factor(var: jax.Array, epsilon: float, scale: jax.Array | None = None) -> jax.Array:
    factor = jax.lax.rsqrt(var + epsilon)
    return factor if scale is None else factor * scale


def _affine(x: jax.Array, mean: jax.Array, factor: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """In float32; the mean comes off first, since x · factor has fewer digits where it is large."""
    y = (x.astype(jnp.float32) - mean) * factor
    return y if bias is None else y + bias
