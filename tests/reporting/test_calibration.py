import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics

from cxrjax.evals import metrics
from cxrjax.reporting import calibration


def drawn(seed, n=300, shift=0.0):
    generator = np.random.default_rng(seed)
    scores = np.round(generator.uniform(0.0, 1 - shift, n), 2)  # many on the edges of 10 bins
    return (generator.random(n) < scores + shift).astype(np.int8), scores, generator.integers(0, 3, n).astype(float)


def naive(targets, scores, weights, bins):
    total, error = weights.sum(), 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        held = (scores > low) & (scores <= high) | ((b == 0) & (scores == 0))
        if weights[held].sum():
            gap = np.average(scores[held], weights=weights[held]) - np.average(targets[held], weights=weights[held])
            error += weights[held].sum() / total * abs(gap)
    return error


@pytest.mark.parametrize("bins", [1, 8, 16])
def test_ece_is_that_of_a_loop_and_brier_that_of_scikit_learn(bins):
    targets, scores, weights = drawn(0)
    for given in (np.ones(300), weights):
        assert calibration.ece(targets, scores, given, bins) == pytest.approx(naive(targets, scores, given, bins))
        assert calibration.brier(targets, scores, given) == pytest.approx(
            sklearn.metrics.brier_score_loss(targets, scores, sample_weight=given)
        )
    hidden = np.where(np.arange(300) % 4 == 0, -1, targets)
    broken = np.where(hidden == -1, 7.0, scores)  # what is not judged may be anything
    kept = hidden != -1
    assert calibration.ece(hidden, broken) == pytest.approx(calibration.ece(targets[kept], scores[kept]))
    assert calibration.brier(hidden, broken) == pytest.approx(calibration.brier(targets[kept], scores[kept]))


def test_hand_values():
    assert calibration.ece([1, 0], [1.0, 0.0]) == 0
    assert calibration.ece([0, 1], [1.0, 0.0]) == 1 == calibration.brier([0, 1], [1.0, 0.0])
    # 0.6 and 0.8 in one bin of two, half of them positive: |0.7 - 0.5|
    assert calibration.ece([1, 0], [0.6, 0.8], bins=2) == pytest.approx(0.2)


def test_a_bin_holds_its_upper_edge_and_the_lowest_both():
    """Five bins of equal width for scores on every edge: 0 and 0.2 share the lowest, each other edge closes its bin."""
    scores = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    targets = np.array([1, 0, 1, 1, 0, 1], np.int8)
    found = calibration.reliability(targets, scores, list("abcdef"), bins=5, resamples=5)
    assert found.n.tolist() == [2, 1, 1, 1, 1]
    assert found.score.tolist() == pytest.approx([0.1, 0.4, 0.6, 0.8, 1.0])
    assert found.rate.tolist() == [0.5, 1, 1, 0, 1]
    # (2 |0.1 − 0.5| + |0.4 − 1| + |0.6 − 1| + |0.8 − 0| + |1 − 1|) / 6
    assert calibration.ece(targets, scores, bins=5) == pytest.approx((0.8 + 0.6 + 0.4 + 0.8 + 0) / 6)
    above = calibration.reliability(targets, np.minimum(scores + 1e-9, 1), list("abcdef"), bins=5, resamples=5)
    assert above.n.tolist() == [1, 1, 1, 1, 2]


def test_bins_have_equal_width_and_not_equal_mass():
    """Seven scores in the first of four bins and one in the last: two bins hold something, with 7 and 1 pictures."""
    scores = np.array([0.01, 0.02, 0.03, 0.05, 0.08, 0.13, 0.21, 0.9])
    found = calibration.reliability(np.arange(8) % 2, scores, [str(k) for k in range(8)], bins=4, resamples=5)
    assert found.n.tolist() == [7, 1] and found.rate.tolist() == pytest.approx([3 / 7, 1])
    assert found.score.tolist() == pytest.approx([0.53 / 7, 0.9])


def test_every_one_of_the_fifteen_bins_closes_at_its_edge():
    """k/15 in floating point, which times 15 must be k again."""
    edges = np.arange(1, 16) / 15
    found = calibration.reliability(np.ones(15, np.int8), edges, [str(k) for k in range(15)], resamples=2)
    assert found.n.tolist() == [1] * 15 and found.score.tolist() == pytest.approx(edges.tolist())


def test_reliability_is_scikit_learns_curve_with_intervals_of_patients():
    targets, scores, _ = drawn(1, n=400)
    scores = np.clip(scores + 0.0013, 0, 1)  # scikit-learn's bins hold their lower edge
    patients = np.repeat(np.arange(200), 2).astype(str)
    found = calibration.reliability(targets, scores, patients, bins=10, resamples=200)
    rate, mean = sklearn.calibration.calibration_curve(targets, scores, n_bins=10)
    np.testing.assert_allclose(found.rate, rate)
    np.testing.assert_allclose(found.score, mean)
    assert found.n.sum() == 400 and np.all(found.low <= found.rate) and np.all(found.rate <= found.high)
    gap = np.average(np.abs(found.rate - found.score), weights=found.n)
    assert calibration.ece(targets, scores, bins=10) == pytest.approx(gap)


def test_scores_that_are_no_probabilities_are_refused():
    with pytest.raises(ValueError, match="1 of 3 scores are not from 0 to 1, -0.2 is the first"):
        calibration.ece([1, 0, 1], [0.5, -0.2, 1.0])
    with pytest.raises(ValueError, match="two vectors of one length"):
        calibration.brier([1, 0], [[0.5], [0.5]])
    assert not calibration.are_probabilities(np.array([0.2, np.nan]))


def test_a_calibrated_model_is_at_its_floor():
    generator = np.random.default_rng(2)
    scores = generator.uniform(0, 1, 500)
    found = [calibration.ece((generator.random(500) < scores).astype(np.int8), scores) for _ in range(200)]
    assert calibration.floor(scores) == pytest.approx(np.mean(found), rel=0.05)
    assert 0.03 < calibration.floor(scores) < 0.08


def test_the_interval_of_ece_covers_a_known_error_where_plain_percentiles_miss_it():
    covered = plain = 0
    for trial in range(150):
        targets, scores, _ = drawn([3, trial], shift=0.1)
        patients = np.arange(300).astype(str)
        found, floors = calibration.summarise("binary", ("a",), targets[:, None], scores[:, None], patients, 200, trial)
        covered += found["ece"].low <= 0.1 <= found["ece"].high
        samples = metrics.bootstrap(lambda w, t=targets, s=scores: calibration.ece(t, s, w)[None], patients, 200, trial)
        low, high = np.percentile(samples, [2.5, 97.5])
        plain += low <= 0.1 <= high
        assert floors["ece"] < 0.1
    assert covered / 150 >= 0.9
    assert plain / 150 < covered / 150


def test_summaries_of_labels_and_of_classes():
    generator = np.random.default_rng(4)
    scores = generator.dirichlet([1, 1, 1], 200)
    targets = np.eye(3, dtype=np.int8)[[generator.choice(3, p=row) for row in scores]]
    patients = np.arange(200).astype(str)
    found, floors = calibration.summarise("multiclass", ("a", "b", "c"), targets, scores, patients, 20)
    right = (scores.argmax(1) == targets.argmax(1)).astype(int)
    assert found["ece"].value == pytest.approx(naive(right, scores.max(1), np.ones(200), 15))
    assert found["brier"].value == pytest.approx(((scores - targets) ** 2).sum(axis=1).mean())
    assert set(floors) == {"ece", "ece/a", "ece/b", "ece/c"}
    targets[::2, 2] = -1
    several, _ = calibration.summarise("multilabel", ("a", "b", "c"), targets, scores, patients, 20)
    assert several["ece"].value == pytest.approx(np.mean([several[f"ece/{name}"].value for name in "abc"]))
    assert several["brier/c"].n == 100 and several["ece"].n == 200
