"""Temperatures against a search, conformal sets against a loop, and what these hold on new pictures."""

import numpy as np
import pandas
import pytest
import scipy.special

from cxrjax.evals import certainty, probe
from cxrjax.evals.base import FeatureTable, Result, Targets, Task


def drawn(n, c=1, seed=0, overconfident=1.0):
    """Targets n c drawn from probabilities, and these with their logits multiplied."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, c))
    values = (rng.random((n, c)) < scipy.special.expit(logits)).astype(np.int8)
    return values, scipy.special.expit(overconfident * logits)


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_the_temperature_undoes_what_made_a_model_overconfident(kind):
    values, scores = drawn(4000, 3, overconfident=4)
    if kind == "multiclass":
        logits = np.random.default_rng(1).normal(0, 1.5, (4000, 3))
        chosen = (np.random.default_rng(2).gumbel(size=logits.shape) + logits).argmax(axis=1)  # drawn from the softmax
        values, scores = np.eye(3, dtype=np.int8)[chosen], scipy.special.softmax(4 * logits, axis=1)
    else:
        values[::7] = -1
    found = certainty.temperature(kind, values, scores)
    assert 3.6 < found < 4.4

    def loss(t):
        after = certainty.tempered(kind, scores, t)
        right = after[values == 1] if kind == "multiclass" else np.where(values == 1, after, 1 - after)[values >= 0]
        return -np.log(right).mean()

    grid = np.exp(np.linspace(np.log(0.5), np.log(10), 60))
    assert loss(found) <= min(map(loss, grid)) + 1e-6


def test_a_temperature_keeps_the_order_and_what_is_over_one_half():
    _, scores = drawn(50, 2)
    after = certainty.tempered("multilabel", scores, 2.5)
    np.testing.assert_array_equal(after.argsort(axis=0), scores.argsort(axis=0))
    np.testing.assert_array_equal(after > 0.5, scores > 0.5)
    np.testing.assert_allclose(certainty.tempered("multilabel", scores, 1.0), scores)
    classes = scores / scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(certainty.tempered("multiclass", classes, 1.0), classes)
    np.testing.assert_allclose(
        certainty.tempered("multiclass", classes, 0.5), classes**2 / (classes**2).sum(1)[:, None]
    )


def test_sets_are_the_loop():
    values, val = drawn(40, 2)
    _, test = drawn(30, 2, seed=1)
    values[:5, 1] = -1
    found = certainty.sets("multilabel", values, val, test, 0.8)
    for c in range(2):
        for answer in (0, 1):
            known = sorted(
                (1 - s if answer else s) for s, v in zip(val[:, c], values[:, c], strict=True) if v == answer
            )
            limit = known[int(np.ceil((len(known) + 1) * 0.8)) - 1]
            expected = [(1 - s if answer else s) <= limit for s in test[:, c]]
            np.testing.assert_array_equal(found[:, c, answer], expected)


def test_sets_hold_as_many_answers_as_promised():
    """Over 300 draws of 60 validation pictures: the mean share is that of the theory, ⌈(n + 1) 0.9⌉ / (n + 1)."""
    held, promised = [], []
    for seed in range(300):
        values, val = drawn(60, seed=seed)
        new, test = drawn(200, seed=1000 + seed)
        found = certainty.sets("multilabel", values, val, test, 0.9)[:, 0]
        held.append(found[np.arange(200), new[:, 0]].mean())
        counts = [(values == answer).sum() for answer in (0, 1)]
        promised.append(sum((new == a).mean() * min(1, np.ceil((n + 1) * 0.9) / (n + 1)) for a, n in enumerate(counts)))
    assert abs(np.mean(held) - np.mean(promised)) < 0.01 and np.mean(held) > 0.9


def test_too_few_validation_pictures_make_no_promise():
    found = certainty.sets("multilabel", np.ones((5, 1), np.int8), np.linspace(0, 1, 5)[:, None], -np.ones((3, 1)), 0.9)
    assert found.all()  # five cannot promise nine in ten, and of "absent" there is none


def keyed(values):
    names = tuple("ab"[: values.shape[1]])
    return Targets(names, values, np.ones(len(values), bool), [])


def test_a_result_says_what_its_sets_hold():
    values, val = drawn(200, 2)
    new, test = drawn(100, 2, seed=5)
    new[0, 1] = -1
    keys = {"val": keyed(values), "test": keyed(new)}
    empty = Result({}, pandas.DataFrame({"image_id": np.arange(100)}), [])
    result = certainty.add(empty, "multilabel", keys, val, test, np.arange(100).astype(str), 0.9, 20, 0)
    said = result.predictions["set/a"].to_numpy()
    right = [
        text == "both" or text == ("absent", "present")[value] for text, value in zip(said, new[:, 0], strict=True)
    ]
    assert result.metrics["coverage/a"].value == pytest.approx(np.mean(right))
    sizes = [{"both": 2, "neither": 0}.get(text, 1) for text in said]
    assert result.metrics["set_size/a"].value == pytest.approx(np.mean(sizes))
    assert result.metrics["coverage/b"].n == 99 and result.metrics["coverage"].n == 100
    assert 0.8 < result.metrics["coverage"].value < 1 and result.details["cover"] == 0.9
    one = np.eye(2, dtype=np.int8)[np.random.default_rng(0).integers(2, size=200)]
    scores = np.where(one == 1, 0.7, 0.3)
    classes = {"val": keyed(one), "test": keyed(one[:100])}
    result = certainty.add(empty, "multiclass", classes, scores, scores[:100], np.arange(100), 0.9, 20, 0)
    assert result.metrics["coverage"].value == result.metrics["set_size"].value == 1
    assert result.predictions["set"].tolist() == ["ab"[row.argmax()] for row in one[:100]]


def test_the_probe_scales_and_covers():
    rng = np.random.default_rng(3)

    def table(split, n):
        labels = (rng.random((n, 1)) < 0.5).astype(np.int8)
        ids = np.array([f"{split}{k}" for k in range(n)])
        return FeatureTable((rng.normal(size=(n, 20)) + labels).astype(np.float32), labels, ids, ids)

    tables = {"train": table("a", 30), "val": table("b", 150), "test": table("c", 150)}
    given = {**tables, "task": Task("multilabel"), "label_names": ("x",), "strengths": (1e-6,), "resamples": 20}
    plain = probe.probe(**given)
    sure = probe.probe(**given, scaled=True, cover=0.8)
    assert sure.details["temperature"] > 1.5  # separable, so far too sure
    assert sure.metrics["auroc"] == plain.metrics["auroc"] and sure.metrics["accuracy"] == plain.metrics["accuracy"]
    assert 0.7 < sure.metrics["coverage"].value < 0.95 and "coverage" not in plain.metrics
    assert (abs(sure.predictions["score/x"] - 0.5) <= abs(plain.predictions["score/x"] - 0.5)).all()
    with pytest.raises(ValueError, match="cover=1 must be"):
        probe.probe(**given, cover=1)
    with pytest.raises(ValueError, match="give scaled=False"):
        probe.probe(**given, solver="ridge", scaled=True)
    assert "coverage" in probe.probe(**given, solver="ridge", cover=0.9).metrics
