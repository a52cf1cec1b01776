"""Intervals that cover seeds as well as test patients: of pre-training, and of the heads trained on each pre-training.

    value of run h of pre-training k on the patients    m + a_k + b_kh + the patients' part
    mean over all runs                                  varies by  patients  +  var(means of the pre-trainings) / K

The patients' part comes from the bootstrap of the mean, in which all runs share a resample. Resampling three or five
seeds as well, as a plain hierarchical bootstrap does, finds too little spread: by (K − 1)/K in the variance, and by the
tails that an estimate from K values has. So what the seeds add is drawn from Student's t with K − 1 degrees of freedom,
scaled by the deviation of the pre-trainings' means over √K. Such a mean contains what its heads add. This is ours.

Of 2,000 simulated cases of 4 pre-trainings with 3 heads each on 150 patients, in which the seeds add more than the
patients do, the interval held the truth in 96 %, the plain bootstrap of all three levels in 90 %, and that of patients
alone in 70 %. tests/reporting/test_seeds.py counts again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit


class Components(NamedTuple):
    """How far runs lie apart, as standard deviations: NaN where there is one pre-training, or one head of each.

    pretraining, head: of single ones. of_mean: what they add to the mean over all runs. degrees: of freedom of of_mean.
    pretrainings, runs: how many there are.
    """

    pretraining: float
    head: float
    of_mean: float
    degrees: int
    pretrainings: int
    runs: int


def components(values: Sequence[float] | np.ndarray, pretrainings: Sequence[str]) -> Components:
    """What seeds add to a metric.

    values: of each run on all patients; pretrainings: names the pre-training that each run starts from. Where all start
    from one, only the seeds of heads are covered. Raises ValueError for a single run.
    """
    runs = np.asarray(values, np.float64)
    if len(runs) < 2:
        raise ValueError(f"what seeds add needs at least two runs, got {len(runs)}; train another with another seed")
    groups = [runs[np.asarray(pretrainings) == name] for name in dict.fromkeys(pretrainings)]
    within = [group.var(ddof=1) for group in groups if len(group) > 1]
    freedom = [len(group) - 1 for group in groups if len(group) > 1]
    head = float(np.average(within, weights=freedom)) if within else np.nan
    if len(groups) == 1:
        return Components(np.nan, head**0.5, (head / len(runs)) ** 0.5, len(runs) - 1, 1, len(runs))
    means = np.array([group.mean() for group in groups])
    between = float(means.var(ddof=1))
    of_heads = head * np.mean([1 / len(group) for group in groups]) if within else 0.0
    pretraining = float(max(0.0, between - of_heads)) ** 0.5
    return Components(pretraining, head**0.5, (between / len(groups)) ** 0.5, len(groups) - 1, len(groups), len(runs))


def widened(samples: np.ndarray, found: Sequence[Components], seed: int) -> np.ndarray:
    """Samples r of a mean over resampled patients, or of a difference of two, with what the seeds of each side add."""
    generator, count = np.random.default_rng([seed, 1]), len(samples)
    # One draw from each of r equal parts of Student's t: free draws from its tails would decide few resamples' ends.
    noise = [one.of_mean * stdtrit(one.degrees, (generator.permutation(count) + 0.5) / count) for one in found]
    return samples + np.sum(noise, axis=0) if noise else samples
