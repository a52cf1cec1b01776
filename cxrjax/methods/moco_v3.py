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

from functools import partial

import jax
import jax.numpy as jnp

from cxrjax import monitors, optim, rng
from cxrjax.losses import contrastive
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, ramp, target_of, total
from cxrjax.methods.trunk import encode_by, in_turn, pictures, projected, two_networks
from cxrjax.models import backbone, heads

FROZEN = "patch_embed"


def make(config: Config) -> Method:
    """config: model, projector, predictor, freeze_patch_embed, temperature, chunks, momentum, views, augment and
    standardise; see configs/moco_v3.py for every key.
    """
    for name in ("projector", "predictor"):
        settings.counts(config, f"{name}.layers", f"{name}.hidden")
    settings.counts(config, "projector.out")
    settings.positive(config, "temperature")
    settings.shares(config, "momentum")
    settings.slices(config, "chunks")
    ctr = partial(contrastive.ctr, temperature=config.temperature, chunks=config.chunks)
    encoder, pairs, dtype = backbone.make(config.model), pictures(config), jnp.dtype(config.model.dtype)
    projector, predictor = (mlp(head, config.projector.out, dtype) for head in (config.projector, config.predictor))
    network, momentum = projected(encoder, projector), ramp(config, config.momentum)

    def loss_of(params, state, features, prepared, step):
        def forward(stats, of_view):
            """What both encoders made of one view; statistics in and moved on, q and k, b d."""
            z, stats = network.project(params, stats, of_view["online"])
            q, moved = heads.run(predictor, params["predictor"], stats["predictor"], z, train=True)
            k, _ = network.project(state["target"], stats, of_view["target"])
            return {**stats, "predictor": moved}, (q, k)

        stats, (q, k) = in_turn(forward, state["batch_stats"], features)  # b v d
        terms = {
            "contrast": ctr(q[:, 0], k[:, 1]),
            "contrast_swapped": ctr(q[:, 1], k[:, 0]),
        }
        watched = monitors.embedding(q[:, 0], k[:, 1]) | {"momentum": momentum(step)}
        return total(terms), Aux({**state, "batch_stats": stats}, terms, watched)

    def init(key, batch):
        (params, stats), frozen = network.init(key), {}
        if config.freeze_patch_embed and FROZEN in params["encoder"]:
            learned = dict(params["encoder"])
            frozen[FROZEN] = learned.pop(FROZEN)
            params["encoder"] = learned
        target = jax.tree.map(jnp.copy, params)
        params["predictor"], stats["predictor"] = heads.start(
            predictor, rng.fold(key, "predictor"), config.projector.out
        )
        return params, {"batch_stats": stats, "target": target, "frozen": {"encoder": frozen}}

    def after(params, state, step):
        return {**state, "target": optim.ema(state["target"], target_of(params, state), momentum(step + 1))}

    encode = encode_by(encoder, config.standardise)
    parts = Parts(*two_networks(encoder, pairs, "queries", "keys"), loss_of)
    return Method(pairs.views, init, joined(parts), after, encode, config.model.image_px, parts=parts, look=pairs.look)


def mlp(config: Config, out: int, dtype: jnp.dtype) -> heads.MLP:
    """Projector or predictor of the authors' code; config: layers, hidden, last_norm."""
    sizes = (*[config.hidden] * (config.layers - 1), out)
    return heads.MLP(sizes, last_norm=config.last_norm, last_affine="none", bias=False, last_bias=False, dtype=dtype)
