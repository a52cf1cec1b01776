"""Projection and prediction heads on a view vector."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxrjax.models.batchnorm import BatchNorm

KINDS = ("linear", "mlp")
NORMS = ("batch", "layer", "none")


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
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(dense(self.hidden, True, "fc1")(x))
        return dense(self.out, False, "fc2")(nn.gelu(x, approximate=False))


class MLP(nn.Module):
    """Linear → norm → activation → … → Linear (→ norm): projector and predictor of the image methods, b d → b out.

    sizes: outputs of the linear layers. norm: "batch", "layer" or "none", after every linear layer but the last.
    last_norm: after the last one as well; last_affine: what that learns, "both" scale and bias, "scale" or "none".
    bias, last_bias: of the linear layers before the last, and of the last. activation: "relu" or "gelu" (exact); there
    is none at the end.
    initial: "torch", the default of torch.nn.Linear, kernel and bias from U(±1/√d), which the released PyTorch code of
    these methods keeps; or "normal", deviation 0.02 and no bias, as DINO's. dtype: of the computation; the result is
    float32. With norm="batch" the running statistics are the collection "batch_stats".

    As the authors' code has them:
        BYOL           MLP((4096, 256), last_bias=False)
        MoCo v3        MLP((4096, 4096, 256), last_norm=True, last_affine="none", bias=False, last_bias=False)
        VICReg         MLP((8192, 8192, 8192), last_bias=False)
        Barlow Twins   MLP((8192, 8192, 8192), bias=False, last_bias=False)
        MLVICX         MLP((4096, 4096, 4096), last_norm=True)
        SimCLR         MLP((2048, 128), last_norm=True, last_affine="scale", bias=False, last_bias=False)
        DINO           MLP((2048, 2048, 256), norm="none", activation="gelu", initial="normal"), then its prototypes
    """

    sizes: Sequence[int]
    norm: str = "batch"
    last_norm: bool = False
    last_affine: str = "both"
    bias: bool = True
    last_bias: bool = True
    activation: str = "relu"
    initial: str = "torch"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """train, mask (bool b …): what a BatchNorm normalises by and counts, see there.

        Raises ValueError for a word that is not one of the above, and for a last norm together with norm="none".
        """
        if self.norm not in NORMS or (self.last_norm and self.norm == "none"):
            raise ValueError(
                f"norm must be 'batch', 'layer' or 'none' (the last without last_norm), got {self.norm!r} "
                f"with last_norm={self.last_norm}"
            )
        words = {
            "activation": ("relu", "gelu"),
            "initial": ("torch", "normal"),
            "last_affine": ("both", "scale", "none"),
        }
        for name, there in words.items():
            if getattr(self, name) not in there:
                raise ValueError(f"{name} must be one of {', '.join(there)}, got {getattr(self, name)!r}")
        for i, features in enumerate(self.sizes, 1):
            last = i == len(self.sizes)
            x = self._linear(x, features, self.last_bias if last else self.bias, f"fc{i}")
            if self.norm != "none" and (self.last_norm or not last):
                dtype = jnp.float32 if last else self.dtype
                x = self._norm(x, train, mask, self.last_affine if last else "both", dtype, f"norm{i}")
            if not last:
                x = nn.relu(x) if self.activation == "relu" else nn.gelu(x, approximate=False)
        return x.astype(jnp.float32)

    def _linear(self, x: jax.Array, features: int, bias: bool, name: str) -> jax.Array:
        if self.initial == "torch":
            kernel_init = bias_init = uniform(x.shape[-1] ** -0.5)
        else:
            kernel_init, bias_init = nn.initializers.normal(0.02), nn.initializers.zeros
        dense = nn.Dense(features, bias, self.dtype, kernel_init=kernel_init, bias_init=bias_init, name=name)
        return dense(x)

    def _norm(
        self, x: jax.Array, train: bool, mask: jax.Array | None, affine: str, dtype: jnp.dtype, name: str
    ) -> jax.Array:
        learned = {"use_scale": affine != "none", "use_bias": affine == "both", "dtype": dtype, "name": name}
        if self.norm == "batch":
            return BatchNorm(**learned)(x, train, mask)
        return nn.LayerNorm(epsilon=1e-5, **learned)(x)


def start(module: MLP, key: jax.Array, width: int) -> tuple[Any, Any]:
    """Parameters and running statistics ({} without BatchNorm) of an MLP on vectors b d of d = width."""
    variables = module.init(key, jnp.zeros((1, width)), False)
    return variables["params"], variables.get("batch_stats", {})


def run(
    module: MLP, params: Any, state: Any, x: jax.Array, *, train: bool, mask: jax.Array | None = None
) -> tuple[jax.Array, Any]:
    """b d → (b out, running statistics): an MLP as a `backbone.Backbone` runs. train=False leaves the statistics.

    Or b n d → b n out; mask: bool, the rows that a BatchNorm counts.
    """
    y, updated = module.apply({"params": params, "batch_stats": state}, x, train, mask, mutable=["batch_stats"])
    return y, updated.get("batch_stats", {}) if train else state


def uniform(bound: float) -> nn.initializers.Initializer:
    """U(±bound): what PyTorch gives kernels and biases of linear layers and convolutions, with 1/√fan_in.

    Drawn flat, which are the same numbers: XLA takes half as long to compile that.
    """

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)

    return init
