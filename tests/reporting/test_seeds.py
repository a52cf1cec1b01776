"""What seeds add to an interval, by hand, and how often the interval holds the truth of simulated cases."""

import numpy as np
import pytest

from cxrjax.evals.metrics import interval
from cxrjax.reporting import seeds


def test_components_by_hand():
    found = seeds.components([1.0, 3.0, 5.0, 9.0], ["a", "a", "b", "b"])
    assert found.head == pytest.approx(np.sqrt((2 + 8) / 2))
    between = (7 - 2) ** 2 / 2  # of the means 2 and 7
    assert found.of_mean == pytest.approx(np.sqrt(between / 2)) and found.degrees == 1
    assert found.pretraining == pytest.approx(np.sqrt(between - 5 / 2))
    heads = seeds.components([1.0, 3.0, 8.0], ["a"] * 3)
    assert np.isnan(heads.pretraining) and heads.of_mean == pytest.approx(np.std([1, 3, 8], ddof=1) / np.sqrt(3))
    alone = seeds.components([1.0, 4.0], ["a", "b"])
    assert np.isnan(alone.head) and alone.pretraining == pytest.approx(np.sqrt(4.5)) and alone.degrees == 1
    assert seeds.components([1.0, 1.0, 1.0, 1.0], list("aabb"))[:3] == (0, 0, 0)
    with pytest.raises(ValueError, match="at least two runs, got 1"):
        seeds.components([1.0], ["a"])


def test_a_difference_gets_what_the_seeds_of_both_sides_add():
    one = seeds.Components(np.nan, np.nan, 3.0, 10**6, 2, 2)
    found = seeds.widened(np.zeros(40_000), [one, one._replace(of_mean=4.0)], 0)
    assert found.std() == pytest.approx(5, rel=0.02)
    two = one._replace(of_mean=0.01, degrees=1)
    few = interval(0, seeds.widened(np.zeros(40), [two], 0), 40)
    assert few.high == pytest.approx(-few.low) and few.high < 0.3  # free draws from the tails of t gave 2.4
    same = np.arange(5.0)
    np.testing.assert_array_equal(seeds.widened(same, [], 0), same)


def simulated(rng, pretrainings=4, heads=3, patients=150, a=0.05, b=0.03, noise=0.25):
    """Values of runs x patients whose expectation is 0: per pre-training, per head, per patient and of both."""
    of_runs = np.repeat(rng.normal(0, a, pretrainings), heads) + rng.normal(0, b, pretrainings * heads)
    of_patients = rng.normal(0, noise, patients) + rng.normal(0, 0.2, (pretrainings * heads, patients))
    return of_runs[:, None] + of_patients, np.repeat(np.arange(pretrainings), heads).astype(str)


def test_the_interval_holds_the_truth_in_95_of_100_cases_and_plain_resampling_in_fewer():
    """1,000 cases of 4 pre-trainings with 3 heads each on 150 patients."""
    rng, held, plain, patients_only = np.random.default_rng(0), 0, 0, 0
    for _ in range(1000):
        values, groups = simulated(rng)
        weights = rng.multinomial(150, np.full(150, 1 / 150), 200) / 150  # r n
        samples = weights @ values.mean(axis=0)
        one = seeds.components(values.mean(axis=1), groups)
        low, high = interval(0, seeds.widened(samples, [one], int(rng.integers(2**31))), 150)[1:3]
        held += low <= 0 <= high
        low, high = np.quantile(samples, [0.025, 0.975])
        patients_only += low <= 0 <= high
        drawn = rng.integers(4, size=(200, 4, 1)) * 3 + rng.integers(3, size=(200, 4, 3))  # r K H
        low, high = np.quantile(samples + values.mean(axis=1)[drawn].mean(axis=(1, 2)) - values.mean(), [0.025, 0.975])
        plain += low <= 0 <= high
    assert 0.93 <= held / 1000 <= 0.97
    assert patients_only < 800 and plain < 930
