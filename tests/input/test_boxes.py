"""Boxes move with their picture: a box drawn into the pixels is where its numbers say, after every crop."""

import numpy as np
import pytest

from cxrjax.input import boxes, crops


def example(found, labels, readers=None, name="some"):
    stored = {"bbox": np.asarray(found, np.float32), "label": labels, "reader": readers or [""] * len(labels)}
    return {"set": name, "boxes": stored}


def test_boxes_of_the_wanted_labels_and_the_common_answer():
    stored = [[0, 0, 0.1, 0.2], [0.3, 0.3, 0.4, 0.4], [0.5, 0.5, 0.6, 0.6], [0.7, 0.7, 0.9, 0.8]]
    given = example(stored, ["Mass", "Nodule", "Edema", "Mass"], ["", "", "", "R1"])
    found = boxes.of_example(given, ("Nodule", "Mass"))
    assert found.classes.tolist() == [1, 0] and boxes.labels(given) == ["Mass", "Nodule", "Edema"]
    np.testing.assert_array_equal(found.boxes, np.float32(stored[:2]))
    assert boxes.of_example(given, ()).classes.tolist() == [0, 0, 0]
    assert boxes.of_example(example([], []), ("Mass",)).boxes.shape == (0, 4)
    assert boxes.of_example({"set": ""}, ("Mass",)).boxes.shape == (0, 4)
    with pytest.raises(ValueError, match="the set 'plain' has no boxes"):
        boxes.of_example({"set": "plain"}, ("Mass",))


def test_a_set_without_readers_holds_the_answer_alone():
    given = example([[0, 0, 1, 1]], ["Mass"])
    del given["boxes"]["reader"]
    assert boxes.of_example(given, ("Mass",)).classes.tolist() == [0]


def test_reading_twice_gives_the_same_boxes():
    """MGCA's reader divides the stored boxes in place, so that they shrink with every epoch."""
    given, spec = example([[0.2, 0.3, 0.6, 0.5]], ["Mass"]), crops.Crop(16, scale=(1.0, 1.0))
    image = np.zeros((40, 20), np.uint8)
    rng = np.random.default_rng(0)
    once, twice = (boxes.crop(image, boxes.of_example(given, ()), rng, spec, 0.5)[1].boxes for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    np.testing.assert_allclose(once, [[0.2, 0.3, 0.6, 0.5]], atol=1e-6)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_box_drawn_into_the_pixels_stays_on_them(flip):
    """Windows of any place and shape: the bright rectangle's edges, read off the pixels, are the box."""
    spec = crops.Crop(128, scale=(0.4, 0.9), ratio=(0.6, 1.6), flip=flip)
    rng, moved = np.random.default_rng(0), 0
    for _ in range(30):
        image = np.zeros((96, 130), np.uint8)
        y0, x0 = rng.integers(0, 60), rng.integers(0, 90)
        y1, x1 = y0 + rng.integers(12, 36), x0 + rng.integers(12, 40)
        image[y0:y1, x0:x1] = 255
        given = boxes.Boxes(np.float32([[y0 / 96, x0 / 130, y1 / 96, x1 / 130]]), np.int32([2]))
        cut, found = boxes.crop(image, given, rng, spec, 0.05)
        if not len(found.classes):
            continue
        rows, columns = (np.flatnonzero((cut > 127).any(axis=axis)) for axis in (1, 0))
        seen = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
        np.testing.assert_allclose(found.boxes[0] * 128, seen, atol=1.0)
        moved += abs(found.boxes[0] - given.boxes[0]).max() > 0.05
        assert found.classes.tolist() == [2]
    assert moved > 15


def test_the_window_is_that_of_pictures_alone():
    """One seed cuts picture and box as `crops.crop` cuts the picture."""
    image = np.random.default_rng(1).integers(0, 255, (60, 80)).astype(np.uint8)
    spec, nothing = crops.Crop(32, flip=0.5), boxes.Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    for seed in range(6):
        cut, _ = boxes.crop(image, nothing, np.random.default_rng(seed), spec, 0.5)
        np.testing.assert_array_equal(cut, crops.crop(image, np.random.default_rng(seed), spec))


def test_boxes_mostly_outside_the_window_are_left_out():
    """A window of the whole height and half the width, with half a box in it: kept at 0.4, not at 0.6."""
    image = np.zeros((100, 200), np.uint8)
    spec, kept = crops.Crop(32, scale=(0.5, 0.5), ratio=(1.0, 1.0)), []
    for min_visible in (0.4, 0.6):
        rng = np.random.default_rng(0)
        _, left, _, wide = crops.random_window(100, 200, np.random.default_rng(0), spec.scale, spec.ratio)
        edge = (left + wide) / 200
        given = boxes.Boxes(np.float32([[0.2, edge - 0.1, 0.4, edge + 0.1]]), np.int32([0]))
        found = boxes.crop(image, given, rng, spec, min_visible)[1]
        kept.append(len(found.classes))
        if kept[-1]:
            np.testing.assert_allclose(found.boxes[0], [0.2, 0.8, 0.4, 1.0], atol=1e-5)
    assert kept == [1, 0]


def test_padding_names_the_picture_with_too_many():
    given = boxes.Boxes(np.ones((2, 4), np.float32), np.int32([1, 0]))
    padded = boxes.pad(given, 4)
    assert padded["classes"].tolist() == [1, 0, -1, -1] and not padded["boxes"][2:].any()
    with pytest.raises(ValueError, match="picture 'p7' has 2 boxes and boxes.most is 1"):
        boxes.pad(given, 1, "p7")
    with pytest.raises(ValueError, match="boxes cannot be turned"):
        boxes.crop(np.zeros((8, 8), np.uint8), given, np.random.default_rng(0), crops.Crop(8, rotation_degrees=5), 0.5)
