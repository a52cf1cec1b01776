import hypothesis
import hypothesis.strategies as some
import numpy as np
import pandas
import pytest
import scipy.stats
import sklearn.metrics

from cxrjax.evals import metrics


def drawn(seed, n=200, tied=False):
    generator = np.random.default_rng(seed)
    targets = (generator.random(n) < 0.3).astype(np.int8)
    scores = generator.normal(size=n) + targets
    return targets, np.round(scores) if tied else scores, generator.integers(0, 4, n).astype(float)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_scikit_learn_with_ties_and_weights(seed, tied):
    targets, scores, weights = drawn(seed, tied=tied)
    for given in (None, weights):
        assert metrics.auroc(targets, scores, given) == pytest.approx(
            sklearn.metrics.roc_auc_score(targets, scores, sample_weight=given), abs=1e-12
        )
        assert metrics.auprc(targets, scores, given) == pytest.approx(
            sklearn.metrics.average_precision_score(targets, scores, sample_weight=given), abs=1e-12
        )
        predicted = scores > 0.5
        assert metrics.accuracy(targets, predicted, given) == pytest.approx(
            sklearn.metrics.accuracy_score(targets, predicted, sample_weight=given)
        )
        assert metrics.balanced_accuracy(targets, predicted, given) == pytest.approx(
            sklearn.metrics.balanced_accuracy_score(targets, predicted, sample_weight=given)
        )


# Ties of all kinds, the largest and smallest doubles, neighbours that differ in the last bit, and both zeros.
WILD = (0.0, -0.0, 5e-324, 1.0, float(np.nextafter(1, 2)), -1.7e308, 1.7e308, 0.1 + 0.2, 0.3, -1e-300, 1e16, 1e16 + 2)
PICTURES = some.lists(some.tuples(some.booleans(), some.sampled_from(WILD), some.integers(0, 3)), min_size=2)


@pytest.mark.filterwarnings("ignore:invalid value encountered in reduce")  # scikit-learn sums the scores
@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
@hypothesis.given(PICTURES)
def test_adversarial_scores_are_judged_as_by_scikit_learn_and_scipy(pictures):
    targets, scores, weights = (np.array(column) for column in zip(*pictures, strict=True))
    targets = targets.astype(np.int8)
    for given in (np.ones(len(targets)), weights.astype(float)):
        ours = metrics.auroc(targets, scores, given), metrics.auprc(targets, scores, given)
        if min(given[targets == 1].sum(), given[targets == 0].sum()) == 0:
            assert np.isnan(ours).all()
            continue
        drawn = np.repeat(np.arange(len(targets)), given.astype(int))
        assert ours[0] == pytest.approx(sklearn.metrics.roc_auc_score(targets[drawn], scores[drawn]), abs=1e-12)
        assert ours[1] == pytest.approx(
            sklearn.metrics.average_precision_score(targets[drawn], scores[drawn]), abs=1e-12
        )
        sides = (scores[drawn][targets[drawn] == side] for side in (1, 0))
        above = scipy.stats.mannwhitneyu(*sides, method="asymptotic").statistic
        pairs = given[targets == 1].sum() * given[targets == 0].sum()
        assert ours[0] == pytest.approx(above / pairs, abs=1e-12)


def test_masked_pictures_do_not_count():
    targets, scores, _ = drawn(0)
    hidden = targets.copy()
    hidden[::3] = -1
    seen = hidden != -1
    assert metrics.auroc(hidden, scores) == metrics.auroc(targets[seen], scores[seen])
    assert metrics.auprc(hidden, scores) == metrics.auprc(targets[seen], scores[seen])
    assert metrics.accuracy(hidden, scores > 0) == metrics.accuracy(targets[seen], scores[seen] > 0)


def test_metrics_refuse_codes_and_broken_scores():
    with pytest.raises(ValueError, match="targets must be 1, 0 or -1"):
        metrics.auroc(np.array([1, 0, -2]), np.zeros(3))
    with pytest.raises(ValueError, match="1 of 3 scores are NaN"):
        metrics.auroc(np.array([1, 0, 0]), np.array([0.1, np.nan, 0.3]))


def test_intervals_equal_a_naive_loop_over_patients(monkeypatch):
    targets, scores, _ = drawn(1, n=60, tied=True)
    patients = np.array([f"p{number // 3}" for number in range(60)])
    # chunks of 7 do not divide 50: the draws must not depend on them
    monkeypatch.setattr(metrics, "_CHUNK_VALUES", 7 * 60)
    found, counts, notes = metrics.summarise(
        "binary", ("positive",), targets[:, None], scores[:, None], patients, resamples=50, seed=3
    )

    generator = np.random.default_rng(3)
    rows_of = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]
    naive = {"auroc": [], "auprc": [], "accuracy": []}
    for _ in range(50):
        rows = np.concatenate([rows_of[drawn] for drawn in generator.integers(20, size=20)])
        naive["auroc"].append(sklearn.metrics.roc_auc_score(targets[rows], scores[rows]))
        naive["auprc"].append(sklearn.metrics.average_precision_score(targets[rows], scores[rows]))
        naive["accuracy"].append(np.mean(targets[rows] == (scores[rows] >= 0.5)))
    for name, samples in naive.items():
        assert found[name][1:3] == pytest.approx(np.percentile(samples, [2.5, 97.5]), abs=1e-12)
    assert found["auroc"].n == 60 and counts["auroc"] == targets.sum() and notes == []
    assert set(found) == {"auroc", "auprc", "accuracy", "balanced_accuracy"}


def test_intervals_cover_the_truth_about_95_times_in_100():
    # Patients share an offset, so intervals from resampled pictures are too narrow: they cover 66 %.
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        offset = np.repeat(generator.normal(size=60), 4)
        targets = np.repeat(generator.random(60) < 0.5, 4).astype(np.int8)
        scores = offset + 0.3 * generator.normal(size=240)
        patients = np.repeat(np.arange(60), 4).astype(str)
        rankings = metrics.rank(targets, scores)
        samples = metrics.bootstrap(lambda weights, r=rankings: metrics.ranked_areas(r, weights), patients, 200, trial)
        found = metrics.interval(0.0, samples[:, 0], 240)
        covered += found.low <= 0.5 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_no_interval_of_a_few_lucky_resamples():
    """With two patients who have it one in seven resamples has none, and the others say nothing of those."""
    for patients_with, given in ((2, False), (6, True)):
        targets = (np.arange(40) < patients_with).astype(np.int8)
        scores = np.random.default_rng(0).normal(size=40) + targets
        rankings, patients = metrics.rank(targets, scores), np.arange(40).astype(str)
        samples = metrics.bootstrap(lambda weights, r=rankings: metrics.ranked_areas(r, weights), patients, 500, 0)
        found = metrics.interval(0.7, samples[:, 0], 40)
        assert found.value == 0.7 and np.isfinite([found.low, found.high]).all() == given


def test_an_interval_needs_a_value_in_nineteen_of_twenty_resamples():
    samples = np.append(np.arange(1.0, 20), np.nan)
    found = metrics.interval(10.0, samples, 7)
    assert found == pytest.approx((10.0, *np.quantile(samples[:19], [0.025, 0.975]), 7))
    samples[0] = np.nan
    assert np.isnan(metrics.interval(10.0, samples, 7)[1:3]).all()


def test_a_score_of_one_half_is_called_positive():
    """And in a task of several classes the largest score is, however small."""
    targets, scores = np.array([[1], [0], [1], [0]], np.int8), np.array([[0.5], [0.4], [0.9], [0.1]])
    found, _, _ = metrics.summarise("binary", ("positive",), targets, scores, list("abcd"), 5)
    assert found["accuracy"].value == 1 == found["balanced_accuracy"].value
    classes, low = np.eye(3, dtype=np.int8)[[0, 1, 2, 2]], np.array([[0.4, 0.3, 0.3]] * 3 + [[0.1, 0.2, 0.3]])
    found, _, _ = metrics.summarise("multiclass", ("a", "b", "c"), classes, low, list("abcd"), 5)
    assert found["accuracy"].value == 0.5 and found["balanced_accuracy"].value == pytest.approx((1 + 0 + 0.5) / 3)


def test_a_label_with_one_value_is_skipped_and_named():
    targets, scores, _ = drawn(2)
    both = np.stack([targets, np.zeros_like(targets), np.full_like(targets, -1)], axis=1)
    patients = np.arange(200).astype(str)
    found, counts, notes = metrics.summarise(
        "multilabel", ("Mass", "Hernia", "Edema"), both, np.stack([scores] * 3, 1), patients, 20
    )
    assert found["auroc"].value == found["auroc/Mass"].value == metrics.auroc(targets, scores)
    assert "auroc/Hernia" not in found
    assert any("'Hernia'" in note and "200" in note for note in notes) and any("'Edema'" in note for note in notes)
    with pytest.raises(ValueError, match="nothing can be judged"):
        metrics.summarise("binary", ("positive",), both[:, 1:2], scores[:, None], patients, 20)


def test_resamples_with_one_value_are_left_out_and_counted():
    # One positive patient of five: absent from (4/5)^5 = 33 % of the resamples.
    targets = np.array([1, 0, 0, 0, 0], np.int8)[:, None]
    found, _, notes = metrics.summarise(
        "binary", ("positive",), targets, np.array([0.9, 0.1, 0.2, 0.3, 0.95])[:, None], list("abcde"), 300
    )
    assert found["auroc"].value == 0.75 and np.isnan(found["auroc"].low) and np.isnan(found["auroc"].high)
    (note,) = notes
    count = int(note.rsplit(" ", 1)[1])
    assert "of the 300 resamples" in note and 60 < count < 140


def test_the_mean_has_its_own_interval_on_common_resamples():
    targets, scores, _ = drawn(4, n=300)
    patients = np.arange(300).astype(str)
    # A label and its mirror image: their mean AUROC is 0.5 in every resample, so its interval has no width.
    found, _, _ = metrics.summarise(
        "multilabel", ("a", "b"), np.stack([targets, targets], 1), np.stack([scores, -scores], 1), patients, 100
    )
    assert found["auroc"][:3] == pytest.approx((0.5, 0.5, 0.5))
    assert found["auroc/a"].high - found["auroc/a"].low > 0.05


def test_a_resample_without_one_of_the_labels_gives_no_mean():
    """The mean of the others is another quantity, and here a far larger one."""
    generator = np.random.default_rng(6)
    targets = np.stack([np.tile([0, 1], 30), np.arange(60) < 4], 1).astype(np.int8)
    scores = np.stack([targets[:, 0] + 0.2 * generator.normal(size=60), generator.normal(size=60)], 1)
    patients = np.arange(60).astype(str)
    found, _, _ = metrics.summarise("multilabel", ("common", "rare"), targets, scores, patients, 400, 8)
    weights = np.concatenate(list(metrics.patient_weights(patients, 400, 8)), axis=1)
    areas = np.stack([metrics.auroc(targets[:, c], scores[:, c], weights) for c in (0, 1)])
    both = np.isfinite(areas).all(axis=0)
    assert 0.95 < both.mean() < 1
    assert found["auroc"][1:3] == pytest.approx(np.percentile(areas[:, both].mean(axis=0), [2.5, 97.5]))


def test_a_label_is_predicted_from_one_half_on():
    targets, scores = np.array([[1], [1], [0], [0]], np.int8), np.array([[0.5], [0.9], [0.49], [0.1]])
    found, _, _ = metrics.summarise("binary", ("positive",), targets, scores, list("abcd"), 10)
    assert found["accuracy"].value == found["balanced_accuracy"].value == 1


def test_predictions_survive_parquet(tmp_path):
    table = metrics.prediction_table(("a/b",), np.array([[1], [-1]]), np.array([[0.3], [0.1]]), ["p", "q"], ["i", "j"])
    table.to_parquet(tmp_path / "p.parquet")
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "p.parquet"), table)
