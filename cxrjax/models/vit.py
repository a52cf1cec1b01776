"""Vision Transformer that can run on any subset of a picture's tokens.

Dosovitskiy et al., ICLR 2021, in the form that MAE and MoCo v3 train: pre-norm blocks, exact GELU, LayerNorm ε = 1e-6,
Xavier-uniform linears by default, one [CLS] token without a position. Three things are arranged for pre-training:

* `ids_keep` picks tokens per picture and per view; positions belong to the token, and only kept patches are embedded.
* Block parameters are stacked on a leading layer axis and scanned. Keeping only the outputs of linear layers for the
  backward pass (remat="dots") is fastest on a CPU and takes little memory; `unroll=True` is the plain loop on the same
  parameters.
* `cls_only=True` computes the last block for the [CLS] query alone, exactly, when nothing reads the patches.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from cxrjax.models import linen, posemb
from cxrjax.models.attention import attend


class Size(NamedTuple):
    width: int
    depth: int
    heads: int


# Dosovitskiy et al. 2021, table 1; Ti and S from DeiT (Touvron et al. 2021), table 1, S with twelve heads from MoCo v3
# (Chen et al. 2021); `test` and `mini` are ours.
VARIANTS = {
    "test": Size(64, 2, 2),
    "mini": Size(128, 4, 4),
    "Ti": Size(192, 12, 3),
    "S": Size(384, 12, 6),
    "S-12h": Size(384, 12, 12),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
}

LAYER_NORM_EPS = 1e-6

XAVIER = nn.initializers.xavier_uniform()
# trunc_normal_(std=0.02) of PyTorch code cuts at ±2, which is 100 deviations: a plain normal distribution.
NORMAL = nn.initializers.normal(0.02)
# What PyTorch gives a convolution that nobody initialises: U(±1/√fan_in).
TORCH_CONV = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Initial(NamedTuple):
    patch_embed: Callable
    qkv: Callable
    linear: Callable
    cls: Callable


INITIAL = {
    "xavier": Initial(XAVIER, XAVIER, XAVIER, NORMAL),  # MAE
    "normal": Initial(TORCH_CONV, NORMAL, NORMAL, NORMAL),  # DINO, GMML
    # MoCo v3: the matrices of q, k and v each for itself, √2 larger than as one.
    "moco_v3": Initial(
        XAVIER, nn.initializers.variance_scaling(2.0, "fan_avg", "uniform"), XAVIER, nn.initializers.normal(1e-6)
    ),
}
"""Name of an initialisation -> what the code of these papers starts from."""

EMBED = ("kept", "all")
"""When only some patches are kept, which ones are embedded."""

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
    """Multi-head self-attention, b n d → b n d; with `queries` = m only the first m tokens ask, b m d."""

    heads: int
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = XAVIER
    qkv_init: Callable = XAVIER

    @nn.compact
    def __call__(self, x: jax.Array, queries: int | None = None) -> jax.Array:
        d = x.shape[-1]
        qkv = Linear(3 * d, self.dtype, self.qkv_init, name="qkv")
        if queries is None:
            q, k, v = jnp.split(qkv(x), 3, axis=-1)
        else:
            q = qkv(x[:, :queries], slice(0, d))
            k, v = jnp.split(qkv(x, slice(d, 3 * d)), 2, axis=-1)
        return Linear(d, self.dtype, self.kernel_init, name="out")(attend(q, k, v, self.heads))


class Mlp(nn.Module):
    """Linear → exact GELU → Linear, hidden width 4·d."""

    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = XAVIER

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = Linear(4 * x.shape[-1], self.dtype, self.kernel_init, name="fc1")(x)
        return Linear(x.shape[-1], self.dtype, self.kernel_init, name="fc2")(gelu(hidden))


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU as PyTorch computes it; nn.gelu(approximate=False) takes erfc, which is slower on CPU."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


class Block(nn.Module):
    """Pre-norm Transformer block, b n d → b n d (b m d with `queries` = m)."""

    heads: int
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = XAVIER
    qkv_init: Callable = XAVIER

    @nn.compact
    def __call__(self, x: jax.Array, keep: jax.Array | None = None, queries: int | None = None) -> jax.Array:
        """`keep`: (2, b, 1, 1) factors of the two residual branches (stochastic depth), or None."""

        def branch(y, i):
            return y if keep is None else y * keep[i].astype(y.dtype)

        def norm(name):
            return nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=self.dtype, name=name)

        attention = Attention(self.heads, self.dtype, self.kernel_init, self.qkv_init, name="attention")
        y = attention(norm("norm1")(x), queries)
        x = x[:, :queries] + branch(y, 0)
        return x + branch(Mlp(self.dtype, self.kernel_init, name="mlp")(norm("norm2")(x)), 1)


class ViT(nn.Module):
    """Encoder of square pictures; see the module's docstring.

    variant: key of VARIANTS. positions: "sincos" (fixed, MAE), "sincos_rows" (MoCo v3) or "learned"; resize_offset: of
    learned ones on another grid, see `posemb.resize`. drop_path: rate of the last block, linear over depth. dtype: of
    the computation; parameters are float32. remat: what a block recomputes in the backward pass: "none" nothing, "dots"
    all but its linear layers, "full" everything. initialisation: of the linear layers and [CLS], see INITIAL.
    """

    variant: str = "B"
    patch_px: int = 16
    image_px: int = 224
    channels: int = 1
    positions: str = "sincos"
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: str = "dots"
    unroll: bool = False
    initialisation: str = "xavier"
    resize_offset: float = 0.0

    @property
    def size(self) -> Size:
        if self.variant not in VARIANTS:
            raise ValueError(f"there is no ViT {self.variant!r}; there are {', '.join(VARIANTS)}")
        return VARIANTS[self.variant]

    def paths(self, key: jax.Array, *shape: int) -> jax.Array | None:
        """Factors … l 2 on both branches of each of the l blocks, for pictures in this shape, b or b v.

        0 with a probability that grows linearly over the blocks to drop_path, else 1 / (1 − probability). None where
        drop_path is 0.
        """
        if not self.drop_path:
            return None
        depth = self.size.depth
        survive = 1 - jnp.linspace(0, self.drop_path, depth).reshape(depth, 1, 1)
        keep = jax.random.bernoulli(key, survive, (depth, 2, math.prod(shape))) / survive
        return jnp.moveaxis(keep.reshape(depth, 2, *shape), (0, 1), (-2, -1))

    def check(self) -> None:
        """Raises ValueError for a field that names nothing, and for patches that do not cover the picture."""
        if self.remat not in REMATS:
            raise ValueError(f"remat must be one of {', '.join(REMATS)}, got {self.remat!r}")
        if self.initialisation not in INITIAL:
            raise ValueError(f"initialisation must be one of {', '.join(INITIAL)}, got {self.initialisation!r}")
        if self.positions not in posemb.KINDS:
            raise ValueError(f"positions must be one of {', '.join(posemb.KINDS)}, got {self.positions!r}")
        if self.patch_px < 1 or self.image_px < 1 or self.image_px % self.patch_px:
            raise ValueError(
                f"pictures of {self.image_px} px do not divide into patches of {self.patch_px} px: model.image_px must "
                "be a multiple of model.patch_px"
            )

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        ids_keep: jax.Array | None = None,
        *,
        embed: str = "kept",
        cls_only: bool = False,
        intermediates: bool = False,
        drop_cls: bool = False,
        paths: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Encodes whole pictures, or the kept tokens of each view of each picture.

        images: b h w c float. ids_keep: b n or b v n, token numbers in raster order. embed: "kept" embeds only those
        patches, "all" embeds every patch and then gathers (same numbers, the cost that MAE-type code has).
        drop_cls: runs the patches without [CLS], as encoders that never had one. paths: as the method `paths` draws
        them, which turns stochastic depth on.

        Returns float32 arrays, after the final LayerNorm: "cls" b d (b v d with views) unless drop_cls; "patches"
        b n d (b v n d) unless cls_only; with intermediates, "blocks" l b 1+n d (l b n d with drop_cls), the output of
        every block before the LayerNorm.
        """
        width, depth, heads = self.size
        grid = (images.shape[1] // self.patch_px, images.shape[2] // self.patch_px)
        if (grid[0] * self.patch_px, grid[1] * self.patch_px) != images.shape[1:3]:
            raise ValueError(f"pictures of {images.shape[1:3]} px do not divide into patches of {self.patch_px} px")
        if cls_only and drop_cls:
            raise ValueError("cls_only asks for [CLS] alone and drop_cls for everything but it: give one of them")
        if self.initialisation not in INITIAL:
            raise ValueError(f"initialisation must be one of {', '.join(INITIAL)}, got {self.initialisation!r}")
        initial = INITIAL[self.initialisation]
        patch_embed = Linear(width, self.dtype, initial.patch_embed, name="patch_embed")
        position = self._positions(grid, width)  # n d

        x = rearrange(images, "b (p i) (q j) c -> b (p q) (i j c)", i=self.patch_px, j=self.patch_px)
        views = None
        if ids_keep is None:
            x = patch_embed(x) + position
        else:
            views = ids_keep.shape[1] if ids_keep.ndim == 3 else None
            ids = ids_keep if views else ids_keep[:, None]  # b v n
            if embed == "kept":
                x = patch_embed(_gather(x, ids)) + position[ids]
            else:
                x = _gather(patch_embed(x) + position, ids)
            # Pictures stay the slow axis, so that a sharded batch keeps its shards: no data moves between devices.
            x = rearrange(x, "b v n d -> (b v) n d")
        cls = self.param("cls", initial.cls, (width,)).astype(self.dtype)
        if not drop_cls:
            x = jnp.concatenate([repeat(cls, "d -> b 1 d", b=x.shape[0]), x], axis=1)

        block = Block(heads, self.dtype, initial.linear, initial.qkv, parent=None)
        blocks = self.param("blocks", init_stacked(block, depth, jnp.zeros((1, 1, width))))
        keep = None if paths is None else rearrange(paths, "... l r -> l r (...) 1 1")
        x, outputs = self._run(block, blocks, x, keep, cls_only, intermediates)
        x = nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=jnp.float32, name="norm")(x)
        if views:
            x = rearrange(x, "(b v) n d -> b v n d", v=views)

        out: dict[str, Any] = {} if drop_cls else {"cls": x[..., 0, :]}
        if not cls_only:
            out["patches"] = x if drop_cls else x[..., 1:, :]
        if intermediates:
            out["blocks"] = outputs
        return out

    def _positions(self, grid: tuple[int, int], width: int) -> jax.Array:
        if (table := posemb.fixed(self.positions, grid, width)) is not None:
            return jnp.asarray(table, self.dtype)
        side = self.image_px // self.patch_px
        table = self.param("pos_embed", nn.initializers.normal(0.02), (side * side, width))
        return posemb.resize(table, (side, side), grid, self.resize_offset).astype(self.dtype)

    def _as_used(self, path: tuple, leaf: jax.Array) -> jax.Array:
        return leaf.astype(self.dtype) if path[-1].key == "kernel" else leaf

    def _run(self, block, blocks, x, keep, cls_only, intermediates):
        def layer(x, inputs):
            params, keep = inputs
            x = linen.apply(block, params, x, keep)
            return x, x if intermediates else None

        if cls_only and intermediates:
            raise ValueError("cls_only leaves out the patches of the last block: it cannot return intermediates")
        scanned, last = (blocks, keep), (None, None)
        if cls_only:
            # Cut apart in the dtype that they are used in: the two parts are a second copy of the blocks.
            scanned = (jax.tree.map_with_path(self._as_used, blocks), keep)
            last = jax.tree.map(lambda a: a[-1], scanned)
            scanned = jax.tree.map(lambda a: a[:-1], scanned)
        depth = jax.tree.leaves(scanned)[0].shape[0]
        body = layer if self.remat == "none" else jax.checkpoint(layer, prevent_cse=False, policy=REMAT[self.remat])
        x, outputs = jax.lax.scan(body, x, scanned, unroll=max(depth, 1) if self.unroll else 1)
        if cls_only:
            x = linen.apply(block, last[0], x, last[1], queries=1)
        return x, outputs


def _gather(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """tokens b n d, ids b v k → b v k d."""
    return jax.vmap(lambda t, i: t[i])(tokens, ids)


def init_stacked(block: nn.Module, depth: int, *inputs: Any) -> Callable:
    """Initialiser of `depth` blocks stacked on a leading axis, each from its own key; inputs: of one block."""

    def init(key):
        # Parameters are float32 in any case, and fused attention has no form for this vmap.
        plain = block.clone(dtype=jnp.float32)
        return jax.vmap(lambda k: linen.init(plain, k, *inputs))(jax.random.split(key, depth))

    return init
