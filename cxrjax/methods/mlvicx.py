"""MLVICX: Multi-Level Variance-Covariance Exploration. Singh, Gorade, Mishra, IEEE JBHI 28(12), 2024, arXiv 2403.11504.

    F_1 … F_5 = f(x),  F_l ← g_l(F_l)                  ResNet stages; a context gate on each, which feeds the next stage
    z = h_G(mean F_5)                                  the global embedding of a view
    d = h_L(grid Σ_l W_l resize F_l)                   the multi-level one: all levels on one 4 × 4 grid, flattened
    L_E = 25 s(E, E′) + 25 v(E, E′) + c(E, E′),  E ∈ {z, d}       VICReg's terms over the batch of all devices
    loss = L_z + λ L_d

symbol    here                      meaning                                              default; with chestxray14
g_l       gates                     channel and spatial attention (models/gates.py)      on, reduction 2
W_l       params["level_proj"]      1 × 1 convolutions (models/multilevel.py)            128 features; 512
h_G h_L   heads.sizes, final_bn     three times Linear–BatchNorm, ReLU between           256 each; 4096 each
λ         loss.lambda               weight of the multi-level loss                       1

Only abstract and summaries were readable to us. They state: two views through one encoder, "context bottlenecks" that
fuse global and local context in intermediate maps, VICReg-type losses on a global and on a multi-level embedding,
L_G + λ L_L, pre-training on ChestX-ray14. All else follows the released code (github.com/vangorade/mlvicx): one fused
multi-level embedding and not a loss per level, sizes, views, LARS; there λ is an implicit 1.
What the release does by accident is a switch, and `release` in configs/mlvicx.py sets them all:

    train_level_proj=False   W_l are made after the optimizer took its parameters, so they stay as they start
    strip_gates=True         evaluation runs the trunk without the gates that it was trained with, and so can be
                             exported: PyTorch's plain ResNet has none
    cosine_period="total"    (optim) the learning rate's cosine does not end at the last step

heads.levels_sizes gives h_L other sizes than h_G.
Ours, for ablation: final_bn=False (VICReg's head; with BatchNorm last the variance term acts through its scale only),
per_level=True (a small head and loss for each level's mean map, averaged, in place of L_d), levels.use, gates.use,
loss.global, and loss.rebalance. The latter weights c by 3 over its floor d/(M−1) − 1: 25, 25, 1 are in balance at
VICReg's floor of 3, but at 4096 dimensions and M = 64 or 256 pictures it is 64 or 15, so that c presses the deviations
to about 0.37 or 0.59 (reported as std_*): expected, and no fault of a run. A weight of 0 leaves out its head.
"""

from typing import NamedTuple

import jax.numpy as jnp

from cxrjax import monitors, rng, sizes
from cxrjax.config import names
from cxrjax.input import device
from cxrjax.losses import redundancy
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method, Parts, joined, keep_state, total
from cxrjax.methods.trunk import pictures
from cxrjax.models import heads, linen, resnet
from cxrjax.models.gates import ContextGate
from cxrjax.models.multilevel import LevelFusion

LEVELS = ("1", "2", "3", "4", "5")
BALANCED_FLOOR = 3.0  # of VICReg's own 8192 dimensions and 2048 pictures


class Branch(NamedTuple):
    """An embedding with a loss: its weight, its head, and the length of the vectors that the head takes."""

    weight: float
    head: heads.MLP
    width: int


def make(config: Config) -> Method:
    """config: model, gates, levels, heads, loss, views, augment, standardise, switches; see configs/mlvicx.py."""
    settings.counts(config, "gates.reduction", "levels.features", "levels.side", "levels.grid")
    settings.counts(config, "heads.sizes", "heads.per_level_sizes")
    if config.heads.levels_sizes:
        settings.counts(config, "heads.levels_sizes")
    settings.weights(config, "loss.global", "loss.lambda", "loss.sim", "loss.std", "loss.cov")
    settings.slices(config, "loss.groups")
    dtype = jnp.dtype(config.model.dtype)
    trunk = _trunk(config.model, dtype)
    widths = dict(zip(LEVELS, trunk.size.widths, strict=True))
    gate = ContextGate(config.gates.reduction, dtype) if config.gates.use else None
    levels = _levels(config.levels.use)
    options = {name: config.levels[name] for name in ("features", "side", "grid", "fused")}
    fusion = LevelFusion(tuple(f"level{level}" for level in levels), **options, dtype=dtype)
    branches = _branches(config, levels, widths, dtype)
    fused = "levels" in branches
    pairs = pictures(config)
    if config.loss.rebalance:
        for branch in branches.values():
            balance(config.batch_size // config.loss.groups, branch.head.sizes[-1])

    def prepare(batch, key):
        return {"images": pairs.prepare(key, batch["image"])}  # b v h w 1

    def embed(params, state, prepared):
        everything, stats = params | state.get("frozen", {}), state["batch_stats"]["encoder"]
        one, stats = vectors(everything, stats, prepared["images"][:, 0])
        two, stats = vectors(everything, stats, prepared["images"][:, 1])
        return {"one": one, "two": two}, stats

    def loss_of(params, state, features, prepared, step):
        one, stats = project(params, state["batch_stats"], features["one"])
        two, stats = project(params, stats, features["two"])
        terms, first = {}, next(iter(branches))
        watched = monitors.embedding(one[first], two[first])
        for name, branch in branches.items():
            for term, value in vicreg(one[name], two[name]).items():
                terms[f"{name}_{term}"] = branch.weight * value
            watched[f"std_{name}"] = redundancy.deviation(one[name]).mean()
        return total(terms), Aux(state | {"batch_stats": stats}, terms, watched)

    def vicreg(u, v):
        options = {name: config.loss[name] for name in ("sim", "std", "cov", "groups")}
        if config.loss.rebalance:
            options["cov"] *= balance(len(u) // config.loss.groups, u.shape[1])
        return redundancy.vicreg(u, v, **options)

    def vectors(params, stats, images):
        """What the heads read of one view, by branch, and the encoder's statistics moved on from the view before it."""
        out, stats = run(params, stats, images, gate, train=True)
        maps = [out["taps"][int(level) - 1] for level in levels]
        found = {"global": out["pooled"]}
        if fused:
            found["levels"] = linen.apply(fusion, params["level_proj"], maps)
        else:
            means = (x.astype(jnp.float32).mean((1, 2)) for x in maps)
            found |= {f"level{level}": mean for level, mean in zip(levels, means, strict=True)}
        return {name: found[name] for name in branches}, stats

    def project(params, stats, of_view):
        """The embeddings of one view by branch, and running statistics moved on."""
        embeddings, moved = {}, dict(stats["projector"])
        for name, branch in branches.items():
            head = params["projector"][name]
            embeddings[name], moved[name] = heads.run(branch.head, head, moved[name], of_view[name], train=True)
        return embeddings, {**stats, "projector": moved}

    def run(params, stats, images, gate, *, train):
        """The trunk's output with every stage through its gate, and its running statistics."""

        def passed(level, x):
            return linen.apply(gate, params["gates"][f"level{level + 1}"], x)

        images = jnp.broadcast_to(images, (*images.shape[:3], trunk.channels))
        variables = {"params": params["encoder"], "batch_stats": stats}
        out, updated = trunk.apply(variables, images, train, passed if gate else None, mutable=["batch_stats"])
        return out, dict(updated["batch_stats"])

    def init(key, batch):
        picture = jnp.zeros((1, *sizes.sides(config.model.image_px), trunk.channels))
        encoder = trunk.init(rng.fold(key, "encoder"), picture, False)
        params, stats = {"encoder": encoder["params"]}, {"encoder": encoder["batch_stats"]}
        starts = {name: heads.start(b.head, rng.fold(key, name), b.width) for name, b in branches.items()}
        params["projector"], stats["projector"] = ({name: s[i] for name, s in starts.items()} for i in range(2))
        state = {"batch_stats": stats}
        maps = {level: jnp.zeros((1, 1, 1, width)) for level, width in widths.items()}
        if gate:
            keys = {level: rng.fold(key, f"gate{level}") for level in LEVELS}
            params["gates"] = {f"level{level}": linen.init(gate, keys[level], maps[level]) for level in LEVELS}
        if fused:
            level_proj = linen.init(fusion, rng.fold(key, "level_proj"), [maps[level] for level in levels])
            owner = params if config.train_level_proj else state.setdefault("frozen", {})
            owner["level_proj"] = level_proj
        return params, state

    def encode(params, state, images):
        images, stats = device.standardise(images, **config.standardise), state["batch_stats"]["encoder"]
        out, _ = run(params, stats, images, None if config.strip_gates else gate, train=False)
        return {"pooled": out["pooled"], "patches": out["taps"][-1].astype(jnp.float32)}

    parts = Parts(prepare, embed, loss_of)
    functions = pairs.views, init, joined(parts), keep_state, encode
    return Method(*functions, config.model.image_px, parts=parts, look=pairs.look)


def balance(rows: int, dimensions: int) -> float:
    """The factor on c that `loss.rebalance` means, for embeddings M d of these sizes.

    Raises ValueError where c has no floor.
    """
    floor = redundancy.covariance_floor(rows, dimensions)
    if not floor:
        raise ValueError(f"loss.rebalance needs more dimensions than pictures, got {dimensions} and {rows}")
    return BALANCED_FLOOR / floor


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


def _branches(config, levels, widths, dtype) -> dict[str, Branch]:
    def branch(weight, sizes, width):
        head = heads.MLP(tuple(sizes), last_norm=config.final_bn, last_bias=config.final_bn, dtype=dtype)
        return Branch(weight, head, width)

    found, of_levels = {}, config.loss["lambda"]
    if config.loss["global"]:
        found["global"] = branch(config.loss["global"], config.heads.sizes, widths[LEVELS[-1]])
    if of_levels and config.per_level:
        for level in levels:
            found[f"level{level}"] = branch(of_levels / len(levels), config.heads.per_level_sizes, widths[level])
    elif of_levels:
        sizes = config.heads.levels_sizes or config.heads.sizes
        found["levels"] = branch(of_levels, sizes, config.levels.features * config.levels.grid**2)
    if not found:
        raise ValueError("loss.global and loss.lambda are both 0: nothing is left to train")
    return found
