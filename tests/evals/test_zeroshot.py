"""Prompts, ensembles and thresholds by hand; a space that knows the answer is perfect, noise is at chance."""

import re

import numpy as np
import pytest
from sklearn.calibration import _sigmoid_calibration

from cxrjax.datasets import chexpert
from cxrjax.evals import zeroshot
from cxrjax.evals.base import FeatureTable, Targets, Task
from cxrjax.phantom import findings

NAMES = ("Normal", "Mass", "Edema")
SINGLE = Task("multilabel", labels=("Mass", "Edema"))
PROMPTS = {
    "Mass": {"positive": ("Mass.", "A (large|small) mass."), "negative": "No mass."},
    "Edema": {"positive": ("Edema.",), "negative": ("No edema.",)},
    "Normal": {"positive": ("Normal.",)},
}
AXES = {"mass": 0, "edema": 1, "normal": 2}


def embed(sentences):
    """A space that knows what a sentence says: an axis per finding, denials the other way, and a common direction."""
    rows = []
    for sentence in sentences:
        words = re.findall("[a-z]+", sentence.lower())
        row = np.zeros(6)
        row[AXES[words[-1]]] = -1 if words[0] == "no" else 1
        row[5] = 2
        rows.append(row / np.linalg.norm(row))
    return np.array(rows, np.float32)


def table(split, n=80, informative=True, shift=0.0):
    """Two pictures a patient; unit vectors that lie towards what they show, and `shift` towards the first label."""
    generator = np.random.default_rng([1, *split.encode()])
    labels = (generator.random((n, 3)) < 0.4).astype(np.int8)
    labels[:, 0] = (labels[:, 1:] == 0).all(axis=1)
    features = generator.normal(size=(n, 6)) * 0.1
    if informative:
        features[:, :3] += labels[:, [1, 2, 0]]
    features[:, 0] += shift
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    patients = np.array([f"{split}{number // 2}" for number in range(n)])
    return FeatureTable(features.astype(np.float32), labels, patients, np.array([f"{split}-{i}" for i in range(n)]))


def judge(task=SINGLE, prompts=PROMPTS, embed=embed, **options):
    val, test = (table(split, **options) for split in ("val", "test"))
    return zeroshot.zeroshot(val, test, task, NAMES, embed=embed, prompts=prompts, resamples=100)


@pytest.mark.parametrize(
    "task",
    [
        SINGLE,
        Task("binary", positive=("Mass",), negative=("Normal",)),
        Task("binary", positive=("Mass", "Edema")),
        Task("multiclass", labels=NAMES),
    ],
    ids=["multilabel", "against", "denied", "multiclass"],
)
def test_a_space_that_knows_is_perfect_and_noise_is_chance(task):
    perfect = judge(task, {**PROMPTS, "Normal": {"positive": ("Normal.",), "negative": ("No normal.",)}})
    assert perfect.metrics["auroc"].value > 0.97
    assert perfect.metrics["accuracy"].value > (0.75 if task.negative == () and task.kind == "binary" else 0.9)
    noise = judge(task, informative=False, n=200)
    assert noise.metrics["auroc"].low < 0.5 < noise.metrics["auroc"].high
    assert noise.metrics["auroc"].n == len(noise.predictions)


def test_negation_decides():
    """With for and against exchanged the ranking turns round."""
    exchanged = {
        label: {"positive": sides.get("negative"), "negative": sides["positive"]} for label, sides in PROMPTS.items()
    }
    assert judge(prompts=exchanged).metrics["auroc"].value < 0.03


def test_thresholds_make_accuracy_mean_something():
    """All pictures far on the side of a mass: ranks are as before, and so is accuracy, which at 0 would be one half."""
    shifted = judge(shift=3.0)
    assert shifted.details["thresholds"]["Mass"] > 0.5
    assert shifted.metrics["auroc/Mass"].value > 0.97 and shifted.metrics["balanced_accuracy/Mass"].value > 0.9
    scores = shifted.predictions["score/Mass"]
    assert ((scores >= 0.5) == shifted.predictions["target/Mass"]).mean() > 0.9


def test_threshold_by_hand():
    """Absent at 1, 2 and 4, present at 3, 5 and 6: between 4 and 5 it is right for all absent and two of three present
    (5/6), between 2 and 3 for two of three absent and all present (5/6): the lower is taken. What is masked is not
    looked at."""
    values = np.array([[0], [0], [1], [0], [1], [1], [-1]], np.int8)
    margin = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [2.4]])
    levels, notes = zeroshot.thresholds(Targets(("Mass",), values, np.ones(7, bool), []), margin)
    assert levels.tolist() == [2.5] and not notes
    values[3] = 1
    assert zeroshot.thresholds(Targets(("Mass",), values, np.ones(7, bool), []), margin)[0].tolist() == [2.5]
    values[:] = 0
    levels, (note,) = zeroshot.thresholds(Targets(("Mass",), values, np.ones(7, bool), []), margin)
    assert levels.tolist() == [0] and "'Mass'" in note and "negatives only, so the threshold stays at 0" in note


def test_the_test_split_has_no_say_in_the_threshold():
    val, test = table("val"), table("test", shift=1.0)
    same = zeroshot.zeroshot(val, test, SINGLE, NAMES, embed=embed, prompts=PROMPTS, resamples=10)
    alone = zeroshot.zeroshot(val, table("test"), SINGLE, NAMES, embed=embed, prompts=PROMPTS, resamples=10)
    assert same.details["thresholds"] == alone.details["thresholds"]


def test_ensemble_by_hand():
    """(1, 0) and (0, 1) give (√½, √½); the mean of scores would weigh sentences by their agreement instead."""
    np.testing.assert_allclose(zeroshot.ensemble(np.eye(2, dtype=np.float32)), [0.5**0.5, 0.5**0.5])
    three = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    np.testing.assert_allclose(zeroshot.ensemble(three), [2 / 5**0.5, 1 / 5**0.5])
    assert not np.any(zeroshot.ensemble(np.array([[1, 0], [-1, 0]], np.float32)))


def test_scores_by_hand():
    """One label, one picture: σ((cos − cos − θ) / τ) with the sentences written out."""
    result = judge()
    picture, theta = table("test").features[0], result.details["thresholds"]["Mass"]
    positive = embed(["Mass.", "A large mass.", "A small mass."]).mean(0)
    margin = picture @ (positive / np.linalg.norm(positive) - embed(["No mass."])[0]) - theta
    row = result.predictions.set_index("image_id").loc["test-0"]
    assert row["score/Mass"] == pytest.approx(1 / (1 + np.exp(-margin / 0.07)), rel=1e-4)
    assert result.details["prompts"]["Mass"]["positive"] == ["Mass.", "A large mass.", "A small mass."]


def test_alternatives_stand_for_every_combination():
    assert zeroshot.expand("(small|large) (left|right) effusion") == [
        "small left effusion",
        "small right effusion",
        "large left effusion",
        "large right effusion",
    ]
    assert zeroshot.expand("(|mild )edema (see above).") == ["edema (see above).", "mild edema (see above)."]


def test_every_label_of_the_phantom_and_of_chexpert_has_prompts():
    for labels in (findings.LABELS, chexpert.LABELS):
        for positive, negative in zeroshot.sides(Task("multilabel"), labels, {}):
            said = positive + negative
            assert positive and negative and not set(positive) & set(negative)
            assert not any(mark in sentence for sentence in said for mark in "(|)")


def test_what_cannot_be_judged_is_said():
    for prompts, words in (
        ({}, r"no positive prompt for 'Hernia'; add prompts=\{'Hernia': .*prompts for \['Atelectasis'"),
        ({"Hernia": {"positive": "A hernia."}}, "no negative prompt for 'Hernia'"),
        ({"Hernia": "A hernia."}, "prompts of 'Hernia' are 'A hernia.'; expected"),
    ):
        with pytest.raises(ValueError, match=words):
            zeroshot.sides(Task("multilabel"), ["Hernia"], prompts)
    val, test = table("val"), table("test")
    shared = {"task": SINGLE, "label_names": NAMES, "embed": embed, "prompts": PROMPTS}
    with pytest.raises(ValueError, match="temperature > 0"):
        zeroshot.zeroshot(val, test, **shared, temperature=0)
    test.features[3, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 80 test pictures.*'test-3'"):
        zeroshot.zeroshot(val, test, **shared)
    with pytest.raises(ValueError, match="val0"):
        zeroshot.zeroshot(val, table("test")._replace(patient_ids=val.patient_ids), **shared)


def test_scaled_scores_are_platts_of_each_finding():
    plain, scaled = judge(), judge_scaled()
    val = table("val")
    for column, name in ((1, "Mass"), (2, "Edema")):
        stated, denied = (
            zeroshot.ensemble(embed(zeroshot.sentences(PROMPTS[name][side]))) for side in ("positive", "negative")
        )
        a, b = _sigmoid_calibration(val.features @ (stated - denied), val.labels[:, column])
        expected = 1 / (1 + np.exp(a * (table("test").features @ (stated - denied)) + b))
        np.testing.assert_allclose(scaled.predictions[f"score/{name}"], expected, atol=1e-3)
        assert scaled.details["temperatures"][name] == pytest.approx(-1 / a, rel=1e-2)
    for metric in ("auroc", "auprc"):
        assert scaled.metrics[metric].value == pytest.approx(plain.metrics[metric].value)
    assert set(scaled.details["score_thresholds"]) == {"Mass", "Edema"} and "coverage" in scaled.metrics


def judge_scaled():
    val, test = table("val"), table("test")
    options = {"embed": embed, "prompts": PROMPTS, "resamples": 20, "scaled": True, "cover": 0.8}
    return zeroshot.zeroshot(val, test, SINGLE, NAMES, **options)


def test_a_finding_that_sentences_get_wrong_is_not_turned_round():
    """Where larger margins are less likely, every picture gets about the rate of the label."""
    rng = np.random.default_rng(0)
    values = (rng.random(200) < 0.3).astype(np.int8)[:, None]
    key = Targets(("Mass",), values, np.ones(200, bool), [])
    levels, spread = zeroshot._explaining(key, -values + rng.normal(size=(200, 1)), np.zeros(1), np.full(1, 0.07))
    assert 1 / (1 + np.exp(levels[0] / spread[0])) == pytest.approx(values.mean(), abs=0.03) and spread[0] > 1e4
    levels, spread = zeroshot._explaining(key._replace(values=values * 0), rng.normal(size=(200, 1)), levels, spread)
    assert spread[0] > 1e4  # one value only: as given
