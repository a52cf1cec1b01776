"""Segmentation: picture and mask stay together, frozen is frozen, and the terms are what the config weighs."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxrjax import methods
from cxrjax.evals import pictures
from cxrjax.imaging import pixels
from cxrjax.input import converted_sets, masks, source
from cxrjax.losses import segmentation
from cxrjax.methods.base import encoder_params
from cxrjax.methods.trunk import trunk
from cxrjax.phantom import phantom_set
from cxrjax.step import TrainState, make_step
from tests import runs
from tests.methods import oracles
from tests.methods.conftest import smooth_pictures


def example(image, mask, **changes):
    fields = {"set": "clinic", "image_id": "1", "has_mask": True}
    return {"image": pixels.encode(image, "png"), "mask": pixels.encode(mask, "png"), **fields, **changes}


def batch(count=4, px=32):
    """Pictures, and where they are bright as their masks; the last one's is not known."""
    images = smooth_pictures(count, px)
    return {"image": images, "mask": images[:, 0] > 140, "known": np.arange(count) < count - 1}


def test_picture_and_mask_go_through_the_same_geometry():
    """A picture that is its own mask stays it, but for what interpolation does at the border."""
    mask = np.zeros((90, 70), np.uint8)
    cv2.ellipse(mask, (30, 40), (14, 25), 20, 0, 360, 255, -1)
    method = methods.make(runs.config("segment", views__rotation_degrees=25.0, views__flip=0.5))
    places = set()
    for seed in range(20):
        row = method.views(example(mask, mask), np.random.default_rng(seed))
        image, inside = row["image"][0, ..., 0], row["mask"][..., 0]
        np.testing.assert_array_equal(image >= 128, inside)
        places.add(round(float(np.nonzero(inside)[1].mean())))
        assert row["known"] and row["image"].shape == (1, 32, 32, 1) and row["mask"].shape == (32, 32, 1)
    assert len(places) > 5, "and the geometry does change"


def test_what_a_picture_has_no_mask_of_is_not_known():
    picture, nothing = np.full((40, 40), 90, np.uint8), np.zeros((40, 40), np.uint8)
    boxes = {"bbox": np.array([[0.25, 0.5, 0.5, 1.0], [0, 0, 1, 1]]), "reader": ["", "R1"], "label": ["Mass", "Mass"]}
    given = example(picture, nothing, finding_mask=pixels.encode(nothing, "png"), boxes=boxes)
    given |= {"mask_heart": given["finding_mask"]}
    assert masks.mask(given, "mask", (40, 40))[1] and not masks.mask({**given, "has_mask": False}, "mask", (40, 40))[1]
    assert masks.mask(given, "finding_mask", (40, 40))[1] and not masks.mask(given, "mask_heart", (40, 40))[1]
    union, known = masks.mask(given, "boxes", (40, 40))
    assert known and union.sum() == 255 * 10 * 20 and union[10:20, 20:].all(), "the box of another reader is left out"
    with pytest.raises(ValueError, match=r"'clinic' has no 'mask_lung'; it has mask, finding_mask, boxes, mask_heart"):
        masks.mask(given, "mask_lung", (40, 40))
    with pytest.raises(ValueError, match=r"mask of '1' has \(40, 40\) px, its picture \(40, 41\)"):
        masks.mask(given, "mask", (40, 41))


def test_terms_are_the_weighed_losses_of_the_masks_that_encode_gives():
    """With the auxiliary head of UPerNet, whose running statistics nothing has moved yet, in its training form."""
    weights = {"dice": 1.0, "cross_entropy": 0.0, "focal": 2.0, "log_dice": 0.5}
    config = oracles.config("segment", loss=weights | {"gamma": 2.0})
    method, given = methods.make(config), batch()
    params, state = jax.jit(method.init)(jax.random.key(0), given)
    _, aux = jax.jit(method.loss)(params, state, given, jax.random.key(0), 0)
    assert set(aux.terms) == {"dice", "focal", "log_dice"}
    # UNETR has no BatchNorm: what it does in training is what encode does.
    logits = jax.jit(method.encode)(params, state, given["image"][:, 0])["mask_logits"]
    for name in aux.terms:
        expected = weights[name] * getattr(segmentation, name)(logits, given["mask"], given["known"])
        assert float(aux.terms[name]) == pytest.approx(float(expected), rel=1e-4)
    kept = given["known"]
    p, t = np.asarray(logits)[kept] > 0, given["mask"][kept]
    dice = 2 * (p & t).sum((1, 2, 3)) / np.maximum((p.sum((1, 2, 3)) + t.sum((1, 2, 3))), 1)
    assert float(aux.monitors["dice"]) == pytest.approx(dice.mean(), abs=1e-4)
    assert float(aux.monitors["known_masks"]) == 0.75


def test_the_auxiliary_head_counts_four_tenths():
    method = methods.make(runs.config("segment", head__kind="upernet", head__features=4))
    params, state = jax.eval_shape(method.init, jax.random.key(0), batch())
    _, aux = jax.eval_shape(method.loss, params, state, batch(), jax.random.key(0), 0)
    assert set(aux.terms) == {"dice", "cross_entropy", "auxiliary_dice", "auxiliary_cross_entropy"}
    out = jax.eval_shape(method.encode, params, state, batch()["image"][:, 0])
    assert out["mask_logits"].shape == (4, 32, 32, 1) and set(out) == {"pooled", "patches", "mask_logits"}


def a_head(name, encoder):
    """Smoke config of a head on a ResNet, whose BatchNorm has statistics to move."""
    given = {"model__variant": "resnet_test", "encoder": encoder}
    return oracles.config(name, **given, **({"head__features": 2} if name == "segment" else {"labels": "Mass,Edema"}))


@pytest.mark.parametrize("name", ["supervised", "segment"])
def test_frozen_means_frozen(name):
    """After training a head every array of the encoder is the same bit for bit, BatchNorm's statistics among them."""
    method = methods.make(a_head(name, "frozen"))
    given = batch() | {"labels": np.random.default_rng(0).integers(0, 2, (4, 2)).astype(np.int8)}
    params, state = jax.jit(method.init)(jax.random.key(0), given)
    state["batch_stats"]["encoder"] = oracles.noise(state["batch_stats"]["encoder"])
    assert not jax.tree.leaves(params["encoder"]), "params hold only what is learned"
    optimizer = optax.adamw(1e-2)
    start = TrainState(jnp.int32(0), params, state, optimizer.init(params))
    step = jax.jit(make_step(method, optimizer, jax.random.key(0)))
    after = start
    for _ in range(3):
        after, _ = step(after, given)
    for of in (lambda s: encoder_params(s.params, s.state), lambda s: s.state["batch_stats"]["encoder"]):
        assert jax.tree.leaves(of(start))
        jax.tree.map(np.testing.assert_array_equal, of(after), of(start))
    jax.tree.map(lambda a, b: np.testing.assert_(np.any(a != b)), after.params["head"], start.params["head"])


def test_an_encoder_runs_as_its_word_says():
    """Frozen: as in evaluation. Drifting: by the batch, with moving statistics. Learned: the same, and in params."""
    images, outputs = smooth_pictures(4, 32)[:, 0] / 255.0, {}
    for word in ("frozen", "drifting", "learned"):
        encoder = trunk(a_head("supervised", word))
        params, state = jax.jit(encoder.init)(jax.random.key(0))
        assert bool(jax.tree.leaves(params["encoder"])) == (word == "learned") == ("frozen" not in state)
        run = jax.jit(lambda p, s, train, e=encoder: e.apply(p, s, images, train=train), static_argnums=2)
        outputs[word], moved = run(params, state, True)
        still, _ = run(params, state, False)
        same = jax.tree.all(jax.tree.map(np.array_equal, moved, state["batch_stats"]["encoder"]))
        assert same == (word == "frozen") == np.array_equal(still["pooled"], outputs[word]["pooled"])
    np.testing.assert_allclose(outputs["drifting"]["pooled"], outputs["learned"]["pooled"], atol=1e-5)
    with pytest.raises(ValueError, match="encoder must be one of 'learned', 'frozen', 'drifting', got 'fixed'"):
        trunk(a_head("supervised", "fixed"))


def test_a_loss_that_weighs_nothing_is_refused():
    with pytest.raises(ValueError, match="weighs nothing; give one of dice, cross_entropy"):
        methods.make(runs.config("segment", loss__dice=0.0, loss__cross_entropy=0.0))


@pytest.mark.slow
def test_learns_the_lungs_of_eight_phantoms_by_heart(tmp_path):
    phantom_set.build(tmp_path, studies=24, short_side=64, progress=False)
    chosen = source.select(converted_sets.open_set("phantom", tmp_path), "train", projections=("PA", "AP"))
    what = ("image", "mask")
    rows = [{part: pictures.fitted(chosen[i], None, 32, part)["pixels"] for part in what} for i in range(8)]
    images = np.stack([row["image"] for row in rows])[:, None]
    given = {"image": images, "mask": np.stack([row["mask"] for row in rows]) == 255, "known": np.ones(8, bool)}
    method = methods.make(oracles.config("segment", head__features=8))
    params, state, reports = oracles.learn(method, given, 150, lr=3e-3)
    assert reports[0]["dice"] < 0.8
    logits = jax.jit(method.encode)(params, state, images[:, 0])["mask_logits"]
    p, t = np.asarray(logits) > 0, given["mask"]
    dice = 2 * (p & t).sum((1, 2, 3)) / (p.sum((1, 2, 3)) + t.sum((1, 2, 3)))
    assert dice.min() > 0.95
