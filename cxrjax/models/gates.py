"""Gates on feature maps: which channels and which places pass."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxrjax.losses.extrema import largest
from cxrjax.models.heads import uniform

SIDE = 7  # of the spatial gate's convolution


class ContextGate(nn.Module):
    """Channel gate, then spatial gate, b h w c → b h w c; every factor lies in (0, 1).

        a = σ(W₂ ReLU(W₁ avg x) + W₂ ReLU(W₁ max x)),  avg and max over h w, W₁: c → c/reduction, W₂ back, no bias
        y = a ⊙ x
        s = σ(conv₇ₓ₇[mean_c y; max_c y]), no bias;  returns s ⊙ y

    Parameters: 2·c²/reduction + 98, initialised as PyTorch does. Source: CBAM (Woo et al., ECCV 2018, section 3)
    without the BatchNorm of its spatial gate and with a reduction of 2, as the "context bottleneck" of MLVICX's
    released code.
    """

    reduction: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]

        def dense(x, features, name):
            init = uniform(x.shape[-1] ** -0.5)
            return nn.Dense(features, use_bias=False, kernel_init=init, dtype=self.dtype, name=name)(x)

        places = x.reshape(len(x), -1, c)
        pooled = jnp.stack([places.mean(1), largest(places, 1)], axis=1)  # b 2 c
        context = dense(nn.relu(dense(pooled, c // self.reduction, "channel1")), c, "channel2").sum(axis=1)
        y = nn.sigmoid(context)[:, None, None] * x
        pooled = jnp.stack([y.mean(-1), largest(y, -1)], axis=-1)  # b h w 2
        init = uniform((SIDE * SIDE * 2) ** -0.5)
        convolution = nn.Conv(1, (SIDE, SIDE), use_bias=False, kernel_init=init, dtype=self.dtype, name="spatial")
        return nn.sigmoid(convolution(pooled)) * y
