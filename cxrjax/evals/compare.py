"""Several subjects on the same pictures: each one's metrics, and the paired differences to one of them.

A subject is a model, with one table of predictions per seed that it was trained with; its metric is the mean over its
seeds. All subjects and seeds are judged on the same resamples of patients, so that what makes a resample hard for all
of them drops out of a difference. The interval covers the choice of the test patients. With several seeds it holds for
the mean of these very seeds; how far the seeds lie apart is in `spread`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas

from cxrjax.evals import metrics
from cxrjax.evals.base import MASKED, Interval
from cxrjax.evals.metrics import Measures

NOT_MEASURED = ("image_id", "patient_id", "report", "fold")
"""Columns of a table of predictions that are no measure of a picture, beside "target/…", "score/…" and "rank/…"."""


class Comparison(NamedTuple):
    """What was found; every mapping is subject -> metric -> it.

    differences: subject minus baseline, without the baseline itself. spread: lowest and highest seed, where there are
    several. positives: metric -> positive pictures, of tables that have targets.
    """

    metrics: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Interval]]
    spread: dict[str, dict[str, tuple[float, float]]]
    positives: dict[str, int]
    pictures: int
    patients: int
    notes: list[str]


def labels(table: pandas.DataFrame) -> list[str]:
    """The labels that a table of predictions has targets for; none, if it measures pictures otherwise."""
    return [column.removeprefix("target/") for column in table if column.startswith("target/")]


def values(table: pandas.DataFrame) -> dict[str, np.ndarray]:
    """What a table measures of each picture, such as "dice": name -> n float64, NaN where a picture has no value.

    A retrieval's hits are named for the recall that they are averaged to.
    """
    found = {}
    for column in table:
        kind, _, rest = column.partition("/")
        if column in NOT_MEASURED or kind in ("target", "score", "rank"):
            continue
        if pandas.api.types.is_numeric_dtype(table[column]):
            direction, _, k = rest.partition("@")
            measure = {"hit": "recall"}.get(kind, kind)
            found[f"{direction}_{measure}@{k}" if k else column] = table[column].to_numpy(np.float64)
    return found


def aligned(tables: Sequence[pandas.DataFrame]) -> tuple[list[pandas.DataFrame], list[str]]:
    """The tables in the order of their image ids, with the labels that all of them have; and notes on the others.

    Raises ValueError unless all are of the same pictures and patients, with the same targets.
    """
    tables = [table.sort_values("image_id", ignore_index=True) for table in tables]
    first, notes = tables[0], []
    for table in tables[1:]:
        if not first[["image_id", "patient_id"]].equals(table[["image_id", "patient_id"]]):
            common = len(set(first["image_id"]) & set(table["image_id"]))
            raise ValueError(
                f"predictions of different pictures cannot be compared: {len(first)} and {len(table)}, {common} in "
                "both; judge all on the same set, split, views and task"
            )
    everywhere = [name for name in labels(first) if all(f"target/{name}" in table for table in tables)]
    left = sorted({name for table in tables for name in labels(table)} - set(everywhere))
    if left:
        notes.append(f"left out, because not every run was judged on it: {', '.join(left)}")
    if labels(first) and not everywhere:
        raise ValueError("the predictions have no label in common, so there is nothing to compare")
    for name in everywhere:
        if any(not first[f"target/{name}"].equals(table[f"target/{name}"]) for table in tables):
            raise ValueError(f"the predictions have different targets for {name!r}; were all made for one task?")
    dropped = [f"{column}/{name}" for name in left for column in ("target", "score")]
    return [table.drop(columns=dropped, errors="ignore") for table in tables], notes


def measured(kind: str, table: pandas.DataFrame) -> Measures:
    """The metrics of a table as a function of weights; a table without targets has the mean of each of its `values`."""
    names = labels(table)
    if names:
        targets, scores = (table[[f"{column}/{name}" for name in names]].to_numpy() for column in ("target", "score"))
        return metrics.measures(kind, names, targets, scores)
    found = values(table)
    if not found:
        raise ValueError(f"the predictions measure nothing per picture; their columns are {list(table)}")
    stacked = np.stack(list(found.values()))  # m n
    there = np.isfinite(stacked)
    filled = np.where(there, stacked, 0)

    def statistic(weights):
        total = there.astype(np.float64) @ weights
        return np.divide(filled @ weights, total, out=np.full(total.shape, np.nan), where=total > 0)

    sizes = dict(zip(found, there.sum(axis=1).tolist(), strict=True))
    return Measures(list(found), statistic, [], len(found), {}, sizes, [])


def compare(
    kind: str,
    subjects: Mapping[str, Sequence[pandas.DataFrame]],
    baseline: str = "",
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Judges all subjects on the same resamples of patients.

    kind: of the task ("" for tables without targets); subjects: name -> a table of predictions per seed; baseline: the
    subject that the others are compared with (""; the first).
    Raises ValueError for an unknown baseline, and for tables that do not belong together (see `aligned`).
    """
    baseline = baseline or next(iter(subjects))
    if baseline not in subjects:
        raise ValueError(f"the baseline {baseline!r} is not among what is compared: {list(subjects)}")
    tables, notes = aligned([table for each in subjects.values() for table in each])
    every = [measured(kind, table) for table in tables]
    if any(one.parts != every[0].parts for one in every):
        raise ValueError(f"the predictions measure different things: {sorted({', '.join(one.parts) for one in every})}")
    sizes = [len(each) for each in subjects.values()]
    starts = np.cumsum([0, *sizes])
    groups = [every[start:stop] for start, stop in zip(starts[:-1], starts[1:], strict=True)]
    width, first = len(every[0].parts), tables[0]

    def statistic(weights):
        return np.concatenate([np.mean([one.statistic(weights) for one in group], axis=0) for group in groups])

    ones = np.ones((len(first), 1))
    samples = metrics.bootstrap(statistic, first["patient_id"], resamples, seed)  # r s*m
    drawn, found = {}, {}
    for number, (name, group) in enumerate(zip(subjects, groups, strict=True)):
        drawn[name] = metrics.named(every[0], samples[:, number * width : (number + 1) * width])
        found[name] = [{m: v[0] for m, v in metrics.named(one, one.statistic(ones).T).items()} for one in group]
    value = {name: {m: float(np.mean([one[m] for one in of])) for m in of[0]} for name, of in found.items()}

    targets = first[[f"target/{name}" for name in labels(first)]].to_numpy()
    judged = [name in every[0].judged for name in labels(first)]
    everyone = int((targets[:, judged] != MASKED).any(axis=1).sum()) if labels(first) else len(first)
    any_positive = int((targets[:, judged] == 1).any(axis=1).sum()) if labels(first) else 0

    def size(metric):
        return every[0].judged.get(metric.partition("/")[2] if labels(first) else metric, everyone)

    def intervals(name, minus=None):
        centre, spread = value[name], drawn[name]
        if minus is not None:
            centre = {m: v - value[minus][m] for m, v in centre.items()}
            spread = {m: v - drawn[minus][m] for m, v in spread.items()}
        return {m: metrics.interval(centre[m], spread[m], size(m)) for m in centre}

    positives = {m: every[0].positives.get(m.partition("/")[2], any_positive) for m in value[baseline]}
    return Comparison(
        {name: intervals(name) for name in subjects},
        {name: intervals(name, baseline) for name in subjects if name != baseline},
        {
            name: {m: (min(one[m] for one in of), max(one[m] for one in of)) for m in of[0]}
            for name, of in found.items()
            if len(of) > 1
        },
        positives if labels(first) else {},
        len(first),
        first["patient_id"].nunique(),
        notes + every[0].notes,
    )
