"""SPCXR (later SS-CXR): group masked model learning on chest radiographs. Anwar et al., arXiv 2211.12944, ICIP 2024.

    x̃ = x outside M, in the blocks of M noise or another picture's pixels      M drawn for each of two views
    T = LN( ¼ (x₆ + x₈ + x₁₀ + x₁₂) ), without [CLS]                             x_k the tokens of x̃ after block k
    x̂ = U( G(G(G(T))) ),   G(t) = GELU(Wt + b)                                   U: each token to its P × P pixels
    loss = Σ m·|x̂ − x| / Σ m                                                     over views, pictures and pixels

symbol   here                          meaning                                          default
ρ        corruption.share              share of a picture that noise hides, at most     0.75
         corruption.donor_share        the same for blocks of another picture           0.3
k        recons_blocks                 blocks that T averages                           "spread": 6, 8, 10, 12 of 12

Only the abstract, rows of results and a model card of the paper were readable to us: they name a ViT-S trained by group
masked model learning (GMML, arXiv 2205.14986) on radiographs, and none of its settings. All of the above and the
defaults are GMML's released code, except for what configs/spcxr.py says is ours and these, where a switch has the
release's way:

    donors are never the picture itself, and come from the whole batch          corruption.self_donor, corruption.groups
    the loss is one quotient over the whole batch, not a mean over devices      loss.groups
    crops of 20–100 % of a picture, not 5–100 %                                 views.scale

Without a switch: one grey channel, where the release has three that would be equal but for their noise; biases of the
patch embedding and of U start from 0; [CLS] has no position: beside its own learned value that was a second one.
`contrast.weight` adds the term of SiT (arXiv 2104.03602), the same authors' method before GMML: [CLS] of the corrupted
views against a momentum copy's of the other clean view; GELU in both places where its head has ReLU once. Not in SPCXR
as far as we can read it; the public text calls the objective GMML, whose point is to need no second term.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from cxrjax import monitors, optim, rng
from cxrjax.config import names
from cxrjax.drawing.panels import Panel
from cxrjax.input import corruption, device
from cxrjax.losses import contrastive, masked
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, ramp, target_of, total
from cxrjax.methods.trunk import encode_by, pictures
from cxrjax.models import backbone, heads, linen
from cxrjax.models.decoders import INITIAL as PIXEL_HEADS
from cxrjax.models.decoders import PixelHead
from cxrjax.models.transformer import LAYER_NORM_EPS


def make(config: Config) -> Method:
    """config: model, recons_blocks, corruption, loss, contrast, views, augment, standardise: configs/spcxr.py."""
    settings.one_of(config, "model.initialisation", PIXEL_HEADS)
    settings.slices(config, "loss.groups", "corruption.groups", "contrast.chunks")
    settings.counts(config, "contrast.hidden", "contrast.out")
    settings.positive(config, "loss.weight", "contrast.temperature")
    settings.weights(config, "contrast.weight")
    settings.shares(config, "contrast.momentum")
    px, dtype = config.model.image_px, jnp.dtype(config.model.dtype)
    (whole, encoder), pairs = backbone.make_vit(config.model), pictures(config)
    settings.counts(config, "decoder.channels")
    initialisation, channels = config.model.initialisation, config.decoder.channels
    decoder = PixelHead(config.model.patch_px, channels, dtype, initialisation)
    blocks = recons_blocks(config.recons_blocks, encoder.size.depth)
    corrupt = corruption.Corruption(**config.corruption)
    corrupt.check(px)
    contrasts, momentum = config.contrast.weight > 0, ramp(config, config.contrast.momentum)
    sizes = (config.contrast.hidden, config.contrast.hidden, config.contrast.out)
    projector = heads.MLP(sizes, last_norm=True, last_affine="none", activation="gelu", initial="normal", dtype=dtype)

    def prepare(batch, key):
        clean = pairs.prepare(key, batch["image"])  # b v h w 1
        corrupted = corruption.apply(corrupt, rng.fold(key, "corrupt"), clean, batch)
        paths = encoder.paths(rng.fold(key, "drop_path"), *clean.shape[:2])
        return {"clean": clean, "corrupted": corrupted, "hidden": batch["fill"] > 0, "paths": paths}

    def embed(params, state, prepared):
        clean, corrupted, hidden = (prepared[name] for name in ("clean", "corrupted", "hidden"))
        outputs, restored = restore(params, corrupted, prepared["paths"])
        error, count = masked.l1_errors(restored, clean, hidden)
        given_back = jnp.broadcast_to(corrupted, restored.shape)  # the input as it is
        copy_error, _ = masked.l1_errors(given_back, clean, hidden)
        features = {"error": error, "count": count, "copy_error": copy_error}
        features["pooled"] = rearrange(pooled(outputs), "(b v) d -> b v d", v=2)
        if contrasts:
            images = rearrange(clean, "b v h w c -> (b v) h w c")
            of_clean = linen.apply(encoder, state["target"]["encoder"], images, cls_only=True)["cls"]
            both = {"cls": outputs["cls"], "of_clean": of_clean}
            features |= {name: rearrange(x, "(b v) d -> b v d", v=2) for name, x in both.items()}
        return features, {}

    def loss_of(params, state, features, prepared, step):
        errors, hidden = (features["error"], features["copy_error"]), features["count"]
        error, copy_error = masked.quotient(errors[0], hidden, config.loss.groups), masked.quotient(errors[1], hidden)
        terms = {"reconstruction": config.loss.weight * error}
        if contrasts:
            term, state = contrast(params, state, features["cls"], features["of_clean"])
            terms["contrast"] = config.contrast.weight * term
        u, v = rearrange(features["pooled"], "b v d -> v b d")
        watched = monitors.embedding(u, v) | {"hidden": prepared["hidden"].mean(), "copy_error": copy_error}
        return total(terms), Aux(state, terms, watched)

    def restore(params, images, paths):
        """x̃ b v h w 1 → the encoder's outputs for (b v) pictures, and x̂ b v h w 1."""
        images = rearrange(images, "b v h w c -> (b v) h w c")
        outputs = linen.apply(encoder, params["encoder"], images, intermediates=True, paths=paths)
        tokens = averaged_tokens(params["encoder"]["norm"], outputs["blocks"], blocks, 1 + encoder.registers)
        restored = linen.apply(decoder, params["decoder"], tokens, grid(images))
        return outputs, rearrange(restored, "(b v) h w c -> b v h w c", v=2)

    def contrast(params, state, cls, of_clean):
        """SiT: [CLS] of each corrupted view finds that of the other clean view, by the momentum copy, among all.

        cls, of_clean: b v d.
        """
        cls, of_clean = (rearrange(x, "b v d -> (b v) d") for x in (cls, of_clean))
        stats, target = state["batch_stats"]["projector"], state["target"]["projector"]
        q, moved = heads.run(projector, params["projector"], stats, cls, train=True)
        k, _ = heads.run(projector, target, stats, of_clean, train=True)
        q, k = (rearrange(x, "(b v) d -> v b d", v=2) for x in (q, k))
        options = {name: config.contrast[name] for name in ("temperature", "chunks")}
        term = sum(contrastive.ctr(q[i], k[1 - i], **options) for i in (0, 1))
        return term, {**state, "batch_stats": {"projector": moved}}

    def init(key, batch):
        images = device.standardise(batch["image"][:1, 0], **config.standardise)
        params = {"encoder": linen.init(encoder, rng.fold(key, "encoder"), images)}
        p, q = grid(images)
        tokens = jnp.zeros((1, p * q, encoder.size.width))
        params["decoder"] = linen.init(decoder, rng.fold(key, "decoder"), tokens, (p, q))
        if not contrasts:
            return params, {}
        params["projector"], stats = heads.start(projector, rng.fold(key, "projector"), encoder.size.width)
        target = {name: jax.tree.map(jnp.copy, params[name]) for name in ("encoder", "projector")}
        return params, {"target": target, "batch_stats": {"projector": stats}}

    def make_views(example, rng):
        drawn = [corruption.draw(corrupt, rng, px) for _ in range(2)]
        fills = {name: np.stack([view[name] for view in drawn]) for name in drawn[0]}
        return {**pairs.views(example, rng), **fills}

    def after(params, state, step):
        if not contrasts:
            return state
        return {**state, "target": optim.ema(state["target"], target_of(params, state), momentum(step))}

    def look(params, state, batch, key):
        prepared = prepare(batch, key)
        _, restored = restore(params, prepared["corrupted"], prepared["paths"])
        rows = {"view 1": prepared["clean"], "corrupted": prepared["corrupted"], "restored": restored}
        return [Panel(label, images[:, 0, ..., 0]) for label, images in rows.items()]

    def pooled(outputs):
        return outputs["cls"] if config.model.pool == "cls" else outputs["patches"].mean(axis=1)

    def grid(images):
        return tuple(side // config.model.patch_px for side in images.shape[1:3])

    parts = Parts(prepare, embed, loss_of, weight=lambda prepared: prepared["hidden"].sum())
    functions = make_views, init, joined(parts), after, encode_by(whole, config.standardise)
    return Method(*functions, px, couples_batch=contrasts or config.loss.groups > 1, parts=parts, look=look)


def averaged_tokens(norm: dict, outputs: jax.Array, blocks: tuple[int, ...], first: int = 1) -> jax.Array:
    """T of the module's docstring: b n d from the outputs l b first+n d of all blocks, counted from 1.

    norm: parameters of the encoder's final LayerNorm.
    """
    mean = outputs[np.asarray(blocks) - 1].astype(jnp.float32).mean(axis=0)
    return linen.apply(nn.LayerNorm(epsilon=LAYER_NORM_EPS), norm, mean)[:, first:]


def recons_blocks(words: str, depth: int) -> tuple[int, ...]:
    """The blocks, counted from 1, that are averaged: "6,8,10,12"; "spread" for ½, ⅔, ⅚ and all of the depth; "last".

    "spread" is 6, 8, 10, 12 of 12 blocks, as in GMML's release; for other depths the rule is ours.
    Raises ValueError for blocks that the encoder does not have.
    """
    if words == "spread":
        return tuple(sorted({-(-depth * sixths // 6) for sixths in (3, 4, 5, 6)}))
    chosen = (depth,) if words == "last" else tuple(int(w) if w.isdecimal() else 0 for w in names(words))
    if not chosen or len(set(chosen)) < len(chosen) or not all(1 <= block <= depth for block in chosen):
        raise ValueError(
            f"recons_blocks must be 'spread', 'last' or different numbers from 1 to {depth} separated by commas, "
            f"got {words!r}"
        )
    return chosen
