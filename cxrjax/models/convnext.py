"""ConvNeXt: a ResNet of today, with depthwise 7 × 7 convolutions, LayerNorm and GELU.

Liu et al., CVPR 2022, in the form of the released code and of Hugging Face's `ConvNextModel`, and of DINOv3's. What is
pooled is the LayerNorm of the mean over the last map. Encoders of this kind are read from disk; heads of segmentation
and detection are not built on them.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from cxrjax.models.transformer import NORMAL, LayerScale, Linear, gelu

LAYER_NORM_EPS = 1e-6
STEM_PX = 4


class Size(NamedTuple):
    """Blocks and channels of the four stages."""

    blocks: tuple[int, ...]
    widths: tuple[int, ...]


# Liu et al. 2022, section 3; `convnext_test` is ours.
VARIANTS = {
    "convnext_test": Size((1, 1, 2, 1), (8, 16, 24, 32)),
    "convnext_T": Size((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_S": Size((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_B": Size((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_L": Size((3, 3, 27, 3), (192, 384, 768, 1536)),
}


class Block(nn.Module):
    """Depthwise convolution → LayerNorm → MLP, beside the identity: b p q d → b p q d."""

    dtype: jnp.dtype = jnp.float32
    layer_scale: float | None = 1e-6
    eps: float = LAYER_NORM_EPS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d = x.shape[-1]
        kernel = self.param("depthwise", NORMAL, (7, 7, 1, d)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (d,)).astype(self.dtype)
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel, (1, 1), [(3, 3)] * 2, dimension_numbers=numbers, feature_group_count=d
        )
        y = nn.LayerNorm(epsilon=self.eps, dtype=self.dtype, name="norm")(y + bias)
        y = gelu(Linear(4 * d, self.dtype, NORMAL, name="fc1")(y))
        y = Linear(d, self.dtype, NORMAL, name="fc2")(y)
        if self.layer_scale is not None:
            y = LayerScale(self.layer_scale, name="layer_scale")(y)
        return x + y


class ConvNeXt(nn.Module):
    """Encoder of pictures of any size; see the module's docstring.

    variant: key of VARIANTS. channels: of the pictures. eps: of the last LayerNorm; inner_eps: of the others.
    layer_scale: what the factors of the branches start from, None for none. patch_norm: also normalises every place of
    the last map, as DINOv3 does. dtype: of the computation; parameters are float32. remat: "none", or whole blocks are
    computed again in the backward pass.
    """

    variant: str = "convnext_T"
    channels: int = 1
    eps: float = 1e-12
    layer_scale: float | None = 1e-6
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    patch_norm: bool = False
    inner_eps: float = LAYER_NORM_EPS

    @property
    def size(self) -> Size:
        return VARIANTS[self.variant]

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """images: b h w c float, cut to a multiple of the stem's 4 px and of 2 at every stage, as by strides.

        Returns float32 "pooled" b d and "patches" b p q d, the last map, of 1/32 of the picture's sides.
        """
        kind = Block if self.remat == "none" else nn.remat(Block)
        x = images
        for stage, (blocks, width) in enumerate(zip(*self.size, strict=True)):
            side = STEM_PX if stage == 0 else 2
            if stage:
                x = self._norm(f"reduce{stage}_norm", x)
            x = x[:, : x.shape[1] // side * side, : x.shape[2] // side * side]
            x = rearrange(x, "b (p i) (q j) c -> b p q (i j c)", i=side, j=side)
            x = Linear(width, self.dtype, NORMAL, name=f"reduce{stage}")(x)
            if stage == 0:
                x = self._norm("reduce0_norm", x)
            for i in range(blocks):
                x = kind(self.dtype, self.layer_scale, self.inner_eps, name=f"stage{stage}_{i}")(x)
        norm = nn.LayerNorm(epsilon=self.eps, dtype=jnp.float32, name="norm")
        x = x.astype(jnp.float32)
        return {"pooled": norm(x.mean((1, 2))), "patches": norm(x) if self.patch_norm else x}

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return nn.LayerNorm(epsilon=self.inner_eps, dtype=self.dtype, name=name)(x)
