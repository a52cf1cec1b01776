"""MoCo v3. Chen, Xie, He, An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021, 2104.02057.

    x₁, x₂ = aug(x), aug(x)                                       two views of every picture
    q_i = f_q(x_i): backbone, projector, predictor;   k_i = f_k(x_i): backbone, projector, no gradient
    ctr(q, k) = −2τ · mean_i log [exp(q_i·k_i/τ) / Σ_j exp(q_i·k_j/τ)]     eq. 1, algorithm 1; unit vectors
    loss = ctr(q₁, k₂) + ctr(q₂, k₁)                              keys of all devices are the negatives, no queue
    f_q ← optimizer,  f_k ← m f_k + (1 − m) f_q                   without the predictor
    m = 1 − (1 − m₀)·(cos(π t/T) + 1)/2                           step t of T

symbol  here                 meaning                          default; with resnet
τ       temperature          temperature                      0.2; 1.0
m₀      momentum             momentum of f_k at step 0        0.99
–       projector            layers, hidden, output           3, 4096, 256; 2 layers
–       predictor            layers, hidden, output           2, 4096, 256
–       freeze_patch_embed   a fixed random patch projection  True; it has none

The paper states these, fixed sine–cosine positions, BYOL's views, BatchNorm over all devices in the heads, and for
ViTs AdamW of 1.5e-4 · M/256, decay 0.1, 40 epochs of warm-up, and that the patch projection stays random for stability.
It is not learned, so it is no parameter here but state["frozen"]["encoder"], and the momentum encoder shares it.

As in the authors' code: positions whose first half tells the row (MAE's tells the column), q, k and v of a block from a
Xavier matrix each, [CLS] from N(0, 1e-6²), heads without biases and with a last BatchNorm without scale or bias (a
ResNet's predictor has no last one: predictor.last_norm), decay on every parameter (wd_mults in the config), each view
through each network by itself, so that the running statistics move with x₁, then with x₂. That code moves f_k at the
start of a step, by the queries' parameters of that moment; we do it at the end of the step before, which is the same,
and so at step t with the momentum of t + 1. f_k normalises by its batch; its running statistics, which nothing reads,
are not kept.

Our choice: grey jitter without hue and saturation. Evaluated is the backbone of f_q.
"""

import jax
import jax.numpy as jnp

from cxrjax import monitors, optim, rng
from cxrjax.input import crops, device
from cxrjax.input.augment import Augment, augment
from cxrjax.losses import contrastive
from cxrjax.methods.base import Aux, Method, encoder_params, ramp
from cxrjax.models import backbone, heads

FROZEN = "patch_embed"


def make(config) -> Method:
    """config: model, projector, predictor, freeze_patch_embed, temperature, momentum, views, augment, standardise.

    See configs/moco_v3.py for every key.
    """
    encoder, dtype = backbone.make(config.model), jnp.dtype(config.model.dtype)
    projector, predictor = (mlp(head, config.projector.out, dtype) for head in (config.projector, config.predictor))
    momentum = ramp(config, config.momentum)
    crop, settings = crops.Crop(config.model.image_px, **config.views), Augment(**config.augment)

    def loss(params, state, batch, key, step):
        images = augment(rng.fold(key, "augment"), batch["image"], settings)
        images = device.standardise(images, **config.standardise)  # b v h w 1

        def see(stats, view):
            """One view through both networks; statistics in and moved on, q and k, b d."""
            v, images = view
            z, stats = project(params, state, stats, images, rng.fold(key, "queries", v))
            q, moved = heads.run(predictor, params["predictor"], stats["predictor"], z, train=True)
            k, _ = project(state["target"], state, stats, images, rng.fold(key, "keys", v))
            return {**stats, "predictor": moved}, (q, k)

        # A loop over the views, so that the networks are compiled once.
        in_turn = jnp.arange(2), jnp.moveaxis(images, 1, 0)
        stats, (q, k) = jax.lax.scan(see, state["batch_stats"], in_turn)  # v b d
        terms = {
            "contrast": contrastive.ctr(q[0], k[1], temperature=config.temperature),
            "contrast_swapped": contrastive.ctr(q[1], k[0], temperature=config.temperature),
        }
        report = monitors.embedding(q[0], k[1]) | {"momentum": momentum(step)}
        return sum(terms.values()), Aux({**state, "batch_stats": stats}, terms, report)

    def project(params, state, stats, images, key):
        """Backbone and projector of f_q or f_k, b d, and the running statistics after them."""
        whole = encoder_params(params, state)
        h, moved = encoder.apply(whole, stats["encoder"], images, train=True, key=key)
        z, moved_head = heads.run(projector, params["projector"], stats["projector"], h["pooled"], train=True)
        return z, {**stats, "encoder": moved, "projector": moved_head}

    def init(key, batch):
        params, stats, frozen = {}, {}, {}
        params["encoder"], stats["encoder"] = encoder.init(rng.fold(key, "encoder"))
        if config.freeze_patch_embed and FROZEN in params["encoder"]:
            learned = dict(params["encoder"])
            frozen[FROZEN] = learned.pop(FROZEN)
            params["encoder"] = learned
        params["projector"], stats["projector"] = heads.start(projector, rng.fold(key, "projector"), encoder.width)
        target = jax.tree.map(jnp.copy, params)
        params["predictor"], stats["predictor"] = heads.start(
            predictor, rng.fold(key, "predictor"), config.projector.out
        )
        return params, {"batch_stats": stats, "target": target, "frozen": {"encoder": frozen}}

    def make_views(example, rng):
        return {"image": crops.views(crops.decode(example["image"]), rng, crop, crop)}

    def after(params, state, step):
        queries = {name: params[name] for name in state["target"]}
        return {**state, "target": optim.ema(state["target"], queries, momentum(step + 1))}

    def encode(params, state, images):
        images, whole = device.standardise(images, **config.standardise), encoder_params(params, state)
        return encoder.apply(whole, state["batch_stats"]["encoder"], images, train=False)[0]

    return Method(make_views, init, loss, after, encode, config.model.image_px)


def mlp(config, out: int, dtype: jax.typing.DTypeLike) -> heads.MLP:
    """Projector or predictor of the authors' code; config: layers, hidden, last_norm."""
    sizes = (*[config.hidden] * (config.layers - 1), out)
    return heads.MLP(sizes, last_norm=config.last_norm, last_affine="none", bias=False, last_bias=False, dtype=dtype)
