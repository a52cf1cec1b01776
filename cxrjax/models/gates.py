"""Gates on feature maps: which channels and which places pass."""

import flax.linen as nn
import jax
import jax.numpy as jnp

# PyTorch's default for Linear and Conv layers, U(±1/√fan_in).
_KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ContextGate(nn.Module):
    """Channel gate, then spatial gate, b h w c → b h w c; every factor lies in (0, 1).

        a = σ(W₂ ReLU(W₁ avg x) + W₂ ReLU(W₁ max x)),  avg and max over h w, W₁: c → c/reduction, W₂ back, no bias
        y = a ⊙ x
        s = σ(conv₇ₓ₇[mean_c y; max_c y]), no bias;  returns s ⊙ y

    Parameters: 2·c²/reduction + 98. Source: CBAM (Woo et al., ECCV 2018, section 3) with the BatchNorm of its spatial
    gate left out and a reduction of 2, as the "context bottleneck" of MLVICX's released code.
    """

    reduction: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]

        def dense(features, name):
            return nn.Dense(features, use_bias=False, kernel_init=_KERNEL_INIT, dtype=self.dtype, name=name)

        pooled = jnp.stack([x.mean((1, 2)), x.max((1, 2))], axis=1)  # b 2 c
        context = dense(c, "channel2")(nn.relu(dense(c // self.reduction, "channel1")(pooled))).sum(axis=1)
        y = nn.sigmoid(context)[:, None, None] * x
        pooled = jnp.stack([y.mean(-1), y.max(-1)], axis=-1)  # b h w 2
        spatial = nn.Conv(1, (7, 7), use_bias=False, kernel_init=_KERNEL_INIT, dtype=self.dtype, name="spatial")(pooled)
        return nn.sigmoid(spatial) * y
