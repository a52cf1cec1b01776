"""Ark+: heads of their own sets, a step written out, what the teacher sees and when it moves, and the sets' labels."""

import jax
import numpy as np
import pytest
import torch

from cxrjax import initial, methods
from cxrjax.imaging import pixels
from cxrjax.input import converted_sets, crops, source
from cxrjax.phantom import findings
from tests import runs
from tests.methods import oracles

SHARED = {"set_heads__phantom__task": "multiclass"}
LABELS = len(findings.FINDINGS)


@pytest.fixture(scope="module")
def step():
    """A step on noise in the middle of the run; the pictures of `phantom_smoke` come first, one of each is unknown."""
    method = methods.make(oracles.config("ark", **SHARED), 10)
    shapes = jax.eval_shape(method.init, jax.random.key(0), None)
    params, state = (oracles.noise(tree, seed) for seed, tree in enumerate(shapes))
    labels, rng = np.full((8, LABELS), -1, np.int8), np.random.default_rng(0)
    of_phantom, of_smoke = slice(0, LABELS - 4), slice(LABELS - 4, None)  # heads in the order of their names
    labels[:4, of_smoke] = rng.integers(0, 2, (4, 4))
    labels[2, of_smoke] = -1
    labels[1, LABELS - 1] = -1
    labels[4:, of_phantom] = np.eye(LABELS - 4, dtype=np.int8)[rng.integers(0, LABELS - 4, 4)]
    labels[7, of_phantom] = 0
    batch = {"image": oracles.pictures(8), "labels": labels}
    prepared = jax.jit(method.parts.prepare)(batch, jax.random.key(0))
    features, _ = jax.jit(method.parts.embed)(params, state, prepared)
    return method, params, state, features, prepared


def test_a_step_is_its_terms_and_no_set_teaches_the_head_of_another(step):
    method, params, state, features, prepared = step
    of_loss = jax.jit(jax.value_and_grad(method.parts.loss_of, argnums=(0, 1), has_aux=True, allow_int=True))
    (_, aux), (gradient, to_state) = of_loss(params, state, features, prepared, 5)

    def linear(x, of):
        return x @ torch.tensor(np.asarray(of["kernel"])) + torch.tensor(np.asarray(of["bias"]))

    z = linear(torch.tensor(np.asarray(features["student"])), params["projector"]["fc1"])
    target = linear(torch.tensor(np.asarray(features["teacher"])), state["target"]["projector"]["fc1"])
    labels = torch.tensor(np.float32(prepared["labels"]))
    multiclass, binary = linear(z, params["heads"]["phantom"]), linear(z, params["heads"]["phantom_smoke"])
    total = torch.nn.functional.cross_entropy(multiclass[4:7], labels[4:7, :-4].argmax(dim=1), reduction="sum")
    answers = labels[:4, -4:]
    known = answers >= 0
    each = torch.nn.functional.binary_cross_entropy_with_logits(binary[:4], answers.clamp(min=0), reduction="none")
    total = total + 3 * each[known].mean()  # of three pictures something is known
    assert float(aux.monitors["consistency_weight"]) == pytest.approx(0.25)  # half of the way to a half
    assert float(aux.terms["cross_entropy"]) == pytest.approx(0.75 * float(total) / 6, rel=1e-4)
    assert float(aux.terms["consistency"]) == pytest.approx(0.25 * float(((z - target) ** 2).mean()), rel=1e-4)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(to_state["target"]))
    assert all(np.any(gradient["heads"][name]["kernel"]) for name in ("phantom", "phantom_smoke"))

    without = {**prepared, "labels": prepared["labels"].at[4:].set(-1)}
    gradient = of_loss(params, state, features, without, 5)[1][0]
    assert not np.any(gradient["heads"]["phantom"]["kernel"]) and np.any(gradient["heads"]["phantom_smoke"]["kernel"])


def test_the_teacher_sees_the_picture_and_the_student_a_changed_crop():
    plain = methods.make(oracles.config("ark"), 10)
    jittered = methods.make(runs.config("ark", augment__jitter=1.0), 10)
    batch = {"image": oracles.pictures(8), "labels": np.zeros((8, LABELS), np.int8)}
    seen = [jax.jit(each.parts.prepare)(batch, jax.random.key(0)) for each in (plain, jittered)]
    np.testing.assert_array_equal(seen[0]["teacher"], seen[1]["teacher"])
    assert np.abs(seen[0]["student"] - seen[1]["student"]).max(axis=(1, 2, 3)).min() > 0

    wide = np.random.default_rng(0).integers(0, 255, (40, 56), np.uint8)
    example = {"image": pixels.encode(wide, "png"), "set": ""}
    for view, equal in (("whole", True), ("crop", False)):
        method = methods.make(oracles.config("ark", teacher_view=view), 10)
        image = method.views(example, np.random.default_rng(0))["image"]
        assert image.shape == (2, 32, 32, 1)
        assert np.array_equal(image[1, ..., 0], crops.fit(wide, 32)) == equal


def test_the_teacher_moves_every_so_many_steps():
    method = methods.make(runs.config("ark", update_every_steps=3, momentum=0.75), 10)
    params, state = ({"encoder": np.float32(v), "projector": np.float32(v)} for v in (1, 0))
    moved = [float(method.after(params, {"target": state}, step)["target"]["encoder"]) for step in range(4)]
    assert moved[:2] == [0, 0] and moved[3] == 0 and 0.2 < moved[2] < 0.25  # a little less than 1 − 0.75


def test_the_teacher_encodes():
    method = methods.make(runs.config("ark"), 10)
    shapes = jax.eval_shape(method.init, jax.random.key(0), None)
    params, state = (oracles.noise(tree, seed) for seed, tree in enumerate(shapes))
    encode, images = jax.jit(method.encode), oracles.pictures(2)[:, 0]
    found, other = encode(params, state, images)["pooled"], {**state, "target": oracles.noise(state["target"], 9)}
    np.testing.assert_array_equal(encode(oracles.noise(params, 9), state, images)["pooled"], found)
    assert np.abs(encode(params, other, images)["pooled"] - found).max() > 0.1
    np.testing.assert_array_equal(method.encoder(params, state)["cls"], state["target"]["encoder"]["cls"])


def test_it_starts_as_a_copy_or_not():
    for word, equal in (("copy", True), ("independent", False)):
        method = methods.make(runs.config("ark", target_start=word), 10)
        params, state = jax.jit(method.init)(jax.random.key(0), None)
        target = state["target"]["projector"]["fc1"]["kernel"]
        assert np.array_equal(params["projector"]["fc1"]["kernel"], target) == equal


def test_heads_are_those_of_the_sets_that_are_trained_on(phantom_dir, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    every = converted_sets.open_set("phantom").label_names
    config = initial.of_run(runs.config("ark", ""))
    assert config.set_heads.to_dict() == {"phantom": {"labels": ",".join(every), "task": "multilabel"}}
    config = initial.of_run(runs.config("ark", data__sets="phantom"))  # smoke has two, of other labels
    assert list(config.set_heads) == ["phantom"] and config.set_heads.phantom.labels == ",".join(findings.FINDINGS[4:])

    records = source.select(converted_sets.open_set("phantom"), "train")
    config = runs.config("ark", data__sets="phantom")
    views, rng = methods.make(config, 10).views, np.random.default_rng(0)
    labels = np.stack([views(records[i], rng)["labels"] for i in range(8)])
    codes = np.stack([records[i]["labels"] for i in range(8)])
    wanted = [every.index(name) for name in findings.FINDINGS[4:]]
    assert (labels[:, -4:] == -1).all()  # of the other set
    np.testing.assert_array_equal(labels[:, :-4] == 1, np.isin(codes[:, wanted], (1, -1)))  # U-Ones

    config.set_heads.phantom.labels = "Mass,Gout"
    with pytest.raises(ValueError, match=r"set_heads.phantom names \['.*Gout.*\], which it has not; the labels"):
        methods.make(config, 10).views(records[0], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"set_heads__phantom__task": "binary"},
            "set_heads.phantom.task must be 'multilabel' or 'multiclass', got 'binary'",
        ),
        ({"set_heads__phantom__labels": "a,a"}, "set_heads.phantom.labels = 'a,a'.* each once"),
        ({"set_heads__phantom__labels": "a", **SHARED}, "a multiclass head needs at least 2"),
        ({"uncertain": "U-Two"}, "'U-Two' for uncertain labels is not known"),
        ({"teacher_view": "all"}, "teacher_view must be 'whole' or 'crop'"),
    ],
)
def test_mistakes_are_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        methods.make(runs.config("ark", **changes))
    with pytest.raises(ValueError, match="there are no heads: the command makes one for each of data.sets"):
        methods.make(runs.config("ark", ""))
