"""AUROC, average precision and accuracy with patient-level bootstrap intervals.

Resampling patients with replacement is the same as giving every picture an integer weight: how often its patient was
drawn. The scores of a label are therefore sorted once and not for each of 1000 resamples (`rank`). The weighted metric
of every resample follows from sums over that one order. Intervals are 95 % percentile intervals: from the 2.5th to the
97.5th percentile of the metric over the resamples.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas
import scipy.sparse
from numpy.typing import ArrayLike

from cxrjax.evals.base import MASKED, Ids, Interval

LEVEL = 0.95
_CHUNK_VALUES = 4_000_000  # weights held at once (32 MB) unless one resample alone is larger


class Ranking(NamedTuple):
    """One label's scores, sorted once: 0/1 matrices that turn weights per picture (n r) into sums per row (k r).

    Each row stands for one score that some positive has. The highest score comes first.
    positive: the positives with that score. tied: the negatives with that score. passed: all pictures with that score
    or a higher one, but below the score of the row before. judged (1 n): all pictures that are not masked.
    """

    positive: scipy.sparse.csr_matrix
    tied: scipy.sparse.csr_matrix
    passed: scipy.sparse.csr_matrix
    judged: scipy.sparse.csr_matrix


def rank(targets: ArrayLike, scores: ArrayLike) -> Ranking:
    """Sorts the scores (n) of a label for `ranked_areas`. targets: n; 1, 0 or MASKED.

    Raises ValueError for vectors of different lengths, for other targets, and for scores that are NaN or infinite.
    """
    targets, scores = np.asarray(targets), np.asarray(scores, np.float64)
    if targets.shape != scores.shape or targets.ndim != 1:
        raise ValueError(f"targets {targets.shape} and scores {scores.shape} must be two vectors of one length")
    if not np.isin(targets, (0, 1, MASKED)).all():
        raise ValueError(
            f"targets must be 1, 0 or {MASKED} (masked), got {np.unique(targets).tolist()}; make them by base.targets"
        )
    judged = np.flatnonzero(targets != MASKED)
    if not np.isfinite(scores[judged]).all():
        raise ValueError(
            f"{(~np.isfinite(scores[judged])).sum()} of {len(judged)} scores are NaN or infinite; check the features"
        )
    positive = targets[judged] == 1
    levels = np.unique(-scores[judged][positive])  # k negated scores, ascending
    row = np.searchsorted(levels, -scores[judged])  # pictures below every positive get row k
    tied = ~positive & (row < len(levels))
    tied[tied] = levels[row[tied]] == -scores[judged][tied]

    def matrix(chosen: np.ndarray) -> scipy.sparse.csr_matrix:
        entries = (np.ones(chosen.sum()), (row[chosen], judged[chosen]))
        return scipy.sparse.csr_matrix(entries, shape=(len(levels), len(targets)))

    everyone = scipy.sparse.csr_matrix((targets != MASKED).astype(np.float64)[None])
    return Ranking(matrix(positive), matrix(tied), matrix(row < len(levels)), everyone)


def ranked_areas(ranking: Ranking, weights: np.ndarray) -> np.ndarray:
    """Weighted AUROC and average precision of one label.

    weights: n r >= 0. Returns 2 r. The first row is the probability that a positive scores above a negative, where a
    tie counts half. The second is the sum over thresholds of (recall step) x precision, as in scikit-learn. Both are
    NaN where the positives or the negatives have no weight.
    """
    positive = ranking.positive @ weights  # k r
    passed = np.cumsum(ranking.passed @ weights, axis=0)  # k r
    passed_positive = np.cumsum(positive, axis=0)  # k r
    positives = positive.sum(axis=0)
    negatives = (ranking.judged @ weights)[0] - positives
    precision = np.divide(passed_positive, passed, out=np.zeros_like(passed), where=passed > 0)
    auprc = _divide(np.einsum("kr,kr->r", positive, precision), np.where(negatives > 0, positives, 0))
    below = negatives - (passed - passed_positive) + 0.5 * (ranking.tied @ weights)
    return np.stack([_divide(np.einsum("kr,kr->r", positive, below), positives * negatives), auprc])


def auroc(targets: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> Any:
    """Area under the ROC curve of targets n (1, 0, MASKED) and scores n; weights n or n r. Returns a float or r."""
    return _for_weights(lambda given: ranked_areas(rank(targets, scores), given)[0], np.size(targets), weights)


def auprc(targets: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> Any:
    """Average precision of targets n (1, 0, MASKED) and scores n; weights n or n r. Returns a float or r."""
    return _for_weights(lambda given: ranked_areas(rank(targets, scores), given)[1], np.size(targets), weights)


def accuracy(targets: ArrayLike, predicted: ArrayLike, weights: ArrayLike | None = None) -> Any:
    """Share of pictures whose predicted class (n) is the true one (targets n, MASKED left out); weights n or n r."""
    hits = _hits(targets, predicted)
    return _for_weights(lambda given: _accuracies(hits, given)[0], np.size(targets), weights)


def balanced_accuracy(targets: ArrayLike, predicted: ArrayLike, weights: ArrayLike | None = None) -> Any:
    """Mean over the true classes of the `accuracy` on the pictures of that class; the same arguments."""
    hits = _hits(targets, predicted)
    return _for_weights(lambda given: _accuracies(hits, given)[1], np.size(targets), weights)


def patient_weights(patient_ids: Ids, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields weights n r in chunks of resamples: how often each picture's patient was drawn.

    The draws depend only on the seed, the patients and the number of the resample. They do not depend on the chunks.
    """
    patients, owner = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)
    generator = np.random.default_rng(seed)
    chunk = max(1, min(32, _CHUNK_VALUES // max(1, len(owner))))
    for start in range(0, resamples, chunk):
        drawn = np.empty((len(patients), min(chunk, resamples - start)))
        for column in drawn.T:
            column[:] = np.bincount(generator.integers(len(patients), size=len(patients)), minlength=len(patients))
        yield drawn[owner]


def bootstrap(statistic: Callable, patient_ids: Ids, resamples: int, seed: int) -> np.ndarray:
    """Computes a statistic for every patient-level resample.

    statistic: weights n r -> m r, for any r. Returns one row per resample, m columns, NaN where there is no value.
    """
    if resamples < 1:
        raise ValueError(f"bootstrap needs at least 1 resample (1000 is usual), got {resamples}")
    return np.concatenate([statistic(weights).T for weights in patient_weights(patient_ids, resamples, seed)])


FINITE = 0.95
"""Share of the resamples that must have a value for an interval to be given."""


def interval(value: float, samples: np.ndarray, n: int) -> Interval:
    """The 95 % percentile interval of `samples` (resamples) around a value found on n pictures.

    A resample has no value (NaN) where it holds, for instance, no positive of a rare label. Where more than one in
    twenty have none, the rest are a biased sample, and both ends of the interval are NaN.
    """
    drawn, samples = len(samples), samples[np.isfinite(samples)]
    if len(samples) < FINITE * drawn or not drawn:
        return Interval(float(value), float("nan"), float("nan"), int(n))
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high), int(n))


class Measures(NamedTuple):
    """The metrics of one table of predictions as a function of weights, for `bootstrap`.

    parts: names of the m metrics, such as "auroc/Mass". statistic: weights n r -> m r. means: metrics whose mean over
    the labels is taken as well. labels: how many labels the task has. positives, judged: pictures of each label that
    has both values, present and absent. notes: which labels were skipped, and why.
    """

    parts: list[str]
    statistic: Callable[[np.ndarray], np.ndarray]
    means: list[str]
    labels: int
    positives: dict[str, int]
    judged: dict[str, int]
    notes: list[str]


def measures(kind: str, names: Sequence[str], targets: np.ndarray, scores: np.ndarray) -> Measures:
    """Sorts the scores n c once for all weights. `summarise` explains the arguments and the metrics.

    Raises ValueError if no label has both values.
    """
    positives = (targets == 1).sum(axis=0)
    judged = (targets != MASKED).sum(axis=0)
    evaluable = [c for c in range(len(names)) if 0 < positives[c] < judged[c]]
    notes = []
    for name, some, total in zip(names, positives, judged, strict=True):
        if some in (0, total):
            value = "positive" if total and some else "negative"
            notes.append(f"{name!r} was skipped: all of its {total} judged test pictures are {value}")
    if not evaluable:
        raise ValueError(f"no label of {list(names)} has both values in the test pictures, so nothing can be judged")

    rows = [partial(ranked_areas, rank(targets[:, c], scores[:, c])) for c in evaluable]
    parts = [f"{metric}/{names[c]}" for c in evaluable for metric in ("auroc", "auprc")]
    means = ["auroc", "auprc"]
    if kind == "multiclass":
        rows.append(partial(_accuracies, _hits(targets.argmax(axis=1), scores.argmax(axis=1))))
        parts += ["accuracy", "balanced_accuracy"]
    else:
        rows += [partial(_accuracies, _hits(targets[:, c], scores[:, c] >= 0.5)) for c in evaluable]
        parts += [f"{metric}/{names[c]}" for c in evaluable for metric in ("accuracy", "balanced_accuracy")]
        means += ["accuracy", "balanced_accuracy"]

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.concatenate([of_weights(weights) for of_weights in rows])

    some, all_ = ({names[c]: int(of_label[c]) for c in evaluable} for of_label in (positives, judged))
    return Measures(parts, statistic, means, len(names), some, all_, notes)


def named(measured: Measures, samples: np.ndarray) -> dict[str, np.ndarray]:
    """Metric -> its r values, from samples r m: the values of `measured.statistic`, transposed.

    The means over the labels are added. Where the task has one label, the mean is the metric of that label, which is
    not given a second time under the label's name.
    """
    columns = dict(zip(measured.parts, samples.T, strict=True))
    means = {}
    # Where a label has no value, the mean over the others would be another quantity, so it is NaN.
    for metric in measured.means:
        members = [name for name in columns if name.startswith(f"{metric}/")]
        means[metric] = np.mean([columns[name] for name in members], axis=0)
    return means | {name: column for name, column in columns.items() if measured.labels > 1 or "/" not in name}


def summarise(
    kind: str,
    names: Sequence[str],
    targets: np.ndarray,
    scores: np.ndarray,
    patient_ids: Ids,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Interval], dict[str, int], list[str]]:
    """All metrics of a task with intervals.

    kind: of the task. names: c. targets: n c (1, 0, MASKED). scores: n c; a larger one means more likely present. A
    label is predicted to be present from a score of 0.5 on. In a multiclass task the class with the largest score is
    predicted.
    Returns (metrics, positives per metric, notes). "auroc", "auprc", "accuracy" and "balanced_accuracy" are means over
    the labels; a multiclass task has one accuracy of each kind. "auroc/<label>" is that of one label, in a multiclass
    task of that class against the rest. A label that is present in all pictures or in none is skipped and named in the
    notes. A resample in which that is so is left out of the intervals of the label and of the mean. The notes count
    these resamples; see `interval`.
    """
    measured = measures(kind, names, targets, scores)
    values = named(measured, measured.statistic(np.ones((len(targets), 1))).T)
    samples = named(measured, bootstrap(measured.statistic, patient_ids, resamples, seed))
    evaluable = [c for c, name in enumerate(names) if name in measured.judged]
    any_judged = int((targets[:, evaluable] != MASKED).any(axis=1).sum())
    any_positive = int((targets[:, evaluable] == 1).any(axis=1).sum())
    metrics, counts = {}, {}
    for name in values:
        label = name.partition("/")[2]
        metrics[name] = interval(values[name][0], samples[name], measured.judged.get(label, any_judged))
        counts[name] = measured.positives.get(label, any_positive)
    return metrics, counts, measured.notes + degenerate_notes(samples, resamples)


def known_means(values: np.ndarray) -> Callable:
    """The function weights n r -> m r: weighted means of the rows of values m n.

    A NaN among the values is left out. The mean is NaN where nothing with a weight is left.
    """
    known = np.isfinite(values)
    filled, known = np.where(known, values, 0), known.astype(np.float64)
    return lambda weights: _divide(filled @ weights, known @ weights)


def mean_intervals(
    columns: Mapping[str, np.ndarray], patient_ids: Ids, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """The mean of each column n, NaN left out, with its interval over resampled patients."""
    values = np.stack(list(columns.values())).astype(np.float64)
    statistic = known_means(values)
    means = statistic(np.ones((values.shape[1], 1)))[:, 0]
    samples = bootstrap(statistic, patient_ids, resamples, seed)
    sizes = np.isfinite(values).sum(axis=1)
    return {name: interval(means[row], samples[:, row], sizes[row]) for row, name in enumerate(columns)}


def prediction_table(
    names: Sequence[str], targets: np.ndarray, scores: np.ndarray, patient_ids: Ids, image_ids: Ids
) -> pandas.DataFrame:
    """Predictions as saved: image_id, patient_id, then target/<label> (1, 0, MASKED) and score/<label> per label."""
    table = pandas.DataFrame({"image_id": np.asarray(image_ids, str), "patient_id": np.asarray(patient_ids, str)})
    for column, name in enumerate(names):
        table[f"target/{name}"] = targets[:, column].astype(np.int8)
        table[f"score/{name}"] = scores[:, column].astype(np.float64)
    return table


def degenerate_notes(samples: Mapping[str, np.ndarray], resamples: int) -> list[str]:
    """A sentence on the resamples in which an AUROC has no value; samples: metric -> its r values."""
    missing = {name: int(np.isnan(column).sum()) for name, column in samples.items() if name.startswith("auroc")}
    listed = ", ".join(f"{name} {count}" for name, count in missing.items() if count)
    if not listed:
        return []
    return [
        f"some of the {resamples} resamples have positives only or negatives only of a label and are left out of its "
        f"intervals; no interval is given where they are more than {1 - FINITE:.0%}; their number: {listed}"
    ]


def _hits(targets: ArrayLike, predicted: ArrayLike) -> scipy.sparse.csr_matrix:
    """0/1 rows 2c n: the pictures of each of the c classes that occur, then those of them that were predicted right."""
    targets, predicted = np.asarray(targets), np.asarray(predicted)
    classes = np.unique(targets[targets != MASKED])[:, None]
    there, hit = targets == classes, (targets == classes) & (predicted == classes)
    return scipy.sparse.csr_matrix(np.concatenate([there, hit]).astype(np.float64))


def _accuracies(hits: scipy.sparse.csr_matrix, weights: np.ndarray) -> np.ndarray:
    there, hit = np.split(hits @ weights, 2)  # c r each
    return np.stack([_divide(hit.sum(axis=0), there.sum(axis=0)), _divide(hit, there).mean(axis=0)])


def _for_weights(measure: Callable, length: int, weights: ArrayLike | None) -> Any:
    weights = np.ones(length) if weights is None else np.asarray(weights, np.float64)
    result = measure(weights.reshape(length, -1))
    return result if weights.ndim == 2 else float(result[0])


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator > 0)
