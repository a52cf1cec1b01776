"""BYOL: Bootstrap Your Own Latent. Grill et al., NeurIPS 2020, arXiv 2006.07733.

    v = t(x), v' = t'(x),  t ~ T, t' ~ T'                            two views of every picture; T and T' differ
    y = f_θ(v), z = g_θ(y), q_θ(z)        online: encoder, projector, predictor
    y' = f_ξ(v'), z' = g_ξ(y')            target: no predictor, no gradient
    L = ‖q̄_θ(z) − z̄'‖² = 2 − 2·cos(q_θ(z), z')                       eq. 2, mean over pictures; bars are unit length
    loss = L + L̃                                                     L̃ with v' to the online, v to the target network
    θ ← optimizer(θ, ∇_θ loss),  ξ ← τ ξ + (1 − τ) θ                 eq. 3 and 1, in this order
    τ = 1 − (1 − τ_base)·(cos(π k/K) + 1)/2                          step k of K

symbol  here                   meaning                           default; with chestxray14
τ_base  momentum               momentum of the target at step 0  0.99, theirs for 300 epochs; 0.996
g q     projector, predictor   hidden width, output width        4096, 256; BatchNorm and ReLU between, none at the end
θ ξ     params, state target   of f and g (θ of q as well)       ξ starts as θ

The paper states all of the above, T and T' (table 6), statistics over all devices, LARS with 0.2 · M/256, decay 1.5e-6
(neither for biases and BatchNorm), 10 epochs of warm-up. As in the authors' code each network sees one view after the
other: a BatchNorm normalises each view by itself, and the running statistics move with v, then with v'. The target
network normalises by its batch too; its running statistics, which nothing reads, are not kept.

The authors' code starts ξ from other random numbers than θ (`target_start = "independent"`), gives both heads a bias
before their BatchNorm, where it does nothing, and adds a classifier's loss for monitoring. Our choice: grey jitter
without hue and saturation, PyTorch's initialisation and BatchNorm. Evaluated, as in the paper, is the online encoder.
"""

import jax
import jax.numpy as jnp

from cxrjax import monitors, optim, rng
from cxrjax.losses import distill
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, ramp, target_of, total
from cxrjax.methods.trunk import encode_by, in_turn, pictures, projected, two_networks
from cxrjax.models import backbone, heads


def make(config: Config) -> Method:
    """config: model, projector, predictor, momentum, views, augment, standardise; see configs/byol.py for every key."""
    settings.one_of(config, "target_start", ("copy", "independent"))
    settings.counts(config, "projector.hidden", "projector.out", "predictor.hidden")
    settings.shares(config, "momentum")
    encoder, pairs, dtype = backbone.make(config.model), pictures(config), jnp.dtype(config.model.dtype)
    projector, predictor = (
        heads.MLP((head.hidden, head.out), bias=False, last_bias=False, dtype=dtype)
        for head in (config.projector, config.predictor)
    )
    network, momentum = projected(encoder, projector), ramp(config, config.momentum)
    if config.predictor.out != config.projector.out:
        raise ValueError(
            f"the predictor predicts what the projector gives: predictor.out = {config.predictor.out} must be "
            f"projector.out = {config.projector.out}"
        )

    def loss_of(params, state, features, prepared, step):
        def forward(stats, of_view):
            """What both encoders made of one view; statistics in and moved on, z, q and target z', b d."""
            z, stats = network.project(params, stats, of_view["online"])
            q, moved = heads.run(predictor, params["predictor"], stats["predictor"], z, train=True)
            target, _ = network.project(state["target"], stats, of_view["target"])
            return {**stats, "predictor": moved}, (z, q, target)

        stats, (z, q, target) = in_turn(forward, state["batch_stats"], features)  # b v d
        terms = {
            "regression": distill.byol(q[:, 0], target[:, 1]),
            "regression_swapped": distill.byol(q[:, 1], target[:, 0]),
        }
        watched = monitors.embedding(z[:, 0], z[:, 1]) | {"momentum": momentum(step)}
        return total(terms), Aux({**state, "batch_stats": stats}, terms, watched)

    def init(key, batch):
        params, stats = network.init(key)
        if config.target_start == "copy":
            target = jax.tree.map(jnp.copy, params)
        else:
            target, _ = network.init(rng.fold(key, "target"))
        params["predictor"], stats["predictor"] = heads.start(
            predictor, rng.fold(key, "predictor"), config.projector.out
        )
        return params, {"batch_stats": stats, "target": target}

    def after(params, state, step):
        return {**state, "target": optim.ema(state["target"], target_of(params, state), momentum(step))}

    encode = encode_by(encoder, config.standardise)
    parts = Parts(*two_networks(encoder, pairs, "online", "target"), loss_of)
    return Method(pairs.views, init, joined(parts), after, encode, config.model.image_px, parts=parts, look=pairs.look)
