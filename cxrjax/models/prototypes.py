"""The last layer of DINO's head: how alike a vector is to each of many learned directions."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxrjax.losses.pairs import normalise

# What PyTorch gives a linear layer: U(±1/√d).
TORCH_LINEAR = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Prototypes(nn.Module):
    """Cosines of vectors and `count` learned directions, … d → … k, in [−1, 1], float32.

    A linear layer without bias on vectors of unit length, its weight-normalised columns held at length 1: only the
    direction of a parameter's column matters. dtype: of the product's factors; it adds up in float32. learn_length: the
    columns' lengths are parameters, 1 at first, as in DINOv2's released code.
    Source: DINO (Caron et al., ICCV 2021), section 3; released code with norm_last_layer, its default.
    """

    count: int
    dtype: jnp.dtype = jnp.float32
    learn_length: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        direction = self.param("direction", TORCH_LINEAR, (x.shape[-1], self.count))
        factors = (normalise(x).astype(self.dtype), normalise(direction, 0).astype(self.dtype))
        cosines = jnp.matmul(*factors, preferred_element_type=jnp.float32)
        if not self.learn_length:
            return cosines
        return cosines * self.param("length", nn.initializers.ones, (self.count,))
