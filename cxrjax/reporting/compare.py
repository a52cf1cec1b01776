"""Several subjects on the same pictures: each one's metrics, and the paired differences to one of them.

A subject is a model, with a table of predictions of each of its runs: its seeds, the folds of a cross-validation. Its
metric is the mean over its runs. All subjects and runs are judged on the same resamples of patients, so that what makes
a resample hard for all of them drops out of a difference. The interval covers the choice of the test patients. It holds
for the mean of these very runs; how far they lie apart is in `spread`, and `with_seeds` covers other seeds as well.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas

from cxrjax.evals import metrics
from cxrjax.evals.base import MASKED, Interval
from cxrjax.evals.metrics import Measures
from cxrjax.evals.predictions import judged_labels, picture_values
from cxrjax.reporting import seeds, significance
from cxrjax.reporting.seeds import Components

TRUTH = ("report", "true_boxes", "true_labels")
"""Columns that say what there is in a picture, where there are no targets. Pixels of a mask are not among them: models
of different input sizes see it at theirs."""


class Comparison(NamedTuple):
    """What was found; every mapping is subject -> metric -> it.

    differences: subject minus reference, without the reference itself. spread: lowest and highest run, where there are
    several. positives: metric -> positive pictures, of tables that have targets. p: of no difference to the reference,
    two-sided, from the resamples, not corrected. with_seeds, differences_with_seeds: the same values with intervals
    that cover seeds as well (see `seeds`), of subjects with several runs on the same pictures; components: what seeds
    add. drawn: subject -> the resampled values of its first metric, resample by resample the same patients for all.
    """

    metrics: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Interval]]
    spread: dict[str, dict[str, tuple[float, float]]]
    positives: dict[str, int]
    pictures: int
    patients: int
    notes: list[str]
    p: dict[str, dict[str, float]]
    with_seeds: dict[str, dict[str, Interval]]
    differences_with_seeds: dict[str, dict[str, Interval]]
    components: dict[str, dict[str, Components]]
    drawn: Mapping[str, np.ndarray] = MappingProxyType({})


def measured(kind: str, table: pandas.DataFrame) -> Measures:
    """The metrics of a table as a function of weights: of labels, boxes, parts, or else means of its `values`.

    Raises ValueError for a table that has none of these, or no label with both values.
    """
    names = judged_labels(table)
    if names:
        targets, scores = (table[[f"{column}/{name}" for name in names]].to_numpy() for column in ("target", "score"))
        return metrics.measures(kind, names, targets, scores)
    if "true_boxes" in table:
        from cxrjax.evals import detect  # needs pycocotools

        parts, statistic = detect.measures(table)
        return Measures(parts, statistic, [], len(parts), {}, dict.fromkeys(parts, len(table)), [])
    if "part" in table:
        from cxrjax.evals import transfer  # a judge; the other reports need none of what it imports

        return transfer.measures(table)
    found = picture_values(table)
    if not found:
        raise ValueError(f"the predictions measure nothing per picture; their columns are {list(table)}")
    sizes = {name: int(np.isfinite(column).sum()) for name, column in found.items()}
    statistic = metrics.known_means(np.stack(list(found.values())))
    return Measures(list(found), statistic, [], len(found), {}, sizes, [])


def pictures(subjects: Mapping[str, Sequence[pandas.DataFrame]]) -> pandas.DataFrame:
    """All judged pictures, once each: image_id, patient_id, and what is there: of the columns target/<label> and TRUTH
    those that every run has.

    Raises ValueError unless every subject is judged on the same pictures, fold by fold, with the same truth.
    """
    parts = {name: {frozenset(table["image_id"]) for table in tables} for name, tables in subjects.items()}
    first = next(iter(parts))
    for name, judged in parts.items():
        if judged != parts[first]:
            ours, theirs = (set().union(*one) for one in (judged, parts[first]))
            raise ValueError(
                f"predictions of different pictures cannot be compared: {name!r} has {len(ours)} and {first!r} "
                f"{len(theirs)}, {len(ours & theirs)} in both; judge all on the same set, split, projections, folds "
                "and task"
            )
    tables = [table for each in subjects.values() for table in each]
    shared = [name for name in judged_labels(tables[0]) if all(f"target/{name}" in table for table in tables)]
    if judged_labels(tables[0]) and not shared:
        raise ValueError("the predictions have no label in common, so there is nothing to compare")
    truth = [column for column in TRUTH if all(column in table for table in tables)]
    columns = ["image_id", "patient_id", *(f"target/{name}" for name in shared), *truth]
    every = pandas.concat([table[columns] for table in tables], ignore_index=True)
    for column in truth:
        every[column] = [_hashable(value) for value in every[column]]
    together: pandas.DataFrame = every.loc[~every.duplicated().to_numpy()]
    ids = together["image_id"].to_numpy(str)
    if len(set(ids)) < len(ids):
        found, counts = np.unique(ids, return_counts=True)
        twice = together.loc[np.isin(ids, found[counts > 1])]
        differing = [
            name
            for name in columns[1:]
            if len(twice[["image_id", name]].drop_duplicates()) > len(set(twice["image_id"]))
        ]
        raise ValueError(
            f"the predictions have different {', '.join(differing)} for {len(set(twice['image_id']))} of the same "
            "pictures; were all made for one task, on one version of the set, with the same words of reports?"
        )
    return together.sort_values(by=["image_id"], ignore_index=True)


def compare(
    kind: str,
    subjects: Mapping[str, Sequence[pandas.DataFrame]],
    reference: str = "",
    resamples: int = 1000,
    seed: int = 0,
    pretrainings: Mapping[str, Sequence[str]] | None = None,
) -> Comparison:
    """Judges all subjects on the same resamples of patients.

    kind: of the task ("" for tables without targets); subjects: name -> a table of predictions per run; reference: the
    subject that the others are compared with ("": the first). pretrainings: subject -> the pre-training that each of
    its runs starts from; without it each run is one by itself.
    A label that not every run was judged on, or that has one value only in one of them, is left out of all and named.
    Raises ValueError for an unknown reference, and for tables that do not belong together (see `pictures`).
    """
    reference = reference or next(iter(subjects))
    if reference not in subjects:
        raise ValueError(f"the reference {reference!r} is not among what is compared: {list(subjects)}")
    known = pictures(subjects)
    tables = [table for each in subjects.values() for table in each]
    left = sorted({name for table in tables for name in judged_labels(table)} - set(judged_labels(known)))
    notes = [f"left out, because not every run was judged on it: {', '.join(left)}"] if left else []
    dropped = [f"{column}/{name}" for name in left for column in ("target", "score")]
    every = [measured(kind, table.drop(columns=dropped, errors="ignore")) for table in tables]
    parts = [part for part in every[0].parts if all(part in one.parts for one in every)]
    if not parts:
        raise ValueError(f"the predictions measure different things: {sorted({str(one.parts) for one in every})}")
    notes += sorted({note for one in every for note in one.notes})
    common = every[0]._replace(parts=parts)
    rows = [[one.parts.index(part) for part in parts] for one in every]
    patients, owner = np.unique(known["patient_id"].to_numpy(str), return_inverse=True)
    owners = [np.searchsorted(patients, table["patient_id"].to_numpy(str)) for table in tables]
    stops = np.cumsum([0, *(len(each) for each in subjects.values())])
    runs_of = {name: range(*span) for name, span in zip(subjects, zip(stops[:-1], stops[1:], strict=True), strict=True)}

    def of_run(run: int, weights: np.ndarray) -> np.ndarray:
        return every[run].statistic(weights[owners[run]])[rows[run]]

    def statistic(weights: np.ndarray) -> np.ndarray:  # of patients p r
        return np.concatenate([np.mean([of_run(run, weights) for run in runs], axis=0) for runs in runs_of.values()])

    samples = metrics.bootstrap(statistic, patients, resamples, seed).reshape(resamples, len(runs_of), len(parts))
    drawn = {name: metrics.named(common, samples[:, number]) for number, name in enumerate(runs_of)}
    ones = np.ones((len(patients), 1))
    alone = {name: [metrics.named(common, of_run(run, ones).T) for run in runs] for name, runs in runs_of.items()}
    found = {
        name: {metric: np.array([run[metric][0] for run in runs]) for metric in runs[0]} for name, runs in alone.items()
    }
    sizes, positives = _sizes(known, next(iter(subjects.values())), parts, list(found[reference]))

    of_seeds = {}
    for name, of_subject in subjects.items():
        if len(of_subject) > 1 and len({frozenset(table["image_id"]) for table in of_subject}) == 1:
            starts = (pretrainings or {}).get(name, list(map(str, range(len(of_subject)))))
            of_seeds[name] = {metric: seeds.components(values, starts) for metric, values in found[name].items()}

    def spread(name: str, metric: str, minus: str | None) -> np.ndarray:
        return drawn[name][metric] - (0 if minus is None else drawn[minus][metric])

    def intervals(name: str, minus: str | None = None, with_seeds: bool = False) -> dict[str, Interval]:
        spans = {}
        for metric, of_runs in found[name].items():
            value = of_runs.mean() - (0 if minus is None else found[minus][metric].mean())
            samples = spread(name, metric, minus)
            if with_seeds:
                sides = [of_seeds[side][metric] for side in (name, minus) if side in of_seeds]
                samples = seeds.widened(samples, sides, seed)
            spans[metric] = metrics.interval(value, samples, sizes[metric])
        return spans

    others = [name for name in subjects if name != reference]
    seeded = [name for name in others if name in of_seeds or reference in of_seeds]
    return Comparison(
        {name: intervals(name) for name in subjects},
        {name: intervals(name, reference) for name in others},
        {
            name: {metric: (float(one.min()), float(one.max())) for metric, one in of_runs.items()}
            for name, of_runs in found.items()
            if len(subjects[name]) > 1
        },
        positives,
        len(known),
        len(patients),
        notes,
        {
            name: {metric: significance.p_of_samples(spread(name, metric, reference)) for metric in found[name]}
            for name in others
        },
        {name: intervals(name, with_seeds=True) for name in of_seeds},
        {name: intervals(name, reference, with_seeds=True) for name in seeded},
        of_seeds,
        {name: next(iter(drawn[name].values())) for name in subjects},
    )


def _hashable(value: Any) -> Any:
    """Lists as tuples; those of a file are arrays."""
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple | np.ndarray) else value


def _sizes(
    known: pandas.DataFrame, tables: Sequence[pandas.DataFrame], parts: Sequence[str], names: Sequence[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """Judged and positive pictures of each metric; a measure per picture has no positives."""
    if not judged_labels(known):
        values_of = picture_values(pandas.concat(tables).drop_duplicates("image_id"))
        return {name: int(np.isfinite(values_of.get(name, np.zeros(len(known)))).sum()) for name in names}, {}
    used = [name for name in judged_labels(known) if f"auroc/{name}" in parts]
    targets = known[[f"target/{name}" for name in used]].to_numpy()  # n c
    sizes, positives = {}, {}
    for metric in names:
        label = metric.partition("/")[2]
        chosen = targets[:, [used.index(label)]] if label in used else targets
        sizes[metric] = int((chosen != MASKED).any(axis=1).sum())
        positives[metric] = int((chosen == 1).any(axis=1).sum())
    return sizes, positives
