"""Supervised training: whose labels count as what, the loss in PyTorch, and that encoding needs no set."""

import jax
import numpy as np
import pytest
import torch

from cxrjax import methods
from cxrjax.datasets import chestxray14
from cxrjax.input import converted_sets, source
from cxrjax.methods import supervised
from cxrjax.phantom import findings
from tests import runs
from tests.methods import oracles


def test_sets_and_labels_must_meet():
    sets = {"tb": ("Normal", "Tuberculosis"), "nih": ("Pneumonia", "No Finding")}
    assert supervised.of_sets(sets, ("Tuberculosis", "Pneumonia")) == sets
    with pytest.raises(ValueError, match=r"labels \['Mas'\] are in none of the sets .*tb: Normal, Tuberculosis; nih"):
        supervised.of_sets(sets, ("Tuberculosis", "Pneumonia", "Mas"))
    with pytest.raises(ValueError, match=r"sets \['nih'\] have none of the labels that the config names \(Normal\)"):
        supervised.of_sets(sets, ("Normal",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ""}, "labels = '' names 0 labels; a multilabel task needs at least 1"),
        ({"labels": "Mass,Mass"}, "each once"),
        ({"labels": "Mass", "task": "multiclass"}, "a multiclass task needs at least 2"),
        ({"policy": "U-Ignored"}, "'U-Ignored' for uncertain labels is not known"),
        ({"loss__weights": (1.0, 2.0)}, "2 numbers for 8 labels"),
    ],
)
def test_mistakes_are_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        methods.make(runs.config("supervised", **changes))


def test_views_bring_the_labels_in_the_configs_order(phantom_dir, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    records = source.select(converted_sets.open_set("phantom"), "train")
    method = methods.make(runs.config("supervised", data__sets="phantom", labels="Effusion,No Finding,Mass"))
    columns = [findings.LABELS.index(name) for name in ("Effusion", "No Finding", "Mass")]
    seen = [method.views(records[i], np.random.default_rng(0)) for i in range(20)]
    np.testing.assert_array_equal([row["labels"] for row in seen], [records[i]["labels"][columns] for i in range(20)])
    assert 0 < np.mean([row["labels"][1] for row in seen]) < 1
    assert seen[0]["image"].shape == (1, 32, 32, 1)
    elsewhere = methods.make(runs.config("supervised", data__sets="phantom", labels="Effusion,Effusions"))
    with pytest.raises(ValueError, match=r"labels \['Effusions'\] are in none of the sets"):
        elsewhere.views(records[0], np.random.default_rng(0))


@pytest.mark.parametrize("task", ["multilabel", "multiclass"])
def test_a_step_is_the_cross_entropy_of_the_head(task):
    """Value and gradients, with weights, smoothing and unknown labels; the logits are what encode gives."""
    weights = (2.0, 0.5, 3.0)
    changes = {"labels": "Mass,Edema,Effusion", "task": task, "loss__weights": weights}
    smoothing = 0.2 if task == "multilabel" else 0.0
    case = oracles.case(oracles.config("supervised", loss__smoothing=smoothing, **changes), views=1)
    codes = np.random.default_rng(0).integers(-1, 2, (16, 3)).astype(np.int8)
    if task == "multiclass":
        codes[:12] = np.eye(3, dtype=np.int8)[np.arange(12) % 3]  # the other four have any number of classes
    (loss, aux), (gradient, _), pooled = case.step(case.batch | {"labels": codes})

    y, head = oracles.leaf(pooled["online"][0]), {k: oracles.leaf(v) for k, v in case.params["head"].items()}
    logits = y @ head["kernel"] + head["bias"]
    if task == "multilabel":
        target = torch.tensor(codes == 1).float() * (1 - smoothing) + smoothing / 2
        each = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, target, pos_weight=torch.tensor(weights), reduction="none"
        )
        expected = each[torch.tensor(codes >= 0)].mean()
    else:
        one = (codes == 1).sum(axis=1) == 1
        expected = torch.nn.functional.cross_entropy(
            logits[torch.tensor(one)], torch.tensor(codes[one].argmax(axis=1)), weight=torch.tensor(weights)
        )
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    for name, found in head.items():
        oracles.close(gradient["head"][name], found.grad)
    oracles.check_encoder(case.params, gradient, [y])
    assert float(aux.monitors["known_labels"]) == pytest.approx((codes >= 0).mean())
    if task == "multiclass":
        out = jax.eval_shape(case.method.encode, case.params, case.state, case.batch["image"][:, 0])
        assert out["logits"].shape == (16, 3)


def test_configs_name_the_labels_of_their_sets():
    assert runs.config("supervised", "chestxray14").labels.split(",") == list(chestxray14.FINDINGS)
    assert set(runs.config("supervised", "").labels.split(",")) == set(findings.LABELS) - {"No Finding"}


@pytest.mark.slow
def test_fits_the_labels_it_is_told():
    """Random answers to 32 pictures are learned by heart, unknown ones aside."""
    method = methods.make(oracles.config("supervised", labels="Mass,Edema"))
    codes = np.random.default_rng(0).integers(-1, 2, (32, 2)).astype(np.int8)
    batch = {"image": oracles.pictures(32, 1), "labels": codes}
    params, state, reports = oracles.learn(method, batch, 80)
    assert reports[0]["loss"] > 0.6 and reports[-1]["loss"] < 0.1
    logits = jax.jit(method.encode)(params, state, batch["image"][:, 0])["logits"]
    assert np.all(((np.asarray(logits) > 0) == (codes == 1))[codes >= 0])
