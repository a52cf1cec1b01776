"""The contract between a method and everything that trains, judges or exports it.

Params and State are dictionaries of arrays, nested as the method likes: what the optimizer updates, and all else that
lasts from step to step. A batch is a dictionary of arrays of b examples. Axis letters as everywhere: b batch, v views,
h w pixels, p q patch grid, l text tokens, w words, d width, c classes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import optim
from cxrjax.drawing.panels import Panel, rows
from cxrjax.sizes import Px

Config: TypeAlias = Any  # a ConfigDict, of whose keys a type checker knows nothing
Params: TypeAlias = dict[str, Any]
State: TypeAlias = dict[str, Any]
Batch: TypeAlias = Mapping[str, Any]


class Views(Protocol):
    """What a method sees of one example, made on the host.

    example: a picture, or with data.unit = "study" a study (see `input.studies`).
    Returns "image" uint8 v h w 1 and whatever else the loss reads, all of the same shape for every example.
    """

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator, /) -> dict[str, np.ndarray]: ...


class Init(Protocol):
    """What a run starts from. Of the batch only shapes are read, so that `jax.eval_shape` will do."""

    def __call__(self, key: jax.Array, batch: Batch, /) -> tuple[Params, State]: ...


class Loss(Protocol):
    """The scalar to be minimised, float32, and what comes with it.

    batch: of all devices, "image" uint8 b v h w 1. key: for this step alone. step: int, from 0.
    """

    def __call__(
        self, params: Params, state: State, batch: Batch, key: jax.Array, step: jax.Array | int, /
    ) -> tuple[jax.Array, "Aux"]: ...


class After(Protocol):
    """The state once the parameters are updated: moving averages, centres, queues.

    params: as updated. state: as the loss returned it. step: that of the update, from 0.
    """

    def __call__(self, params: Params, state: State, step: jax.Array | int, /) -> State: ...


class Encode(Protocol):
    """Features of pictures, for evaluation: the same whatever else is in the batch.

    images: uint8 b h w 1. Returns "pooled" b d and "patches" b p q d, float32; a method that trains a head adds its
    answer: "logits" b c, "mask_logits" b h w 1, or "boxes" b k 4 with "scores" b k and "classes" b k.
    """

    def __call__(self, params: Params, state: State, images: jax.Array, /) -> dict[str, jax.Array]: ...


class EncodeText(Protocol):
    """Texts in the space of the pictures.

    ids: int b l. text_mask: bool b l, False is padding. word_index: int b l, see `input.paired`.
    Returns "pooled" b d, "words" b w d, zeros where there is no word, and "word_mask" bool b w.
    """

    def __call__(
        self, params: Params, state: State, ids: jax.Array, text_mask: jax.Array, word_index: jax.Array, /
    ) -> dict[str, jax.Array]: ...


class Tokens(Protocol):
    """The "ids", "text_mask" and "word_index" of one text, l each, as `EncodeText` takes them."""

    def __call__(self, text: str, /) -> dict[str, np.ndarray]: ...


class Words(Protocol):
    """What a method reads of a report's findings, impression and text; "" if that is nothing."""

    def __call__(self, report: Mapping[str, str], /) -> str: ...


class EncoderParams(Protocol):
    """The parameters of the network that `encode` runs, for export."""

    def __call__(self, params: Params, state: State, /) -> Params: ...


class Look(Protocol):
    """What the network is given of a few examples, and of a method that can be seen at work, what it makes of them.

    batch: as for the loss, of these examples alone. key: for draws as in training. Called under `jax.jit`.
    """

    def __call__(self, params: Params, state: State, batch: Batch, key: jax.Array, /) -> list[Panel]: ...


def as_given(params: Params, state: State, batch: Batch, key: jax.Array) -> list[Panel]:
    """`look` of a method that has none of its own: its views, as the host made them."""
    return rows("view", batch["image"])


def encoder_params(params: Params, state: State) -> Params:
    """All parameters of the encoder: the learned ones, and those that the method keeps as they started.

    params: of the method, or of a copy of its network such as `state["target"]`. What never learns is not in
    params["encoder"] but in state["frozen"]["encoder"], under the same names.
    """
    return {**params["encoder"], **state.get("frozen", {}).get("encoder", {})}


class Joint(NamedTuple):
    """Pictures and texts in one space, for zero-shot, retrieval and figures. All vectors are float32 of unit length.

    image: as `Method.encode`, in the joint space. text: see `EncodeText`. tokens, words: see there.
    """

    image: Encode
    text: EncodeText
    tokens: Tokens
    words: Words


class Answers(NamedTuple):
    """What the answers of a trained head mean: the names of its c logits, and whether each is a question of its own.

    kind: "multilabel", whose probabilities are sigmoids; "multiclass", a softmax; or "boxes", whose classes they name.
    """

    names: tuple[str, ...]
    kind: str


class Parts(NamedTuple):
    """A loss in three parts, the middle one of which can be run on slices of the batch (`cxrjax.accumulate`).

    prepare: (batch, key) -> arrays b … that the other two read. Whatever is drawn is drawn here, for the whole batch,
      so that every example gets the same in a slice.
    embed: (params, state, prepared) -> (features, running statistics). The features are a tree of arrays b …, those
      of an example a function of that example alone; only a BatchNorm in the encoder may look at the others. The
      statistics are those for state["batch_stats"]["encoder"], {} where there are none.
    loss_of: (params, state, features, prepared, step) -> (scalar, Aux), on the whole batch. The state has the
      statistics that embed returned. Heads belong here, so that their BatchNorm sees the whole batch.
    weight: prepared -> how much a slice counts, of a loss that is a mean over examples or their parts; by default every
      example counts the same. Read only where `Method.couples_batch` is False.
    keeps_statistics: embed normalises by the running statistics and leaves them, as a frozen encoder does.
    """

    prepare: Callable[[Batch, jax.Array], dict[str, Any]]
    embed: Callable[[Params, State, dict[str, Any]], tuple[dict[str, Any], State]]
    loss_of: Callable[[Params, State, dict[str, Any], dict[str, Any], jax.Array | int], tuple[jax.Array, "Aux"]]
    weight: Callable[[dict[str, Any]], jax.Array | float] = lambda prepared: 1.0
    keeps_statistics: bool = False


class Method(NamedTuple):
    """A record of pure functions; losses are written on global arrays and name no device.

    views, init, loss, after, encode: see the classes of these names above.
    image_px: size of the pictures that encode was trained on, see `sizes`.
    couples_batch: whether the loss mixes examples, so that it is no mean of the losses of slices of the batch. What a
      BatchNorm in the encoder mixes does not count here.
    parts: what `loss` is made of (see `joined`), or why its gradient cannot be accumulated over slices.
    encoder: see `EncoderParams`.
    joint: of a method that learns from reports as well. answers: of a method whose encode gives logits.
    target: of one whose encode gives mask logits, what they are a mask of (see `input.masks`).
    sees: how pictures are fitted to image_px before encode, a word of `crops.fit_as`.
    box_labels: of one that learns named boxes, their labels: pictures that must have a box must have one of these.
    look: see `Look`.
    """

    views: Views
    init: Init
    loss: Loss
    after: After
    encode: Encode
    image_px: Px
    couples_batch: bool = True
    parts: Parts | str = "its loss is in one piece"
    encoder: EncoderParams = encoder_params
    joint: Joint | None = None
    answers: Answers | None = None
    target: str = ""
    box_labels: tuple[str, ...] = ()
    look: Look = as_given
    sees: str = "image"


class Aux(NamedTuple):
    """What comes with the loss.

    state: with the statistics of this forward pass. terms: scalars that sum to the loss, under the paper's names.
    monitors: scalars that are watched and not optimised.
    """

    state: State
    terms: dict[str, jax.Array]
    monitors: dict[str, jax.Array]


def joined(parts: Parts) -> Loss:
    """The loss of the whole batch at once."""

    def loss(params, state, batch, key, step):
        prepared = parts.prepare(batch, key)
        features, stats = parts.embed(params, state, prepared)
        return parts.loss_of(params, with_statistics(state, stats), features, prepared, step)

    return loss


def with_statistics(state: State, stats: State) -> State:
    """The state with these running statistics of the encoder, where it keeps any."""
    if "encoder" not in state.get("batch_stats", {}):
        return state
    return {**state, "batch_stats": {**state["batch_stats"], "encoder": stats}}


def outside(ids: jax.Array, grid: tuple[int, int], count: jax.Array | None = None) -> jax.Array:
    """b p q bool, the cells of a grid p q that are not among the ids b k. count: b, how many of the ids are in use."""
    used = jnp.ones(ids.shape, bool) if count is None else jnp.arange(ids.shape[1]) < count[:, None]
    cells = jnp.arange(grid[0] * grid[1])
    inside = jnp.any((ids[:, :, None] == cells) & used[:, :, None], axis=1)
    return ~inside.reshape(-1, *grid)


def total(terms: Mapping[str, jax.Array]) -> jax.Array:
    """The loss that these terms sum to."""
    return jnp.asarray(sum(terms.values()))


def keep_state(params: Params, state: State, step: jax.Array | int) -> State:
    """`after` of a method whose state changes in the loss alone."""
    return state


def target_of(params: Params, state: State) -> Params:
    """The parts of the network that `state["target"]` is a moving copy of."""
    return {name: params[name] for name in state["target"]}


def ramp(
    config: Config, start: float, end: float = 1.0, shape: str = "cosine"
) -> Callable[[jax.Array | int], jax.Array]:
    """step -> a number that goes from `start` to `end` over the whole run: momenta of targets.

    shape: "cosine", along half of one, or "linear".
    The run's steps are config.duration.total_steps; `methods.make(config, total_steps)` puts them there for durations
    in epochs or examples, which only the trainer can convert. A method made without them encodes as ever, and asking
    for the number raises ValueError.
    """
    what = f"from {start} to {end} "
    if shape == "linear":
        return lambda step: start + (end - start) * jnp.minimum(step / _total_steps(config, what), 1.0)
    return lambda step: optim.cosine_ramp(step, _total_steps(config, what), start, end)


def progress(config: Config) -> Callable[[jax.Array | int], jax.Array]:
    """step -> the share of the run that is over, 0 to 1: for what papers say in epochs of a run of theirs.

    The run's steps are known as for `ramp`.
    """
    return lambda step: jnp.minimum(step / _total_steps(config), 1.0)


def frozen_at_first(config: Config, share: float) -> Callable[[Params, jax.Array | int], Params]:
    """(parameters, step) -> the same, through which no gradient goes for the first `share` of the run."""
    done = progress(config)

    def hold(params, step):
        frozen = done(step) < share
        return jax.tree.map(lambda leaf: jnp.where(frozen, jax.lax.stop_gradient(leaf), leaf), params)

    return hold


def _total_steps(config: Config, what: str = "") -> int:
    total = config.duration.total_steps
    if total is None:
        raise ValueError(
            f"the method {config.method!r} changes {what}over the whole run, but its duration is "
            f"{dict(config.duration)} and total_steps is not known here; make it with methods.make(config, "
            "total_steps) as the trainer does, or set config.duration.total_steps"
        )
    return total
