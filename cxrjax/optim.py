"""The optimizer from a config: schedule, regex rules over parameter paths, layer decay. optax does the maths.

`config.pretrain` has the defaults. Here there are none: every key must be given.

Rules are lists of (regex, value) read from the top: the first regex found (`re.search`) in a parameter's path "a/b/c"
gives its value, and a list that leaves a parameter without a value is refused (the manner of big_vision's optax.py).

Transformer blocks are stacked: a leaf below "blocks", of a BERT "layers", has its layers on the leading axis. What is
said per layer (layer decay, of "blocks" alone, "no decay on 1-D parameters", the trust ratio of LARS, clip_per_tensor)
is therefore done per slice of that axis.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

KEYS = {
    "name": "adamw | lars | sgd",
    "lr": "peak learning rate as it is",
    "base_lr": "peak learning rate for a batch of 256, scaled linearly with the batch",
    "sqrt_lr": "peak learning rate for a batch of 1024, scaled with the root of the batch",
    "lr_start": "learning rate at step 0, from which the warm-up rises",
    "lr_end": "learning rate at the last step",
    "lr_end_ratio": "the same as a share of the peak",
    "schedule": "cosine | linear | constant, after the warm-up",
    "warmup_steps": "linear warm-up from lr_start, in steps",
    "warmup_epochs": "the same in epochs",
    "warmup_examples": "the same in examples",
    "warmup_includes_peak": "the last warm-up step has the peak already, not the step after it",
    "cosine_period": "rest (steps after the warm-up) | total (all steps, so that it stops short of lr_end)",
    "wd": "weight decay",
    "wd_end": "weight decay at the last step, reached along a cosine from wd",
    "betas": "adamw: shares of the old means of the gradient and of its square",
    "eps": "adamw: what is added to the root of the mean square",
    "momentum": "lars, sgd: share of the old velocity",
    "trust_coefficient": "lars: step length of a parameter as a share of its norm, at a learning rate of 1",
    "lr_in_momentum": "lars: whether the momentum adds up steps, learning rate included, or scaled gradients",
    "grad_clip": "largest global norm of the gradient",
    "clip_per_tensor": "largest norm of the gradient of each parameter by itself",
    "clip_per_part": "largest norm of the gradient of each network by itself: of all below the first name of a path",
    "layer_decay": "each layer's learning rate is this times the next one's",
    "lr_mults": "[(regex, factor)] on the learning rate",
    "wd_mults": "[(regex, factor)] on the weight decay",
    "frozen": "[regex] of parameters that keep their value",
    "held": "[regex] of parameters whose learning rate is 0 at first; their moments move",
    "held_share": "for which share of the run",
}
_UNITS = ("steps", "epochs", "examples")
_NO_DECAY = re.compile(r"(^|/)(cls|cls_pos|mask_token|pos_embed|registers)$")
_STACKED = re.compile(r"(^|/)(blocks|layers|lower)/")  # of a ViT or Swin; of a BERT, learned and frozen
_EMBEDDING = re.compile(r"^(cls|cls_pos|mask_token|pos_embed|patch_embed|registers)(/|$)")


def make(
    config: Mapping, abstract_params: Any, total_steps: int, batch_size: int, steps_per_epoch: float
) -> tuple[optax.GradientTransformation, Callable]:
    """The optax transformation, and `report(step) -> {"lr": …, "wd": …}` for the log.

    config: every key of KEYS; None and an empty list mean "not given". abstract_params: a tree of things with a shape.
    batch_size is global; steps_per_epoch = training examples / batch_size, not rounded.
    Raises ValueError for an unknown or missing key, a rule that fits no parameter, parameters no rule covers, learning
    rates or warm-ups given twice or not at all, and two ways of clipping.
    """
    unknown, missing = sorted(set(config) - set(KEYS)), sorted(set(KEYS) - set(config))
    if unknown or missing:
        raise ValueError(f"unknown optimizer keys {unknown}, missing {missing}; there are {sorted(KEYS)}")
    config = {key: None if isinstance(value, list | tuple) and not value else value for key, value in config.items()}
    schedule = _schedule(config, total_steps, batch_size, steps_per_epoch * batch_size)
    decay = _decay_schedule(config, total_steps)
    transformation = _transformation(config, abstract_params, schedule, decay)
    if config["held"]:
        # Last, so that neither a step nor the decay moves what is held.
        transformation = optax.chain(transformation, _hold(config, abstract_params, total_steps))
    if (clip := _clip(config)) is not None:
        transformation = optax.chain(clip, transformation)
    if config["frozen"]:
        frozen = _rules("frozen", [(regex, True) for regex in config["frozen"]] + [("", False)], abstract_params)
        labels = jax.tree.map(lambda is_frozen: "frozen" if is_frozen else "trained", frozen)
        if "trained" not in jax.tree.leaves(labels):
            raise ValueError(f"frozen {list(config['frozen'])} freezes every parameter: nothing is left to train")
        # A partition keeps no moments for what is frozen, and leaves it out of the norm that grad_clip looks at.
        transformation = optax.partition({"trained": transformation, "frozen": optax.set_to_zero()}, labels)
    return transformation, lambda step: {"lr": schedule(step), "wd": decay(step)}


def duration(config: Mapping, name: str, batch_size: int, examples_per_epoch: float, default: int | None = None) -> int:
    """`<name>_steps`, `<name>_epochs` (may be fractional) or `<name>_examples` of the config, in whole steps.

    A duration above 0 is at least one step. Exactly one of the three may be given; `default` stands where none is.
    Raises ValueError where more, or none and no default, are given, or the value is negative.
    """
    values = {unit: config[f"{name}_{unit}"] for unit in _UNITS}
    given = {unit: value for unit, value in values.items() if value is not None}
    if not given and default is not None:
        return default
    if len(given) != 1:
        said = {f"{name}_{unit}": value for unit, value in given.items()} or "none"
        raise ValueError(
            f"{said} given for the duration '{name}': give exactly one of {[f'{name}_{u}' for u in _UNITS]}"
        )
    ((unit, value),) = given.items()
    if value < 0:
        raise ValueError(f"{name}_{unit} = {value} is negative")
    if unit == "steps":
        if value != int(value):
            raise ValueError(f"{name}_steps = {value} is not a whole number")
        return int(value)
    examples = value * examples_per_epoch if unit == "epochs" else value
    return max(round(examples / batch_size), 1) if value else 0


def ema(old: Any, new: Any, momentum: float | jax.Array) -> Any:
    """momentum · old + (1 - momentum) · new, leaf by leaf."""
    return optax.incremental_update(new, old, 1 - momentum)


def cosine_ramp(step: Any, total: int, start: float, end: float) -> Any:
    """From `start` at step 0 to `end` at step `total` and after, along half a cosine: EMA momenta, weight decay.

    With end = 1 it is BYOL's momentum, 1 − (1 − start)·(cos(π·step/total) + 1)/2 (Grill et al. 2020, section 3.2).
    """
    return end + (start - end) * optax.cosine_decay_schedule(1.0, total)(step)


def _schedule(config: dict, total_steps: int, batch_size: int, examples_per_epoch: float) -> optax.Schedule:
    ratio = config["lr_end_ratio"]
    factors = {"lr": 1.0, "base_lr": batch_size / 256, "sqrt_lr": math.sqrt(batch_size / 1024)}
    given = {key: config[key] for key in factors if config[key] is not None}
    if len(given) != 1:
        raise ValueError(
            f"{given or 'neither'} given: give exactly one of lr (as it is), base_lr (times batch / 256) and sqrt_lr "
            "(times √(batch / 1024))"
        )
    ((key, value),) = given.items()
    peak = value * factors[key]
    if config["lr_end"] and ratio is not None:
        raise ValueError(f"lr_end = {config['lr_end']} and lr_end_ratio = {ratio} given: give one of them")
    end = config["lr_end"] if ratio is None else ratio * peak
    warmup = duration(config, "warmup", batch_size, examples_per_epoch, default=0)
    if warmup >= total_steps:
        raise ValueError(
            f"a warm-up of {warmup} steps leaves nothing of {total_steps} steps in all; shorten the warm-up "
            "(optim.warmup_steps, _epochs or _examples)"
        )
    left_out = _choose("cosine_period", config["cosine_period"], {"rest": warmup, "total": 0})
    shapes = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, total_steps - left_out, end / peak),
        "linear": lambda: optax.linear_schedule(peak, end, total_steps - warmup),
        "constant": lambda: optax.constant_schedule(peak),
    }
    rest = _choose("schedule", config["schedule"], shapes)()
    if not warmup:
        return rest
    # A warm-up of one step is at its start either way; optax warns of a ramp over no steps.
    rise = max(warmup - 1, 1) if config["warmup_includes_peak"] else warmup
    return optax.join_schedules([optax.linear_schedule(config["lr_start"], peak, rise), rest], [warmup])


def _decay_schedule(config: dict, total_steps: int) -> optax.Schedule:
    start, end = config["wd"], config["wd_end"]
    if end is None:
        return optax.constant_schedule(start)
    return lambda step: cosine_ramp(step, total_steps, start, end)


def _hold(config: dict, abstract_params: Any, total_steps: int) -> optax.GradientTransformation:
    """Updates of the parameters that `held` names are zero for the first held_share of the steps."""
    held = _rules("held", [(regex, True) for regex in config["held"]] + [("", False)], abstract_params)
    begin = round(config["held_share"] * total_steps)
    return optax.masked(optax.scale_by_schedule(lambda step: jnp.where(step < begin, 0.0, 1.0)), held)


def _clip(config: dict) -> optax.GradientTransformation | None:
    whole, each, part = (config[key] for key in ("grad_clip", "clip_per_tensor", "clip_per_part"))
    if sum(value is not None for value in (whole, each, part)) > 1:
        raise ValueError(
            f"grad_clip = {whole} (one norm of the whole gradient), clip_per_tensor = {each} (a norm for each "
            f"parameter) and clip_per_part = {part} (a norm for each network): give one of them"
        )
    if whole is not None:
        return optax.clip_by_global_norm(whole)
    if part is not None:
        clip = _clip_as_torch(part)

        def clip_parts(updates: Any, params: Any) -> Any:
            return {name: clip.update(tree, optax.EmptyState())[0] for name, tree in updates.items()}

        return optax.stateless(clip_parts)
    return None if each is None else _per_tensor(_clip_as_torch(each))


def _clip_as_torch(most: float) -> optax.GradientTransformation:
    """Scales by most / (norm + 1e-6) where that is below 1: DINO's and GMML's clipping of a parameter, as torch's."""

    def scale(updates, params):
        factor = jnp.minimum(most / (optax.tree.norm(updates) + 1e-6), 1.0)
        return jax.tree.map(lambda update: update * factor.astype(update.dtype), updates)

    return optax.stateless(scale)


def _transformation(
    config: dict, params: Any, schedule: optax.Schedule, decay_schedule: optax.Schedule
) -> optax.GradientTransformation:
    decayed = _map(_is_decayed, params)
    rules = config["wd_mults"]
    wd_mults = _rules("wd_mults", rules, params) if rules else jax.tree.map(float, decayed)
    b1, b2 = config["betas"]
    momentum = optax.trace(config["momentum"])
    decay = _decay(config["wd"] if config["wd_end"] is None else decay_schedule, wd_mults)
    rate = optax.chain(_lr_multipliers(config, params), optax.scale_by_learning_rate(schedule))
    trust = optax.scale_by_trust_ratio(trust_coefficient=config["trust_coefficient"])
    trust = optax.masked(_per_tensor(trust), decayed)
    last = (rate, momentum) if config["lr_in_momentum"] else (momentum, rate)
    chains = {
        "adamw": lambda: optax.chain(optax.scale_by_adam(b1, b2, config["eps"]), decay, rate),
        "sgd": lambda: optax.chain(decay, momentum, rate),
        "lars": lambda: optax.chain(decay, trust, *last),
    }
    return _choose("name", config["name"], chains)()


def _decay(wd: float | optax.Schedule, multipliers: Any) -> optax.GradientTransformation:
    """optax takes one number or schedule and a mask, so each distinct multiplier gets its own."""
    transformations = [optax.identity()]
    for value in sorted(set(jax.tree.leaves(multipliers))):
        mask = jax.tree.map(lambda multiplier, value=value: multiplier == value, multipliers)
        strength = (lambda step, value=value: value * wd(step)) if callable(wd) else wd * value
        if value and strength:
            transformations.append(optax.add_decayed_weights(strength, mask))
    return optax.chain(*transformations)


def _lr_multipliers(config: dict, params: Any) -> optax.GradientTransformation:
    multipliers = jax.tree.map(lambda leaf: 1.0, params)
    if config["lr_mults"]:
        multipliers = _rules("lr_mults", config["lr_mults"], params)
    if config["layer_decay"] is not None:
        multipliers = jax.tree.map(np.multiply, multipliers, layer_multipliers(params, config["layer_decay"]))
    if all(np.all(multiplier == 1) for multiplier in jax.tree.leaves(multipliers)):
        return optax.identity()

    def scale(multiplier, update):
        if isinstance(update, optax.MaskedNode):  # a frozen parameter
            return update
        return update * np.asarray(multiplier, update.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(scale, multipliers, updates))


def layer_multipliers(params: Any, layer_decay: float) -> Any:
    """The layer decay of each parameter: a number, or an array (L, 1, …) for a leaf stacked over L blocks.

    Block i of L gets decay^(L - i) counted from 0, the tower's embeddings decay^(L + 1), everything after the blocks
    (norm, head, projector) 1: BEiT (2106.08254) and MAE (2111.06377) fine-tuning. Towers are told apart by the path
    before "blocks/". Raises ValueError where no parameter lies in blocks.
    """
    depths = {path.partition("blocks/")[0]: leaf.shape[0] for path, leaf in _named_leaves(params) if _is_stacked(path)}
    if not depths:
        raise ValueError(f"layer_decay = {layer_decay} needs parameters under 'blocks/'; there are {_paths(params)}")

    def multiplier(path, leaf):
        for tower, depth in depths.items():
            if path.startswith(f"{tower}blocks/"):
                return (layer_decay ** (depth - np.arange(depth))).reshape((depth,) + (1,) * (len(leaf.shape) - 1))
            if path.startswith(tower) and _EMBEDDING.search(path.removeprefix(tower)):
                return layer_decay ** (depth + 1)
        return 1.0

    return _map(multiplier, params)


def _per_tensor(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a transformation that keeps no state to every parameter by itself, layer by layer where stacked."""

    def scale(keys, update, param):
        def one(update, param):
            return inner.update(update, inner.init(param), param)[0]

        return (jax.vmap(one) if _is_stacked(_path(keys)) else one)(update, param)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates, params))


def _is_stacked(path: str) -> bool:
    return bool(_STACKED.search(path))


def _is_decayed(path: str, leaf) -> bool:
    return len(leaf.shape) - _is_stacked(path) > 1 and not _NO_DECAY.search(path)


def _rules(name: str, rules, params: Any) -> Any:
    paths = [path for path, _ in _named_leaves(params)]
    idle = [pattern for pattern, _ in rules if not any(re.search(pattern, path) for path in paths)]
    if idle:
        raise ValueError(f"{name}: {idle} fits no parameter; there are {_paths(params)}")
    uncovered = [path for path in paths if not any(re.search(pattern, path) for pattern, _ in rules)]
    if uncovered:
        raise ValueError(
            f"{name} covers {len(paths) - len(uncovered)} of {len(paths)} parameters and leaves out {_few(uncovered)}; "
            "end the list with ('.*', 1.0) to say 'the rest'"
        )
    return _map(lambda path, leaf: next(value for pattern, value in rules if re.search(pattern, path)), params)


def _choose(key: str, value: str, choices: dict):
    if value not in choices:
        raise ValueError(f"optim.{key}: optimizer {key} '{value}' is not known; there are {sorted(choices)}")
    return choices[value]


def _path(keys) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _map(function, params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: function(_path(keys), leaf), params)


def _named_leaves(params: Any) -> list:
    return [(_path(keys), leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(params)]


def _paths(params: Any) -> str:
    return _few([path for path, _ in _named_leaves(params)])


def _few(names: list[str], most: int = 20) -> str:
    more = f" … and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
