"""AUROC with DeLong's variance: a check on the bootstrap that resamples nothing.

    A = mean over pairs of ψ(x, y)       ψ = 1, ½, 0 for a positive x above, level with, below a negative y
    placement of a positive: the share of negatives below it; of a negative: the share of positives above it
    var A = var(placements of positives) / positives + var(placements of negatives) / negatives

Placements come from midranks, in n log n steps. Pictures of one patient are no independent draws: given patients, the
placements are summed per patient before their products are taken, which with one picture a patient is DeLong's formula.

Sources: DeLong, DeLong and Clarke-Pearson, Biometrics 1988; midranks: Sun and Xu, IEEE Signal Processing Letters 2014;
patients: Obuchowski, Biometrics 1997, §2.
"""

from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats

from cxrjax.evals.base import MASKED, Ids, Interval
from cxrjax.evals.metrics import LEVEL


class Areas(NamedTuple):
    """AUROCs of m scores on the same pictures: areas m, covariance m m, n pictures judged."""

    areas: np.ndarray
    covariance: np.ndarray
    n: int


class Difference(NamedTuple):
    """A difference of two AUROCs, and the two-sided p value of there being none."""

    interval: Interval
    p: float


def areas(targets: np.ndarray, scores: np.ndarray, patient_ids: Ids | None = None) -> Areas:
    """The areas of several scores and their covariance.

    targets: n (1, 0 or MASKED, which is left out); scores: n m; patient_ids: n (none: every picture is by itself).
    Raises ValueError unless two patients have a positive and two a negative, without which there is no variance.
    """
    targets, scores = np.asarray(targets), np.asarray(scores, np.float64)
    if targets.ndim != 1 or scores.ndim != 2 or len(targets) != len(scores):
        raise ValueError(f"targets {targets.shape} and scores {scores.shape} must be n and n m")
    judged = targets != MASKED
    patients = np.arange(len(targets)) if patient_ids is None else np.asarray(patient_ids, dtype=str)
    patients = np.unique(patients[judged], return_inverse=True)[1]
    positive, scores = targets[judged] == 1, scores[judged]
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} scores are NaN or infinite; check the features")
    size = patients.max(initial=-1) + 1
    members = [np.bincount(patients[side], minlength=size) for side in (positive, ~positive)]  # of each patient
    holders = [int((of_patient > 0).sum()) for of_patient in members]
    if min(holders) < 2:
        raise ValueError(
            f"DeLong's variance needs two patients with a positive and two with a negative picture, got {holders[0]} "
            f"and {holders[1]}"
        )
    total = [int(of_patient.sum()) for of_patient in members]

    every = scipy.stats.rankdata(scores, axis=0)  # n m, midranks
    within = np.empty_like(every)
    for side in (positive, ~positive):
        within[side] = scipy.stats.rankdata(scores[side], axis=0)
    below = (every - within) / np.where(positive, total[1], total[0])[:, None]  # share of the other side below
    placement = np.where(positive[:, None], below, 1 - below)
    found = placement[positive].mean(axis=0)

    # Per patient: how far its placements are, together, from those that pictures of its number have on average.
    gap = np.zeros((2, size, scores.shape[1]))
    np.add.at(gap, (np.where(positive, 0, 1), patients), placement - found)
    of_positives, of_negatives = gap
    first = of_positives.T @ of_positives * holders[0] / (holders[0] - 1) / total[0] ** 2
    second = of_negatives.T @ of_negatives * holders[1] / (holders[1] - 1) / total[1] ** 2
    both = of_positives.T @ of_negatives * size / (size - 1) / (total[0] * total[1])
    return Areas(found, first + second + both + both.T, int(judged.sum()))


def interval(targets: np.ndarray, scores: np.ndarray, patient_ids: Ids | None = None) -> Interval:
    """AUROC of scores n with its 95 % normal interval, cut off at 0 and 1; arguments as in `areas`."""
    found = areas(targets, np.asarray(scores)[:, None], patient_ids)
    reach = _quantile() * np.sqrt(max(found.covariance[0, 0], 0))
    value = found.areas[0]
    return Interval(float(value), float(max(value - reach, 0)), float(min(value + reach, 1)), found.n)


def difference(
    targets: np.ndarray, first: np.ndarray, second: np.ndarray, patient_ids: Ids | None = None
) -> Difference:
    """AUROC of scores `first` n minus that of `second` n on the same pictures: 95 % interval, two-sided p value.

    p is 1 where the two rank every pair alike, so that the difference and its variance are nothing.
    """
    found = areas(targets, np.stack([first, second], axis=1), patient_ids)
    value = float(found.areas[0] - found.areas[1])
    sides = np.array([1.0, -1.0])
    deviation = np.sqrt(max(sides @ found.covariance @ sides, 0))
    if deviation < 1e-12:
        return Difference(Interval(value, value, value, found.n), float(abs(value) < 1e-12))
    reach = _quantile() * deviation
    p = 2 * scipy.special.ndtr(-abs(value) / deviation)
    return Difference(Interval(value, float(value - reach), float(value + reach), found.n), float(p))


def _quantile() -> float:
    return float(scipy.special.ndtri((1 + LEVEL) / 2))
