"""A small TBX11K in the published layout: kinds of tuberculosis, boxes, and broken annotations."""

import json

import cv2
import numpy as np
import pytest

from cxrjax.datasets import catalogue, tbx11k
from cxrjax.datasets.release import LayoutError, is_validation
from tests import official

KINDS = [{"id": 1, "name": "ActiveTuberculosis"}, {"id": 2, "name": "ObsoletePulmonaryTuberculosis"}]
KINDS += [{"id": 3, "name": "PulmonaryTuberculosis"}]
PICTURES = {
    "train": {"health/h0001.png": [], "sick/s0001.png": [], "tb/tb0003.png": [1], "tb/tb0004.png": [3]},
    "val": {"tb/tb0005.png": [1, 2], "health/h0002.png": []},
}


@pytest.fixture
def raw(tmp_path):
    raw = tmp_path / "TBX11K"
    (raw / "annotations" / "json").mkdir(parents=True)
    pictures = iter(official.pictures(7))
    for part, names in PICTURES.items():
        listing = {"images": [], "annotations": [], "categories": KINDS}
        for number, (name, kinds) in enumerate(names.items()):
            listing["images"].append({"id": number, "file_name": name, "height": 64, "width": 64})
            for kind in kinds:
                entry = {"id": len(listing["annotations"]), "image_id": number, "category_id": kind}
                listing["annotations"].append(entry | {"bbox": [16 * kind, 8, 16, 32]})
            (raw / "imgs" / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(raw / "imgs" / name), next(pictures))
        (raw / "annotations" / "json" / f"TBX11K_{part}.json").write_text(json.dumps(listing))
    (raw / "imgs" / "test").mkdir()
    cv2.imwrite(str(raw / "imgs" / "test" / "test_0001.png"), next(pictures))
    return raw


def test_every_field_comes_back(raw, tmp_path):
    made = official.convert(catalogue.manifest("tbx11k", raw), tmp_path)
    assert made.conversion.problems == () and set(made.records) == {*PICTURES["train"], *PICTURES["val"]}
    labels = {name: example["labels"].tolist() for name, (_, example) in made.records.items()}
    assert labels == {
        "health/h0001.png": [1, 0, 0, 0, 0],
        "health/h0002.png": [1, 0, 0, 0, 0],
        "sick/s0001.png": [0, 1, 0, 0, 0],
        "tb/tb0003.png": [0, 0, 1, 1, 0],
        "tb/tb0004.png": [0, 0, 1, -2, -2],
        "tb/tb0005.png": [0, 0, 1, 1, 1],
    }
    for name, (split, _) in made.records.items():
        val = "val" if is_validation("tbx11k", name) else "train"
        assert split == ("test" if name in PICTURES["val"] else val)
    boxes = made.records["tb/tb0005.png"][1]["boxes"]
    assert list(boxes["label"]) == ["ActiveTuberculosis", "ObsoletePulmonaryTuberculosis"]
    np.testing.assert_allclose(boxes["bbox"], [[0.125, 0.25, 0.625, 0.5], [0.125, 0.5, 0.625, 0.75]])


def test_missing_pictures_and_other_annotations_are_told(raw):
    (raw / "imgs" / "tb" / "tb0003.png").unlink()
    made = tbx11k.manifest(raw)
    assert [(problem.kind, problem.file) for problem in made.problems] == [("missing", "tb/tb0003.png")]
    path = raw / "annotations" / "json" / "TBX11K_val.json"
    for text in ("{", "[]", '{"images": [], "annotations": [{"bbox": [1]}], "categories": []}'):
        path.write_text(text)
        with pytest.raises(LayoutError, match="is no list of pictures in the form of COCO"):
            tbx11k.manifest(raw)
    path.unlink()
    with pytest.raises(LayoutError, match="has no TBX11K_val.json"):
        tbx11k.manifest(raw)
