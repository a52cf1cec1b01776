"""What Transformers of pictures are made of: linear layers, attention, MLPs, and blocks that can be stacked.

Pre-norm blocks, exact GELU, LayerNorm ε = 1e-6, Xavier-uniform linears by default: those of ViT (Dosovitskiy et al.,
ICLR 2021) as MAE and MoCo v3 train it.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxrjax.models import linen
from cxrjax.models.attention import attend, rotate

LAYER_NORM_EPS = 1e-6

XAVIER = nn.initializers.xavier_uniform()
# trunc_normal_(std=0.02) of PyTorch code cuts at ±2, which is 100 deviations: a plain normal distribution.
NORMAL = nn.initializers.normal(0.02)
# What PyTorch gives a convolution that nobody initialises: U(±1/√fan_in).
TORCH_CONV = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

REMATS = ("none", "dots", "full")
REMAT = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


class Linear(nn.Module):
    """Dense layer with kernel (in, out) and a bias from 0; `columns` computes a slice of the outputs only."""

    features: int
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = XAVIER

    @nn.compact
    def __call__(self, x: jax.Array, columns: slice = slice(None)) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # One product of rows (b·n) d: with b and n apart XLA's CPU backward pass is slower.
        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])
        y = rows @ kernel[:, columns].astype(self.dtype) + bias[columns].astype(self.dtype)
        return y.reshape(*x.shape[:-1], -1)


class Attention(nn.Module):
    """Multi-head self-attention, b n d → b n d; with `queries` = m only the first m tokens ask, b m d.

    lengths: int b; only so many of the first tokens are attended to. angles: see `attention.rotate`. causal: a token
    attends to itself and those before it.
    """

    heads: int
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = XAVIER
    qkv_init: Callable = XAVIER
    causal: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        queries: int | None = None,
        lengths: jax.Array | None = None,
        angles: jax.Array | None = None,
    ) -> jax.Array:
        d = x.shape[-1]
        qkv = Linear(3 * d, self.dtype, self.qkv_init, name="qkv")
        if queries is None:
            q, k, v = jnp.split(qkv(x), 3, axis=-1)
        else:
            q = qkv(x[:, :queries], slice(0, d))
            k, v = jnp.split(qkv(x, slice(d, 3 * d)), 2, axis=-1)
        if angles is not None:
            q, k = rotate(q, angles[..., :queries, :], self.heads), rotate(k, angles, self.heads)
        return Linear(d, self.dtype, self.kernel_init, name="out")(attend(q, k, v, self.heads, lengths, self.causal))


class Mlp(nn.Module):
    """Linear → activation → Linear, hidden width ratio·d; or with swiglu, of two thirds of it, silu(a) ⊙ b of halves.

    SwiGLU's hidden width is rounded up to a multiple of 8, as in DINOv2's released code.
    """

    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = XAVIER
    swiglu: bool = False
    ratio: float = 4.0
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = int(self.ratio * x.shape[-1])
        if self.swiglu:
            width = 2 * ((int(width * 2 / 3) + 7) // 8 * 8)
        hidden = Linear(width, self.dtype, self.kernel_init, name="fc1")(x)
        if self.swiglu:
            a, b = jnp.split(hidden, 2, axis=-1)
            hidden = nn.silu(a) * b
        else:
            hidden = ACTIVATIONS[self.activation](hidden)
        return Linear(x.shape[-1], self.dtype, self.kernel_init, name="fc2")(hidden)


class LayerScale(nn.Module):
    """γ ⊙ x with a learned γ of d numbers, that start at `initial`."""

    initial: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param("scale", nn.initializers.constant(self.initial), (x.shape[-1],))
        return x * gamma.astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU as PyTorch computes it; nn.gelu(approximate=False) takes erfc, which is slower on CPU."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": jax.nn.gelu,  # its approximation by tanh, as SigLIP has it
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}


class AttentionPool(nn.Module):
    """One vector of a picture: a learned query attends to all tokens, and an MLP follows; b n d → b d.

    Set Transformer's pooling (Lee et al., ICML 2019) as SigLIP has it (Zhai et al., ICCV 2023).
    """

    heads: int
    dtype: jnp.dtype = jnp.float32
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    eps: float = LAYER_NORM_EPS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d = x.shape[-1]
        probe = self.param("probe", NORMAL, (d,)).astype(self.dtype)
        q = Linear(d, self.dtype, name="q")(jnp.broadcast_to(probe, (len(x), 1, d)))
        k, v = jnp.split(Linear(2 * d, self.dtype, name="kv")(x), 2, axis=-1)
        y = Linear(d, self.dtype, name="out")(attend(q, k, v, self.heads))
        z = nn.LayerNorm(epsilon=self.eps, dtype=self.dtype, name="norm")(y)
        return (y + Mlp(self.dtype, ratio=self.mlp_ratio, activation=self.activation, name="mlp")(z))[:, 0]


class Block(nn.Module):
    """Pre-norm Transformer block, b n d → b n d (b m d with `queries` = m).

    layer_scale: what the factors of both branches start from, None for none. swiglu, mlp_ratio, activation: see Mlp.
    eps: of the LayerNorms. causal: see Attention.
    """

    heads: int
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = XAVIER
    qkv_init: Callable = XAVIER
    layer_scale: float | None = None
    swiglu: bool = False
    mlp_ratio: float = 4.0
    eps: float = LAYER_NORM_EPS
    activation: str = "gelu"
    causal: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        keep: jax.Array | None = None,
        queries: int | None = None,
        lengths: jax.Array | None = None,
        angles: jax.Array | None = None,
    ) -> jax.Array:
        """`keep`: (2, b, 1, 1) factors of the two residual branches (stochastic depth), or None.

        queries, lengths, angles: as Attention takes them.
        """

        def branch(y, i):
            if self.layer_scale is not None:
                y = LayerScale(self.layer_scale, name=f"layer_scale{i + 1}")(y)
            return y if keep is None else y * keep[i].astype(y.dtype)

        def norm(name):
            return nn.LayerNorm(epsilon=self.eps, dtype=self.dtype, name=name)

        attention = Attention(self.heads, self.dtype, self.kernel_init, self.qkv_init, self.causal, name="attention")
        y = attention(norm("norm1")(x), queries, lengths, angles)
        x = x[:, :queries] + branch(y, 0)
        mlp = Mlp(self.dtype, self.kernel_init, self.swiglu, self.mlp_ratio, self.activation, name="mlp")
        return x + branch(mlp(norm("norm2")(x)), 1)


def init_stacked(block: nn.Module, depth: int, *inputs: Any) -> Callable:
    """Initialiser of `depth` blocks stacked on a leading axis, each from its own key; inputs: of one block."""

    def init(key):
        # Parameters are float32 in any case, and fused attention has no form for this vmap.
        plain = block.clone(dtype=jnp.float32)
        return jax.vmap(lambda k: linen.init(plain, k, *inputs))(jax.random.split(key, depth))

    return init


def run_stacked(layer: Callable, x: Any, stacked: Any, remat: str, unroll: int = 1) -> tuple[Any, Any]:
    """x after layer(x, inputs) → (x, output) for each slice of `stacked` in turn, and the outputs on a leading axis.

    remat: a word of REMATS, what the backward pass computes again. unroll: slices that are compiled one after another.
    """
    body = layer if remat == "none" else jax.checkpoint(layer, prevent_cse=False, policy=REMAT[remat])
    return jax.lax.scan(body, x, stacked, unroll=unroll)


def gather(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """The tokens of each picture that its ids name: b n d, ids int b … → b … d."""
    return jax.vmap(lambda own, i: own[i])(tokens, ids)
