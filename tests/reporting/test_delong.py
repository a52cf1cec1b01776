import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from cxrjax.evals import metrics
from cxrjax.reporting import compare, delong


def drawn(seed, n=60, tied=False):
    generator = np.random.default_rng(seed)
    targets = (generator.random(n) < 0.4).astype(np.int8)
    scores = generator.normal(size=(n, 2)) + targets[:, None] * [1.0, 0.6]
    return targets, np.round(scores) if tied else scores


def pairwise(targets, scores):
    """DeLong's structural components by the double loop of the paper."""
    above, below = scores[targets == 1], scores[targets == 0]
    of_positives, of_negatives = np.zeros_like(above), np.zeros_like(below)
    for m in range(scores.shape[1]):
        for i, x in enumerate(above[:, m]):
            for j, y in enumerate(below[:, m]):
                psi = 1.0 if x > y else 0.5 if x == y else 0.0
                of_positives[i, m] += psi / len(below)
                of_negatives[j, m] += psi / len(above)
    return of_positives, of_negatives


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_areas_and_covariance_are_those_of_the_papers_double_loop(seed, tied):
    targets, scores = drawn(seed, tied=tied)
    hidden = np.concatenate([targets, [-1, -1]])
    found = delong.areas(hidden, np.concatenate([scores, [[9, 9], [-9, 9]]]))
    of_positives, of_negatives = pairwise(targets, scores)
    expected = np.cov(of_positives.T) / len(of_positives) + np.cov(of_negatives.T) / len(of_negatives)
    np.testing.assert_allclose(found.covariance, expected, atol=1e-14)
    reference = [sklearn.metrics.roc_auc_score(targets, column) for column in scores.T]
    np.testing.assert_allclose(found.areas, reference, atol=1e-12)
    assert found.n == 60


def test_pictures_of_a_patient_are_summed_as_obuchowski_does():
    targets, scores = drawn(4, tied=True)
    patients = np.random.default_rng(0).integers(0, 25, 60)
    of_positives, of_negatives = pairwise(targets, scores)
    area = of_positives.mean(axis=0)
    holders, sums = [0, 0], np.zeros((2, 25, 2))
    for patient in np.unique(patients):
        for side, placement in ((1, of_positives), (0, of_negatives)):
            own = placement[patients[targets == side] == patient]
            holders[side] += len(own) > 0
            sums[side, patient] = (own - area).sum(axis=0)
    total = [len(of_negatives), len(of_positives)]
    expected, everyone = np.zeros((2, 2)), len(np.unique(patients))
    for a in range(2):
        for b in range(2):
            for side in (0, 1):
                spread = holders[side] / ((holders[side] - 1) * total[side]) * (sums[side, :, a] @ sums[side, :, b])
                expected[a, b] += spread / total[side]
            cross = sums[1, :, a] @ sums[0, :, b] + sums[1, :, b] @ sums[0, :, a]
            expected[a, b] += everyone / (everyone - 1) * cross / (total[0] * total[1])
    found = delong.areas(targets, scores, [f"p{number}" for number in patients])
    np.testing.assert_allclose(found.covariance, expected, atol=1e-14)
    alone = delong.areas(targets, scores).covariance
    np.testing.assert_allclose(delong.areas(targets, scores, np.arange(60)).covariance, alone, atol=1e-14)
    assert np.abs(found.covariance - alone).max() > 1e-4


def test_it_agrees_with_the_bootstrap_with_and_without_several_pictures_a_patient():
    generator = np.random.default_rng(5)
    offset = np.repeat(generator.normal(size=300), 4)
    targets = np.repeat(generator.random(300) < 0.4, 4).astype(np.int8)
    first = offset + targets + 0.5 * generator.normal(size=1200)
    second = first + 0.7 * generator.normal(size=1200)
    for patients in (np.repeat(np.arange(300), 4).astype(str), np.arange(1200).astype(str)):
        resampled, _, _ = metrics.summarise("binary", ("a",), targets[:, None], first[:, None], patients, 1000)
        found = delong.interval(targets, first, patients)
        ours, theirs = found.high - found.low, resampled["auroc"].high - resampled["auroc"].low
        assert ours == pytest.approx(theirs, rel=0.12) and found.value == pytest.approx(resampled["auroc"].value)
        tables = {
            name: [metrics.prediction_table(("a",), targets[:, None], scores[:, None], patients, np.arange(1200))]
            for name, scores in (("first", first), ("second", second))
        }
        paired = compare.compare("binary", tables, "second").differences["first"]["auroc"]
        gain, p = delong.difference(targets, first, second, patients)
        assert gain.high - gain.low == pytest.approx(paired.high - paired.low, rel=0.12)
        assert gain.value == pytest.approx(paired.value) and (p < 0.05) == (paired.low > 0)
    wide = delong.interval(targets, first, np.repeat(np.arange(300), 4))
    assert wide.high - wide.low > 1.5 * ours


def test_p_is_uniform_where_nothing_differs():
    generator = np.random.default_rng(6)
    found = []
    for _ in range(300):
        targets = (generator.random(80) < 0.5).astype(np.int8)
        scores = generator.normal(size=(80, 2)) + targets[:, None]
        found.append(delong.difference(targets, *scores.T)[1])
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.01


def test_equal_scores_and_hopeless_inputs():
    targets, scores = drawn(7)
    gain, p = delong.difference(targets, scores[:, 0], 3 * scores[:, 0] + 1)
    assert gain[:3] == (0, 0, 0) and p == 1
    perfect = delong.interval(targets, targets.astype(float))
    assert perfect[:3] == (1, 1, 1)
    with pytest.raises(ValueError, match="two patients with a positive and two with a negative picture, got 1 and 3"):
        delong.areas(np.array([1, 1, 0, 0, 0]), np.zeros((5, 1)), ["a", "a", "b", "c", "d"])
    with pytest.raises(ValueError, match="1 scores are NaN"):
        delong.interval(targets, np.where(np.arange(60) == 3, np.nan, scores[:, 0]))
    with pytest.raises(ValueError, match=r"must be n and n m"):
        delong.areas(targets, scores[:, 0])
