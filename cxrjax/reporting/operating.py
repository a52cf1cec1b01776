"""Operating points: ROC and precision–recall curves with bands, and what one threshold does to the pictures.

A threshold that is chosen on the pictures it is judged on is too good. So there are two kinds of point here. Those of a
given threshold, such as 0.5 or one that was chosen on other pictures, and those that are named by one side of the curve
("sensitivity where specificity is at least 0.9"): these are properties of the curve, the threshold is found again in
every resample, and so the interval covers its choice.

Bands are pointwise 95 % percentile intervals over resampled patients: of sensitivity at each false positive rate, and
of precision at each recall.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cxrjax.evals.base import MASKED, Ids, Interval
from cxrjax.evals.metrics import LEVEL, Ranking, bootstrap, interval, rank

GRID = np.linspace(0, 1, 101)
AT = (0.9, 0.95)
_TOLERANCE = 1e-9  # of counts: 0.9 × 10 must not be more than 9
AT_THRESHOLD = ("sensitivity", "specificity", "ppv", "npv", "f1")


class Band(NamedTuple):
    """A curve with its band: at g (false positive rate or recall), value, low and high g each."""

    at: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Bands(NamedTuple):
    """The two curves of `bands`."""

    roc: Band
    precision_recall: Band


class Counts(NamedTuple):
    """Weighted pictures at or above each positive's score, falling (k r): true and false positives, those false
    positives that are level with it, and the totals r of both sides."""

    true: np.ndarray
    false: np.ndarray
    level: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray


def counts(ranking: Ranking, weights: np.ndarray) -> Counts:
    """Counts of one label's sorted scores under weights n r."""
    true = np.cumsum(ranking.positive @ weights, axis=0)
    false = np.cumsum(ranking.passed @ weights, axis=0) - true
    positives = true[-1]
    return Counts(true, false, ranking.tied @ weights, positives, (ranking.judged @ weights)[0] - positives)


def sensitivity_at(counted: Counts, specificity: float) -> np.ndarray:
    """The highest sensitivity r of all thresholds with at least this specificity; NaN where a side is missing."""
    allowed = counted.false <= (1 - specificity) * counted.negatives + _TOLERANCE
    last = allowed.sum(axis=0)
    reached = np.concatenate([np.zeros((1, allowed.shape[1])), counted.true])[last, np.arange(len(last))]
    return np.where(counted.negatives > 0, _share(reached, counted.positives), np.nan)


def specificity_at(counted: Counts, sensitivity: float) -> np.ndarray:
    """The highest specificity r of all thresholds with at least this sensitivity; NaN where a side is missing."""
    needed = np.maximum(sensitivity * counted.positives - _TOLERANCE, _TOLERANCE)
    false = counted.false[np.argmax(counted.true >= needed, axis=0), np.arange(len(needed))]
    return np.where(counted.positives > 0, 1 - _share(false, counted.negatives), np.nan)


def roc(counted: Counts, at: np.ndarray = GRID) -> np.ndarray:
    """Sensitivity g r at false positive rates g; straight between thresholds, as the area under it assumes."""
    start = np.concatenate([np.zeros((1, counted.true.shape[1])), counted.true[:-1]])
    curve = []
    for r in range(counted.true.shape[1]):
        corners_x = np.stack([counted.false[:, r] - counted.level[:, r], counted.false[:, r]], axis=1).ravel()
        corners_y = np.stack([start[:, r], counted.true[:, r]], axis=1).ravel()
        positives, negatives = counted.positives[r], counted.negatives[r]
        if not (positives and negatives):
            curve.append(np.full(len(at), np.nan))
            continue
        corners_x, corners_y = np.append(corners_x, negatives), np.append(corners_y, positives)
        curve.append(np.interp(at * negatives, corners_x, corners_y) / positives)
    return np.stack(curve, axis=1)


def precision_recall(counted: Counts, at: np.ndarray = GRID) -> np.ndarray:
    """Precision g r at the highest threshold that reaches each recall g (0: that of the highest positive)."""
    needed = np.maximum(at[:, None] * counted.positives - _TOLERANCE, _TOLERANCE)  # g r
    columns = range(counted.true.shape[1])
    first = [np.searchsorted(counted.true[:, r], needed[:, r]) for r in columns]
    first = np.minimum(np.stack(first, axis=1), len(counted.true) - 1)
    true, false = (np.take_along_axis(side, first, axis=0) for side in (counted.true, counted.false))
    return np.where(counted.positives > 0, _share(true, true + false), np.nan)


def at_threshold(targets: np.ndarray, scores: np.ndarray, threshold: float, weights: np.ndarray) -> np.ndarray:
    """What calling every score of at least `threshold` positive does: 5 r, in the order of AT_THRESHOLD.

    targets, scores: n; weights: n r. NaN where nothing is there to take a share of.
    """
    called, positive = np.asarray(scores) >= threshold, np.asarray(targets) == 1
    negative = np.asarray(targets) == 0
    kinds = np.stack([called & positive, called & negative, ~called & negative, ~called & positive]).astype(np.float64)
    hits, alarms, rejected, missed = kinds @ weights
    return np.stack(
        [
            _share(hits, hits + missed),
            _share(rejected, rejected + alarms),
            _share(hits, hits + alarms),
            _share(rejected, rejected + missed),
            _share(2 * hits, 2 * hits + alarms + missed),
        ]
    )


def points(
    targets: np.ndarray,
    scores: np.ndarray,
    patient_ids: Ids,
    threshold: float = 0.5,
    at: Sequence[float] = AT,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """The operating points of one label, with intervals over resampled patients.

    targets: n (1, 0 or MASKED); scores: n. Names are those of AT_THRESHOLD, of `threshold`, and
    "sensitivity@specificity=0.9", "specificity@sensitivity=0.9" for each of `at`.
    """
    targets, scores = np.asarray(targets), np.asarray(scores, np.float64)
    ranking = rank(targets, scores)
    sides = (("sensitivity@specificity", sensitivity_at), ("specificity@sensitivity", specificity_at))
    names = [*AT_THRESHOLD, *(f"{name}={share:g}" for name, _ in sides for share in at)]

    def statistic(weights):
        counted = counts(ranking, weights)
        on_curve = [measure(counted, share) for _, measure in sides for share in at]
        return np.concatenate([at_threshold(targets, scores, threshold, weights), *(row[None] for row in on_curve)])

    values = statistic(np.ones((len(targets), 1)))[:, 0]
    samples = bootstrap(statistic, patient_ids, resamples, seed)
    judged = int((targets != MASKED).sum())
    return {name: interval(values[m], samples[:, m], judged) for m, name in enumerate(names)}


def bands(rankings: Sequence[Ranking], patient_ids: Ids, resamples: int = 1000, seed: int = 0) -> Bands:
    """The ROC and the precision–recall curve with bands; of several labels or seeds, the mean of their curves."""

    def statistic(weights):
        counted = [counts(ranking, weights) for ranking in rankings]
        curves = [np.concatenate([roc(one), precision_recall(one)]) for one in counted]
        return np.mean(curves, axis=0)

    value = statistic(np.ones((len(patient_ids), 1)))[:, 0]
    samples = bootstrap(statistic, patient_ids, resamples, seed)
    samples = samples[np.isfinite(samples).all(axis=1)]
    low, high = np.full((2, len(value)), np.nan)
    if len(samples):
        low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    half = len(GRID)
    first, second = (Band(GRID, value[part], low[part], high[part]) for part in (slice(half), slice(half, None)))
    return Bands(first, second)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
