"""From tokens back to pixels: the light head of GMML, and UNETR for segmentation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from cxrjax.models.transformer import NORMAL, TORCH_CONV, XAVIER, Linear, gelu

INITIAL = {"normal": NORMAL, "xavier": XAVIER}
"""Name of an initialisation of PixelHead -> of its linear layers."""


class Deconvolution(nn.Module):
    """Transposed convolution without overlap, b p q d → b (p·factor) (q·factor) features; each place by itself.

    kernel: (d, factor, factor, features), `features` biases unless `bias` is off. Starts as PyTorch's ConvTranspose2d,
    whose fan-in counts outputs: U(±1/√(factor²·features)); the bias from 0.
    """

    features: int
    factor: int
    bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        bound = (self.factor**2 * self.features) ** -0.5

        def init(key, shape):
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        kernel = self.param("kernel", init, (x.shape[-1], self.factor, self.factor, self.features)).astype(self.dtype)
        y = x.astype(self.dtype) @ kernel.reshape(x.shape[-1], -1)
        y = rearrange(y, "b p q (i j c) -> b (p i) (q j) c", i=self.factor, j=self.factor)
        return y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype) if self.bias else y


class PixelHead(nn.Module):
    """GMML's decoder: three times Linear → GELU, then each token to its own patch of pixels; float32.

    tokens: b n d, the patches of a p q grid in raster order → b h w channels. 738 435 parameters at d = 384, 16 px and
    three channels. initialisation: of the Linears, as in ViT. Source: GMML (arXiv 2205.14986), released code.
    """

    patch_px: int = 16
    channels: int = 1
    dtype: jnp.dtype = jnp.float32
    initialisation: str = "normal"

    @nn.compact
    def __call__(self, tokens: jax.Array, grid: tuple[int, int]) -> jax.Array:
        init = INITIAL[self.initialisation]
        for i in range(3):
            tokens = gelu(Linear(tokens.shape[-1], self.dtype, init, name=f"fc{i + 1}")(tokens))
        tokens = rearrange(tokens, "b (p q) d -> b p q d", p=grid[0], q=grid[1])
        pixels = Deconvolution(self.channels, self.patch_px, dtype=self.dtype, name="pixels")(tokens)
        return pixels.astype(jnp.float32)


def unetr_taps(depth: int, patch_px: int) -> tuple[int, ...]:
    """The blocks, counted from 1, whose outputs UNETR reads beside the last: log₂(patch) − 1 of them, evenly spread.

    (4, 7, 10) for twelve blocks and patches of 16 px, as in MONAI; the paper's z3, z6, z9 would be (3, 6, 9).
    Raises ValueError where the patch is no power of two from 4 on, or there are too few blocks.
    """
    levels = patch_px.bit_length() - 1
    if patch_px != 2**levels or levels < 2 or depth < levels:
        raise ValueError(
            f"UNETR doubles the grid until it has pixels and reads one block per doubling but the last: patches of "
            f"{patch_px} px and {depth} blocks do not fit; patches are 4, 8, 16 … px, with at least log₂ of it blocks"
        )
    return tuple(i * depth // levels + 1 for i in range(1, levels))


class UNETR(nn.Module):
    """Segmentation from the blocks of a ViT: patches of the taps and of the end, and the picture → logits b h w c.

    classes: c. features: channels at full resolution, doubled with every halving. taps: see `unetr_taps`, which is the
    default. dtype: of the convolutions; norms and logits are float32.
    Source: Hatamizadeh et al., WACV 2022 (arXiv 2103.10504), as MONAI has it in two dimensions: instance norm without
    scale and bias, residual blocks, LeakyReLU 0.01, transposed convolutions of kernel and stride 2.
    """

    classes: int
    patch_px: int = 16
    features: int = 16
    taps: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, blocks: jax.Array, patches: jax.Array, images: jax.Array) -> jax.Array:
        """blocks: l b 1+n d, or l b n d from an encoder run without [CLS]; patches: b n d; images: b h w c.

        As ViT returns them with intermediates=True. Row 0 of the blocks is dropped where it is [CLS]: the encoder was
        trained with it, and taking it out before the blocks, as in MONAI's encoder, changes every activation. For
        that, call the ViT with drop_cls=True.
        """
        taps = self.taps or unetr_taps(len(blocks), self.patch_px)
        levels = len(taps) + 1
        if self.patch_px != 2**levels:
            raise ValueError(
                f"{len(taps)} taps {taps} lead from patches of {2**levels} px to pixels, not from those of "
                f"{self.patch_px} px; give one tap per doubling but the last"
            )
        if not all(1 <= tap <= len(blocks) for tap in taps):
            raise ValueError(f"taps {taps} count blocks from 1, and there are {len(blocks)}")
        p, q = (side // self.patch_px for side in images.shape[1:3])

        def grid(tokens):
            return rearrange(tokens[:, -p * q :], "b (p q) d -> b p q d", p=p, q=q).astype(self.dtype)

        def width(level):
            return self.features * 2**level

        x = grid(patches)
        for level in reversed(range(levels)):
            if level:
                skip = self._raise(grid(blocks[taps[level - 1] - 1]), width(level), levels - level, f"skip{level}")
            else:
                skip = ResidualBlock(width(0), self.dtype, name="skip0")(images.astype(self.dtype))
            x = Deconvolution(width(level), 2, bias=False, dtype=self.dtype, name=f"up{level}")(x)
            x = ResidualBlock(width(level), self.dtype, name=f"merge{level}")(jnp.concatenate([x, skip], axis=-1))
        return nn.Dense(self.classes, name="logits")(x.astype(jnp.float32))

    def _raise(self, x: jax.Array, features: int, doublings: int, name: str) -> jax.Array:
        x = Deconvolution(features, 2, bias=False, dtype=self.dtype, name=f"{name}_up1")(x)
        for i in range(2, doublings + 1):
            x = Deconvolution(features, 2, bias=False, dtype=self.dtype, name=f"{name}_up{i}")(x)
            x = ResidualBlock(features, self.dtype, name=f"{name}_block{i}")(x)
        return x


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with instance norm, added to the input; a 1 × 1 one on the way where widths differ."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def convolve(x, size, name):
            options = {"use_bias": False, "dtype": self.dtype, "kernel_init": TORCH_CONV}
            return instance_norm(nn.Conv(self.features, (size, size), name=name, **options)(x))

        y = convolve(nn.leaky_relu(convolve(x, 3, "conv1")), 3, "conv2")
        residual = x if x.shape[-1] == self.features else convolve(x, 1, "conv3")
        return nn.leaky_relu(y + residual)


def instance_norm(x: jax.Array) -> jax.Array:
    """Each channel of each picture of b h w d to mean 0 and variance 1 over h w; ε = 1e-5, no parameters."""
    centred = x.astype(jnp.float32)
    centred = centred - centred.mean(axis=(1, 2), keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=(1, 2), keepdims=True) + 1e-5)).astype(x.dtype)
