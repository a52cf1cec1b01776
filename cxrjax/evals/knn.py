"""k-nearest-neighbour judge on frozen features: nothing is fitted, so the features are judged as they are.

A picture's score for a label is the weighted share of its k nearest training pictures that carry the label; near is
cosine similarity, the weight exp(similarity / temperature) as in Wu et al. 2018 and DINO (Caron et al. 2021, 0.07), or
1 for temperature None. k is chosen on the validation patients by mean AUROC (the smaller of equals).
"""

from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.evals import attention, labelled, layers
from cxrjax.evals.base import MASKED, Encoder, FeatureTable, Result, Task
from cxrjax.evals.judge import Entry, Judge, Opened
from cxrjax.input.source import Source

NEIGHBOURS = (5, 10, 20, 50, 100, 200)
_CHUNK_VALUES = 2**25  # similarities held at once (128 MB)


def knn(
    train: FeatureTable,
    val: FeatureTable,
    test: FeatureTable,
    task: Task,
    label_names: Sequence[str],
    *,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float | None = 0.07,
    resamples: int = 1000,
    seed: int = 0,
) -> Result:
    """Judges test pictures by their neighbours in train, with k chosen on val.

    label_names: c, of the tables' labels; neighbours: the k to choose from, a single one is used as it is and val is
    not looked at; k beyond the training pictures are left out.
    Raises ValueError for a patient in two splits, an unknown label, or a split with nothing to vote, choose or judge.
    """
    neighbours = checked(neighbours, temperature)
    tables, keys, notes = labelled.select({"train": train, "val": val, "test": test}, task, label_names)
    size = len(tables["train"].image_ids)
    usable = _at_most(size, neighbours)
    if usable != neighbours:
        notes.append(f"k {neighbours} was cut to {usable}, because the train split has {size} pictures")

    def vote(split: str) -> np.ndarray:
        near = nearest(tables["train"].features, tables[split].features, usable[-1])
        votes = [_vote(*part, keys["train"].values, usable, temperature) for part in near]
        return np.concatenate(votes, axis=1)  # k n c

    best, qualities = 0, []
    if len(usable) > 1:
        qualities = [labelled.mean_auroc(keys["val"], scores) for scores in vote("val")]
        best, edge = labelled.choose(usable, qualities, "k")
        notes += edge
    usable, curve = usable[best : best + 1], dict(zip(map(str, usable), qualities, strict=False))
    details = {"judge": "knn", "k": usable[0], "temperature": temperature, "validation_auroc": curve}
    details["validation"] = {"auroc": qualities[best]} if qualities else {}
    return labelled.conclude(task.kind, tables, keys, lambda split: vote(split)[0], notes, details, resamples, seed)


def checked(neighbours: Sequence[int], temperature: float | None) -> list[int]:
    """The k, once each, from the smallest on; raises ValueError for a k below 1 or a temperature <= 0."""
    found = sorted({int(count) for count in neighbours})
    if not found or found[0] < 1 or (temperature is not None and temperature <= 0):
        raise ValueError(f"k-NN needs k >= 1 and temperature > 0 (or None), got k {found}, temperature {temperature}")
    return found


def nearest(bank: np.ndarray, queries: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields for parts of the queries the cosine similarities b k and places b k of the nearest in bank, nearest first.

    bank: n d; queries: m d; count: k <= n. Every part has the same shape on the device, so one compilation serves.
    """
    rows = max(1, min(len(queries), _CHUNK_VALUES // len(bank)))
    known = jnp.asarray(unit(bank))
    for start in range(0, len(queries), rows):
        part = unit(queries[start : start + rows])
        padded = np.pad(part, ((0, rows - len(part)), (0, 0)))
        similarity, position = jax.device_get(_top(known, padded, count))
        yield similarity[: len(part)], position[: len(part)]


@jax.jit(static_argnames="count")
def _top(bank: jax.Array, queries: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    # TPUs would multiply in bfloat16, which reorders neighbours.
    return jax.lax.top_k(jnp.matmul(queries, bank.T, precision="highest"), count)


def _vote(
    similarity: np.ndarray,
    position: np.ndarray,
    values: np.ndarray,
    neighbours: Sequence[int],
    temperature: float | None,
) -> np.ndarray:
    """Scores k b c of queries, for every k of `neighbours`, from the answer key n c of the bank."""
    weight = np.ones_like(similarity, np.float64)
    if temperature is not None:
        weight = np.exp((similarity - similarity[:, :1]).astype(np.float64) / temperature)
    wanted = np.array(neighbours) - 1
    scores = []
    for column in values.T:
        carried = column[position]  # b k
        judged = np.cumsum(weight * (carried != MASKED), axis=1)[:, wanted]
        present = np.cumsum(weight * (carried == 1), axis=1)[:, wanted]
        rate = (column == 1).sum() / (column != MASKED).sum()
        # Where no neighbour says anything about the label, the label's rate is all that is known.
        scores.append(np.divide(present, judged, out=np.full_like(present, rate), where=judged > 0))
    return np.stack(scores, axis=-1).swapaxes(0, 1)


def unit(features: np.ndarray) -> np.ndarray:
    """Features n d at unit length, float32; zeros stay zeros."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.maximum(length, 1e-12)).astype(np.float32)


def _at_most(size: int, neighbours: Sequence[int]) -> list[int]:
    return [count for count in neighbours if count <= size] or [size]


def _judge(encoder: Encoder, entry: Entry, opened: Opened) -> Result:
    encoder = layers.of(encoder, entry)
    given = labelled.arguments(encoder, entry, opened)
    found = knn(**given, neighbours=entry["neighbours"], temperature=entry["temperature"])
    return attention.add(encoder, opened.sources["test"], found, opened.pictures_bytes)


def _check(entry: Entry, sources: Mapping[str, Source]) -> None:
    layers.check(entry)
    neighbours = checked(entry["neighbours"], entry["temperature"])
    tables, keys = labelled.check_fit(entry, sources)
    if len(_at_most(len(tables["train"].image_ids), neighbours)) > 1:
        labelled.decidable(keys["val"])


JUDGE = Judge(
    "knn",
    judge=_judge,
    check=_check,
    splits=("train", "val", "test"),
    keys={
        "neighbours": NEIGHBOURS,  # the k to choose from on val; a single one is used as it is
        "temperature": 0.07,  # of the weights exp(similarity / temperature); None weighs all neighbours alike
        **layers.KEYS,
    },
    asks=tuple(layers.KEYS),
)
