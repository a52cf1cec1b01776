"""Attentive probe: each label has a query that is learned to find its patches, and a linear unit on what it finds.

    a_k = softmax over the patches (q·x_k / √d)        s = Σ_k a_k w·x_k + c        q, w and c of each label its own
    min   mean_i loss(s_i, y_i) + strength/2 (|q|² + |w|²)                           sigmoid per label, or softmax

symbol   here         meaning
x_k      patches      the frozen patch k of a picture, standardised by all training patches, d numbers
q, w, c  Head         query, weights and intercept of a label

A finding of one patch is a small part of the mean over all of them, and [CLS] of an encoder that was never asked for
it may not have kept it. Cross-attention to frozen patches is the attentive probe of Chen et al. (Context Autoencoder,
IJCV 2024). Ours has one head per label. Its matrices of keys, values and output would multiply q and w and nothing
else, so these stand for them. All start from q = w = 0, the linear probe on the mean of the patches, and no draw but
the order of the pictures decides anything. Adam takes the same steps for all strengths at once; the strength is chosen
on the validation patients as `probe` chooses its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special

from cxrjax import sizes
from cxrjax.evals import certainty, labelled, probe
from cxrjax.evals.base import MASKED, Encoder, FeatureTable, Result, Task, make_task
from cxrjax.evals.features import outputs
from cxrjax.evals.judge import Entry, Judge, Opened
from cxrjax.input.source import Source
from cxrjax.runtime import hosts

STRENGTHS = tuple(float(f"1e{power}") for power in range(0, -6, -1))
_RATE = 0.01  # of Adam, falling along a cosine
_BATCH = 256


class Head(NamedTuple):
    """queries c d, weights c d, intercept c; of several strengths at once each has an axis more in front."""

    queries: Any
    weights: Any
    intercept: Any


class Scale(NamedTuple):
    """mean d and deviation d of all training patches; the deviation of a number that never changes is infinite."""

    mean: np.ndarray
    deviation: np.ndarray


def attentive(
    train: FeatureTable,
    val: FeatureTable,
    test: FeatureTable,
    task: Task,
    label_names: Sequence[str],
    *,
    strengths: Sequence[float] = STRENGTHS,
    steps: int = 1000,
    scaled: bool = False,
    cover: float = 0.0,
    resamples: int = 1000,
    seed: int = 0,
) -> Result:
    """Learns on train, chooses the strength on val, judges on test.

    train, val, test: tables whose features are patches n k d, in float16 or float32. label_names: c, of their labels. A
    single strength is used as it is and val is not looked at. scaled, cover: see `certainty.KEYS`.
    Raises ValueError for a patient in two splits, an unknown label, patches that are not numbers, or a split with
    nothing to fit, choose or judge.
    """
    strengths = checked(strengths, steps)
    certainty.check(scaled, cover)
    given = {"train": train, "val": val, "test": test}
    for split, table in given.items():
        _check_finite(table, split)
    # The rows stand for the patches, which are too many to be copied.
    rows = {split: table._replace(features=np.arange(len(table.labels))[:, None]) for split, table in given.items()}
    tables, keys, notes = labelled.select(rows, task, label_names)
    patches = {split: _Chosen(given[split].features, tables[split].features[:, 0]) for split in given}
    scale = standard(patches["train"])
    heads = fit(patches["train"], scale, keys["train"].values, strengths, task.kind, steps, seed)
    best, qualities = 0, []
    if len(strengths) > 1:
        rate = probe.label_rates(keys["train"].values)
        found = outputs_of(heads, scale, patches["val"])
        qualities = [probe.explained(keys["val"], one, rate, "logistic", task.kind) for one in found]
        best, edge = labelled.choose(strengths, qualities, "strength")
        notes += edge

    def scored(split: str) -> np.ndarray:
        (found,) = outputs_of(jax.tree.map(lambda leaf: leaf[best : best + 1], heads), scale, patches[split])
        return scipy.special.softmax(found, axis=1) if task.kind == "multiclass" else scipy.special.expit(found)

    curve = {f"{strength:g}": quality for strength, quality in zip(strengths, qualities, strict=False)}
    details = {"judge": "attentive", "strength": strengths[best], "steps": steps, "validation_explained": curve}
    details["validation"] = {"explained": qualities[best]} if qualities else {}
    return labelled.conclude(
        task.kind, tables, keys, scored, notes, details, resamples, seed, scaled=scaled, cover=cover
    )


def checked(strengths: Sequence[float], steps: int) -> list[float]:
    """The strengths as `probe.checked` gives them; raises ValueError for fewer than one step as well."""
    if steps < 1:
        raise ValueError(f"an attentive probe needs steps >= 1, got {steps}")
    return probe.checked("logistic", strengths)


class _Chosen(NamedTuple):
    """Some rows, m, of patches n k d."""

    patches: np.ndarray
    rows: np.ndarray

    def parts(self, size: int = _BATCH) -> Iterator[np.ndarray]:
        """All of them in order, by at most so many pictures."""
        for start in range(0, len(self.rows), size):
            yield self.patches[self.rows[start : start + size]]


def standard(chosen: _Chosen) -> Scale:
    """Mean and deviation of each of the d numbers over all patches of all pictures."""
    count, total = 0, np.zeros(chosen.patches.shape[-1])
    for part in chosen.parts():
        total = total + part.sum(axis=(0, 1), dtype=np.float64)
        count += part.shape[0] * part.shape[1]
    mean = total / count
    square = np.zeros_like(total)
    for part in chosen.parts():
        square += ((part - mean) ** 2).sum(axis=(0, 1))
    deviation = np.sqrt(square / count)
    deviation[deviation <= 1e-6 * np.abs(mean)] = np.inf
    return Scale(mean, deviation)


def logits(head: Head, patches: jax.Array) -> jax.Array:
    """Answers b c of standardised patches b k d."""
    looks = jax.nn.softmax(patches @ head.queries.T / jnp.sqrt(patches.shape[-1]), axis=1)  # b k c
    return (looks * (patches @ head.weights.T)).sum(axis=1) + head.intercept


def loss(head: Head, patches: jax.Array, values: jax.Array, share: jax.Array, strength: Any, kind: str) -> jax.Array:
    """What is minimised, see the top; the losses of the labels are added up.

    patches: standardised, b k d. values: b c, 1, 0 or MASKED. share: c, of the training pictures that say something
    about a label, so that its loss is a mean over these.
    """
    found = logits(head, patches)
    if kind == "multiclass":
        of_data = -(jax.nn.log_softmax(found) * (values == 1)).sum(axis=1).mean()
    else:
        each = jax.nn.softplus(jnp.where(values == 1, -found, found))
        of_data = (jnp.where(values == MASKED, 0, each).mean(axis=0) / share).sum()
    return of_data + strength / 2 * ((head.queries**2).sum() + (head.weights**2).sum())


def fit(
    chosen: _Chosen, scale: Scale, values: np.ndarray, strengths: Sequence[float], kind: str, steps: int, seed: int
) -> Head:
    """The heads of all strengths, after so many steps of Adam on up to 256 pictures each. values: n c."""
    rate, (count, labels), width = probe.label_rates(values), values.shape, len(scale.mean)
    intercept = np.log(rate) if kind == "multiclass" else scipy.special.logit(rate)
    zeros = np.zeros((len(strengths), labels, width), np.float32)
    heads = Head(zeros, zeros, np.tile(intercept.astype(np.float32), (len(strengths), 1)))
    optimizer = optax.adam(optax.cosine_decay_schedule(_RATE, steps))
    given = (np.asarray(strengths, np.float32), _as_float32(scale), (values != MASKED).mean(axis=0).astype(np.float32))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(heads: Head, state: Any, patches: jax.Array, values: jax.Array) -> tuple[Head, Any]:
        strengths, scale, share = given
        patches = (patches.astype(jnp.float32) - scale.mean) / scale.deviation

        def of_all(heads: Head) -> jax.Array:
            one = partial(loss, patches=patches, values=values, share=share, kind=kind)
            return jax.vmap(lambda head, strength: one(head, strength=strength))(heads, strengths).sum()

        updates, state = optimizer.update(jax.grad(of_all)(heads), state)
        return cast(Head, optax.apply_updates(heads, updates)), state

    rng, size = np.random.default_rng(seed), min(count, _BATCH)
    order, state = rng.permutation(count), optimizer.init(heads)
    heads = jax.tree.map(jnp.asarray, heads)
    for _ in range(steps):
        if len(order) < size:
            order = np.concatenate([order, rng.permutation(count)])
        rows, order = order[:size], order[size:]
        heads, state = step(heads, state, chosen.patches[chosen.rows[rows]], values[rows])
    return jax.tree.map(np.asarray, heads)


def outputs_of(heads: Head, scale: Scale, chosen: _Chosen) -> np.ndarray:
    """Answers s n c float64 of the heads of s strengths."""
    scale = _as_float32(scale)

    @jax.jit
    def answers(patches: jax.Array) -> jax.Array:
        patches = (patches.astype(jnp.float32) - scale.mean) / scale.deviation
        return jax.vmap(logits, in_axes=(0, None))(heads, patches)

    found = []
    for part in chosen.parts():
        filled = np.concatenate([part, np.repeat(part[-1:], max(0, min(_BATCH, len(chosen.rows)) - len(part)), axis=0)])
        found.append(np.asarray(answers(filled))[:, : len(part)])
    return np.concatenate(found, axis=1).astype(np.float64)


def _as_float32(scale: Scale) -> Scale:
    return Scale(*(part.astype(np.float32) for part in scale))


def _check_finite(table: FeatureTable, split: str) -> None:
    """Raises ValueError, naming the first picture, where patches n k d are NaN or infinite, in float16 above 65,504."""
    for start in range(0, len(table.features), _BATCH):
        finite = np.isfinite(table.features[start : start + _BATCH]).all(axis=(1, 2))
        if not finite.all():
            first = str(table.image_ids[start + int(np.argmin(finite))])
            raise ValueError(
                f"patches of the {split} picture {first!r} are NaN, infinite or above 65,504, which is the most that "
                "float16 holds; the encoder is broken, or its training has diverged"
            )


def _gather(encoder: Encoder, source: Source, batch_size: int, limit_bytes: float) -> FeatureTable:
    """The patches of a split in float16, n k d, with its labels and ids."""
    place, kept = 0, np.empty(0)
    for part in outputs(encoder, source, batch_size, limit_bytes, "patches"):
        if not place:
            kept = np.empty((len(source), part[0, ..., 0].size, part.shape[-1]), np.float16)
        fewer = part[: len(kept) - place]
        with np.errstate(over="ignore"):
            kept[place : place + len(fewer)] = fewer.reshape(len(fewer), *kept.shape[1:])
        place += len(fewer)
    return labelled.blank(source)._replace(features=kept)


def _check_memory(encoder: Encoder, entry: Entry, opened: Opened) -> str:
    """How much memory the patches take, as a sentence; raises ValueError where it is more than the entry allows."""
    height, width = sizes.sides(encoder.image_px) if encoder.image_px else (1, 1)  # metadata are of no picture
    images = jax.ShapeDtypeStruct((1, height, width, 1), np.uint8)
    given = jax.eval_shape(encoder.encode, images).get("patches")
    if given is None:
        raise ValueError(
            f"{encoder.name!r} has no patches, so there is nothing to attend to; leave it out of the references"
        )
    *_, p, q, d = given.shape
    pictures = sum(map(len, opened.sources.values()))
    needed = 2 * pictures * p * q * d / 2**30
    said = f"{pictures:,} pictures of {p}×{q} patches of {d} numbers take {needed:.2g} GiB of memory in float16"
    if needed > entry["patches_gib"]:
        raise ValueError(
            f"{said}, more than patches_gib={entry['patches_gib']:g} allows; allow more where the machine has it, or "
            "judge fewer pictures by 'limit'"
        )
    return said


def _judge(encoder: Encoder, entry: Entry, opened: Opened) -> Result:
    said = _check_memory(encoder, entry, opened)
    if hosts.is_first():
        print(f"attentive probe of {encoder.name}: {said}", flush=True)
    tables = {
        split: _gather(encoder, source, entry["batch_size"], opened.pictures_bytes)
        for split, source in opened.sources.items()
    }
    return attentive(
        **tables,
        task=make_task(entry["task"]),
        label_names=opened.sources["test"].converted_set.label_names,
        strengths=entry["strengths"],
        steps=entry["steps"],
        resamples=entry["bootstrap"],
        seed=opened.seed,
        **certainty.given(entry),
    )


def _check(entry: Entry, sources: Mapping[str, Source]) -> None:
    checked(entry["strengths"], entry["steps"])
    probe.check_strengths("logistic", entry, sources)
    certainty.check(**certainty.given(entry))


JUDGE = Judge(
    "attentive",
    judge=_judge,
    check=_check,
    splits=("train", "val", "test"),
    keys={
        "strengths": STRENGTHS,  # of the penalty, to choose from on val; a single one is used as it is
        "steps": 1000,  # of Adam, on up to 256 pictures each
        "patches_gib": 16.0,  # patches of all splits that are kept in memory, at most
        **certainty.KEYS,
    },
)
