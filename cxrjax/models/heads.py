"""Projection heads on a view vector."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class ProjectionHead(nn.Module):
    """b d → b out. kind "linear": one layer; "mlp": Linear → LayerNorm → GELU → Linear without bias.

    LayerNorm and not BatchNorm: batch statistics would leak between the views of one picture. Our choice.
    """

    kind: str
    hidden: int = 2048
    out: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def dense(features, bias, name):
            init = nn.initializers.xavier_uniform()
            return nn.Dense(features, use_bias=bias, kernel_init=init, dtype=self.dtype, name=name)

        if self.kind == "linear":
            return dense(self.out, True, "fc")(x)
        if self.kind != "mlp":
            raise ValueError(f"head kind must be 'linear' or 'mlp', got {self.kind!r}")
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(dense(self.hidden, True, "fc1")(x))
        return dense(self.out, False, "fc2")(nn.gelu(x, approximate=False))
