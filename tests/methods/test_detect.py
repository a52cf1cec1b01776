"""Detection: boxes follow their pictures into a batch, a frozen encoder stays as it is, planted nodules are found."""

import jax
import numpy as np
import pandas
import pytest

from cxrjax import methods
from cxrjax.evals import detect
from cxrjax.imaging import pixels
from cxrjax.input import converted_sets, crops, source
from tests import runs
from tests.methods import oracles


def example(image, found, labels, name="some"):
    boxes = {"bbox": np.asarray(found, np.float32), "label": labels, "reader": [""] * len(labels)}
    return {"image": pixels.encode(image, "png"), "set": name, "image_id": "p1", "boxes": boxes}


def test_views_bring_the_wanted_boxes(phantom_dir):
    """Of the named labels, in their order; whole pictures keep relative boxes as they are stored."""
    records = source.select(converted_sets.open_set("phantom", phantom_dir), "train")
    whole = {"views__scale": (1.0, 1.0), "views__flip": 0.0}
    method = methods.make(runs.config("detect", labels="Nodule,Effusion", **whole))
    rows = [method.views(records[i], np.random.default_rng(0)) for i in range(20)]
    for row, record in zip(rows, records, strict=False):
        kept = [i for i, name in enumerate(record["boxes"]["label"]) if name in ("Nodule", "Effusion")]
        assert row["image"].shape == (1, 32, 32, 1) and row["boxes"].shape == (10, 4)
        np.testing.assert_allclose(row["boxes"][: len(kept)], record["boxes"]["bbox"][kept], atol=1e-6)
        expected = [("Nodule", "Effusion").index(record["boxes"]["label"][i]) for i in kept]
        assert row["classes"].tolist() == expected + [-1] * (10 - len(kept))
    assert sum((row["classes"] >= 0).sum() for row in rows) > 3
    blank = methods.blank_batch(method)
    assert blank["classes"].max() == -1


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        ("smoke", {"labels": "Mass,Mass"}, "names a label twice"),
        ("smoke", {"head__kind": "yolov3"}, "head.kind is 'yolov3'; it is 'yolov3' on a ResNet, 'dense' on a ViT"),
        ("resnet,smoke", {"head__kind": "dense"}, "head.kind is 'dense'"),
        ("smoke", {"encoder": "fixed"}, "encoder must be one of"),
    ],
)
def test_mistakes_are_explained(words, changes, message):
    with pytest.raises(ValueError, match=message):
        methods.make(runs.config("detect", words, **changes))


def test_too_many_boxes_are_named():
    method = methods.make(runs.config("detect", boxes__most=1, labels="", views__scale=(1.0, 1.0)))
    given = example(np.zeros((40, 40), np.uint8), [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], ["a", "b"])
    with pytest.raises(ValueError, match="picture 'p1' has 2 boxes and boxes.most is 1"):
        method.views(given, np.random.default_rng(0))


def test_mgcas_protocol_has_its_numbers():
    """224 px, frozen ResNet-50, width 512, a score and an overlap of 0.5; the defects only where they are asked for."""
    strict, compat = (runs.config("eval_mgca_detection", words) for words in ("", "compat"))
    assert (strict.model.variant, strict.model.image_px, strict.head.width) == ("resnet50", 224, 512)
    assert (strict.answer.confidence, strict.answer.overlap) == (0.5, 0.5)
    assert strict.encoder == "frozen" and strict.head.score == "product" and strict.loss.assign == "best_prior"
    assert not strict.loss.inclusive_iou and not strict.loss.object_is_background
    assert compat.encoder == "drifting" and compat.head.score == "object" and compat.loss.assign == "best_of_level"
    assert compat.loss.inclusive_iou and compat.loss.object_is_background
    assert compat.answer.inclusive_iou and not strict.answer.inclusive_iou
    assert (strict.batch_size, strict.optim.lr, strict.optim.wd) == (16, 5e-4, 1e-6)
    few = runs.config("eval_mgca_detection", "one_percent,object_cxr")
    assert (few.batch_size, few.optim.lr, few.boxes.most, few.data.fraction) == (8, 2.5e-4, 20, 0.01)


@pytest.mark.parametrize("mode", ["frozen", "drifting"])
def test_frozen_means_frozen(mode):
    """A step changes the head alone, bit for bit; "drifting" moves BatchNorm's statistics, as MGCA's code does."""
    method = methods.make(runs.config("detect", "resnet,smoke", encoder=mode, labels=""))
    shapes = jax.eval_shape(method.init, jax.random.key(0), methods.blank_batch(method))
    params, state = (oracles.noise(tree, seed) for seed, tree in enumerate(shapes))
    assert not jax.tree.leaves(params["encoder"])
    batch = {"image": oracles.pictures(4, 1), "boxes": np.zeros((4, 3, 4), np.float32)}
    batch |= {"classes": np.zeros((4, 3), np.int32)}
    batch["boxes"][..., 2:] = np.random.default_rng(0).uniform(0.1, 0.9, (4, 3, 2))
    value, aux = jax.jit(lambda: method.loss(params, state, batch, jax.random.key(0), 0))()
    assert np.isfinite(value)
    jax.tree.map(np.testing.assert_array_equal, aux.state["frozen"], state["frozen"])
    same = jax.tree.map(np.array_equal, aux.state["batch_stats"], state["batch_stats"])
    assert set(jax.tree.leaves(same["encoder"])) == {mode == "frozen"}
    assert set(jax.tree.leaves(same["head"])) == {False}


def planted(records, count, rng):
    """Phantoms with one or two bright discs, 6 to 14 of 64 px wide and apart, and the boxes around them."""
    rows, columns = np.mgrid[:64, :64]
    for i in range(count):
        image = crops.resize(crops.decode(records[i]["image"]), 64, 64).astype(float)
        found = []
        for side in range(rng.integers(1, 3)):
            radius = rng.integers(3, 8)
            y, x = rng.integers(radius + 2, 62 - radius), rng.integers(radius + 1, 31 - radius) + 32 * side
            inside = (rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 <= radius**2
            image[inside] = 255 - 0.3 * (255 - image[inside])
            found.append(np.array([y - radius, x - radius, y + radius, x + radius]) / 64)
        yield example(np.clip(image, 0, 255).astype(np.uint8), found, ["Nodule"] * len(found))


@pytest.mark.slow
@pytest.mark.parametrize(("words", "lr"), [("smoke", 2e-3), ("resnet,smoke", 3e-3)])
def test_planted_nodules_are_found(phantom_dir, words, lr):
    """mAP at an IoU of 0.5 on the phantoms trained on, by either head."""
    records = source.select(converted_sets.open_set("phantom", phantom_dir), "train")
    changes = {"model__image_px": 64, "labels": "Nodule", "views__scale": (1.0, 1.0), "views__flip": 0.0}
    config = oracles.config("detect", words, **changes)
    if "resnet" not in words:
        config.model.patch_px = 8
    method = methods.make(config)
    examples = list(planted(records, 24, np.random.default_rng(0)))
    seen = [method.views(each, np.random.default_rng(0)) for each in examples]
    batch = {name: np.stack([row[name] for row in seen]) for name in seen[0]}
    params, state, reports = oracles.learn(method, batch, 250, lr)
    answer = jax.device_get(jax.jit(method.encode)(params, state, batch["image"][:, 0]))
    kept = answer["classes"] >= 0
    table = pandas.DataFrame(
        {
            "true_boxes": [each["boxes"]["bbox"].tolist() for each in examples],
            "true_labels": [each["boxes"]["label"] for each in examples],
            "boxes": [row[k].tolist() for row, k in zip(answer["boxes"], kept, strict=True)],
            "scores": [row[k].tolist() for row, k in zip(answer["scores"], kept, strict=True)],
            "labels": [["Nodule"] * int(k.sum()) for k in kept],
        }
    )
    names, statistic = detect.measures(table)
    found = dict(zip(names, statistic(np.ones((len(table), 1)))[:, 0], strict=True))
    print({"loss": [reports[i]["loss"] for i in (0, 60, 120, -1)], **found})
    assert found["map50"] > 0.9
