"""Scaled dot-product attention on packed heads, in the form that is fastest where it runs.

Which form runs is decided by the platform that a program is lowered for. On CUDA, in half precision, it is cuDNN's
fused kernel, which never holds the m × n weights (`jax.nn.dot_product_attention`). Elsewhere, and wherever cuDNN
refuses, it is two einsums with a float32 softmax between them.
"""

from collections.abc import Mapping
from functools import partial
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from cxrjax import parallel
from cxrjax.losses.pairs import NEVER

HALF = (jnp.bfloat16, jnp.float16)
Form: TypeAlias = Literal["cudnn", "xla"]
AMPERE = (8, 0)
"""The compute capability from which cuDNN's fused attention runs."""


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, heads: int, lengths: jax.Array | None = None, causal: bool = False
) -> jax.Array:
    """Softmax attention: q b m d, k and v b n d, heads contiguous in d → b m d in q's dtype.

    lengths: int b, at least 1; only so many of the first keys are attended to. None attends to all of them. causal:
    query i attends to the keys up to i alone.
    """
    if q.dtype in HALF and _is_fused(q.shape[-1] // heads, q.dtype):
        fused, plain = (partial(form, heads=heads, causal=causal) for form in (_fused, _einsums))
        return jax.lax.platform_dependent(q, k, v, lengths, cuda=fused, default=plain)
    return _einsums(q, k, v, lengths, heads, causal)


def _einsums(
    q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None, heads: int, causal: bool = False
) -> jax.Array:
    # With the heads in front XLA's CPU products run a quarter faster than on the layout b n a d.
    q, k, v = (rearrange(x, "b n (a d) -> b a n d", a=heads) for x in (q, k, v))
    logits = jnp.einsum("bamd,band->bamn", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if lengths is not None:
        logits = jnp.where(jnp.arange(k.shape[2]) < repeat(lengths, "b -> b 1 1 1"), logits, NEVER)
    if causal:
        logits = jnp.where(jnp.tri(*logits.shape[2:], dtype=bool), logits, NEVER)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return rearrange(jnp.einsum("bamn,band->bamd", weights, v), "b a m d -> b m (a d)")


def _fused(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array | None,
    heads: int,
    causal: bool = False,
    implementation: Form = "cudnn",
) -> jax.Array:
    """The same by `jax.nn.dot_product_attention`, which trains on even counts of queries and keys only (jax 0.10.2).

    Odd ones get a token more: a key that no query attends to, and a query whose row is cut off again.
    """
    m, n = q.shape[1], k.shape[1]
    if lengths is None and n % 2:
        lengths = jnp.full(len(k), n)
    of_keys = None if lengths is None else lengths.astype(jnp.int32)
    q, k, v = (rearrange(_even(x), "b n (a d) -> b n a d", a=heads) for x in (q, k, v))
    options = {"key_value_seq_lengths": of_keys, "is_causal": causal, "implementation": implementation}
    out = jax.nn.dot_product_attention(q, k, v, **options)
    return rearrange(out[:, :m], "b m a d -> b m (a d)")


def _even(tokens: jax.Array) -> jax.Array:
    """b n d with a row of zeros more where n is odd."""
    return jnp.pad(tokens, ((0, 0), (0, tokens.shape[1] % 2), (0, 0)))


def _is_fused(width: int, dtype: jax.typing.DTypeLike) -> bool:
    """Whether jax can trace a training step of the fused kernel for heads of this width; it asks cuDNN and the GPU."""
    oldest = parallel.oldest_gpu()
    if oldest is not None and oldest < AMPERE:
        return False
    token = jax.ShapeDtypeStruct((1, 2, width), dtype)

    def trained(q, k, v):
        return jax.grad(lambda q: _fused(q, k, v, None, heads=1).astype(jnp.float32).sum())(q)

    try:
        jax.eval_shape(trained, token, token, token)
    except (RuntimeError, NotImplementedError, ValueError):  # no cuDNN here, or none that takes these heads
        return False
    return True


def rotate(x: jax.Array, angles: jax.Array, heads: int) -> jax.Array:
    """Rotary positions: queries or keys b n d, angles n e or b n e of heads of width e = d / heads → b n d.

    Numbers i and i + e/2 of a head are turned by the angle of i, and by that of i + e/2, which are equal (Su et al.
    2021, in the layout of DINOv3). Tokens of angle 0 stay as they are.
    """
    each = x.reshape(*x.shape[:-1], heads, -1).astype(jnp.float32)
    first, second = jnp.split(each, 2, axis=-1)
    angles = angles[..., None, :]  # for all heads
    turned = each * jnp.cos(angles) + jnp.concatenate([-second, first], axis=-1) * jnp.sin(angles)
    return turned.reshape(x.shape).astype(x.dtype)


def of_first_token(
    y: jax.Array,
    qkv: Mapping[str, jax.Array],
    heads: int,
    mask: jax.Array | None = None,
    angles: jax.Array | None = None,
) -> jax.Array:
    """How much the first token attends to each token in a block: b a n, rows sum to 1, float32, no gradient.

    y: b n d, what the block's attention is given. qkv: kernel d 3d and bias 3d as in models/vit.py and models/bert.py.
    mask: b n, the tokens that are no padding. angles: n e, of keys with rotary positions; the first token has none.
    """
    y, qkv = jax.lax.stop_gradient((y, qkv))
    d = y.shape[-1]
    kernel, bias = (qkv[name].astype(y.dtype) for name in ("kernel", "bias"))
    q, k = y[:, :1] @ kernel[:, :d] + bias[:d], y @ kernel[:, d : 2 * d] + bias[d : 2 * d]
    k = k if angles is None else rotate(k, angles, heads)
    q, k = (rearrange(x, "b n (a d) -> b a n d", a=heads) for x in (q, k))
    logits = jnp.einsum("bamd,band->ban", q * (d // heads) ** -0.5, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits if mask is None else jnp.where(mask[:, None], logits, NEVER), axis=-1)
