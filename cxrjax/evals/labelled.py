"""What the judges of labels share: their arguments, answer keys per split, choosing on validation, the final table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.datasets import schema
from cxrjax.evals import certainty, metrics
from cxrjax.evals.base import MASKED, Encoder, FeatureTable, Result, Targets, Task, make_task, targets
from cxrjax.evals.judge import Entry, Opened
from cxrjax.input.source import Source


def arguments(encoder: Encoder, entry: Entry, opened: Opened) -> dict[str, Any]:
    """What every judge of labels takes: a table of features per split, task, label_names, resamples and seed."""
    tables = {split: opened.features(encoder, source) for split, source in opened.sources.items()}
    about = {"task": make_task(entry["task"]), "label_names": opened.sources["test"].converted_set.label_names}
    return {**tables, **about, "resamples": entry["bootstrap"], "seed": opened.seed}


def blank(source: Source) -> FeatureTable:
    """A source's labels and ids with features that say nothing, to check a task without an encoder."""
    table = source.table
    ids = (table[name].to_numpy(str) for name in ("patient_id", "image_id"))
    return FeatureTable(np.zeros((len(table), 1), np.float32), np.stack(table["labels"].tolist()), *ids)


def check_key(entry: Entry, sources: Mapping[str, Source]) -> None:
    """Raises ValueError for a task that asks for labels which the set does not have."""
    test = sources["test"]
    targets(make_task(entry["task"]), blank(test).labels, test.converted_set.label_names)


def check_fit(entry: Entry, sources: Mapping[str, Source]) -> tuple[dict[str, FeatureTable], dict[str, Targets]]:
    """Raises ValueError for a task that train cannot teach or that test cannot judge.

    Returns the blank tables and the answer keys of the splits.
    """
    task = make_task(entry["task"])
    tables = {split: blank(source) for split, source in sources.items()}
    kept, keys, _ = select(tables, task, sources["test"].converted_set.label_names)
    metrics.measures(task.kind, keys["test"].names, keys["test"].values, np.zeros(keys["test"].values.shape))
    return kept, keys


def select(
    tables: Mapping[str, FeatureTable], task: Task, label_names: Sequence[str]
) -> tuple[dict[str, FeatureTable], dict[str, Targets], list[str]]:
    """Keeps the pictures and labels that a task can use.

    tables: "train", "val" and "test"; label_names: c, of their labels. Returns (tables, answer keys, notes); a label
    with one value only in train is dropped from all three and named.
    Raises ValueError for a patient in two splits, an unknown label, features that are not numbers, or nothing to fit.
    """
    kept, keys, notes = usable(tables, task, label_names)
    train = keys["train"]
    positive, judged = (train.values == 1).sum(axis=0), (train.values != MASKED).sum(axis=0)
    taught = (positive > 0) & (positive < judged)
    lacking = [
        f"{name!r} ({some} of {all_} positive)" for name, some, all_ in zip(train.names, positive, judged, strict=True)
    ]
    lacking = [text for text, fine in zip(lacking, taught, strict=True) if not fine]
    if not taught.any() or (lacking and task.kind == "multiclass"):
        raise ValueError(
            f"the train split cannot teach this {task.kind} task: {', '.join(lacking) or _nothing(label_names)}; "
            "choose other labels, or more training pictures"
        )
    if lacking:
        notes.append(f"skipped, because the train split has one value only: {', '.join(lacking)}")
        names = tuple(np.array(train.names)[taught].tolist())
        keys = {split: key._replace(names=names, values=key.values[:, taught]) for split, key in keys.items()}
    if not np.ptp(kept["train"].features, axis=0).any():
        notes.append("every training picture has the same features: the encoder has collapsed")
    return kept, keys, notes


def _nothing(label_names: Sequence[str]) -> str:
    return "no picture is left" if len(label_names) else "the set has no labels"


def usable(
    tables: Mapping[str, FeatureTable], task: Task, label_names: Sequence[str]
) -> tuple[dict[str, FeatureTable], dict[str, Targets], list[str]]:
    """Keeps the pictures of each split that the task says something about; arguments and errors as of `select`."""
    schema.assert_patients_disjoint({split: table.patient_ids.tolist() for split, table in tables.items()})
    kept, keys, notes = {}, {}, []
    for split, table in tables.items():
        finite = np.asarray(np.isfinite(table.features).all(axis=1))
        if not finite.all():
            raise ValueError(
                f"{(~finite).sum()} of {len(finite)} {split} pictures have features that are NaN or infinite, "
                f"{table.image_ids[~finite][0]!r} is the first; the encoder is broken or its training has diverged"
            )
        key = targets(task, table.labels, label_names)
        notes += [f"{split}: {note}" for note in key.notes]
        kept[split] = FeatureTable(*(column[key.keep] for column in table))
        keys[split] = key._replace(values=key.values[key.keep], keep=key.keep[key.keep])
    return kept, keys, notes


def choose(options: Sequence[float], qualities: Sequence[float], what: str) -> tuple[int, list[str]]:
    """Index of the best quality, the first of equals; a note if it is at an end of the grid and beats its neighbour."""
    best = int(np.flatnonzero(np.asarray(qualities) >= max(qualities) - 1e-9)[0])
    neighbour = {0: 1, len(options) - 1: len(options) - 2}.get(best)
    if neighbour is not None and qualities[best] > qualities[neighbour] + 1e-3:
        listed = ", ".join(f"{option:g}" for option in options)
        return best, [f"the best {what} {options[best]:g} is at the edge of the grid {listed}: widen it"]
    return best, []


def decidable(key: Targets) -> list[int]:
    """Labels that have both values in the validation pictures, by number; raises ValueError if there are none."""
    both = [c for c, column in enumerate(key.values.T) if (column == 1).any() and (column == 0).any()]
    if not both:
        raise ValueError(
            f"no label of {list(key.names)} has both values in the {len(key.values)} validation pictures, so nothing "
            "can be chosen on them; give one value only instead of a grid, then there is no choice to make"
        )
    return both


def mean_auroc(key: Targets, scores: np.ndarray) -> float:
    """Mean AUROC of scores n c over the labels that are decidable."""
    return float(np.mean([metrics.auroc(key.values[:, c], scores[:, c]) for c in decidable(key)]))


def best_threshold(values: np.ndarray, scores: np.ndarray) -> float:
    """The threshold of one label with the highest balanced accuracy; n scores at or above it count as positive.

    values: n, some 1, some 0, others left out. Thresholds lie halfway between two pictures, or at the lowest one. Of
    equally good ones the lowest is taken.
    """
    places = np.unique(scores[values >= 0])
    options = np.concatenate([places[:1], (places[1:] + places[:-1]) / 2])
    positives, negatives = np.sort(scores[values == 1]), np.sort(scores[values == 0])
    hit = 1 - np.searchsorted(positives, options) / len(positives)
    refused = np.searchsorted(negatives, options) / len(negatives)
    return float(options[np.argmax(np.round(hit + refused, 9))])


def score_thresholds(key: Targets, scores: np.ndarray) -> dict[str, float]:
    """Label -> its best threshold on the validation pictures, of the labels that have both values there."""
    both = [c for c, column in enumerate(key.values.T) if (column == 1).any() and (column == 0).any()]
    return {key.names[c]: best_threshold(key.values[:, c], scores[:, c]) for c in both}


def conclude(
    kind: str,
    tables: Mapping[str, FeatureTable],
    keys: Mapping[str, Targets],
    scored: Callable[[str], np.ndarray],
    notes: list[str],
    details: Mapping[str, Any],
    resamples: int,
    seed: int,
    *,
    scaled: bool = False,
    cover: float = 0.0,
) -> Result:
    """Judges the test pictures.

    scored: a split -> its scores n c; of val, thresholds are chosen, unless details have "score_thresholds". scaled,
    cover: see `certainty.KEYS`.
    """
    test, key, scores = tables["test"], keys["test"], scored("test")
    fixed = "score_thresholds" not in details and kind != "multiclass"
    val = scored("val") if scaled or cover or fixed else np.empty(0)
    if scaled:
        t = certainty.temperature(kind, keys["val"].values, val)
        val, scores = certainty.tempered(kind, val, t), certainty.tempered(kind, scores, t)
        details = {**details, "temperature": t}
    if fixed:
        details = {**details, "score_thresholds": score_thresholds(keys["val"], val)}
    found, counts, more = metrics.summarise(kind, key.names, key.values, scores, test.patient_ids, resamples, seed)
    predictions = metrics.prediction_table(key.names, key.values, scores, test.patient_ids, test.image_ids)
    sizes = {
        split: {"pictures": len(table.image_ids), "patients": len(set(table.patient_ids))}
        for split, table in tables.items()
    }
    result = Result(found, predictions, notes + more, {**details, "n_positive": counts, "splits": sizes})
    if not cover:
        return result
    return certainty.add(result, kind, keys, val, scores, test.patient_ids, cover, resamples, seed)
