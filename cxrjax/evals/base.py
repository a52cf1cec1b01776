"""The records that every evaluator shares, and what a task makes of a set's label codes.

An evaluator sees an `Encoder` (images in, features out) and never a method, a checkpoint or a device. It returns a
`Result`: every metric with its interval, every prediction, and in plain sentences whatever a reader must know.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas

from cxrjax.config import names
from cxrjax.datasets import schema
from cxrjax.input import policies
from cxrjax.input.source import Source
from cxrjax.methods.base import Answers

KINDS = ("binary", "multilabel", "multiclass")
TREATMENTS = ("ignore", "absent", "present")
Ids = Sequence[str] | np.ndarray
"""Ids of n patients or pictures."""
MASKED = -1
"""In `Targets.values`: this picture says nothing about this label."""


class Interval(NamedTuple):
    """A metric with its 95 % percentile interval over resampled patients; `n` pictures were judged."""

    value: float
    low: float
    high: float
    n: int


def bounds(low: float, high: float, form: str = ".3f") -> str:
    """ " (low to high)", to stand behind a value; empty where there is no interval."""
    return f" ({low:{form}} to {high:{form}})" if math.isfinite(low) else ""


class Result(NamedTuple):
    """What an evaluator found.

    metrics: name -> Interval; predictions: a row per judged picture (see `metrics.prediction_table`); notes: sentences;
    details: JSON-able facts about how it was found (chosen strength, positives per metric under "n_positive", …).
    inputs: name -> digest of what was judged; a judge leaves it empty where that is just the pictures of its splits.
    """

    metrics: dict[str, Interval]
    predictions: pandas.DataFrame
    notes: list[str]
    details: Mapping[str, Any] = MappingProxyType({})
    inputs: Mapping[str, str] = MappingProxyType({})


class Joint(NamedTuple):
    """The space that a frozen encoder shares with texts; all vectors are float32 of unit length.

    image: uint8 b h w 1 -> {"pooled": b d, …}; text: (ids b l, text_mask b l, word_index b l) -> {"pooled": b d, …};
    both compiled, with their arguments where `Encoder.mesh` says. tokens: a text -> those three, l each.
    words: a report (its findings, impression and text) -> what the method reads of it, "" if that is nothing.
    """

    image: Callable[[Any], dict[str, Any]]
    text: Callable[[Any, Any, Any], dict[str, Any]]
    tokens: Callable[[str], Mapping[str, np.ndarray]]
    words: Callable[[Mapping[str, str]], str]


class Encoder(NamedTuple):
    """A frozen image encoder.

    encode: uint8 b h w 1 -> {"pooled": b d float32, …}, compiled by whoever made it (see `encoders.from_method`).
    digest: changes whenever the features of any picture could change; the feature cache relies on it.
    mesh: where encode wants its images; None for host arrays. joint: of an encoder that was trained with reports.
    answers: of one that was trained to answer for labels; encode then gives "logits" too. target: of one that was
    trained to make masks; encode then gives "mask_logits" b h w 1. attention: compiled, images -> b p q, where its
    [CLS] attends, or None (see `attention.maps`). read: (source, batch size, limit_bytes) -> the batches that encode
    takes; None for the pictures of the source, fitted to image_px (see `pictures.batches`), which is in the form of
    `sizes.plain`. sees: how pictures are fitted to image_px, see `crops.fit_as`. layers: compiled, (images, count,
    mean) -> vectors of its last blocks, b …, see `layers.vectors`; None where there is no network.
    """

    encode: Callable[[Any], dict[str, Any]]
    image_px: int | tuple[int, int]
    digest: str
    name: str
    step: int = 0
    mesh: jax.sharding.Mesh | None = None
    joint: Joint | None = None
    answers: Answers | None = None
    target: str = ""
    attention: Callable[[Any], Any] | None = None
    read: Callable[[Source, int, float], Iterator[np.ndarray]] | None = None
    sees: str = "image"
    layers: Callable[[Any, int, bool], Any] | None = None


class FeatureTable(NamedTuple):
    """Features of a split: features n d float32, labels n c int8 (codes of the schema), patient_ids n, image_ids n."""

    features: np.ndarray
    labels: np.ndarray
    patient_ids: np.ndarray
    image_ids: np.ndarray


class Task(NamedTuple):
    """What is to be told apart.

    kind "binary": some label of `positive` is present, against some label of `negative` (none named: every label of
    `positive` is absent). "multilabel": each of `labels` by itself (none named: all of the set's). "multiclass":
    exactly one of `labels` is present. `uncertain` and `not_mentioned` say what those two codes count as; a
    published `policy` (a name of `policies.POLICIES`) takes their place.
    """

    kind: str
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    uncertain: str = "ignore"
    not_mentioned: str = "ignore"
    policy: str = ""


class Targets(NamedTuple):
    """A task's answer key: names c, values n c int8 (1, 0 or MASKED), keep n bool (pictures the task uses), notes."""

    names: tuple[str, ...]
    values: np.ndarray
    keep: np.ndarray
    notes: list[str]


def make_task(config: Mapping[str, Any]) -> Task:
    """Checks a config's task and returns it as a record; raises ValueError with what would be accepted.

    config: the fields of `Task`, label names as tuples or comma-separated, and a `name` for logs, not used here.
    """
    given = {key: value for key, value in dict(config).items() if key != "name"}
    unknown = sorted(set(given) - set(Task._fields))
    if unknown or "kind" not in given:
        raise ValueError(
            f"task has keys {sorted(given)}; 'kind' is required, known keys are {list(Task._fields)} and 'name'"
        )
    for key in ("positive", "negative", "labels"):
        given[key] = names(given.get(key) or ())
    task = Task(**given)
    if task.kind not in KINDS:
        raise ValueError(f"task kind {task.kind!r} is not known; choose one of {list(KINDS)}")
    for key in ("uncertain", "not_mentioned"):
        if getattr(task, key) not in TREATMENTS:
            raise ValueError(f"task {key}={getattr(task, key)!r} is not known; choose one of {list(TREATMENTS)}")
    if task.policy:
        policies.check(task.policy)
    if task.policy and {"uncertain", "not_mentioned"} & set(given):
        raise ValueError(
            f"a task has policy={task.policy!r}, which says what uncertain and unmentioned labels count as, and also "
            "'uncertain' or 'not_mentioned'; give one or the other"
        )
    if task.kind == "binary" and (not task.positive or task.labels):
        raise ValueError("a binary task names its classes with 'positive' (required) and 'negative', not with 'labels'")
    if task.kind != "binary" and (task.positive or task.negative):
        raise ValueError(f"a {task.kind} task names its classes with 'labels', not with 'positive' and 'negative'")
    if task.kind == "multiclass" and len(task.labels) < 2:
        raise ValueError(f"a multiclass task needs at least two labels, got {list(task.labels)}")
    twice = sorted(set(task.positive) & set(task.negative))
    if twice:
        raise ValueError(f"labels {twice} are both positive and negative in a binary task; name each on one side only")
    return task


def targets(task: Task, labels: np.ndarray, label_names: Sequence[str]) -> Targets:
    """Turns label codes into the answer key of a task.

    labels: n c int8 in the schema's codes; label_names: c. A binary task has the one name "positive".
    Raises ValueError if the task names a label that the set lacks, listing those it has.
    """
    known = list(label_names)
    unknown = [name for name in (*task.positive, *task.negative, *task.labels) if name not in known]
    if unknown:
        raise ValueError(f"the task asks for labels {unknown}, which this set does not have; its labels are {known}")
    if task.policy:
        labels = policies.apply(labels, known, task.policy)
    codes = np.full(labels.shape, MASKED, np.int8)
    codes[labels == schema.PRESENT] = 1
    codes[labels == schema.ABSENT] = 0
    meaning = {"ignore": MASKED, "absent": 0, "present": 1}
    codes[labels == schema.UNCERTAIN] = meaning[task.uncertain]
    codes[labels == schema.NOT_MENTIONED] = meaning[task.not_mentioned]

    def columns(wanted: Sequence[str]) -> np.ndarray:
        return codes[:, [known.index(name) for name in wanted]]

    if task.kind == "binary":
        positive = (columns(task.positive) == 1).any(axis=1)
        if task.negative:
            negative = (columns(task.negative) == 1).any(axis=1)
        else:
            negative = (columns(task.positive) == 0).all(axis=1)
        keep = positive ^ negative
        return Targets(("positive",), positive.astype(np.int8)[:, None], keep, _contradictions(positive & negative))
    wanted = task.labels or tuple(known)
    values = columns(wanted)
    if task.kind == "multilabel":
        return Targets(wanted, values, (values != MASKED).any(axis=1), [])
    present = (values == 1).sum(axis=1)
    return Targets(wanted, (values == 1).astype(np.int8), present == 1, _contradictions(present > 1))


def digest(*parts: Any) -> str:
    """Returns a short stable hash of JSON-able values and trees of arrays (values, shapes, types and structure)."""
    state = hashlib.sha256()
    for part in parts:
        leaves, structure = jax.tree_util.tree_flatten_with_path(part)
        state.update(str(structure).encode())
        for path, leaf in leaves:
            state.update(jax.tree_util.keystr(path).encode())
            if hasattr(leaf, "dtype"):
                if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                    leaf = jax.random.key_data(leaf)
                array = np.ascontiguousarray(leaf)
                state.update(f"{array.dtype}{array.shape}".encode())
                state.update(array.reshape(-1).view(np.uint8).data)
            else:
                state.update(json.dumps(leaf, sort_keys=True, default=str).encode())
    return state.hexdigest()[:20]


def _contradictions(both: np.ndarray) -> list[str]:
    count = int(both.sum())
    return [f"{count} pictures carry labels of more than one class and were left out"] if count else []
