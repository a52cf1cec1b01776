import numpy as np
import pytest
import sklearn.metrics

from cxrjax.evals import metrics
from cxrjax.reporting import operating


def drawn(seed, n=150, tied=False):
    generator = np.random.default_rng(seed)
    targets = (generator.random(n) < 0.3).astype(np.int8)
    scores = generator.normal(size=n) + targets
    return targets, np.round(scores, 0 if tied else 9), generator.integers(0, 3, (n, 5)).astype(float)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_points_on_the_curve_are_those_of_scikit_learn(seed, tied):
    targets, scores, weights = drawn(seed, tied=tied)
    counted = operating.counts(metrics.rank(targets, scores), weights)
    curve = operating.roc(counted)
    for r, given in enumerate(weights.T):
        false, true, _ = sklearn.metrics.roc_curve(targets, scores, sample_weight=given, drop_intermediate=False)
        for share in (0.5, 0.9, 0.95):
            sensitivity = true[1 - false >= share - 1e-12].max()
            specificity = (1 - false)[true >= share - 1e-12].max()
            assert operating.sensitivity_at(counted, share)[r] == pytest.approx(sensitivity)
            assert operating.specificity_at(counted, share)[r] == pytest.approx(specificity)
        off_steps = operating.GRID + 1e-7  # at a vertical step np.interp may take either end
        np.testing.assert_allclose(
            operating.roc(counted, off_steps[:-1])[:, r], np.interp(off_steps[:-1], false, true), atol=1e-9
        )
        assert np.all(np.diff(curve[:, r]) >= 0) and curve[-1, r] == 1
        precision, recall, _ = sklearn.metrics.precision_recall_curve(targets, scores, sample_weight=given)
        ours = operating.precision_recall(counted)[:, r]
        for position in (10, 50, 90, 100):
            # The highest threshold is the last of scikit-learn's that reaches the recall.
            reached = np.flatnonzero(recall >= operating.GRID[position] - 1e-12)[-1]
            assert ours[position] == pytest.approx(precision[reached])


def test_a_fine_curve_encloses_the_area():
    targets, scores, _ = drawn(3, n=400, tied=True)
    counted = operating.counts(metrics.rank(targets, scores), np.ones((400, 1)))
    fine = np.linspace(0, 1, 20001)
    assert np.trapezoid(operating.roc(counted, fine)[:, 0], fine) == pytest.approx(
        metrics.auroc(targets, scores), abs=1e-4
    )


def test_shares_at_a_threshold_are_those_of_the_confusion_matrix():
    targets, scores, weights = drawn(4)
    scores[0] = 0.25
    found = operating.at_threshold(targets, scores, 0.25, weights)
    for r, given in enumerate(weights.T):
        called = scores >= 0.25
        of = {"sample_weight": given}
        expected = [
            sklearn.metrics.recall_score(targets, called, **of),
            sklearn.metrics.recall_score(targets, called, pos_label=0, **of),
            sklearn.metrics.precision_score(targets, called, **of),
            sklearn.metrics.precision_score(targets, called, pos_label=0, **of),
            sklearn.metrics.f1_score(targets, called, **of),
        ]
        np.testing.assert_allclose(found[:, r], expected)
    hidden = np.where(np.arange(150) % 3 == 0, -1, targets)
    kept = hidden != -1
    np.testing.assert_array_equal(
        operating.at_threshold(hidden, scores, 0.25, weights),
        operating.at_threshold(targets[kept], scores[kept], 0.25, weights[kept]),
    )
    nobody = operating.at_threshold(targets, scores, 99, weights)
    assert np.isnan(nobody[2]).all() and (nobody[0] == 0).all() and (nobody[1] == 1).all()


def test_intervals_of_points_choose_the_threshold_in_every_resample():
    targets, scores, _ = drawn(5, n=60)
    patients = np.array([f"p{number // 2}" for number in range(60)])
    found = operating.points(targets, scores, patients, 0.5, (0.8,), resamples=40, seed=2)
    generator = np.random.default_rng(2)
    rows_of = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]
    naive = []
    for _ in range(40):
        rows = np.concatenate([rows_of[one] for one in generator.integers(30, size=30)])
        false, true, _ = sklearn.metrics.roc_curve(targets[rows], scores[rows], drop_intermediate=False)
        naive.append(true[1 - false >= 0.8 - 1e-12].max())
    assert found["sensitivity@specificity=0.8"][1:3] == pytest.approx(np.percentile(naive, [2.5, 97.5]))
    assert found["sensitivity"].n == 60 and set(found) >= {"ppv", "npv", "f1", "specificity@sensitivity=0.8"}


def test_bands_hold_the_curve_and_are_the_mean_over_labels():
    targets, scores, _ = drawn(6, n=200)
    patients = np.arange(200).astype(str)
    straight, mirrored = metrics.rank(targets, scores), metrics.rank(targets, -scores)
    curve, precision = operating.bands([straight], patients, 100)
    assert np.all(curve.low <= curve.value + 1e-9) and np.all(curve.value <= curve.high + 1e-9)
    assert (curve.high - curve.low)[20:60].min() > 0.02
    assert precision.value[-1] >= targets.mean() - 1e-9
    both, _ = operating.bands([straight, mirrored], patients, 100)
    alone, _ = operating.bands([mirrored], patients, 100)
    np.testing.assert_allclose(both.value, (curve.value + alone.value) / 2)


def test_a_side_without_weight_has_no_point():
    counted = operating.counts(
        metrics.rank(np.array([1, 0, 0]), np.array([0.1, 0.2, 0.3])), np.array([[0.0], [1], [1]])
    )
    assert np.isnan(operating.sensitivity_at(counted, 0.9)).all() and np.isnan(operating.roc(counted)).all()
    assert np.isnan(operating.specificity_at(counted, 0.9)).all()
    assert np.isnan(operating.precision_recall(counted)).all()
