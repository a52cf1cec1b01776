"""MLVICX: Multi-Level Variance-Covariance Exploration. Singh, Gorade, Mishra, IEEE JBHI 28(12), 2024, arXiv 2403.11504.

    F_1 … F_5 = f(x),  F_l ← g_l(F_l)                  ResNet stages; a context gate on each, which feeds the next stage
    z = h_G(mean F_5)                                  the global embedding of a view
    d = h_L(grid Σ_l W_l resize F_l)                   the multi-level one: all levels on one 4 × 4 grid, flattened
    L_E = 25 s(E, E′) + 25 v(E, E′) + c(E, E′),  E ∈ {z, d}       VICReg's terms over the batch of all devices
    loss = L_z + λ L_d

symbol    here                      meaning                                              default
g_l       gates                     channel and spatial attention (models/gates.py)      on, reduction 2
W_l       params["level_proj"]      1 × 1 convolutions (models/multilevel.py)            512 features
h_G h_L   heads.sizes, final_bn     three times Linear–BatchNorm, ReLU between           4096, 4096, 4096
λ         loss.lambda               weight of the multi-level loss                       1

Only abstract and summaries were readable to us. They state: two views through one encoder, "context bottlenecks" that
fuse global and local context in intermediate maps, VICReg-type losses on a global and on a multi-level embedding,
L_G + λ L_L, pre-training on ChestX-ray14. All else follows the released code (github.com/vangorade/mlvicx): one fused
multi-level embedding and not a loss per level, sizes, views, LARS; there λ is an implicit 1.
What the release does by accident is a switch, and `release` in configs/mlvicx.py sets them all:

    train_level_proj=False   W_l are made after the optimizer took its parameters, so they stay as they start
    strip_gates=True         evaluation runs the trunk without the gates that it was trained with
    cosine_period="total"    (optim) the learning rate's cosine does not end at the last step

Ours, for ablation: final_bn=False (VICReg's head; with BatchNorm last the variance term acts through its scale only),
per_level=True (a small head and loss for each level's mean map, averaged, in place of L_d), levels.use, gates.use,
loss.global, and loss.rebalance. The latter weights c by 3 over its floor d/(M−1) − 1: 25, 25, 1 are in balance at
VICReg's floor of 3, but at 4096 dimensions and M = 64 or 256 pictures it is 64 or 15, so that c presses the deviations
to about 0.37 or 0.59 (reported as std_*): expected, and no fault of a run. A weight of 0 leaves out its head.
"""

from functools import partial

import jax
import jax.numpy as jnp

from cxrjax import monitors
from cxrjax.config import names
from cxrjax.input import device, views
from cxrjax.input.augment import Augment, augment
from cxrjax.losses import redundancy
from cxrjax.methods.base import Aux, Method
from cxrjax.models import resnet
from cxrjax.models.gates import ContextGate
from cxrjax.models.heads import MLP
from cxrjax.models.multilevel import LevelFusion

LEVELS = ("1", "2", "3", "4", "5")
BALANCED_FLOOR = 3.0  # of VICReg's own 8192 dimensions and 2048 pictures


def make(config) -> Method:
    """config: model, gates, levels, heads, loss, views, augment, standardise, switches; see configs/mlvicx.py."""
    dtype = jnp.dtype(config.model.dtype)
    trunk = _trunk(config.model, dtype)
    widths = dict(zip(LEVELS, trunk.size.widths, strict=True))
    gate = ContextGate(config.gates.reduction, dtype) if config.gates.use else None
    levels = _levels(config.levels.use)
    fusion = LevelFusion(
        tuple(f"level{level}" for level in levels),
        config.levels.features,
        config.levels.side,
        config.levels.grid,
        config.levels.fused,
        dtype,
    )
    weights, heads, inputs = _heads(config, levels, widths, dtype)
    fused = "levels" in heads
    crop = views.Crop(config.model.image_px, **config.views)
    changes = Augment(**config.augment)

    def loss(params, state, batch, key, step):
        images = device.standardise(augment(key, batch["image"], changes), **config.standardise)  # b v h w 1
        everything = params | {name: state[name] for name in ("level_proj",) if name in state}
        stats, pairs = jax.lax.scan(partial(embed, everything), state["batch_stats"], jnp.moveaxis(images, 1, 0))
        terms, report = {}, monitors.embedding(*pairs[next(iter(heads))])
        for name, weight in weights.items():
            for term, value in vicreg(*pairs[name]).items():
                terms[f"{name}_{term}"] = weight * value
            report[f"std_{name}"] = redundancy.deviation(pairs[name][0]).mean()
        return sum(terms.values()), Aux(state | {"batch_stats": stats}, terms, report)

    def vicreg(u, v):
        options = {name: config.loss[name] for name in ("sim", "std", "cov", "groups")}
        if config.loss.rebalance:
            rows, d = len(u) // config.loss.groups, u.shape[1]
            floor = redundancy.covariance_floor(rows, d)
            if not floor:
                raise ValueError(f"loss.rebalance needs more dimensions than pictures, got {d} and {rows}")
            options["cov"] *= BALANCED_FLOOR / floor
        return redundancy.vicreg(u, v, **options)

    def embed(params, stats, images):
        """One view: running statistics moved on from those of the view before it, and its embeddings by head."""
        out, encoder_stats = run(params, stats["encoder"], images, True, gate)
        maps = [out["taps"][int(level) - 1] for level in levels]
        vectors = {"global": out["pooled"]}
        if fused:
            vectors["levels"] = fusion.apply({"params": params["level_proj"]}, maps)
        else:
            means = (x.astype(jnp.float32).mean((1, 2)) for x in maps)
            vectors |= {f"level{level}": x for level, x in zip(levels, means, strict=True)}
        embeddings, head_stats = {}, {}
        for name, head in heads.items():
            variables = {"params": params["projector"][name], "batch_stats": stats["projector"][name]}
            embeddings[name], updated = head.apply(variables, vectors[name], True, mutable=["batch_stats"])
            head_stats[name] = updated["batch_stats"]
        return {"encoder": encoder_stats, "projector": head_stats}, embeddings

    def run(params, stats, images, train, gate):
        """The trunk's output, each stage through its gate, and its statistics."""

        def passed(level, x):
            return gate.apply({"params": params["gates"][f"level{level + 1}"]}, x)

        images = jnp.broadcast_to(images, (*images.shape[:3], trunk.channels))
        variables = {"params": params["encoder"], "batch_stats": stats}
        out, updated = trunk.apply(variables, images, train, passed if gate else None, mutable=["batch_stats"])
        return out, updated["batch_stats"]

    def init(key, batch):
        keys = iter(jax.random.split(key, 2 + len(LEVELS) + len(heads)))
        px = config.model.image_px
        encoder = trunk.init(next(keys), jnp.zeros((1, px, px, trunk.channels)), False)
        params = {"encoder": encoder["params"], "projector": {}}
        stats = {"encoder": encoder["batch_stats"], "projector": {}}
        for name, head in heads.items():
            variables = head.init(next(keys), jnp.zeros((1, inputs[name])), False)
            params["projector"][name], stats["projector"][name] = variables["params"], variables["batch_stats"]
        state = {"batch_stats": stats}
        if gate:
            maps = {level: jnp.zeros((1, 1, 1, width)) for level, width in widths.items()}
            params["gates"] = {f"level{level}": gate.init(next(keys), x)["params"] for level, x in maps.items()}
        if fused:
            maps = [jnp.zeros((1, 1, 1, widths[level])) for level in levels]
            owner = params if config.train_level_proj else state
            owner["level_proj"] = fusion.init(next(keys), maps)["params"]
        return params, state

    def make_views(example, rng):
        return {"image": views.crops(views.decode(example["image"]), rng, crop, crop)}

    def encode(params, state, images):
        images = device.standardise(images, **config.standardise)
        out, _ = run(params, state["batch_stats"]["encoder"], images, False, None if config.strip_gates else gate)
        return {"pooled": out["pooled"], "patches": out["taps"][-1].astype(jnp.float32)}

    return Method(make_views, init, loss, lambda params, state, step: state, encode, config.model.image_px)


def _trunk(model, dtype) -> resnet.ResNet:
    options = {name: value for name, value in model.items() if name not in ("image_px", "dtype")}
    if options["variant"] not in resnet.VARIANTS:
        raise ValueError(
            f"MLVICX taps the stages of a ResNet: {', '.join(resnet.VARIANTS)}; got {options['variant']!r}"
        )
    return resnet.ResNet(**options, dtype=dtype)


def _levels(text: str) -> tuple[str, ...]:
    """ "1,5" → ("1", "5"): the stem and the last stage."""
    levels = names(text)
    if not levels or sorted(set(levels)) != list(levels) or not set(levels) <= set(LEVELS):
        raise ValueError(f"levels.use lists some of {', '.join(LEVELS)}, each once and in order; got {text!r}")
    return levels


def _heads(config, levels, widths, dtype) -> tuple[dict[str, float], dict[str, MLP], dict[str, int]]:
    """Weight, head and length of the input of every embedding that has a loss."""

    def head(sizes):
        return MLP(tuple(sizes), last_norm=config.final_bn, last_bias=config.final_bn, dtype=dtype)

    weights, heads, inputs = {}, {}, {}
    if config.loss["global"]:
        weights["global"], inputs["global"] = config.loss["global"], widths[LEVELS[-1]]
        heads["global"] = head(config.heads.sizes)
    if config.loss["lambda"] and config.per_level:
        for level in levels:
            name = f"level{level}"
            weights[name], inputs[name] = config.loss["lambda"] / len(levels), widths[level]
            heads[name] = head(config.heads.per_level_sizes)
    elif config.loss["lambda"]:
        weights["levels"], inputs["levels"] = config.loss["lambda"], config.levels.features * config.levels.grid**2
        heads["levels"] = head(config.heads.sizes)
    if not heads:
        raise ValueError("loss.global and loss.lambda are both 0: nothing is left to train")
    return weights, heads, inputs
