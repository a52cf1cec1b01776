"""MAE: masked autoencoders. He, Chen, Xie, Li, Dollár, Girshick, CVPR 2022, arXiv 2111.06377.

    π uniform over permutations of the N patches of a picture; kept are the first k = ⌊(1 − ρ) N⌋, M are the others
    u = f([c; E x_t + p_t, t kept])                       encoder, on the kept patches only
    x̂ = g([W u at the kept places; m at those of M] + p')   decoder: one learned token m, positions for all
    loss = 1/|M| Σ_{t ∈ M} ‖x̂_t − x̄_t‖² / P²,   x̄_t = (x_t − mean) / √(variance + 1e-6)   of the patch's own pixels

symbol  here             meaning                            default; with chestxray14; with medical_mae
ρ       masking.ratio    share of the patches hidden        0.75; 0.75; 0.9
g       decoder          width, blocks, heads               128, 2, 4; 512, 8, 16; with 2 blocks
x̄       loss.normalise   target: normalised patch           True; True; False, which is plain pixels, x_t
f p p'  model            encoder; fixed sine–cosine tables
P                        side of a patch, pixels            8; 16

The paper states these, a crop of 20–100 % and a mirror image as the only changes of a picture, AdamW of 1.5e-4 · B/256
with β₂ 0.95 and decay 0.05, 40 epochs of warm-up. Its ablations have plain pixels; normalised ones did better, and the
released code's recipe has them. Xiao et al. (medical_mae, WACV 2023, arXiv 2210.12843) find that radiographs want 90 %
hidden and crops of 50–100 %; their released command has plain pixels and, for ViT-S, two blocks in the decoder.

As in the authors' code: [CLS] passes through encoder and decoder, LayerNorms before and after the decoder, a prediction
for every patch of which the loss reads the hidden ones. That code embeds all patches and then drops most
(`masking.embed = "all"`): the same numbers at a higher cost. Its decay covers [CLS] and m, as in the config's recipe.
Our choice: one grey channel, standardised by one mean and deviation. Evaluated is the encoder on all patches, by their
mean unless `model.pool` says "cls": [CLS] gets no loss of its own. No two pictures meet in the loss.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
from einops import rearrange

from cxrjax import monitors, rng, sizes
from cxrjax.drawing.panels import Panel
from cxrjax.input import crops, device
from cxrjax.losses import masked
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, keep_state
from cxrjax.methods.trunk import encode_by
from cxrjax.models import backbone, linen
from cxrjax.models.mae_decoder import MAEDecoder
from cxrjax.models.vit import EMBED


def make(config: Config) -> Method:
    """config: model, decoder, masking, loss, views, standardise; see configs/mae.py for every key."""
    settings.one_of(config, "masking.embed", EMBED)
    settings.counts(config, "decoder.width", "decoder.depth", "decoder.heads")
    if config.decoder.width % config.decoder.heads or config.decoder.width % 4:
        raise ValueError(
            f"decoder.width must be a multiple of decoder.heads and of 4, got {config.decoder.width} and "
            f"{config.decoder.heads}"
        )
    dtype, px = jnp.dtype(config.model.dtype), config.model.patch_px
    whole, encoder = backbone.make_vit(config.model)
    shared = {"dtype": dtype, "remat": config.model.remat, "unroll": config.model.unroll}
    decoder = MAEDecoder(px * px * config.model.channels, **config.decoder, **shared)
    grid = sizes.grid(config.model.image_px, px)
    n = grid[0] * grid[1]
    kept = kept_patches(n, config.masking.ratio)
    crop = crops.Crop(config.model.image_px, **config.views)

    def prepare(batch, key):
        images = standardised(batch["image"][:, 0])
        ids_keep, ids_restore, hidden = masking(rng.fold(key, "mask"), len(images), n, kept)
        paths = encoder.paths(rng.fold(key, "drop_path"), len(images))
        return {"images": images, "keep": ids_keep, "restore": ids_restore, "hidden": hidden, "paths": paths}

    def embed(params, state, prepared):
        out, prediction, pixels = reconstruct(params, prepared)
        error, hidden = masked.patch_errors(prediction, pixels, prepared["hidden"], config.loss.normalise)
        return {"error": error, "hidden": hidden, "pooled": pooled(out)}, {}

    def loss_of(params, state, features, prepared, step):
        value = masked.quotient(features["error"], features["hidden"])
        return value, Aux(state, {"reconstruction": value}, monitors.embedding(features["pooled"]))

    def reconstruct(params, prepared):
        """Of the kept patches the encoder's output; of all the decoder's and the true pixels, b n P·P·c each."""
        images, options = prepared["images"], {"embed": config.masking.embed, "paths": prepared["paths"]}
        out = linen.apply(encoder, params["encoder"], images, prepared["keep"], **options)
        tokens = out["cls"], out["patches"]  # b d, b k d
        prediction = linen.apply(decoder, params["decoder"], *tokens, prepared["restore"], grid)
        return out, prediction, rearrange(images, "b (p i) (q j) c -> b (p q) (i j c)", i=px, j=px)

    def standardised(images):
        grey = device.standardise(images, **config.standardise)
        return jnp.broadcast_to(grey, (*grey.shape[:-1], config.model.channels))  # b h w c

    def init(key, batch):
        images = standardised(batch["image"][:1, 0])
        cls = jnp.zeros((1, encoder.size.width))
        order = jnp.arange(n)[None]
        params = {
            "encoder": linen.init(encoder, rng.fold(key, "encoder"), images),
            "decoder": linen.init(decoder, rng.fold(key, "decoder"), cls, cls[:, None], order, grid),
        }
        return params, {}

    def make_views(example, rng):
        return {"image": crops.views(crops.decode(example["image"]), rng, crop)}

    def pooled(out):
        return out["cls"] if config.model.pool == "cls" else out["patches"].mean(axis=1)

    def look(params, state, batch, key):
        prepared = prepare(batch, key)
        _, prediction, pixels = reconstruct(params, prepared)
        if config.loss.normalise:  # it knows neither mean nor contrast of a patch, and is given the true ones here
            spread = jnp.sqrt(pixels.var(-1, keepdims=True, ddof=1) + 1e-6)
            prediction = prediction * spread + pixels.mean(-1, keepdims=True)
        images, hidden = prepared["images"][..., 0], rearrange(prepared["hidden"], "b (p q) -> b p q", p=grid[0])
        whole_picture = jnp.where(prepared["hidden"][..., None], prediction, pixels)
        drawn = rearrange(whole_picture, "b (p q) (i j c) -> b (p i) (q j) c", p=grid[0], i=px, j=px)[..., 0]
        known = " (mean and contrast of each are given)" if config.loss.normalise else ""
        return [
            Panel("picture", images),
            Panel(f"what the encoder is given: {kept} of {n} patches", images, hidden=hidden),
            Panel(f"hidden patches reconstructed{known}", drawn),
        ]

    encode, parts = encode_by(whole, config.standardise), Parts(prepare, embed, loss_of)  # all hide equally many
    functions = make_views, init, joined(parts), keep_state, encode
    return Method(*functions, config.model.image_px, couples_batch=False, parts=parts, look=look)


def kept_patches(n: int, ratio: float) -> int:
    """k = ⌊(1 − ρ) n⌋, how many of n patches the encoder sees.

    Counted in rationals: ⌊100·(1−0.8)⌋ is 19 in floats. Raises ValueError where all or none would be hidden.
    """
    kept = int(n * (1 - Fraction(str(ratio))))
    if not 1 <= kept < n:
        raise ValueError(
            f"masking.ratio {ratio} leaves {kept} of {n} patches; at least one must be kept and one hidden: choose a "
            "ratio in (0, 1), or more patches (larger picture, smaller patches)"
        )
    return kept


def masking(key: jax.Array, b: int, n: int, kept: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which patches every picture keeps: ids_keep int32 b k, ids_restore int32 b n, hidden bool b n.

    The order of uniform noise, drawn per picture, is a uniform permutation; ids_restore is its inverse, the rank of
    each patch in it: place i holds token ids_restore[i] of (kept tokens, then hidden ones).
    """
    order = jnp.argsort(jax.random.uniform(key, (b, n)), axis=1).astype(jnp.int32)
    ids_restore = jnp.argsort(order, axis=1).astype(jnp.int32)
    return order[:, :kept], ids_restore, ids_restore >= kept
