"""p values, Holm's correction and the power of a test set, against loops, SciPy and simulated cases."""

import numpy as np
import pytest
import scipy.stats

from cxrjax.evals import metrics
from cxrjax.reporting import significance


def test_p_is_twice_the_smaller_share():
    samples = np.concatenate([np.full(90, 1.0), np.full(10, -1.0)])
    assert significance.p_of_samples(samples) == pytest.approx(22 / 101) == significance.p_of_samples(-samples)
    assert significance.p_of_samples(np.zeros(50)) == 1
    assert significance.p_of_samples(np.ones(999)) == pytest.approx(2 / 1000)
    assert np.isnan(significance.p_of_samples(np.where(np.arange(100) < 10, np.nan, 1.0)))
    assert np.isnan(significance.p_of_samples(np.empty(0)))
    drawn = np.random.default_rng(0).normal(1.5, 1, 100_000)
    assert significance.p_of_samples(drawn) == pytest.approx(2 * scipy.stats.norm.sf(1.5), rel=0.05)


def test_holm_is_his_procedure():
    """A hypothesis is rejected at a level exactly if it is before the first that fails, in ascending order."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        p = rng.random(7) ** 3
        corrected = significance.holm(p)
        for level in (0.01, 0.05, 0.2, 0.5):
            rejected = set()
            for step, place in enumerate(np.argsort(p)):
                if p[place] > level / (len(p) - step):
                    break
                rejected.add(int(place))
            assert set(np.flatnonzero(corrected <= level).tolist()) == rejected
    np.testing.assert_allclose(significance.holm([0.02, np.nan, 0.01, 0.9]), [0.04, np.nan, 0.03, 0.9])
    np.testing.assert_allclose(significance.holm([0.6, 0.7]), [1, 1])


def test_the_standard_error_is_that_of_exponential_scores():
    rng, areas = np.random.default_rng(2), []
    for _ in range(1500):
        positive, negative = rng.exponential(4, 20), rng.exponential(1, 50)  # AUROC 4 / 5
        areas.append((positive[:, None] > negative).mean())
    assert np.mean(areas) == pytest.approx(0.8, abs=0.01)
    assert significance.standard_error(0.8, 20, 50) == pytest.approx(np.std(areas), rel=0.06)
    assert np.isnan(significance.standard_error(0.8, 0, 50))


def test_a_difference_of_that_size_is_found_as_often_as_asked():
    """Two models with normal scores: 8 of 10 test sets show the smallest difference by the normal test at 0.05."""
    positives, negatives = 60, 200
    rng, correlation = np.random.default_rng(3), 0.5
    base = significance.smallest_difference(positives, negatives, 0.8, correlation)
    shifts = [np.sqrt(2) * scipy.stats.norm.ppf(0.8 + side * base / 2) for side in (-1, 1)]
    targets, gains, areas = np.repeat([1, 0], [positives, negatives]), [], []
    for _ in range(400):
        noise = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], positives + negatives)
        pair = [metrics.auroc(targets, noise[:, side] + shifts[side] * targets) for side in (0, 1)]
        gains.append(pair[1] - pair[0])
        areas.append(pair)
    assert np.mean(gains) == pytest.approx(base, rel=0.1)
    found = np.mean(np.array(gains) > scipy.stats.norm.isf(0.025) * np.std(gains))
    assert 0.72 < found < 0.9
    assert significance.smallest_difference(60, 200, comparisons=10) > 1.3 * base
