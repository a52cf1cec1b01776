"""The contract between a method and everything that trains, judges or exports it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cxrjax import optim
from cxrjax.models import backbone

ENCODERS = ("learned", "frozen", "drifting")


def encoder_params(params: Any, state: Any) -> Any:
    """All parameters of the encoder: the learned ones, and those that the method keeps as they started.

    params: of the method, or of a copy of its network such as `state["target"]`. What never learns is not in
    params["encoder"] but in state["frozen"]["encoder"], under the same names.
    """
    return {**params["encoder"], **state.get("frozen", {}).get("encoder", {})}


class Joint(NamedTuple):
    """Pictures and texts in one space, for zero-shot, retrieval and figures. All vectors are float32 of unit length.

    image: (params, state, images uint8 b h w 1) -> {"pooled": b d, "patches": b p q d}.
    text: (params, state, ids b l, text_mask b l, word_index b l) -> {"pooled": b d, "words": b w d, "word_mask": b w},
      zeros where there is no word. tokens: text -> {"ids", "text_mask", "word_index"}, l each (see `input.paired`).
    words: a report (its findings, impression and text) -> what the method reads of it, "" if that is nothing.
    """

    image: Callable
    text: Callable
    tokens: Callable
    words: Callable


class Answers(NamedTuple):
    """What the answers of a trained head mean: the names of its c logits, and whether each is a question of its own.

    kind: "multilabel", whose probabilities are sigmoids; "multiclass", a softmax; or "boxes", whose classes they name.
    """

    names: tuple[str, ...]
    kind: str


class Method(NamedTuple):
    """A record of pure functions; losses are written on global arrays and name no device.

    views:  (example, numpy Generator) -> dict of arrays, one example on the host; "image" is uint8 v h w 1. An example
      is a picture, or with data.unit = "study" a study (see `input.studies`).
    init:   (key, batch) -> (params, state); params is what the optimizer updates, state is everything else.
    loss:   (params, state, batch, key, step) -> (scalar, Aux).
    after:  (params, state, step) -> state, once the parameters are updated: EMA, centre, queue.
    encode: (params, state, images uint8 b h w 1) -> {"pooled": b d, "patches": b p q d}, float32; of a method that
      trains a head, its answer as well: "logits" b c, "mask_logits" b h w 1, or "boxes" b k 4 with "scores", "classes".
    image_px: side of the pictures that encode was trained on.
    couples_batch: whether the loss mixes examples, so that accumulating gradients over slices would change it.
    encoder: (params, state) -> the parameters of the network that encode runs, for export.
    joint: of a method that learns from reports as well. answers: of a method whose encode gives logits.
    target: of one whose encode gives mask logits, what they are a mask of (see `input.masks`).
    box_labels: of one that learns named boxes, their labels: pictures that must have a box must have one of these.
    """

    views: Callable
    init: Callable
    loss: Callable
    after: Callable
    encode: Callable
    image_px: int
    couples_batch: bool = True
    encoder: Callable = encoder_params
    joint: Joint | None = None
    answers: Answers | None = None
    target: str = ""
    box_labels: tuple[str, ...] = ()


class Aux(NamedTuple):
    """Beside the scalar: state written in the forward pass, terms that sum to the scalar, and watched numbers."""

    state: Any
    terms: dict
    monitors: dict


class Trunk(NamedTuple):
    """The encoder under a head, on the params and state of the whole method.

    init: key -> (params, state), to which the method adds its head.
    apply: (params, state, images b h w c float, *, train, key=None, levels=False) -> (features, running statistics
      for state["batch_stats"]["encoder"]), as `backbone.Backbone.apply`.
    """

    init: Callable
    apply: Callable
    backbone: backbone.Backbone


def trunk(config) -> Trunk:
    """The encoder of config.model, trained with its head or not, as config.encoder says.

    "learned": with the head. "frozen": parameters, running statistics of BatchNorm and every path stay as they start,
    so that features are those of the evaluated encoder. "drifting": the parameters stay, but a BatchNorm normalises by
    the batch and moves its statistics: what released code that only stops the gradients does (MGCA, MLVICX).
    What never learns is in state["frozen"]["encoder"], see `encoder_params`. Raises ValueError for another word.
    """
    mode, encoder = config.encoder, backbone.make(config.model)
    if mode not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(map(repr, ENCODERS))}, got {mode!r}")

    def init(key):
        params, stats = encoder.init(key)
        state = {"batch_stats": {"encoder": stats}}
        if mode == "learned":
            return {"encoder": params}, state
        return {"encoder": {}}, {**state, "frozen": {"encoder": params}}

    def apply(params, state, images, *, train, key=None, levels=False):
        whole, stats = encoder_params(params, state), state["batch_stats"]["encoder"]
        return encoder.apply(whole, stats, images, train=train and mode != "frozen", key=key, levels=levels)

    return Trunk(init, apply, encoder)


def ramp(config, start: float, end: float = 1.0) -> Callable:
    """step -> a number that goes from `start` to `end` along half a cosine over the whole run: momenta of targets.

    The run's steps are config.duration.total_steps; `methods.make(config, total_steps)` puts them there for durations
    in epochs or examples, which only the trainer can convert. A method made without them encodes as ever, and asking
    for the number raises ValueError.
    """
    what = f"from {start} to {end} "
    return lambda step: optim.cosine_ramp(step, _total_steps(config, what), start, end)


def progress(config) -> Callable:
    """step -> the share of the run that is over, 0 to 1: for what papers say in epochs of a run of theirs.

    The run's steps are known as for `ramp`, which see.
    """
    return lambda step: jnp.minimum(step / _total_steps(config), 1.0)


def frozen_at_first(config, share: float) -> Callable:
    """(parameters, step) -> the same, through which no gradient goes for the first `share` of the run."""
    done = progress(config)

    def hold(params, step):
        frozen = done(step) < share
        return jax.tree.map(lambda leaf: jnp.where(frozen, jax.lax.stop_gradient(leaf), leaf), params)

    return hold


def _total_steps(config, what: str = "") -> int:
    total = config.duration.get("total_steps")
    if total is None:
        raise ValueError(
            f"the method {config.method!r} changes {what}over the whole run, but its duration is "
            f"{dict(config.duration)} and total_steps is not known here; make it with methods.make(config, "
            "total_steps) as the trainer does, or set config.duration.total_steps"
        )
    return total
