"""Object-CXR in the official layout: three kinds of shapes, converted and read back as boxes and masks."""

import shutil

import cv2
import numpy as np
import pytest

from cxrjax.datasets import object_cxr
from cxrjax.datasets.release import LayoutError, is_validation
from cxrjax.datasets.table import TableError
from tests import official

TRAIN = {
    "08001.jpg": "0 60 20 84 44",
    "08002.jpg": "1 10 8 40 56;2 60 20 84 20 84 44 60 44",
    "08003.jpg": "",
}
DEV = {"09001.jpg": "2 60 20 84 20 60 44"}


def write(raw, part, annotations):
    lines = ["image_name,annotation", *(f"{name},{text}" for name, text in annotations.items())]
    (raw / f"{part}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def raw(tmp_path):
    raw = tmp_path / "object-CXR"
    made = iter(official.pictures(4, 64, 96))
    for part, annotations in (("train", TRAIN), ("dev", DEV)):
        (raw / part).mkdir(parents=True)
        write(raw, part, annotations)
        for name in annotations:
            picture = next(made)
            picture[20:44, 60:84] = 255
            cv2.imwrite(str(raw / part / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 100])
    return raw


def test_every_field_comes_back(raw, tmp_path):
    manifest = object_cxr.manifest(raw)
    assert manifest.problems == ()
    assert manifest.published == {"pictures": 9000, "pictures in test": 1000}
    converted = official.convert(manifest, tmp_path)
    assert set(converted.records) == {*TRAIN, *DEV}, converted.said
    for name, (split, example) in converted.records.items():
        cut = "val" if is_validation("object_cxr", name) else "train"
        assert split == ("test" if name in DEV else cut)
        assert list(example["labels"]) == [int(name != "08003.jpg")]
        assert example["patient_id"] == name
        assert example["has_mask"]
    boxes = {name: example["boxes"] for name, (_, example) in converted.records.items()}
    square = [20 / 64, 60 / 96, 44 / 64, 84 / 96]
    for name in ("08001.jpg", "09001.jpg"):
        np.testing.assert_allclose(boxes[name]["bbox"], [square], atol=1e-6)
    np.testing.assert_allclose(boxes["08002.jpg"]["bbox"], [[8 / 64, 10 / 96, 56 / 64, 40 / 96], square], atol=1e-6)
    assert list(boxes["08002.jpg"]["label"]) == ["Foreign object"] * 2
    assert len(boxes["08003.jpg"]["bbox"]) == 0


def test_masks_are_the_shapes_united(raw, tmp_path):
    records = official.convert(object_cxr.manifest(raw), tmp_path).records
    masks = {name: official.pixels(example, "mask") > 0 for name, (_, example) in records.items()}
    inside = np.zeros((32, 48), bool)
    inside[10:22, 30:42] = True
    image = official.pixels(records["08001.jpg"][1])
    assert image[inside].min() > 240 > image[~inside].max()
    assert (masks["08001.jpg"] == inside).mean() > 0.97
    assert not masks["08003.jpg"].any()
    both = masks["08002.jpg"]
    assert (both[:, 25:] == inside[:, 25:]).mean() > 0.95
    ellipse = both[:, :25]
    assert ellipse.sum() == pytest.approx(np.pi * 7.5 * 12, rel=0.12)  # a rectangle would have 360
    assert ellipse[16, 12] and not ellipse[5, 6]
    triangle = masks["09001.jpg"]
    assert triangle[12, 32] and not triangle[20, 40]


def test_malformed_objects_are_named_and_the_others_kept(raw):
    bad = ["3 1 2 3 4", "0 1 2 3", "2 1 2 3 4", "2 1 2 3 4 5 6 7", "1 a 2 3 4", "0 1 2 3 nan"]
    write(raw, "train", TRAIN | {"08001.jpg": ";".join(["0 60 20 84 44", *bad]) + ";"})
    manifest = object_cxr.manifest(raw)
    assert [(problem.file, problem.kind) for problem in manifest.problems] == [("08001.jpg", "box")] * 6
    assert manifest.problems[0].reason == "train.csv outlines an object by '3 1 2 3 4', which is no shape."
    row = manifest.rows[0]
    assert row.labels == (1,)
    assert len(row.boxes) == 1
    assert row.masks == ()  # a mask of some of the objects would be wrong


def test_half_a_download_is_named_and_counted(raw, tmp_path):
    (raw / "train" / "08002.jpg").unlink()
    manifest = object_cxr.manifest(raw)
    assert [(problem.file, problem.kind) for problem in manifest.problems] == [("train/08002.jpg", "missing")]
    assert "1 of the 4 pictures that the tables name are missing" in manifest.remarks[-1]
    assert set(official.convert(manifest, tmp_path, allow_bad=True).records) == {*TRAIN, *DEV} - {"08002.jpg"}


def test_packed_and_other_folders_get_their_sentences(raw, tmp_path):
    with pytest.raises(LayoutError, match="is a file, not a folder"):
        object_cxr.manifest(raw / "dev.csv")
    shutil.rmtree(raw / "train")
    (raw / "train.zip").touch()
    with pytest.raises(LayoutError, match="The folder 'train' below .* has no .jpg .*; unpack train.zip first"):
        object_cxr.manifest(raw)
    (raw / "dev.csv").unlink()
    (raw / "train.csv").write_text("Path,Sex\nCheXpert-v1.0-small/train/1.jpg,Male\n")
    with pytest.raises(TableError, match="train.csv has no column 'image_name'; its columns are: Path, Sex"):
        object_cxr.manifest(raw)
    (raw / "train.csv").unlink()
    with pytest.raises(
        LayoutError, match=r"no train.csv .*; tables there: train.zip. Give the folder .* of object_cxr"
    ):
        object_cxr.manifest(raw)
