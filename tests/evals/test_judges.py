import numpy as np
import pandas
import pytest
import scipy.special
import sklearn.linear_model
import sklearn.metrics
import sklearn.neighbors

from cxrjax.evals import knn, labelled, probe, tail
from cxrjax.evals.base import FeatureTable, Task, make_task, targets

NAMES = ("Normal", "Mass", "Edema")
SINGLE = Task("multilabel", labels=("Mass", "Edema"))


def table(split, n=80, informative=True, seed=0, codes=None):
    """Two pictures a patient; the first feature tells Mass, the second Edema, Normal is neither."""
    generator = np.random.default_rng([seed, *split.encode()])
    labels = (generator.random((n, 3)) < 0.4).astype(np.int8)
    labels[:, 0] = (labels[:, 1:] == 0).all(axis=1)
    features = generator.normal(size=(n, 6)) * [1, 1, 1, 30, 0.01, 1] + [0, 0, 0, 100, 5, 0]
    if informative:
        features[:, :2] = labels[:, 1:] * 4 + 0.3 * generator.normal(size=(n, 2))
    if codes is not None:
        labels[generator.random((n, 3)) < 0.2] = codes
    patients = np.array([f"{split}{number // 2}" for number in range(n)])
    return FeatureTable(features.astype(np.float32), labels, patients, np.array([f"{split}-{i}" for i in range(n)]))


def splits(**options):
    return {split: table(split, **options) for split in ("train", "val", "test")}


@pytest.mark.parametrize(
    "task",
    [
        SINGLE,
        Task("binary", positive=("Mass",), negative=("Normal",)),
        Task("multiclass", labels=("Normal", "Mass", "Edema")),
    ],
    ids=lambda task: task.kind,
)
@pytest.mark.parametrize("judge", ["logistic", "ridge", "knn"])
def test_separable_features_are_perfect_and_noise_is_chance(task, judge):
    def run(tables):
        if judge == "knn":
            return knn.knn(**tables, task=task, label_names=NAMES, neighbours=(3, 9), resamples=100)
        return probe.probe(**tables, task=task, label_names=NAMES, solver=judge, resamples=100)

    clear = splits()
    if judge == "knn":
        clear = {split: one._replace(features=one.features[:, :3] - [2, 2, 0]) for split, one in clear.items()}
    perfect = run(clear)
    assert perfect.metrics["auroc"].value > 0.99
    assert perfect.metrics["accuracy"].value > 0.9
    noise = run(splits(informative=False, n=160))
    assert noise.metrics["auroc"].low < 0.5 < noise.metrics["auroc"].high
    assert noise.metrics["auroc"].n == len(noise.predictions)


def test_logistic_path_is_scikit_learn_at_every_strength():
    generator = np.random.default_rng(0)
    for n, d in ((200, 12), (30, 60)):  # more pictures than features, and the reverse
        features = (generator.normal(size=(n, d)) @ generator.normal(size=(d, d)) + 5).astype(np.float32)
        logits = features @ generator.normal(size=(d, 2))
        values = (logits + generator.normal(size=(n, 2)) > logits.mean(axis=0)).astype(np.int8)
        values[:7, 0] = -1
        rotation = probe.rotate(features)
        standard = (features - features.mean(0)) / features.std(0)
        for fitted in probe.logistic_path(
            rotation.rotated, rotation.variance, values, (10.0, 0.1, 0.001), "multilabel"
        ):
            assert fitted.converged
            for column in range(2):
                judged = values[:, column] != -1
                reference = sklearn.linear_model.LogisticRegression(
                    C=1 / (fitted.strength * judged.sum()), tol=1e-9, max_iter=10000
                ).fit(standard[judged], values[judged, column])
                ours = rotation.directions @ fitted.weights[:, column]
                np.testing.assert_allclose(ours, reference.coef_[0], atol=1e-3 * np.abs(ours).max())
                np.testing.assert_allclose(fitted.intercept[column], reference.intercept_, atol=2e-3)


def test_softmax_and_ridge_are_scikit_learn():
    generator = np.random.default_rng(1)
    features = generator.normal(size=(150, 8)).astype(np.float32)
    classes = (features @ generator.normal(size=(8, 3)) + generator.normal(size=(150, 3))).argmax(axis=1)
    values = np.eye(3, dtype=np.int8)[classes]
    rotation = probe.rotate(features)
    standard = (features - features.mean(0)) / features.std(0)
    (fitted,) = probe.logistic_path(rotation.rotated, rotation.variance, values, (0.01,), "multiclass")
    reference = sklearn.linear_model.LogisticRegression(C=1 / 1.5, tol=1e-9, max_iter=10000).fit(standard, classes)
    ours = scipy.special.softmax(rotation.rotated @ fitted.weights + fitted.intercept, axis=1)
    np.testing.assert_allclose(ours, reference.predict_proba(standard), atol=1e-4)
    values[:20, 1] = -1
    (fitted,) = probe.ridge_path(rotation.rotated, rotation.variance, values, (0.01,), "multilabel")
    for column, judged in ((0, np.full(150, True)), (1, values[:, 1] != -1)):
        reference = sklearn.linear_model.Ridge(alpha=0.01 * judged.sum()).fit(standard[judged], values[judged, column])
        ours = rotation.rotated @ fitted.weights[:, column] + fitted.intercept[column]
        np.testing.assert_allclose(ours, reference.predict(standard), atol=1e-4)


def test_single_precision_fits_are_close_to_double_ones(monkeypatch):
    generator = np.random.default_rng(2)
    features = generator.normal(size=(400, 10)).astype(np.float32)
    values = (features[:, :2] + generator.normal(size=(400, 2)) > 0).astype(np.int8)
    rotation = probe.rotate(features)
    arguments = (rotation.rotated, rotation.variance, values, (1.0, 0.01, 1e-4), "multilabel")
    double = list(probe.logistic_path(*arguments))
    monkeypatch.setattr(probe, "_SMALL", 0)
    for single, exact in zip(probe.logistic_path(*arguments), double, strict=True):
        assert single.converged
        np.testing.assert_allclose(single.weights, exact.weights, atol=1e-3)


def test_strength_is_chosen_on_validation_and_the_test_split_has_no_say():
    tables = splits(informative=False)
    # Validation is the training noise itself, so the weakest penalty is best; test is its opposite: the strongest is.
    tables["val"] = tables["train"]._replace(patient_ids=tables["val"].patient_ids)
    flipped = tables["train"].labels.copy()
    flipped[:, 1:] = 1 - flipped[:, 1:]
    tables["test"] = tables["train"]._replace(labels=flipped, patient_ids=tables["test"].patient_ids)
    result = probe.probe(**tables, task=SINGLE, label_names=NAMES, strengths=(100.0, 1.0, 1e-4), resamples=10)
    assert result.details["strength"] == 1e-4
    assert result.metrics["auroc"].value < 0.4
    assert any("edge of the grid" in note for note in result.notes)
    alone = probe.probe(**tables, task=SINGLE, label_names=NAMES, strengths=(1e-4,), resamples=10)
    pandas.testing.assert_frame_equal(result.predictions, alone.predictions, atol=1e-2)


def test_of_equal_qualities_the_first_is_chosen_and_an_edge_is_said():
    assert labelled.choose((1, 2, 3, 4), (0.5, 0.7, 0.7, 0.6), "k") == (1, [])
    assert labelled.choose((1, 2, 3), (0.5, 0.5, 0.5), "k") == (0, [])  # at the edge, but no better than its neighbour
    for qualities, best in (((0.7, 0.6, 0.5), 0), ((0.5, 0.6, 0.7), 2)):
        place, (note,) = labelled.choose((1, 2, 3), qualities, "k")
        assert place == best and f"the best k {best + 1} is at the edge of the grid 1, 2, 3" in note


def test_a_single_strength_or_k_needs_no_validation_labels():
    tables = splits()
    tables["val"].labels[:] = 0
    with pytest.raises(ValueError, match="80 validation pictures"):
        probe.probe(**tables, task=SINGLE, label_names=NAMES, resamples=10)
    assert (
        probe.probe(**tables, task=SINGLE, label_names=NAMES, strengths=(0.1,), resamples=10).details["strength"] == 0.1
    )
    assert knn.knn(**tables, task=SINGLE, label_names=NAMES, neighbours=(7,), resamples=10).details["k"] == 7


def test_train_statistics_standardise_all_splits():
    tables = splits()
    shifted = {split: one._replace(features=one.features * 1000 + 7) for split, one in tables.items()}
    first = probe.probe(**tables, task=SINGLE, label_names=NAMES, resamples=10)
    second = probe.probe(**shifted, task=SINGLE, label_names=NAMES, resamples=10)
    columns = ["score/Mass", "score/Edema"]
    np.testing.assert_allclose(first.predictions[columns], second.predictions[columns], atol=1e-3)


def test_knn_votes_equal_scikit_learn_and_parts_do_not_matter(monkeypatch):
    tables = splits(informative=False)
    arguments = dict(**tables, task=SINGLE, label_names=NAMES, neighbours=(9,), resamples=10)
    monkeypatch.setattr(knn, "_CHUNK_VALUES", 80 * 33)  # parts of 33 queries do not divide 80
    for temperature, weights in ((None, "uniform"), (0.07, lambda distance: np.exp((1 - distance) / 0.07))):
        found = knn.knn(**arguments, temperature=temperature)
        reference = sklearn.neighbors.KNeighborsRegressor(9, metric="cosine", weights=weights, algorithm="brute").fit(
            tables["train"].features, tables["train"].labels[:, 1]
        )
        np.testing.assert_allclose(
            found.predictions["score/Mass"], reference.predict(tables["test"].features), atol=1e-4
        )


def test_all_training_pictures_can_be_neighbours():
    tables = splits()
    whole = knn.knn(**tables, task=SINGLE, label_names=NAMES, neighbours=(80,), temperature=None, resamples=10)
    assert whole.details["k"] == 80 and not any("was cut" in note for note in whole.notes)
    rate = (tables["train"].labels[:, 1] == 1).mean()
    np.testing.assert_allclose(whole.predictions["score/Mass"], rate)
    tables["train"] = tables["train"]._replace(features=tables["train"].features * 0 + 1)
    with_all_alike = knn.knn(**tables, task=SINGLE, label_names=NAMES, neighbours=(80,), resamples=10)
    np.testing.assert_allclose(with_all_alike.predictions["score/Mass"], rate)


def test_knn_ignores_neighbours_that_say_nothing():
    tables = splits()
    tables["train"].labels[:, 1] = -2
    tables["train"].labels[:2, 1] = [1, 0]  # two of 80 pictures are labelled for Mass, and most have neither near
    result = knn.knn(**tables, task=SINGLE, label_names=NAMES, neighbours=(3, 500), temperature=None, resamples=10)
    assert any("cut to [3]," in note for note in result.notes)
    one_k = knn.knn(**tables, task=SINGLE, label_names=NAMES, neighbours=(3,), temperature=None, resamples=10)
    scores = one_k.predictions["score/Mass"].round(6)
    assert set(scores) <= {0.0, 0.5, 1.0} and (scores == 0.5).mean() > 0.5


def test_uncertain_and_not_mentioned_are_masked_per_label():
    tables = splits(codes=-1)
    tables["test"].labels[0] = -2
    result = probe.probe(**tables, task=SINGLE, label_names=NAMES, resamples=10)
    assert result.metrics["auroc/Mass"].n == (tables["test"].labels[:, 1] >= 0).sum()
    assert "test-0" not in set(result.predictions["image_id"])
    counted = targets(make_task({"kind": "multilabel", "uncertain": "present"}), np.array([[1, 0, -1, -2]]), "abcd")
    assert counted.values.tolist() == [[1, 0, 1, -1]]


def test_a_label_that_train_cannot_teach_is_skipped_and_named():
    tables = splits()
    tables["train"].labels[:, 2] = 0
    result = probe.probe(**tables, task=SINGLE, label_names=NAMES, resamples=10)
    assert "auroc/Edema" not in result.metrics and any("'Edema' (0 of 80 positive)" in note for note in result.notes)
    tables["train"].labels[:, 1] = 0
    with pytest.raises(ValueError, match="cannot teach"):
        probe.probe(**tables, task=SINGLE, label_names=NAMES, resamples=10)
    unlabelled = {split: table._replace(labels=table.labels[:, :0]) for split, table in tables.items()}
    with pytest.raises(ValueError, match="cannot teach this multilabel task: the set has no labels"):
        probe.probe(**unlabelled, task=make_task({"kind": "multilabel"}), label_names=(), resamples=10)


def test_shared_patients_unknown_labels_and_broken_features_are_refused():
    tables = splits()
    leaking = dict(tables, test=tables["test"]._replace(patient_ids=tables["test"].patient_ids.copy()))
    leaking["test"].patient_ids[3] = "train5"
    with pytest.raises(ValueError, match="train5"):
        knn.knn(**leaking, task=SINGLE, label_names=NAMES)
    with pytest.raises(ValueError, match=r"\['Hernia'\].*'Normal', 'Mass', 'Edema'"):
        probe.probe(**tables, task=Task("multilabel", labels=("Hernia",)), label_names=NAMES)
    tables["val"].features[4, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 80 val pictures.*val-4"):
        probe.probe(**tables, task=SINGLE, label_names=NAMES)


def test_a_collapsed_encoder_is_chance_and_said_so():
    tables = {split: one._replace(features=np.ones_like(one.features)) for split, one in splits().items()}
    result = probe.probe(**tables, task=SINGLE, label_names=NAMES, resamples=10)
    assert result.metrics["auroc"].value == 0.5 and any("collapsed" in note for note in result.notes)


def test_binary_and_multiclass_answer_keys():
    labels = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [1, 1, 0], [0, 0, -1]], np.int8)
    key = targets(Task("binary", positive=("Mass", "Edema"), negative=("Normal",)), labels, NAMES)
    assert key.keep.tolist() == [True, True, True, False, False] and key.values[:3, 0].tolist() == [0, 1, 1]
    assert "1 pictures carry labels of more than one class" in key.notes[0]
    rest = targets(Task("binary", positive=("Mass", "Edema")), labels, NAMES)
    assert rest.keep.tolist() == [True, True, True, True, False] and rest.values[:4, 0].tolist() == [0, 1, 1, 1]
    classes = targets(Task("multiclass", labels=NAMES), labels, NAMES)
    assert classes.keep.tolist() == [True, True, False, False, False]
    for config in (
        {"kind": "regression"},
        {"kind": "binary", "labels": ("Mass",)},
        {"kind": "multiclass", "labels": "Mass"},
        {"kind": "multilabel", "lables": ("Mass",)},
        {"kind": "binary", "positive": "Mass", "negative": ("Mass", "Normal")},
    ):
        with pytest.raises(ValueError, match="task"):
            make_task(config)


def test_head_middle_and_tail_are_means_of_their_labels():
    names = tuple("abcd")
    rng = np.random.default_rng(0)
    tables = {}
    for split in ("train", "val", "test"):
        labels = np.stack([rng.permutation(600) < count for count in (180, 30, 24, 12)], axis=1).astype(np.int8)
        features = rng.normal(size=(600, 5)).astype(np.float32)
        features[:, :4] += 1.5 * labels
        ids = np.array([f"{split}{k}" for k in range(600)])
        tables[split] = FeatureTable(features, labels, ids, ids)
    fit = {"task": Task("multilabel"), "label_names": names, "strengths": (0.01,), "resamples": 30}
    found = probe.probe(**tables, **fit, long_tail=(0.1, 0.03))
    scores = found.predictions[[f"score/{name}" for name in names]].to_numpy()
    each = [sklearn.metrics.average_precision_score(tables["test"].labels[:, c], scores[:, c]) for c in range(4)]
    assert found.metrics["auprc"].value == pytest.approx(
        sklearn.metrics.average_precision_score(tables["test"].labels, scores, average="macro")
    )
    for group, columns in (("head", [0]), ("medium", [1, 2]), ("tail", [3])):
        assert found.metrics[f"auprc_{group}"].value == pytest.approx(np.mean([each[c] for c in columns]))
        area = sklearn.metrics.roc_auc_score(tables["test"].labels[:, columns], scores[:, columns], average="macro")
        assert found.metrics[f"auroc_{group}"].value == pytest.approx(area)
    assert found.metrics["auprc_head"].low == found.metrics["auprc/a"].low  # the same resamples
    assert "head 1 (a); medium 2 (b, c); tail 1 (d)" in found.notes[-1]
    none = probe.probe(**tables, **fit, long_tail=(0.02, 0.01))
    assert "auprc_tail" not in none.metrics and "tail 0 (none)" in none.notes[-1]


def test_groups_of_labels_need_two_shares_and_several_labels():
    for bounds in ((0.1,), (0.01, 0.1), (1.0, 0.1), (0.1, 0.0)):
        with pytest.raises(ValueError, match="must be two shares below 1, the larger one first"):
            tail.check(bounds, "multilabel")
    with pytest.raises(ValueError, match="this task is binary"):
        tail.check((0.1, 0.01), "binary")
    tail.check((), "binary")
