"""The judge of a trained head: logits become the task's scores, labels the head does not know are named."""

import numpy as np
import pytest
import scipy.special
import sklearn.metrics

from cxrjax.evals import classify, encoders
from cxrjax.evals.base import FeatureTable, Targets, Task
from cxrjax.methods.base import Answers

NAMES = ("Normal", "Mass", "Edema")


def table(split, n=60, seed=0):
    """One class per picture, and logits that lean towards it; the third label is not known of every fifth."""
    rng = np.random.default_rng((seed, len(split)))
    labels = np.eye(3, dtype=np.int8)[rng.integers(3, size=n)]
    logits = labels * 1.5 + rng.normal(size=(n, 3))
    labels[::5, 2] = -2
    patients = np.array([f"{split} {i // 2}" for i in range(n)])
    return FeatureTable(logits.astype(np.float32), labels, patients, np.array([f"{split}-{i}" for i in range(n)]))


def judge(answers, task, test=None, val=None, label_names=NAMES):
    return classify.classify(val or table("val"), test or table("test"), answers, task, label_names, resamples=50)


def test_multilabel_scores_are_sigmoids_in_the_sets_order():
    """The head knows the labels in another order, and one that the set lacks."""
    test, names = table("test"), ("Edema", "Hernia", "Mass")
    columns = test.features[:, [2, 0, 1]]
    found = judge(Answers(names, "multilabel"), Task("multilabel"), test=test._replace(features=columns))
    predictions = found.predictions
    assert [name for name in predictions if name.startswith("score/")] == ["score/Edema", "score/Mass"]
    np.testing.assert_allclose(predictions["score/Mass"], scipy.special.expit(test.features[:, 1]), rtol=1e-6)
    known = test.labels[:, 2] >= 0
    expected = sklearn.metrics.roc_auc_score(test.labels[known, 2], test.features[known, 2])
    assert found.metrics["auroc/Edema"].value == pytest.approx(expected)
    assert found.notes[0] == "not judged, since only one of head and set knows them: Hernia, Normal"
    assert set(found.details["validation"]) == {"auroc", "log_likelihood"}


def test_multiclass_scores_are_a_softmax():
    test = table("test")
    found = judge(Answers(NAMES, "multiclass"), Task("multiclass", labels=NAMES), test=test)
    scores = found.predictions[[f"score/{name}" for name in NAMES]].to_numpy()
    one = (test.labels == 1).sum(axis=1) == 1
    np.testing.assert_allclose(scores, scipy.special.softmax(test.features[one], axis=1), rtol=1e-5)
    likelihood = np.log(scipy.special.softmax(table("val").features, axis=1))[table("val").labels == 1].mean()
    assert found.details["validation"]["log_likelihood"] == pytest.approx(likelihood, rel=1e-4)


def test_what_a_step_is_kept_by_leaves_unknown_answers_out():
    values = np.array([[1, -1], [0, -1], [1, 0]], np.int8)
    scores = np.array([[0.5, 0.001], [0.5, 0.001], [0.5, 0.75]])
    found = classify.validation("multilabel", Targets(NAMES[:2], values, np.ones(3, bool), []), scores)
    assert found == pytest.approx({"log_likelihood": (3 * np.log(0.5) + np.log(0.25)) / 4, "auroc": 0.5})


def test_binary_scores_by_hand():
    logits = np.log([[6.0, 3.0, 1.0]]).astype(np.float32)
    softmax, sigmoid = Answers(NAMES, "multiclass"), Answers(NAMES, "multilabel")
    one = Task("binary", positive=("Mass",), negative=("Normal",))
    both = Task("binary", positive=("Mass", "Edema"))
    assert classify.probabilities(logits, softmax, one)[0, 0] == pytest.approx(3 / 9)
    assert classify.probabilities(logits, softmax, both)[0, 0] == pytest.approx(4 / 10)
    assert classify.probabilities(logits, sigmoid, one)[0, 0] == pytest.approx(3 / 4)
    assert classify.probabilities(logits, sigmoid, both)[0, 0] == pytest.approx(1 - 1 / 4 * 1 / 2)


def test_the_test_pictures_have_no_say_in_what_a_step_is_kept_by():
    answers, task = Answers(NAMES, "multilabel"), Task("multilabel")
    first, other = (judge(answers, task, test=table("test", seed=seed)) for seed in (0, 1))
    assert first.metrics["auroc"] != other.metrics["auroc"]
    assert first.details["validation"] == other.details["validation"]


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="'pixels-32' has no head that answers for labels"):
        classify.logits(encoders.pixels())
    answers = Answers(("Normal", "Mass"), "multiclass")
    with pytest.raises(ValueError, match=r"asks for labels \['Edema'\]; the head knows \['Normal', 'Mass'\]"):
        judge(answers, Task("binary", positive=("Mass",), negative=("Edema",)))
    with pytest.raises(ValueError, match="more than one split"):
        seen = table("test")._replace(patient_ids=table("val").patient_ids)
        judge(answers, Task("binary", positive=("Mass",)), test=seen)
