"""Swin Transformer: attention inside windows that move by half of their side from block to block.

Liu et al., ICCV 2021, in the form of its released code and of Hugging Face's `SwinModel`: pre-norm blocks, exact GELU,
LayerNorm ε = 1e-5, a learned bias per relative position and head, a shift by half a window in every other block, and
between stages the merging of 2 × 2 neighbours. As there, a grid that is no multiple of the window is padded with zeros
below and on the right after the block's LayerNorm, those zeros are attended to, and a grid with a side of no more than
one window is not shifted. Where a grid is smaller than a window, windows shrink to it and use the middle of the bias
table (our choice; the code builds a smaller table for one size of pictures).

The blocks of a stage are stacked on a leading axis and scanned in pairs, one at rest and one shifted.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from cxrjax.models import linen
from cxrjax.models.transformer import NORMAL, TORCH_CONV, Linear, Mlp, init_stacked, run_stacked


class Size(NamedTuple):
    """width: of the first stage, doubled by each merging. depths: blocks per stage, even. window: in tokens."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    patch_px: int = 4


# Liu et al. 2021, section 3.3; `swin_test` is ours, for pictures of 32 to 64 px.
VARIANTS = {
    "swin_T": Size(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin_S": Size(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "swin_B": Size(128, (2, 2, 18, 2), (4, 8, 16, 32), 7),
    "swin_L": Size(192, (2, 2, 18, 2), (6, 12, 24, 48), 7),
    "swin_test": Size(32, (2, 2), (2, 4), 4),
}
VARIANTS["T"] = VARIANTS["swin_T"]  # as the lateral encoder of frontal_lateral calls it

LAYER_NORM_EPS = 1e-5
# What the released code adds to the logit of tokens that a shift brought together.
APART = -100.0


class WindowAttention(nn.Module):
    """Self-attention with relative position bias: b t n d, t windows of n = side² tokens → the same.

    window: for which the bias table is made, at least `side`.
    """

    heads: int
    window: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, side: int, mask: np.ndarray | None) -> jax.Array:
        """mask: t n n, added to the logits."""
        d = x.shape[-1]
        table = self.param("position_bias", NORMAL, ((2 * self.window - 1) ** 2, self.heads))
        bias = rearrange(table[_relative(side, self.window)], "n m a -> a n m")
        qkv = Linear(3 * d, self.dtype, NORMAL, name="qkv")(x)
        q, k, v = rearrange(qkv, "b t n (s a d) -> s b t a n d", s=3, a=self.heads)
        logits = jnp.einsum("btand,btamd->btanm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
        logits = logits + bias if mask is None else logits + bias + mask[:, None]
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        out = rearrange(jnp.einsum("btanm,btamd->btand", weights, v), "b t a n d -> b t n (a d)")
        return Linear(d, self.dtype, NORMAL, name="out")(out)


class Block(nn.Module):
    """Pre-norm block on the grid of tokens, b h w d → b h w d."""

    heads: int
    window: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, shifted: bool, keep: jax.Array | None = None) -> jax.Array:
        """keep: (b, 1, 1, 1) factors of the attention (stochastic depth), or None."""
        h, w = x.shape[1:3]
        side = min(self.window, h, w)
        shift = self.window // 2 if shifted and side < min(h, w) else 0
        y = nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=self.dtype, name="norm1")(x)
        y = jnp.pad(y, ((0, 0), (0, -h % side), (0, -w % side), (0, 0)))
        rows, columns = y.shape[1] // side, y.shape[2] // side
        y = jnp.roll(y, (-shift, -shift), (1, 2)) if shift else y
        y = rearrange(y, "b (p i) (q j) d -> b (p q) (i j) d", i=side, j=side)
        mask = _apart((rows * side, columns * side), side, shift) if shift else None
        y = WindowAttention(self.heads, self.window, self.dtype, name="attention")(y, side, mask)
        y = rearrange(y, "b (p q) (i j) d -> b (p i) (q j) d", p=rows, i=side)
        y = jnp.roll(y, (shift, shift), (1, 2)) if shift else y
        y = y[:, :h, :w]
        x = x + (y if keep is None else y * keep.astype(y.dtype))
        y = nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=self.dtype, name="norm2")(x)
        return x + Mlp(self.dtype, NORMAL, name="mlp")(y)


class Stage(nn.Module):
    """Blocks of one width, b h w d; with `merge` then 2 × 2 neighbours into one, b ⌈h/2⌉ ⌈w/2⌉ 2d."""

    depth: int
    heads: int
    window: int
    merge: bool
    dtype: jnp.dtype = jnp.float32
    remat: str = "dots"

    @nn.compact
    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """keep: (depth, b, 1, 1, 1), see `Block`."""
        d = x.shape[-1]
        block = Block(self.heads, self.window, self.dtype, parent=None)

        def pair(x, inputs):
            for number in range(2):
                params, factors = jax.tree.map(lambda leaf, number=number: leaf[number], inputs)
                x = linen.apply(block, params, x, bool(number), factors)
            return x, None

        blocks = self.param("blocks", init_stacked(block, self.depth, jnp.zeros((1, 1, 1, d)), False))
        pairs = jax.tree.map(lambda leaf: rearrange(leaf, "(l s) ... -> l s ...", s=2), (blocks, keep))
        x, _ = run_stacked(pair, x, pairs, self.remat)
        if not self.merge:
            return x
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        x = rearrange(x, "b (p i) (q j) d -> b p q (j i d)", i=2, j=2)
        x = nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=self.dtype, name="merge_norm")(x)
        return x @ self.param("merge", NORMAL, (4 * d, 2 * d)).astype(self.dtype)


class Swin(nn.Module):
    """Encoder of pictures of any size; see the module's docstring.

    variant: key of VARIANTS. channels: of the pictures; those of one channel are repeated. drop_path: rate of every
    block's attention, as in transformers. dtype: of the computation; parameters are float32. remat: as in `vit.ViT`.
    """

    variant: str = "swin_T"
    channels: int = 1
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: str = "dots"

    @property
    def size(self) -> Size:
        if self.variant not in VARIANTS:
            raise ValueError(f"there is no Swin {self.variant!r}; there are {', '.join(VARIANTS)}")
        return VARIANTS[self.variant]

    @property
    def width(self) -> int:
        """Of the features, d."""
        return self.size.width * 2 ** (len(self.size.depths) - 1)

    def paths(self, key: jax.Array, *shape: int) -> jax.Array | None:
        """Factors … l of the attention of each of the l blocks, for pictures in this shape, b or b v: 0 with
        probability drop_path, else 1 / (1 − drop_path). None where drop_path is 0."""
        if not self.drop_path:
            return None
        survive = 1 - self.drop_path
        keep = jax.random.bernoulli(key, survive, (sum(self.size.depths), math.prod(shape))) / survive
        return keep.T.reshape(*shape, -1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last map: ⌈h/32⌉ × ⌈w/32⌉ of all but `swin_test`."""
        whole = self.size.patch_px * 2 ** (len(self.size.depths) - 1)
        return -(-height // whole), -(-width // whole)

    @nn.compact
    def __call__(self, images: jax.Array, *, paths: jax.Array | None = None) -> dict[str, jax.Array]:
        """images: b h w c float, of `channels` or of one. paths: as the method `paths` draws
        them, which turns stochastic depth on.

        Returns float32, after the final LayerNorm: "patches" b n d, of `grid` in raster order, and "pooled"
        b d, their mean. Raises ValueError for an unknown variant or another number of channels.
        """
        size = self.size
        if images.shape[-1] not in (1, self.channels):
            raise ValueError(
                f"pictures have {images.shape[-1]} channels; this Swin takes {self.channels}, or grey ones"
            )
        x = jnp.broadcast_to(images, (*images.shape[:3], self.channels))
        p = size.patch_px
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % p), (0, -x.shape[2] % p), (0, 0)))
        x = rearrange(x, "b (p i) (q j) c -> b p q (i j c)", i=p, j=p)
        x = Linear(size.width, self.dtype, TORCH_CONV, name="patch_embed")(x)
        x = nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=self.dtype, name="patch_norm")(x)
        keep = None if paths is None else rearrange(paths, "... l -> l (...) 1 1 1")
        start = 0
        for number, (blocks, heads) in enumerate(zip(size.depths, size.heads, strict=True)):
            merge = number + 1 < len(size.depths)
            stage = Stage(blocks, heads, size.window, merge, self.dtype, self.remat, name=f"stage{number}")
            x = stage(x, None if keep is None else keep[start : start + blocks])
            start += blocks
        x = nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=jnp.float32, name="norm")(x)
        x = rearrange(x, "b p q d -> b (p q) d")
        return {"pooled": x.mean(axis=1), "patches": x}


def _relative(side: int, window: int) -> np.ndarray:
    """Rows n n of the bias table of `window` for each query and key of a window of `side` tokens, in raster order."""
    step = np.arange(side)[:, None] - np.arange(side) + window - 1
    return (step[:, None, :, None] * (2 * window - 1) + step[None, :, None, :]).reshape(side**2, side**2)


def _apart(grid: tuple[int, int], side: int, shift: int) -> np.ndarray:
    """What to add to the logits, t n n: APART for tokens from opposite edges, which a shift put together."""

    def region(length):
        place = np.arange(length)
        return (place >= length - side).astype(int) + (place >= length - shift)

    regions = 3 * region(grid[0])[:, None] + region(grid[1])
    regions = rearrange(regions, "(p i) (q j) -> (p q) (i j)", i=side, j=side)
    return np.where(regions[:, :, None] == regions[:, None], 0, APART).astype(np.float32)
