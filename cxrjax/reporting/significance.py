"""p values of differences from the bootstrap, corrected for how many are looked at, and what a test set could show.

    p          twice the smaller share of resamples in which the difference is ≤ 0 or ≥ 0; (count + 1) / (resamples + 1)
    Holm       p values in ascending order times m, m − 1, …, 1, never falling, at most 1 (Scandinavian J. Stat. 1979)
    smallest   (z of 1 − level/2 + z of power) × √(2 (1 − correlation)) × the standard error of an AUROC

Standard error: Hanley and McNeil, Radiology 1982, for two exponential distributions of scores; that of two models on
the same pictures is theirs of 1983. A correlation of 0.5 and an AUROC of 0.8 are guesses to be made before the run.
"""

import math
from collections.abc import Sequence

import numpy as np
import scipy.stats

from cxrjax.evals.metrics import FINITE

LEVEL = 0.05


def p_of_samples(samples: np.ndarray) -> float:
    """Two-sided p of there being no difference, from resampled differences r; NaN where too many have no value."""
    drawn, samples = len(samples), samples[np.isfinite(samples)]
    if not drawn or len(samples) < FINITE * drawn:
        return math.nan
    smaller = min((samples <= 0).sum(), (samples >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (len(samples) + 1)))


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's corrected p values, in the order of those given. NaN stays NaN and is not counted."""
    given = np.asarray(p, np.float64)
    corrected = np.full(len(given), np.nan)
    known = np.flatnonzero(np.isfinite(given))
    order = known[np.argsort(given[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(given[order] * factors), 1)
    return corrected


def standard_error(area: float, positives: int, negatives: int) -> float:
    """Of an AUROC; NaN without positives or negatives."""
    if min(positives, negatives) < 1:
        return math.nan
    both, twice = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (positives - 1) * (both - area**2) + (negatives - 1) * (twice - area**2)
    return math.sqrt(spread / (positives * negatives))


def smallest_difference(
    positives: int,
    negatives: int,
    area: float = 0.8,
    correlation: float = 0.5,
    power: float = 0.8,
    comparisons: int = 1,
) -> float:
    """The smallest difference of two AUROCs that a test set shows with this power at a level of 0.05.

    positives, negatives: patients. area: of both, about. correlation: of the two AUROCs over test sets. comparisons:
    how many are made; the level is divided by them.
    """
    reach = scipy.stats.norm.isf(LEVEL / comparisons / 2) + scipy.stats.norm.isf(1 - power)
    return float(reach * math.sqrt(2 * (1 - correlation)) * standard_error(area, positives, negatives))
