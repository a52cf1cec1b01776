"""Dice and IoU by hand, both conventions for empty masks, the mean mask, and the judge from pictures to files."""

import json

import cv2
import jax.numpy as jnp
import numpy as np
import pandas
import pytest

from cxrjax.evals import encoders, pictures, run, segment
from cxrjax.evals.base import Encoder, digest
from cxrjax.input import converted_sets, source


def counts(truth, predicted, both, known=None):
    truth = np.array(truth)
    known = np.ones(len(truth), bool) if known is None else np.array(known)
    return segment.Counts(truth, np.array(predicted)[:, None], np.array(both)[:, None], known)


def test_dice_and_iou_by_hand_under_both_conventions():
    """Half overlap; a miss; nothing there and nothing found; nothing there and something found; no mask at all."""
    found = segment.overlap(
        counts([100, 40, 0, 0, 50], [100, 10, 0, 7, 50], [50, 0, 0, 0, 50], [True, True, True, True, False]), 0
    )
    nan = np.nan
    np.testing.assert_allclose(found["dice_all"], [0.5, 0, 1, 0, nan])
    np.testing.assert_allclose(found["dice_present"], [0.5, 0, nan, nan, nan])
    np.testing.assert_allclose(found["iou_all"], [1 / 3, 0, 1, 0, nan])
    np.testing.assert_allclose(found["iou_present"], [1 / 3, 0, nan, nan, nan])


def test_dice_and_iou_are_those_of_pixels():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 6, 7, 1)).astype(np.float32)
    inside = np.where(rng.random((5, 6, 7, 1)) < 0.3, 255, 0).astype(np.uint8)
    inside[1], inside[2] = 0, pictures.UNKNOWN
    cuts = np.array([0.0, 1.0])
    found = segment.Counts(*(np.asarray(part) for part in segment._count(logits, inside, cuts)[:4]))
    np.testing.assert_array_equal(found.known, [True, True, False, True, True])
    for number, cut in enumerate(cuts):
        scores = segment.overlap(found, number)
        for i in (0, 3, 4):
            p, t = logits[i] >= cut, inside[i] == 255
            assert scores["dice_present"][i] == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))
            assert scores["iou_present"][i] == pytest.approx((p & t).sum() / (p | t).sum())


def test_a_pixel_at_the_threshold_is_inside():
    logits = np.array([-0.1, 0.0, 0.1], np.float32).reshape(1, 1, 3, 1)
    inside = np.full((1, 1, 3, 1), 255, np.uint8)
    truth, predicted, both, *_ = segment._count(logits, inside, np.array([0.0]))
    assert (truth.tolist(), predicted.tolist(), both.tolist()) == ([3], [[2]], [[2]])
    assert segment._inside(logits, 0.0).ravel().tolist() == [0, 1, 1]


def test_means_of_batches_weigh_the_last_pictures_more():
    scores = np.array([1.0, 1, 1, 0])
    assert segment.batch_means(scores, 3) == 0.5 and segment.batch_means(scores, 4) == 0.75


def test_the_mean_mask_leaves_out_what_is_not_known():
    masks = np.zeros((4, 2, 2, 1), np.uint8)
    masks[0], masks[1, 0], masks[2] = 255, 255, pictures.UNKNOWN
    mean = segment.mean_mask(iter([masks[:3], masks[[2, 2, 2]]]), 3)  # the last batch is filled up
    np.testing.assert_allclose(mean, [[1, 1], [0.5, 0.5]])
    found = segment.count_fixed(mean, iter([masks]), 4)
    half, whole = segment.THRESHOLDS.index(0.5), segment.THRESHOLDS.index(0.55)
    np.testing.assert_array_equal(found.predicted[0, [half, whole]], [4, 2])
    np.testing.assert_array_equal(found.both[:, whole], [2, 2, 0, 0])
    np.testing.assert_array_equal(found.known, [True, True, False, True])
    assert segment.best_threshold(found) == 0  # 4 of 4 and 2 of 4 against 2 of 4 and 2 of 2: (1 + ⅔) / 2 = (⅔ + 1) / 2
    with pytest.raises(ValueError, match="no training picture has a mask"):
        segment.mean_mask(iter([masks[2:3]]), 1)


def test_summary_is_the_mean_of_the_pictures_over_resampled_patients():
    table = pandas.DataFrame({"image_id": list("abcd"), "patient_id": list("xxyz"), "truth_px": 1})
    table["value/dice_present"] = [0.2, 0.4, np.nan, 0.9]
    table["value/iou_present"] = np.nan
    found = segment.summarise(table, resamples=500, seed=0)
    assert list(found) == ["dice_present"] and found["dice_present"].n == 3
    assert found["dice_present"].value == pytest.approx(0.5)
    assert found["dice_present"].low == pytest.approx(0.3) and found["dice_present"].high == pytest.approx(0.9)


def dark(target="mask", px=32):
    """An encoder whose mask is where the picture is dark: the lungs, more or less."""

    def encode(images):
        grey = images.astype(jnp.float32) / 255
        return {"pooled": grey.mean((1, 2)), "patches": grey, "mask_logits": 10 * (0.35 - grey)}

    return Encoder(encode, px, digest("dark", px), "dark", 3, target=target)


def entry(data_dir, **changes):
    judged = {"judge": "segment", "set": "phantom", "data_dir": str(data_dir), "projections": "PA,AP", "bootstrap": 20}
    return judged | changes


def test_the_judge_writes_what_it_found_and_names_its_conventions(phantom_dir, tmp_path):
    result = run.evaluate(dark(), entry(phantom_dir, batch_size=3), tmp_path)
    folder = tmp_path / "evals" / "phantom-mask-segment" / "3"
    report = json.loads((folder / "results.json").read_text())
    table = pandas.read_parquet(folder / "predictions.parquet")
    chosen = source.select(converted_sets.open_set("phantom", phantom_dir), "test", projections=("PA", "AP"))
    assert list(table["image_id"]) == list(chosen.table["image_id"])
    rows = [pictures.fitted(chosen[i], None, 32, what) for i in range(len(chosen)) for what in ("image", "mask")]
    for i, (image, mask) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        p, t = image["pixels"] <= 0.35 * 255, mask["pixels"] == 255
        assert 2 * (p & t).sum() / (p.sum() + t.sum()) == pytest.approx(table["value/dice_present"][i])
        drawn = cv2.imdecode(np.frombuffer(table["overlay/mask"][i], np.uint8), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(drawn, 255 * p[..., 0])
    assert report["metrics"]["dice_present"]["value"] == pytest.approx(table["value/dice_present"].mean())
    gain = report["metrics"]["dice_present"]["value"] - report["metrics"]["mean_mask"]["value"]
    assert report["metrics"]["gain"]["value"] == pytest.approx(gain)
    assert any("masks are empty" in note and "dice_all" in note for note in report["notes"])
    assert report["details"]["threshold"] == 0.5 and 0 < report["details"]["validation"]["dice_present"] < 1
    scalars = run.scalars(entry(phantom_dir), result)
    assert scalars["eval/phantom/mask/segment_val_dice_present"] == report["details"]["validation"]["dice_present"]
    assert scalars["eval/phantom/mask/segment_dice_all"] == result.metrics["dice_all"].value


def test_a_threshold_can_be_chosen_on_the_validation_pictures(phantom_dir, tmp_path):
    shifted = dark()
    encode = shifted.encode
    shifted = shifted._replace(encode=lambda images: {"mask_logits": encode(images)["mask_logits"] + 5})
    found = [run.evaluate(shifted, entry(phantom_dir, threshold=t), tmp_path / str(t)) for t in (0.5, 0)]
    assert found[1].details["threshold"] > 0.6
    assert found[1].details["validation"]["dice_present"] > found[0].details["validation"]["dice_present"]


def test_mistakes_are_explained(phantom_dir, tmp_path):
    broken = dark()._replace(encode=lambda images: {"mask_logits": jnp.full((len(images), 32, 32, 1), jnp.nan)})
    for encoder, changes, words in (
        (encoders.pixels(), {}, "'pixels-32' makes no masks; judge a run of the method 'segment'"),
        (dark("mask_heart"), {}, "has no 'mask_heart'; it has .*finding_mask"),
        (broken, {}, "NaN or infinite, .* is the first"),
        (dark(), {"task": {"kind": "multilabel"}}, "judge 'segment' takes no task, got .*config.target of the run"),
    ):
        with pytest.raises(run.EvaluationError, match=words):
            run.evaluate(encoder, entry(phantom_dir, **changes), tmp_path)
