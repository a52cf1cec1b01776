"""Vision Transformer that can run on any subset of a picture's tokens.

Dosovitskiy et al., ICLR 2021, in the form that MAE and MoCo v3 train: pre-norm blocks, exact GELU, LayerNorm ε = 1e-6,
Xavier-uniform linears by default, one [CLS] token without a position. Three things are arranged for pre-training:

* `ids_keep` picks tokens per picture and per view; positions belong to the token, and only kept patches are embedded.
* Block parameters are stacked on a leading layer axis and scanned. Keeping only the outputs of linear layers for the
  backward pass (remat="dots") is fastest on a CPU and takes little memory; `unroll=True` is the plain loop on the same
  parameters.
* `cls_only=True` computes the last block for the [CLS] query alone, exactly, when nothing reads the patches.

What DINOv2's ViTs have beside this is off by default and changes nothing then: LayerScale (Touvron et al., ICCV 2021),
register tokens (Darcet et al., ICLR 2024), a position of [CLS], a token in the place of hidden patches, SwiGLU. So is
what other encoders have that are read from disk: DINOv3's rotary positions, CLIP's LayerNorm before the blocks,
SigLIP's attention in the place of [CLS], and other activations.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from cxrjax import sizes
from cxrjax.models import linen, posemb
from cxrjax.models.transformer import (
    ACTIVATIONS,
    LAYER_NORM_EPS,
    NORMAL,
    REMATS,
    TORCH_CONV,
    XAVIER,
    AttentionPool,
    Block,
    Linear,
    gather,
    init_stacked,
    run_stacked,
)


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
    "So400m": Size(1152, 27, 16),
    "H": Size(1280, 32, 16),
    "H-20h": Size(1280, 32, 20),
    "g": Size(1536, 40, 24),
}


class Initial(NamedTuple):
    patch_embed: Callable
    qkv: Callable
    linear: Callable
    cls: Callable


INITIAL = {
    "xavier": Initial(XAVIER, XAVIER, XAVIER, NORMAL),  # MAE
    "normal": Initial(TORCH_CONV, NORMAL, NORMAL, NORMAL),  # DINO, GMML
    "i_jepa": Initial(NORMAL, NORMAL, NORMAL, NORMAL),
    "dinov2": Initial(TORCH_CONV, NORMAL, NORMAL, nn.initializers.normal(1e-6)),
    # MoCo v3: the matrices of q, k and v each for itself, √2 larger than as one.
    "moco_v3": Initial(
        XAVIER, nn.initializers.variance_scaling(2.0, "fan_avg", "uniform"), XAVIER, nn.initializers.normal(1e-6)
    ),
}
"""Name of an initialisation -> what the code of these papers starts from."""

EMBED = ("kept", "all")
"""When only some patches are kept, which ones are embedded."""

WORDS = {"ffn": ("mlp", "swiglu"), "drop_path_shape": ("linear", "uniform"), "activation": tuple(ACTIVATIONS)}
ROPE = "rope"


class ViT(nn.Module):
    """Encoder of pictures that its patches cover; see the module's docstring.

    variant: key of VARIANTS. image_px: their size, see `sizes`; for others positions are resized. positions: "sincos"
    (fixed, MAE), "sincos_rows" (MoCo v3), "rope" (DINOv3) or "learned"; resize_offset: of learned ones on another grid,
    see `posemb.resize`. drop_path: rate of the last block, linear over
    depth. dtype: of the computation; parameters are float32. remat: what a block recomputes in the backward pass:
    "none" nothing, "dots" all but its linear layers, "full" everything. initialisation: of the linear layers and [CLS],
    see INITIAL.

    Of DINOv2: layer_scale: what the factors of the branches start from, None for none. registers: tokens between [CLS]
    and the patches, learned, without a position. cls_position: [CLS] has a learned one. mask_token: there is a token
    for hidden patches, see `mask` below. ffn: "mlp" or "swiglu". drop_path_shape: "linear", or "uniform", all blocks
    alike. drop_path_subset: exactly ⌊b (1 − rate)⌋ pictures, one at least, keep a branch, and not each by its own coin.
    resize_antialias: of learned positions on a smaller grid.

    Of any: mlp_ratio: hidden width of the MLP over d. eps: of every LayerNorm. activation: of the MLP. rope_base: see
    `posemb.rope`. pre_norm: a LayerNorm before the blocks. cls_token: whether there is a [CLS]. attention_pool: a head
    that gives "pooled", see `transformer.AttentionPool`.
    """

    variant: str = "B"
    patch_px: int = 16
    image_px: int | tuple[int, int] = 224
    channels: int = 1
    positions: str = "sincos"
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: str = "dots"
    unroll: bool = False
    initialisation: str = "xavier"
    resize_offset: float = 0.0
    layer_scale: float | None = None
    registers: int = 0
    cls_position: bool = False
    mask_token: bool = False
    ffn: str = "mlp"
    drop_path_shape: str = "linear"
    drop_path_subset: bool = False
    resize_antialias: bool = False
    mlp_ratio: float = 4.0
    eps: float = LAYER_NORM_EPS
    activation: str = "gelu"
    rope_base: float = 100.0
    pre_norm: bool = False
    cls_token: bool = True
    attention_pool: bool = False

    @property
    def size(self) -> Size:
        if self.variant not in VARIANTS:
            raise ValueError(f"there is no ViT {self.variant!r}; there are {', '.join(VARIANTS)}")
        return VARIANTS[self.variant]

    def paths(self, key: jax.Array, *shape: int) -> jax.Array | None:
        """Factors … l 2 on both branches of each of the l blocks, for pictures in this shape, b or b v.

        0 with a probability that grows linearly over the blocks to drop_path, else 1 / (1 − probability). None where
        drop_path is 0. See drop_path_shape and drop_path_subset.
        """
        if not self.drop_path:
            return None
        depth = self.size.depth
        least = self.drop_path if self.drop_path_shape == "uniform" else 0
        survive = 1 - jnp.linspace(least, self.drop_path, depth).reshape(depth, 1, 1)
        if self.drop_path_subset:
            b = math.prod(shape)
            rates = np.linspace(least, self.drop_path, depth)[:, None, None]
            kept = np.maximum(np.floor(b * (1 - rates) + 1e-9), 1)
            order = jnp.argsort(jnp.argsort(jax.random.uniform(key, (depth, 2, b)), axis=-1), axis=-1)
            keep = jnp.where(order < kept, b / kept, 0.0)
        else:
            keep = jax.random.bernoulli(key, survive, (depth, 2, math.prod(shape))) / survive
        return jnp.moveaxis(keep.reshape(depth, 2, *shape), (0, 1), (-2, -1))

    def check(self) -> None:
        """Raises ValueError for a field that names nothing, and for patches that do not cover the picture."""
        if self.remat not in REMATS:
            raise ValueError(f"remat must be one of {', '.join(REMATS)}, got {self.remat!r}")
        if self.initialisation not in INITIAL:
            raise ValueError(f"initialisation must be one of {', '.join(INITIAL)}, got {self.initialisation!r}")
        for name, there in WORDS.items():
            if (value := getattr(self, name)) not in there:
                raise ValueError(f"{name} must be one of {', '.join(there)}, got {value!r}")
        if self.positions not in (*posemb.KINDS, ROPE):
            raise ValueError(f"positions must be one of {', '.join((*posemb.KINDS, ROPE))}, got {self.positions!r}")
        if self.patch_px < 1:
            raise ValueError(f"patches of {self.patch_px} px: model.patch_px must be at least 1")
        sizes.grid(self.image_px, self.patch_px)

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
        mask: jax.Array | None = None,
        lengths: jax.Array | None = None,
        alone: bool = False,
    ) -> dict[str, jax.Array]:
        """Encodes whole pictures, or the kept tokens of each view of each picture.

        images: b h w c float. ids_keep: b n or b v n, token numbers in raster order. embed: "kept" embeds only those
        patches, "all" embeds every patch and then gathers (same numbers, the cost that MAE-type code has).
        drop_cls: runs the patches without [CLS], as encoders that never had one. paths: as the method `paths` draws
        them, which turns stochastic depth on. mask: bool b n, patches in whose place the mask token stands; they keep
        their position. lengths: int b, how many of ids_keep b n are there, the first ones; what the rest gives means
        nothing and reaches nothing.

        Returns float32 arrays, after the final LayerNorm: "cls" b d (b v d with views) unless drop_cls; "patches"
        b n d (b v n d) unless cls_only; with intermediates, "blocks" l b 1+r+n d (l b r+n d with drop_cls), the output
        of every block before the LayerNorm, with r registers; with alone, "alone" b n d, each patch as the last block,
        or the pool, gives it where it sees that patch and no other token (MaskCLIP, Zhou et al., ECCV 2022).
        """
        width, depth, heads = self.size
        grid = (images.shape[1] // self.patch_px, images.shape[2] // self.patch_px)
        if (grid[0] * self.patch_px, grid[1] * self.patch_px) != images.shape[1:3]:
            rows, columns = images.shape[1:3]
            raise ValueError(
                f"pictures of {rows} x {columns} px do not divide into patches of {self.patch_px} px: choose sizes of "
                "pictures and crops that are multiples of model.patch_px"
            )
        if alone and (cls_only or intermediates or ids_keep is not None):
            raise ValueError("alone is of whole pictures, without cls_only, intermediates and ids_keep")
        if cls_only and drop_cls:
            raise ValueError("cls_only asks for [CLS] alone and drop_cls for everything but it: give one of them")
        if self.initialisation not in INITIAL:
            raise ValueError(f"initialisation must be one of {', '.join(INITIAL)}, got {self.initialisation!r}")
        initial = INITIAL[self.initialisation]
        patch_embed = Linear(width, self.dtype, initial.patch_embed, name="patch_embed")
        position, angles = self._positions(grid, width), self.angles(grid)  # n d, n e
        drop_cls = drop_cls or not self.cls_token

        x = rearrange(images, "b (p i) (q j) c -> b (p q) (i j c)", i=self.patch_px, j=self.patch_px)
        views = None
        if mask is not None and ids_keep is not None:
            raise ValueError("ids_keep leaves patches out and mask hides them in their places: give one of them")
        hidden = self.param("mask_token", nn.initializers.zeros, (width,)) if self.mask_token else None
        if ids_keep is None:
            x = patch_embed(x)
            if mask is not None:
                if hidden is None:
                    raise ValueError("mask needs a token for hidden patches: build the ViT with mask_token=True")
                x = jnp.where(mask[..., None], hidden.astype(self.dtype), x)
            x = x + position
        else:
            views = ids_keep.shape[1] if ids_keep.ndim == 3 else None
            ids = ids_keep if views else ids_keep[:, None]  # b v n
            if embed == "kept":
                x = patch_embed(gather(x, ids)) + position[ids]
            else:
                x = gather(patch_embed(x) + position, ids)
            # Pictures stay the slow axis, so that a sharded batch keeps its shards: no data moves between devices.
            x = rearrange(x, "b v n d -> (b v) n d")
            angles = None if angles is None else rearrange(angles[ids], "b v n e -> (b v) n e")
        first = []
        if self.cls_token:
            cls = self.param("cls", initial.cls, (width,)).astype(self.dtype)
            if self.cls_position:
                cls = cls + self.param("cls_pos", NORMAL, (width,)).astype(self.dtype)
            first = [] if drop_cls else [repeat(cls, "d -> b 1 d", b=x.shape[0])]
        if self.registers:
            registers = self.param("registers", nn.initializers.normal(1e-6), (self.registers, width))
            first.append(repeat(registers.astype(self.dtype), "r d -> b r d", b=x.shape[0]))
        if first:
            x = jnp.concatenate([*first, x], axis=1)
        lead = x.shape[1] - (ids_keep.shape[-1] if ids_keep is not None else grid[0] * grid[1])
        if lengths is not None:
            lengths = lengths + lead
        if angles is not None:  # tokens that are no patches are not turned
            angles = jnp.concatenate([jnp.zeros((*angles.shape[:-2], lead, angles.shape[-1])), angles], axis=-2)
        if self.pre_norm:
            x = nn.LayerNorm(epsilon=self.eps, dtype=self.dtype, name="pre_norm")(x)

        shape = (self.layer_scale, self.ffn == "swiglu", self.mlp_ratio, self.eps, self.activation)
        block = Block(heads, self.dtype, initial.linear, initial.qkv, *shape, parent=None)
        blocks = self.param("blocks", init_stacked(block, depth, jnp.zeros((1, 1, width))))
        keep = None if paths is None else rearrange(paths, "... l r -> l r (...) 1 1")
        given = {"lengths": lengths, "angles": angles}
        by_block = alone and not self.attention_pool
        x, outputs = self._run(block, blocks, x, keep, given, cls_only, intermediates, by_block)
        norm = nn.LayerNorm(epsilon=self.eps, dtype=jnp.float32, name="norm")
        x = norm(x)
        pool = AttentionPool(heads, self.dtype, self.mlp_ratio, self.activation, self.eps, name="pool")
        pooled = pool(x).astype(jnp.float32) if self.attention_pool else None
        if views:
            x = rearrange(x, "(b v) n d -> b v n d", v=views)

        out: dict[str, Any] = {} if drop_cls else {"cls": x[..., 0, :]}
        if pooled is not None:
            out["pooled"] = rearrange(pooled, "(b v) d -> b v d", v=views) if views else pooled
        if not cls_only:
            out["patches"] = x[..., lead:, :]
        if intermediates:
            out["blocks"] = outputs
        if alone:
            each = norm(outputs) if by_block else pool(rearrange(x, "b n d -> (b n) 1 d")).reshape(x.shape)
            out["alone"] = each[:, lead:].astype(jnp.float32)
        return out

    def angles(self, grid: tuple[int, int]) -> jax.Array | None:
        """Rotary positions of p·q patches, n e, as `transformer.rotate` takes them; None where there are others."""
        size = self.size
        return posemb.rope(grid, size.width // size.heads, self.rope_base) if self.positions == ROPE else None

    def _positions(self, grid: tuple[int, int], width: int) -> jax.Array:
        if self.positions == ROPE:
            return jnp.zeros((grid[0] * grid[1], width), self.dtype)
        if (table := posemb.fixed(self.positions, grid, width)) is not None:
            return jnp.asarray(table, self.dtype)
        trained_on = sizes.grid(self.image_px, self.patch_px)
        table = self.param("pos_embed", nn.initializers.normal(0.02), (trained_on[0] * trained_on[1], width))
        options = {"offset": self.resize_offset, "antialias": self.resize_antialias}
        return posemb.resize(table, trained_on, grid, **options).astype(self.dtype)

    def _as_used(self, path: tuple, leaf: jax.Array) -> jax.Array:
        return leaf.astype(self.dtype) if path[-1].key == "kernel" else leaf

    def _run(self, block, blocks, x, keep, given, cls_only, intermediates, alone):
        def layer(x, inputs):
            params, keep = inputs
            x = linen.apply(block, params, x, keep, **given)
            return x, x if intermediates else None

        if cls_only and intermediates:
            raise ValueError("cls_only leaves out the patches of the last block: it cannot return intermediates")
        scanned, last = (blocks, keep), (None, None)
        if cls_only or alone:
            # Cut apart in the dtype that they are used in: the two parts are a second copy of the blocks.
            scanned = (jax.tree.map_with_path(self._as_used, blocks), keep)
            last = jax.tree.map(lambda a: a[-1], scanned)
            scanned = jax.tree.map(lambda a: a[:-1], scanned)
        depth = jax.tree.leaves(scanned)[0].shape[0]
        x, outputs = run_stacked(layer, x, scanned, self.remat, unroll=max(depth, 1) if self.unroll else 1)
        if cls_only:
            x = linen.apply(block, last[0], x, last[1], queries=1, **given)
        if alone:  # rotary positions have no say where a token sees itself
            outputs = linen.apply(block, last[0], rearrange(x, "b n d -> (b n) 1 d")).reshape(x.shape)
            x = linen.apply(block, last[0], x, last[1], **given)
        return x, outputs
