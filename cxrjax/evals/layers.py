"""Features of the last blocks of a Vision Transformer side by side, as DINOv2 probes them (Oquab et al., TMLR 2024).

    [z_(L−N+1); …; z_L]        z_l: [CLS] behind block l and the encoder's last LayerNorm, of N blocks of L
    [z_(L−N+1); …; z_L; m]     m: mean of the patches behind block L and that LayerNorm

What a finding needs may be clearer before the last block, which was trained for another end. DINOv2's protocol chooses
of N = 1 and 4, with m and without. Where the judged feature is not [CLS], z_l is the mean of the patches of block l.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from cxrjax.evals.base import Encoder, digest
from cxrjax.evals.judge import Entry
from cxrjax.models import linen
from cxrjax.models.vit import ViT

KEYS = {
    "layers": 0,  # blocks at the end of a ViT whose vectors are laid side by side; 0 takes what the encoder pools
    "layers_mean": False,  # whether the mean of the last patches stands behind them
}


def check(entry: Entry) -> None:
    """Raises ValueError for a number of blocks that is none, and for the mean of patches behind no block."""
    count = entry["layers"]
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(
            f"layers={count!r} must be a whole number of blocks, such as 4, or 0 for the encoder's feature"
        )
    if entry["layers_mean"] and not count:
        raise ValueError("layers_mean=True adds to the vectors of blocks, and layers=0 takes none: give layers=1 or 4")


def of(encoder: Encoder, entry: Entry) -> Encoder:
    """The encoder whose pooled features are the vectors of its last blocks, where the entry asks for them.

    References without a network, such as pixels, stay as they are. Encoding raises ValueError as `vectors` does.
    """
    check(entry)
    count, mean, layers = entry["layers"], entry["layers_mean"], encoder.layers
    if not count or layers is None:
        return encoder
    identity = digest(encoder.digest, "layers", count, mean)
    return encoder._replace(
        encode=lambda images: {"pooled": layers(images, count, mean)}, digest=identity, attention=None
    )


def vectors(encode: Callable[..., Mapping[str, jax.Array]]) -> Callable[..., jax.Array]:
    """(params, state, images b h w 1, count, mean) -> the vectors of the last `count` blocks, b count·d float32.

    encode: of a method. Its own pass is watched, so that its preprocessing and parameters are the judged ones.
    mean: adds d numbers, the mean of the last patches. Raises ValueError for an encoder that is no single ViT, for more
    blocks than there are, and for a mean behind vectors that are means of patches already.
    """

    def found(params: Any, state: Any, images: jax.Array, count: int, mean: bool) -> jax.Array:
        seen = []

        def watch(run, given, named, context):
            if not isinstance(context.module, ViT) or context.method_name != "__call__":
                return run(*given, **named)
            out = run(*given, **{**named, "intermediates": True})
            seen.append((context.module.variables["params"]["norm"], context.module.eps, out))
            return out

        with nn.intercept_methods(watch):
            pooled = encode(params, state, images)["pooled"]
        chosen = [one for one in seen if one[-1].get("cls") is pooled] or seen
        if len(chosen) != 1:
            raise ValueError(
                f"layers={count} takes the last blocks of a Vision Transformer, and this encoder runs {len(chosen)} of "
                "them: leave layers at 0"
            )
        ((norm, eps, out),) = chosen
        depth, patches, of_cls = len(out["blocks"]), out["patches"], out.get("cls") is pooled
        if count > depth:
            raise ValueError(f"layers={count}, and the encoder has {depth} blocks")
        if mean and not of_cls:
            raise ValueError(
                "layers_mean=True, and the vector of a block is the mean of its patches already, since the feature of "
                "this encoder is not [CLS]: leave it out"
            )
        x = linen.apply(nn.LayerNorm(epsilon=eps, dtype=jnp.float32, parent=None), norm, out["blocks"][-count:])
        of_blocks = x[:, :, 0] if of_cls else x[:, :, -patches.shape[1] :].mean(axis=2)  # l b d
        laid = rearrange(of_blocks, "l b d -> b (l d)")
        return jnp.concatenate([laid, patches.mean(axis=1)], axis=1) if mean else laid

    return found
