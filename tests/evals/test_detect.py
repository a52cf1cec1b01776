"""Mean average precision: hand values, pycocotools' own summary, resamples as copies of pictures, and both modes."""

import contextlib
import io

import jax
import numpy as np
import pandas
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cxrjax import initial, methods, train
from cxrjax.datasets import schema
from cxrjax.evals import detect, encoders, run
from cxrjax.evals.base import Encoder
from cxrjax.input import boxes, converted_sets, source
from cxrjax.methods.base import Answers
from tests import runs

HALF = detect.THRESHOLDS.index(0.5)


def table(*rows, patients=None):
    """A row per picture: ([(box, label), …] of the truth, [(box, score, label), …] found)."""
    columns = {
        "image_id": [f"p{i}" for i in range(len(rows))],
        "patient_id": patients or [f"q{i}" for i in range(len(rows))],
        "true_boxes": [[list(box) for box, _ in truth] for truth, _ in rows],
        "true_labels": [[label for _, label in truth] for truth, _ in rows],
        "boxes": [[list(box) for box, _, _ in found] for _, found in rows],
        "scores": [[score for _, score, _ in found] for _, found in rows],
        "labels": [[label for *_, label in found] for _, found in rows],
    }
    return pandas.DataFrame(columns)


def judged(predictions, weights=None):
    names, statistic = detect.measures(predictions)
    weights = np.ones(len(predictions)) if weights is None else np.asarray(weights, float)
    return dict(zip(names, statistic(weights[:, None])[:, 0], strict=True))


def random_table(pictures=30, seed=0, labels=("a", "b")):
    """Boxes near the true ones, doubles, misses and false alarms, in pictures with and without a box."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(pictures):
        truth, found = [], []
        for _ in range(rng.integers(0, 4)):
            y, x = rng.uniform(0, 0.6, 2)
            box = np.array([y, x, *(np.array([y, x]) + rng.uniform(0.1, 0.4, 2))])
            label = labels[rng.integers(len(labels))]
            truth.append((box, label))
            for _ in range(rng.integers(0, 3)):
                found.append((box + rng.normal(0, 0.02, 4), float(rng.uniform()), label))
        for _ in range(rng.integers(0, 2)):
            y, x = rng.uniform(0, 0.5, 2)
            found.append(([y, x, y + 0.3, x + 0.3], float(rng.uniform()), labels[rng.integers(len(labels))]))
        rows.append((truth, found))
    return table(*rows)


def summary_of_coco(predictions, labels):
    """pycocotools as its users call it: loadRes, run, stats at its own ten IoUs."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth, annotations, results = COCO(), [], []
        for i, row in predictions.iterrows():
            for (y0, x0, y1, x1), label in zip(row.true_boxes, row.true_labels, strict=True):
                box = [x0, y0, x1 - x0, y1 - y0]
                area = {"id": len(annotations) + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                annotations.append({**area, "image_id": i + 1, "category_id": labels.index(label) + 1})
            for (y0, x0, y1, x1), score, label in zip(row.boxes, row.scores, row.labels, strict=True):
                found = {"image_id": i + 1, "category_id": labels.index(label) + 1, "score": score}
                results.append({**found, "bbox": [x0, y0, x1 - x0, y1 - y0]})
        truth.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(len(predictions))],
            "annotations": annotations,
            "categories": [{"id": i + 1} for i in range(len(labels))],
        }
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


TRUE = [0.1, 0.1, 0.5, 0.5]


def test_one_box_with_an_iou_of_062_is_five_of_eight():
    """Exact at 0.40, 0.45, 0.50, 0.55 and 0.60, and not from 0.65 on."""
    found = [0.1, 0.1, 0.5, 0.1 + 0.4 * 0.62]
    values = judged(table(([(TRUE, "any")], [(found, 0.9, "any")])))
    assert values["map"] == pytest.approx(5 / 8) and values["map50"] == pytest.approx(1.0)


def test_a_miss_counts_in_strict_mode_and_not_in_mgcas():
    """Alone it is 0 against no value; beside a picture that is right, recall stops at a half: 51 of 101 recalls."""
    miss, hit = ([(TRUE, "any")], []), ([(TRUE, "any")], [(TRUE, 0.9, "any")])
    alone = judged(table(miss))
    assert alone["map"] == 0 and np.isnan(alone["map_mgca_compat"])
    both = judged(table(miss, hit))
    assert both["map"] == pytest.approx(51 / 101) and both["map_mgca_compat"] == pytest.approx(1)


def test_a_false_alarm_on_a_picture_without_boxes_counts_in_strict_mode_only():
    """It comes first by its score, so that precision is a half where the box is found."""
    values = judged(table(([], [(TRUE, 0.95, "any")]), ([(TRUE, "any")], [(TRUE, 0.9, "any")])))
    assert values["map"] == pytest.approx(0.5) and values["map_mgca_compat"] == pytest.approx(1)


def test_mgcas_mode_drops_unsure_boxes_with_their_pictures():
    """A box with a score under 0.5 is a miss, and its picture is not counted unless another box there is sure."""
    unsure = ([(TRUE, "any")], [(TRUE, 0.4, "any")])
    other = [0.6, 0.6, 0.9, 0.9]
    mixed = ([(TRUE, "any"), (other, "any")], [(TRUE, 0.9, "any"), (other, 0.4, "any")])
    assert judged(table(unsure))["map"] == pytest.approx(1)
    assert np.isnan(judged(table(unsure))["map_mgca_compat"])
    assert judged(table(mixed, unsure))["map_mgca_compat"] == pytest.approx(51 / 101)


def test_a_score_of_one_half_is_sure():
    assert judged(table(([(TRUE, "any")], [(TRUE, 0.5, "any")])))["map_mgca_compat"] == pytest.approx(1)


def test_it_is_pycocotools_summary():
    """AP at an IoU of 0.5, and the mean over the thresholds that both have in common."""
    labels = ["a", "b"]
    for seed in range(3):
        predictions = random_table(seed=seed)
        assert judged(predictions)["map50"] == pytest.approx(summary_of_coco(predictions, labels)[1], abs=1e-9)


def test_classes_are_kept_apart():
    """A box of another class is no answer, and a class that no picture has a box of counts for nothing."""
    predictions = table(([(TRUE, "a")], [(TRUE, 0.9, "b")]), ([(TRUE, "b")], [(TRUE, 0.8, "b")]))
    values = judged(predictions)
    assert values["map/a"] == 0 and values["map/b"] == pytest.approx(0.5) and values["map"] == pytest.approx(0.25)
    assert "map/c" not in values


def test_a_resample_is_a_set_with_copies_of_its_pictures():
    """In both modes: weights 0, 1, 2, … against a table in which the pictures are there so many times."""
    predictions = random_table()
    weights = np.random.default_rng(1).integers(0, 4, len(predictions))
    copies = predictions.loc[np.repeat(np.arange(len(predictions)), weights)].reset_index(drop=True)
    expected, found = judged(copies), judged(predictions, weights)
    assert found.keys() == expected.keys() and found["map"] != judged(predictions)["map"]
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_intervals_resample_patients_and_name_what_is_left_out():
    predictions = random_table()
    predictions["patient_id"] = [f"q{i // 3}" for i in range(len(predictions))]
    found, counts, notes = detect.summarise(predictions, ("a", "b", "c"), 60, 0)
    for interval in found.values():
        assert interval.low <= interval.value <= interval.high and interval.low < interval.high
    some = int(predictions["true_labels"].map(len).gt(0).sum())
    assert counts["map"] == some and found["map"].n == 30 > found["map_mgca_compat"].n
    assert any("'c' was skipped" in note for note in notes)
    with pytest.raises(ValueError, match="no picture has a box of"):
        detect.summarise(table(([], [])), ("any",), 10, 0)


@pytest.fixture
def oracle(phantom_dir):
    """An encoder that knows every picture's boxes by its pixels, in the order and classes of ("Mass", "Nodule")."""
    converted, labels, known = converted_sets.open_set("phantom", phantom_dir), ("Mass", "Nodule"), {}
    for split in ("val", "test"):
        for example in source.select(converted, split):
            image = boxes.whole(detect.pictures.crops.decode(example["image"]), 64)
            known[image.tobytes()] = boxes.of_example(example, labels)

    def encode(images):
        rows = [boxes.pad(known[np.asarray(image)[..., 0].tobytes()], 6) for image in images]
        found, classes = (np.stack([row[name] for row in rows]) for name in ("boxes", "classes"))
        return {"boxes": found, "classes": classes, "scores": np.where(classes >= 0, 0.9, 0).astype(np.float32)}

    return Encoder(encode, 64, "oracle", "oracle", answers=Answers(labels, "boxes")), converted


def test_an_oracle_is_perfect_on_whole_pictures(oracle):
    """Through the judge: pictures as `boxes.whole` gives them, truth in the order of the records, classes by name."""
    encoder, converted = oracle
    sources = {split: source.select(converted, split) for split in ("val", "test")}
    result = detect.detect(encoder, sources, batch_size=4, resamples=20)
    assert result.metrics["map"].value == pytest.approx(1)
    assert result.details["validation"]["map"] == pytest.approx(1)
    assert result.predictions["image_id"].tolist() == sources["test"].table["image_id"].tolist()
    assert result.predictions["labels"].tolist() == result.predictions["true_labels"].tolist()
    found, sure = (detect.predict(encoder, sources["test"], 4, 2**30, confidence) for confidence in (0.9, 0.91))
    assert found["scores"].map(len).sum() == result.predictions["scores"].map(len).sum() > 0
    assert sure[["boxes", "labels", "scores"]].map(len).to_numpy().sum() == 0 < sure["true_boxes"].map(len).sum()
    with pytest.raises(ValueError, match="finds no boxes; judge a run of the method 'detect'"):
        detect.detect(encoders.pixels(), sources)
    broken = encoder._replace(encode=lambda images: jax.tree.map(lambda x: x * np.nan, encoder.encode(images)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        detect.predict(broken, sources["test"], 4, 2**30)


def test_pictures_that_readers_have_not_searched_are_left_out(oracle, phantom_dir, tmp_path, monkeypatch):
    """In training and judging alike: kept are those with a box of these labels, and the normal ones."""
    encoder, converted = oracle
    entry = {"judge": "detect", "set": "phantom", "data_dir": str(phantom_dir), "bootstrap": 5, "batch_size": 4}
    normal = converted.label_names.index("No Finding")

    def expected(split):
        records, found = source.select(converted, split), set()
        for i in range(len(records)):
            if {"Mass", "Nodule"} & set(records[i]["boxes"]["label"]) or records[i]["labels"][normal] == schema.PRESENT:
                found.add(records[i]["image_id"])
        return found, records

    result = run.evaluate(encoder, entry | {"require": "boxes or No Finding"}, tmp_path)
    wanted, records = expected("test")
    assert set(result.predictions["image_id"]) == wanted and 0 < len(wanted) < len(records)
    assert result.predictions["true_labels"].map(len).gt(0).sum() < len(wanted)
    assert f"test: {len(wanted)} of {len(records)} pictures have boxes or No Finding, as required" in result.notes
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    changes = {"data__sets": "phantom", "data__projections": "", "data__require": "boxes or No Finding"}
    config = runs.config("detect", "", labels="Mass,Nodule", **changes)
    config = initial.of_run(config)
    (chosen,), _ = train.training_sources(config, methods.make(config))
    assert set(chosen.table["image_id"]) == expected("train")[0]
    assert run.complete(config.evals.detect)["require"] == "boxes or No Finding", "judged as it is trained"
    with pytest.raises(run.EvaluationError, match="'pixels-32' finds no boxes"):
        run.evaluate(encoders.pixels(), entry | {"require": "boxes"}, tmp_path)
