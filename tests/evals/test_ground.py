"""Maps on marks: a map that is the mask is perfect, noise is at chance, and what cannot be judged is named."""

import cv2
import numpy as np
import pytest
import sklearn.metrics

from cxrjax.drawing import style
from cxrjax.evals import ground, map_measures, pictures, run
from cxrjax.evals.base import Encoder, Joint
from cxrjax.evals.map_measures import centre_of_lungs, measures
from cxrjax.evals.registry import JUDGES
from cxrjax.input import converted_sets
from cxrjax.input import source as sources

PX = 32


def square(y, x, side=8, px=PX):
    inside = np.zeros((px, px), bool)
    inside[y : y + side, x : x + side] = True
    return inside


def test_every_measure_is_its_loop():
    rng = np.random.default_rng(0)
    for _ in range(3):
        found, inside = rng.normal(size=(8, 8)).round(1), square(*rng.integers(0, 24, 2), side=int(rng.integers(4, 8)))
        large = style.enlarge(found, PX, PX).astype(np.float64)
        stretched = (large - large.min()) / (large.max() - large.min())
        overlaps = []
        for at in (0.1, 0.2, 0.3, 0.4, 0.5):
            both = either = 0
            for value, within in zip(stretched.ravel(), inside.ravel(), strict=True):
                both, either = both + (value >= at and within), either + (value >= at or within)
            overlaps.append(both / either)
        contrast = large[inside].mean() - large[~inside].mean()
        expected = [
            inside.ravel()[large.argmax()],
            np.mean(overlaps),
            contrast / np.sqrt(large[inside].std() ** 2 + large[~inside].std() ** 2),
            sklearn.metrics.roc_auc_score(inside.ravel(), large.ravel()),
        ]
        np.testing.assert_allclose(measures(found, inside), expected, rtol=1e-6)


def test_a_map_that_is_the_mask_is_perfect_whatever_its_scale():
    inside = square(4, 12)
    for found in (inside.astype(float), 0.3 * inside - 0.1):
        pointing, overlap, contrast, area = measures(found, inside)
        assert (pointing, overlap, area) == (1, 1, 1) and np.isnan(contrast)  # without any variance
    pointing, overlap, contrast, area = measures(-inside.astype(float), inside)
    assert (pointing, overlap, area) == (0, 0, 0)
    pointing, overlap, contrast, area = measures(inside + np.random.default_rng(0).normal(0, 0.1, (PX, PX)), inside)
    assert 6 < contrast < 8  # 1 / (0.1 √2)


def test_a_flat_map_and_regions_without_an_edge():
    assert measures(np.ones((4, 4)), square(0, 0))[[1, 3]].tolist() == [0, 0.5]
    for nothing in (np.zeros((PX, PX), bool), np.ones((PX, PX), bool)):
        assert np.isnan(measures(np.eye(4), nothing)).all()
    with pytest.raises(ValueError, match="1 of the 16 values of a map are NaN"):
        measures(np.where(np.eye(4)[0, 0] + np.arange(16).reshape(4, 4) == 1, np.nan, 0), square(0, 0))


def test_the_middle_of_the_lungs():
    lungs = square(4, 4, 9) | square(4, 20, 7)
    found = centre_of_lungs((PX, PX), lungs)
    assert np.unravel_index(found.argmax(), found.shape) == (8, 8) and not found[~lungs].any()
    average = centre_of_lungs((100, 100))
    peaks = np.argwhere(average >= np.sort(average.ravel())[-4])
    assert set(map(tuple, peaks.tolist())) <= {(y, x) for y in (40, 41) for x in (29, 30, 69, 70)}
    np.testing.assert_allclose(average, average[:, ::-1])


def marked(count=40, seed=0):
    """A mark in each of `count` pictures, two pictures a patient; every tenth is a rare finding."""
    rng = np.random.default_rng(seed)
    found = [
        ground.Mark(row, "Rare" if row % 10 == 9 else "Mass", "", square(*rng.integers(0, 24, 2)))
        for row in range(count)
    ]
    ids = np.array([f"i{row}" for row in range(count)])
    return found, np.array([f"p{row // 2}" for row in range(count)]), ids


def test_planted_maps_are_1_and_random_ones_are_at_chance():
    given = marked(120)
    planted = ground.ground({n: mark.inside.astype(float) for n, mark in enumerate(given[0])}, *given, resamples=50)
    for name in ("pointing", "miou", "pixel_auroc"):
        assert planted.metrics[name][:3] == (1, 1, 1)
        assert planted.metrics[f"{name}/Mass"].n == 108
        gain, middle = planted.metrics[f"{name}_over_centre"], planted.metrics[f"{name}_centre"]
        assert gain.value == pytest.approx(1 - middle.value) and gain.low > 0
    noise = planted.metrics["pointing_random"]
    assert noise.low <= 64 / 1024 <= noise.high
    assert planted.metrics["pixel_auroc_random"].low < 0.5 < planted.metrics["pixel_auroc_random"].high
    table = planted.predictions
    assert table["value/miou"].mean() == 1 and table["value/miou/Mass"].isna().sum() == 12


def test_findings_of_a_picture_are_averaged_before_pictures():
    both = [ground.Mark(row, finding, "", square(0, 0)) for row, finding in ((0, "a"), (0, "b"), (1, "a"))]
    maps = dict(enumerate((square(0, 0), square(20, 20), square(20, 20))))
    ids = np.array(["x", "y"])
    result = ground.ground({n: found.astype(float) for n, found in maps.items()}, both, ids, ids, resamples=5)
    assert result.metrics["pointing"].value == 0.25 and result.details["marks"] == {"a": 2, "b": 1}


def test_what_cannot_be_judged_is_counted_and_named():
    marks, *ids = marked(40)
    maps = {n: mark.inside.astype(float) for n, mark in enumerate(marks)}
    maps[3] = np.full((4, 4), np.nan)
    marks[5] = marks[5]._replace(inside=np.zeros((PX, PX), bool))
    result = ground.ground(maps, marks, *ids, resamples=5)
    assert result.metrics["pointing"].n == 38 and result.metrics["pointing"].value == 1
    said = " ".join(result.notes)
    assert "1 of 40 marks were left out, 'i3' is the first: it has a map of NaN" in said
    assert "1 of 40 marks were left out, 'i5' is the first: it is no part" in said
    assert "'Rare' has no numbers of its own: it is marked in 4 patients" in said
    assert not any(name.endswith("/Rare") for name in result.metrics)
    with pytest.raises(ValueError, match="no mark is left to judge maps by; 40 of 40 marks"):
        ground.ground({n: np.full((4, 4), np.nan) for n in maps}, marks[:5] * 8, *ids)


@pytest.fixture(scope="module")
def frontal(phantom_dir):
    return sources.select(converted_sets.open_set("phantom", phantom_dir), "train", projections=("PA", "AP"))


def seeing(source, px=PX):
    """An encoder whose patches along the first axis are the union of a picture's boxes; every word is that axis."""
    fitted = np.concatenate(list(pictures.batches(source, px, len(source))))
    known = {one.tobytes(): np.zeros((px, px)) for one in fitted}
    for mark in ground.marks(source, "boxes", "", px):
        known[fitted[mark.row].tobytes()] += mark.inside

    def image(images):
        seen = np.stack([known[one.tobytes()] > 0 for one in np.asarray(images)]).astype(np.float32)
        return {"pooled": np.ones((len(seen), 2)), "patches": np.stack([seen, 1 - seen], axis=-1)}

    def text(ids, mask, word_index):
        words = np.tile(np.array([1.0, 0.0]), (len(ids), 3, 1)) * [[[1], [1], [0]]]
        return {"pooled": words[:, 0] * -1, "words": words, "word_mask": np.tile([True, True, False], (len(ids), 1))}

    tokens = dict.fromkeys(("ids", "text_mask", "word_index"), np.zeros(3, int))
    joint = Joint(image, text, lambda sentence: tokens, lambda report: "")
    attention = lambda images: image(images)["patches"][..., 0]  # noqa: E731
    return Encoder(image, px, "d", "seeing", joint=joint, attention=attention)


@pytest.mark.parametrize("maps", ["words", "attention", "sentence"])
def test_a_set_is_judged_by_its_boxes(frontal, phantom_dir, tmp_path, maps):
    entry = {"judge": "ground", "set": "phantom", "data_dir": str(phantom_dir), "split": "train", "bootstrap": 10}
    result = run.evaluate(seeing(frontal), entry | {"maps": maps, "projections": "PA,AP"}, tmp_path)
    marks = list(ground.marks(frontal, "boxes", "", PX))
    assert result.metrics["pointing"].n == len({mark.row for mark in marks}) == len(result.predictions) > 10
    areas = result.metrics["pixel_auroc"].value
    # The pooled vector of the sentence looks the other way.
    assert areas < 0.5 if maps == "sentence" else areas > 0.9
    assert result.metrics["pixel_auroc_centre"].value != result.metrics["pixel_auroc_random"].value
    assert 0 < result.metrics["pointing_centre"].value < 1


def test_masks_are_marks_of_one_finding(frontal):
    marks = list(ground.marks(frontal, "finding_mask", "Opacity", PX))
    assert {mark.finding for mark in marks} == {"Opacity"} and all(mark.inside.any() for mark in marks)
    assert len({mark.row for mark in marks}) == len(marks) < len(frontal)
    with pytest.raises(ValueError, match="no 'mask_heart'; it has"):
        next(ground.marks(frontal, "mask_heart", "Heart", PX))


def test_boxes_of_one_phrase_are_one_mark(frontal):
    example = dict(frontal[0])
    corners = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0.5, 0.5, 1], [0, 0, 1, 1]], np.float32)
    said = {"label": ["Mass"] * 4, "reader": ["", "", "", "R1"], "phrase": ["left", "left", "right", "left"]}
    example["boxes"] = {"bbox": corners, **said}
    found = ground._regions(example, "boxes", "", (8, 8))
    assert list(found) == [("Mass", "left"), ("Mass", "right")]
    assert [int((one > 0).sum()) for one in found.values()] == [32, 16]
    del example["boxes"]["phrase"]
    assert list(ground._regions(example, "boxes", "", (8, 8))) == [("Mass", "")]


def test_marks_are_fitted_as_the_encoder_sees_pictures():
    """The lower right quarter of an upright picture: a stretched one shows it as a quarter, the middle of one less."""
    image = cv2.imencode(".png", np.zeros((48, 32), np.uint8))[1].tobytes()
    box = {"label": ["Mass"], "bbox": np.array([[0.5, 0.5, 1.0, 1.0]], np.float32)}
    example = {"set": "any", "image_id": "one", "image": image, "boxes": box}
    whole, middle = (next(ground.marks([example], "boxes", "", 16, sees)).inside for sees in ("whole", "image"))
    np.testing.assert_array_equal(whole, np.kron([[0, 0], [0, 1]], np.ones((8, 8))))
    assert middle[8:, 8:].all() and middle.sum() == 64
    padded = next(ground.marks([example], "boxes", "", 24, "padded")).inside
    np.testing.assert_array_equal(padded, np.pad(np.ones((12, 8)), ((12, 0), (12, 4))))


def test_what_a_judge_of_maps_would_refuse(frontal, phantom_dir):
    entry = {"judge": "ground", "set": "phantom", "data_dir": str(phantom_dir)}
    for changes, words in (
        ({"maps": "saliency"}, "maps='saliency' is not known"),
        ({"target": "finding_mask"}, "say what it shows, such as finding="),
        ({"target": "mask_heart", "finding": "Heart"}, "no 'mask_heart'"),
    ):
        with pytest.raises(ValueError, match=words):
            run.check(entry | changes)
    blind = seeing(frontal)._replace(attention=None)
    with pytest.raises(ValueError, match="'seeing' has no map of attention"):
        ground._maps(blind, frontal, marked(1)[0], run.complete(entry | {"maps": "attention"}), 1e9)
    unknown = [ground.Mark(0, "Hernia", "", square(0, 0))]
    with pytest.raises(ValueError, match="no positive prompt for 'Hernia'"):
        ground._maps(blind, frontal, unknown, run.complete(entry), 1e9)
    assert JUDGES["ground"].splits == () and map_measures.MEASURES[0] == "pointing"
