"""Planted shortcuts are found by the references that look at nothing but them, and are gone with what was planted."""

import cv2
import numpy as np
import pytest

from cxrjax.evals import probe, shortcuts, shuffled
from cxrjax.evals.base import Encoder, FeatureTable, Interval, Joint, Task
from cxrjax.input import converted_sets
from cxrjax.input import source as sources
from cxrjax.reporting import explained

QUICK = {"task": Task("multilabel", labels=("Mass",)), "label_names": ("Mass",), "resamples": 60}
QUICK |= {"solver": "ridge", "strengths": (0.01,)}


def example(rng, view="PA", sex="", age=-1, marker=False, device=False, height=64, width=48):
    """A picture of noise, which says nothing, with what is planted in it."""
    picture = rng.integers(60, 180, (height, width)).astype(np.uint8)
    if marker:
        picture[2:6, 2:6] = 255
    if device:  # another scanner: a brighter background
        picture[:4] = np.minimum(picture[:4].astype(int) + 40, 255)
    _, png = cv2.imencode(".png", picture)
    return {"image": png.tobytes(), "view": view, "sex": sex, "age": age}


def area(plant, follows):
    """The probe's AUROC on the metadata of 240 pictures of which `plant` (whether there is a mass -> what of it)."""
    tables = {}
    for number, split in enumerate(("train", "val", "test")):
        rng = np.random.default_rng([number, 7])
        present = rng.random(80) < 0.5
        told = present if follows else rng.random(80) < 0.5
        rows = [shortcuts.described(example(rng, **plant(one)), rng)["described"] for one in told]
        ids = np.array([f"{split}-{k}" for k in range(80)])
        tables[split] = FeatureTable(np.stack(rows), present[:, None].astype(np.int8), ids, ids)
    return probe.probe(**tables, **QUICK).metrics["auroc"]


@pytest.mark.parametrize(
    "plant",
    [
        lambda present: {"view": "AP" if present else "PA"},
        lambda present: {"sex": "F" if present else "M"},
        lambda present: {"age": 70 if present else 30},
        lambda present: {"age": 40 if present else -1},
        lambda present: {"width": 64 if present else 48},
        lambda present: {"marker": bool(present)},
        lambda present: {"device": bool(present)},
    ],
    ids=("view", "sex", "age", "unknown age", "size", "marker", "device"),
)
def test_a_planted_shortcut_is_found_by_1_and_is_nothing_where_it_does_not_go_with_the_label(plant):
    assert area(plant, follows=True).value == 1
    assert 0.3 < area(plant, follows=False).value < 0.7


def test_the_border_is_the_outermost_eighth_on_every_side():
    picture = np.zeros((64, 48), np.uint8)
    picture[8:56, 6:42] = 255  # the middle alone
    assert not any(shortcuts.border(picture))
    picture[:8, 42:] = 51  # the upper right corner
    values = np.reshape(shortcuts.border(picture), (8, 3))
    np.testing.assert_allclose(values[2], [0.2, 0, 0.2], atol=1e-9)
    assert not values[[0, 1, 3, 4, 5, 6, 7]].any()
    assert len(shortcuts.described(example(np.random.default_rng(0)), np.random.default_rng(0))["described"]) == 36


def seen_by(calls):
    """An encoder that keeps what it is shown."""

    def encode(images):
        calls.append(np.asarray(images))
        return {"pooled": np.zeros((len(images), 1), np.float32)}

    joint = Joint(encode, lambda *tokens: {}, lambda text: {}, lambda report: "")
    return Encoder(encode, 32, "d", "ours", step=5, joint=joint, attention=encode)


def test_a_blur_leaves_averages_in_both_spaces():
    calls = []
    encoder = shortcuts.of("blur", seen_by(calls))
    images = np.zeros((2, 32, 32, 1), np.uint8)
    images[0, ::2], images[1] = 200, 77  # lines that an average of 2 px makes grey
    encoder.encode(images), encoder.joint.image(images)
    for found in calls:
        assert found.shape == images.shape and found.dtype == np.uint8
        assert np.ptp(found[0, 4:-4]) < 60 and abs(found[0].mean() - 100) < 3 and (found[1] == 77).all()
    assert (encoder.name, encoder.step, encoder.attention) == ("blur-16", 0, None) and encoder.digest != "d"


@pytest.mark.parametrize("sees", ["image", "whole"])
def test_lungs_are_black_or_alone(phantom_dir, sees):
    """Where the encoder sees them: pictures and masks are fitted as its own are."""
    frontal = sources.select(converted_sets.open_set("phantom", phantom_dir), "test", projections=("PA", "AP"))
    calls = []
    ours = seen_by(calls)._replace(sees=sees)
    whole, without, alone = (
        np.concatenate(list(encoder.read(frontal, 4, 1e9)))[: len(frontal)].astype(int)
        for encoder in (
            ours._replace(read=lambda *given: shortcuts.pictures.batches(given[0], 32, given[1], sees)),
            shortcuts.of("without_lungs", ours),
            shortcuts.of("lungs", ours),
        )
    )
    np.testing.assert_array_equal(without + alone, whole)
    share = (alone > 0).mean()  # of the picture: the lungs are less than what is around them
    assert 0.05 < share < (without > 0).mean() and whole.shape == without.shape == (len(frontal), 32, 32, 1)


def test_pictures_without_masks_are_counted_and_refused(tmp_path, phantom_dir, monkeypatch):
    from tests import radiographs

    rows = [(f"{k}", f"p{k}", "train", radiographs.radiograph(k)) for k in range(3)]
    plain = sources.select(radiographs.write(tmp_path, "clinic", rows), "train")
    encoder = shortcuts.of("lungs", seen_by([]))
    with pytest.raises(shortcuts.NoMasks, match="the set 'clinic.*' has no masks of the lungs"):
        next(encoder.read(plain, 2, 1e9))
    frontal = sources.select(converted_sets.open_set("phantom", phantom_dir), "test", projections=("PA", "AP"))
    blank = np.full((4, 32, 32, 1), shortcuts.pictures.UNKNOWN, np.uint8)
    monkeypatch.setattr(shortcuts.pictures, "batches", lambda source, *_, **__: iter([blank] * -(-len(source) // 4)))
    with pytest.raises(shortcuts.NoMasks, match=f"^{len(frontal)} of {len(frontal)} test pictures of 'phantom' have"):
        next(encoder.read(frontal, 4, 1e9))


def test_references_of_an_encoder_need_one():
    assert shortcuts.of("metadata", None).name == "metadata"
    assert shortcuts.of("blur", None) is None and shortcuts.of("pixels", seen_by([])) is None


def table(split, patients=60):
    """Two pictures a patient, three of every third; the feature is the label itself."""
    owner = np.repeat(np.arange(patients), [3 if k % 3 == 0 else 2 for k in range(patients)])
    rng = np.random.default_rng([1, *split.encode()])
    labels = (rng.random(patients) < 0.4)[owner, None].astype(np.int8)
    ids = np.array([f"{split}{k}" for k in owner])
    return FeatureTable(labels.astype(np.float32), labels, ids, np.array([f"{split}-{k}" for k in range(len(owner))]))


def test_labels_are_exchanged_among_whole_patients():
    given = table("train")
    found = shuffled.exchanged(given, 3)
    for patient in np.unique(given.patient_ids):
        assert len(set(found.labels[found.patient_ids == patient, 0])) == 1
    assert (found.labels != given.labels).any() and abs(found.labels.mean() - given.labels.mean()) < 0.1
    np.testing.assert_array_equal(found.features, given.features)
    np.testing.assert_array_equal(found.labels, shuffled.exchanged(given, 3).labels)
    assert (found.labels != shuffled.exchanged(given, 4).labels).any()


def test_exchanged_labels_are_at_chance_and_a_leak_is_said():
    tables = {split: table(split) for split in ("train", "val", "test")}
    honest = probe.probe(**tables, **QUICK)
    assert honest.metrics["auroc"].value == 1 and "0.5 lies outside" in shuffled.note(honest)
    unknown = honest._replace(metrics={"auroc": Interval(0.6, float("nan"), float("nan"), 5)})
    assert "too few for an interval" in shuffled.note(unknown)
    moved = {split: shuffled.exchanged(one, 0) for split, one in tables.items()}
    found = probe.probe(**moved, **QUICK)
    assert found.metrics["auroc"].low <= 0.5 <= found.metrics["auroc"].high and "at chance" in shuffled.note(found)


def test_one_sentence_says_what_is_explained():
    def at(value, half=0.02):
        return Interval(value, value - half, value + half, 100)

    areas = {"ours": at(0.8), "metadata": at(0.6), "ours (blur-16)": at(0.74), "pixels-32": at(0.65), "else": at(0.9)}
    said = explained.sentence("ours", areas)
    assert said.startswith("Of the 0.300 by which the AUROC of ours lies above chance")
    assert "border 33%" in said and "averages 80%" in said and "32×32 pixels 50%" in said and "else" not in said
    assert "border 0%" in explained.sentence("ours", {"ours": at(0.8), "metadata": at(0.45)})
    assert explained.sentence("ours", {"ours": at(0.8), "pixels-32": at(0.6)}) == ""
    assert explained.sentence("ours", {"ours": None, "metadata": at(0.6)}) == ""
    assert "not clearly above chance" in explained.sentence("ours", {"ours": at(0.51), "metadata": at(0.6)})
