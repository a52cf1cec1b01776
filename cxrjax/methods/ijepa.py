"""I-JEPA: predict what an encoder makes of hidden blocks from what it makes of the rest. Assran et al., CVPR 2023.

    B_1 … B_M ⊂ {1 … N},  C ⊂ the patches outside of all B_i          blocks to predict, and a context; arXiv 2301.08243
    s_y = LN(f̄(x)),  no gradient                                      of all patches; LN over d, without parameters
    s_x = f(x restricted to C)                                        positions belong to the patch
    ŝ_i = g(s_x; m + e_j, j ∈ B_i)                                    each block by itself; m one learned token
    loss = mean over pictures, i, j ∈ B_i and d of ℓ(ŝ_ij − s_yj),    ℓ(δ) = ½ δ² for |δ| < 1, else |δ| − ½
    θ ← optimizer,  f̄ ← μ f̄ + (1 − μ) f,  μ linear from μ₀ to 1       in this order

symbol   here                      meaning                                          default; with chestxray14
M        masking.targets           blocks of one size in a picture                  4
|B|      target_scale, aspect      share of the patches; height / width             0.15 to 0.2, 0.75 to 1.5
C        context_scale             a square of so many, without the blocks          0.85 to 1
g        predictor                 width, depth, heads                              64, 2, 4; 384, 6, 12
μ₀       momentum                  of the targets at step 0                         0.996
ℓ        loss.kind                 smooth_l1 (released code), or l2 (the paper)     smooth_l1

Blocks, sizes, LN, crops of 30–100 % as the only change of a picture, and AdamW with its warm-up and decays are the
released code's, of ViT-H. Nothing smaller is released, so the depth of g for a ViT-B and all else of that size is our
choice. The encoder has no [CLS]. Evaluated is f̄, by the mean of its patches.

The released masks are put right by default; each slip is a switch, and configs/ijepa.py:released sets them all:
    masking.inclusive=False            blocks never reach the last row and column, and the context is always one square
                                       at the upper left of a 14 × 14 grid
    masking.independent_aspect=False   small blocks are wide and large ones tall: one draw gives both
    masking.context_cut="first"        contexts of a batch are cut to the smallest, from the bottom of the picture: of
                                       14 × 14 patches the row before the last is context for 2 % of a batch of 128.
                                       On a chest film these are the costophrenic angles. By default a context above
                                       `context_most` of the patches loses some at random, and shorter ones are padded
    initialisation.rescale             off as released, which draws every linear layer anew and so undoes the 1/√(2l) of
                                       block l that is in its code
Sizes are drawn for each picture here, and for each batch there. Its learning rates are those of one step later.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import monitors, optim, rng, sizes
from cxrjax.drawing.panels import Panel
from cxrjax.input import block_masks, crops, device
from cxrjax.losses import masked
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, encoder_params, joined, outside, ramp, target_of
from cxrjax.models import backbone, linen
from cxrjax.models.predictor import Predictor
from cxrjax.models.transformer import gather
from cxrjax.models.vit import ViT


def make(config: Config) -> Method:
    """config: model, predictor, masking, initialisation, momentum, loss, views, standardise; see configs/ijepa.py."""
    settings.one_of(config, "loss.kind", masked.REGRESSIONS)
    settings.one_of(config, "masking.context_cut", ("random", "first"))
    settings.one_of(config, "model.pool", ("without_cls",))
    settings.counts(config, "masking.targets", "predictor.width", "predictor.depth", "predictor.heads")
    settings.counts(config, "masking.min_keep", least=0)
    settings.shares(config, "momentum", "masking.target_scale", "masking.context_scale", "masking.context_most")
    settings.positive(config, "masking.aspect")
    whole = backbone.make(config.model)
    encoder, px = whole.module, config.model.patch_px
    if not isinstance(encoder, ViT):
        raise ValueError(f"this method gives a ViT some of the patches; got model.variant={config.model.variant!r}")
    shared = {"dtype": encoder.dtype, "remat": encoder.remat, "unroll": encoder.unroll}
    predictor = Predictor(encoder.size.width, **config.predictor, **shared)
    grid = sizes.grid(config.model.image_px, px)
    blocks, momentum = block_masks.Blocks(**config.masking), ramp(config, config.momentum, shape="linear")
    crop, cuts = crops.Crop(config.model.image_px, **config.views), config.masking.context_cut == "first"

    def prepare(batch, key):
        images = device.standardise(batch["image"][:, 0], **config.standardise)
        count = jnp.full_like(batch["context_count"], batch["context_count"].min()) if cuts else batch["context_count"]
        paths = encoder.paths(rng.fold(key, "drop_path"), len(images))
        masks = {name: batch[name] for name in ("context", "targets", "target_count")}
        return {**masks, "images": images, "context_count": count, "paths": paths}

    def embed(params, state, prepared):
        images = jnp.broadcast_to(prepared["images"], (*prepared["images"].shape[:3], encoder.channels))
        context, count, targets, target_count = (
            prepared[name] for name in ("context", "context_count", "targets", "target_count")
        )
        seen = linen.apply(encoder, encoder_params(state["target"], state), images, drop_cls=True)["patches"]  # b n d
        wanted = gather(jax.lax.stop_gradient(seen), targets)  # b m t d
        options = {"drop_cls": True, "lengths": count, "paths": prepared["paths"]}
        known = linen.apply(encoder, encoder_params(params, state), images, context, **options)["patches"]  # b k d
        predicted = linen.apply(predictor, params["predictor"], known, context, count, targets, target_count, grid)
        there = jnp.arange(targets.shape[2]) < target_count[:, None, None]
        error, tokens = masked.regression_errors(predicted, wanted, there, config.loss.kind)
        return {"error": error, "tokens": tokens, "pooled": seen.mean(axis=1), "target_std": seen.std(axis=(1, 2))}, {}

    def loss_of(params, state, features, prepared, step):
        value = masked.quotient(features["error"], features["tokens"])
        watched = monitors.embedding(features["pooled"]) | {
            "target_std": features["target_std"].mean(),
            "context_patches": prepared["context_count"].mean(),
            "momentum": momentum(step),
        }
        return value, Aux(state, {"prediction": value}, watched)

    def init(key, batch):
        params, _ = whole.init(rng.fold(key, "encoder"))
        ids, one = jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32)
        start = linen.init(
            predictor, rng.fold(key, "predictor"), jnp.zeros((1, 1, encoder.size.width)), ids, one, ids[None], one, grid
        )
        if config.initialisation.rescale:
            params, start = rescaled(params), rescaled(start)
        frozen = {"encoder": {"cls": params.pop("cls")}}  # which no token is, and nothing teaches
        state = {"target": {"encoder": jax.tree.map(jnp.copy, params)}, "frozen": frozen}
        return {"encoder": params, "predictor": start}, state

    def make_views(example, rng):
        image = crops.views(crops.decode(example["image"]), rng, crop)
        return {"image": image, **blocks.draw(rng, grid)}

    def look(params, state, batch, key):
        prepared = prepare(batch, key)
        images, targets, count = (prepared[name] for name in ("images", "targets", "target_count"))
        blocks_apart = [outside(targets[:, m], grid, count) for m in range(targets.shape[1])]
        context = outside(prepared["context"], grid, prepared["context_count"])
        return [
            Panel("context, which the encoder is given", images[..., 0], hidden=context),
            Panel(f"the {len(blocks_apart)} blocks to predict", images[..., 0], hidden=jnp.stack(blocks_apart).all(0)),
        ]

    def after(params, state, step):
        return {**state, "target": optim.ema(state["target"], target_of(params, state), momentum(step))}

    def encode(params, state, images):
        images = device.standardise(images, **config.standardise)
        return whole.apply(encoder_params(state["target"], state), {}, images, train=False)[0]

    def learned(params, state):
        return encoder_params(state["target"], state)

    parts = Parts(prepare, embed, loss_of, weight=lambda prepared: masked_tokens(prepared).sum())
    functions = make_views, init, joined(parts), after, encode
    return Method(*functions, config.model.image_px, couples_batch=cuts, parts=parts, encoder=learned, look=look)


def masked_tokens(prepared: dict) -> jax.Array:
    """How many tokens of every picture are predicted, b."""
    return prepared["target_count"] * prepared["targets"].shape[1]


def rescaled(params: dict) -> dict:
    """The last matrices of both branches of block l, from 1, over √(2l), as BEiT starts and I-JEPA's code intends."""
    blocks = dict(params["blocks"])
    for part, last in (("attention", "out"), ("mlp", "fc2")):
        layer = blocks[part][last]
        factor = 1 / np.sqrt(2 * np.arange(1, 1 + len(layer["kernel"])))
        blocks[part] = {**blocks[part], last: {**layer, "kernel": layer["kernel"] * factor[:, None, None]}}
    return {**params, "blocks": blocks}
