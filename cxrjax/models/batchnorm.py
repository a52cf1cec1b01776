"""BatchNorm with PyTorch's conventions on the global batch. Ioffe and Szegedy, ICML 2015, algorithms 1 and 2."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Normalises every feature over all axes but the last, b … d → b … d in `dtype`.

    Under jit over a mesh an array is the global one, so its statistics are those of all devices together. They are
    computed in float32 whatever the input, in two passes: E[x²] − E[x]² loses its digits where the mean is large.

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
        wide = x.astype(jnp.float32)
        if not train:
            mean, var = running_mean.value, running_var.value
        else:
            axes, count = tuple(range(x.ndim - 1)), x.size // features
            if count < 2 and not self.is_initializing():
                raise ValueError(
                    f"BatchNorm of an array of shape {x.shape} in training: one value per feature has no deviation; "
                    "give a larger batch, or evaluate with train=False"
                )
            counted = None if mask is None else mask[..., None]
            count = count if mask is None else mask.sum()
            mean = _mean(wide, axes, counted)
            var = _mean(jnp.square(wide - mean), axes, counted)
            if not self.is_initializing():
                unbiased = var * (count / (count - 1) if mask is None else count / jnp.maximum(count - 1, 1))
                momentum = self.momentum if mask is None else jnp.where(count > 0, self.momentum, 0.0)
                for running, new in ((running_mean, mean), (running_var, unbiased)):
                    running.value = (1 - momentum) * running.value + momentum * jax.lax.stop_gradient(new)
        factor = jax.lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            factor = factor * self.param("scale", self.scale_init, (features,))
        y = (wide - mean) * factor
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (features,))
        return y.astype(self.dtype)


def _mean(x: jax.Array, axes: tuple[int, ...], counted: jax.Array | None) -> jax.Array:
    """The mean over all axes but the last, of the rows that count; 0 of none."""
    if counted is None:
        return x.mean(axes)
    return jnp.where(counted, x, 0).sum(axes) / jnp.maximum(counted.sum(), 1)
