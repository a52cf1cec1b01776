"""JSRT and SCR in the official layout: raw 12-bit pictures, GIF masks in two folds, clinical tables; read back."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from cxrjax.datasets import jsrt, schema
from cxrjax.datasets.release import LayoutError
from tests import official

STEMS = ("JPCLN001", "JPCLN002", "JPCNN001")
NODULE = "JPCLN001.IMG\t5\t67.2\t53\tmale\t1408\t576\tmalignant\tl.upper lobe\tlung cancer(nos)"
NO_SIZE = "JPCLN002.IMG\t3\t?\t?\tfemale\t1634\t692\tbenign\tr.upper lobe\ttuberculoma"
HEALTHY = "JPCNN001.IMG         68    female      non-nodule"
BOXES = {  # structure -> rows and columns of its mask, of 1024
    "right lung": (slice(200, 800), slice(150, 450)),
    "left lung": (slice(200, 800), slice(600, 900)),
    "heart": (slice(500, 800), slice(450, 700)),
    "right clavicle": (slice(150, 200), slice(200, 450)),
    "left clavicle": (slice(150, 200), slice(600, 850)),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three of the 247 pictures; a nodule of 67.2 mm, 384 px, around 1408, 576 in the first."""
    raw = tmp_path_factory.mktemp("jsrt")
    (raw / "All247images").mkdir()
    for stem, picture in zip(STEMS, official.pictures(3), strict=True):
        shown = np.kron(picture.astype(np.uint16) * 8, np.ones((32, 32), np.uint16))
        if stem == "JPCLN001":
            shown[384:768, 1216:1600] = 4095
        (raw / "All247images" / f"{stem}.IMG").write_bytes((4095 - shown).astype(">u2").tobytes())
        fold = raw / "scratch" / ("fold1" if int(stem[-1]) % 2 else "fold2") / "masks"
        for structure, area in BOXES.items():
            mask = np.zeros((1024, 1024), np.uint8)
            mask[area] = 255
            (fold / structure).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(fold / structure / f"{stem}.gif")
    (raw / "Clinical_Information").mkdir()
    (raw / "Clinical_Information" / "CLNDAT_EN.txt").write_bytes(f"{NODULE}\r{NO_SIZE}\r".encode())
    (raw / "Clinical_Information" / "CNNDAT_EN.TXT").write_bytes(f"{HEALTHY}\r\n".encode())
    return raw


@pytest.fixture
def raw(written, tmp_path):
    return shutil.copytree(written, tmp_path / "jsrt", copy_function=os.link)


def missing(manifest):
    return [problem for problem in manifest.problems if problem.kind == "missing"]


def test_every_field_comes_back(written, tmp_path):
    manifest = jsrt.manifest(written)
    assert len(missing(manifest)) == len(manifest.problems) == 244
    assert manifest.remarks[1:] == ("CLNDAT_EN.txt gives 1 nodules no size and place: JPCLN002.",)
    converted = official.convert(manifest, tmp_path, allow_bad=True)
    assert set(converted.records) == set(STEMS), converted.said
    known = {"JPCLN001": (1, "M", 53), "JPCLN002": (1, "F", -1), "JPCNN001": (0, "F", 68)}
    for stem, (split, example) in converted.records.items():
        assert (example["labels"][0], example["sex"], example["age"]) == known[stem]
        assert split == schema.assign_split("jsrt", stem)
        assert (example["view"], example["patient_id"]) == ("PA", stem)
        lungs = official.pixels(example, "mask") > 0
        assert lungs[12, 9] and lungs[12, 24] and not lungs[12, 16]
        heart, clavicles = (official.pixels(example, f"mask_{name}") > 0 for name in ("heart", "clavicles"))
        assert heart[20, 18] and not heart[8, 18]
        assert clavicles[5, 10] and clavicles[5, 22] and not clavicles[20, 18]
    boxes = [converted.records[stem][1]["boxes"] for stem in STEMS]
    np.testing.assert_allclose(boxes[0]["bbox"], [[384 / 2048, 1216 / 2048, 768 / 2048, 1600 / 2048]], atol=1e-6)
    assert [list(found["label"]) for found in boxes] == [["Nodule"], [], []]


def test_the_nodule_lies_under_its_box_and_bones_are_white(written, tmp_path):
    example = official.convert(jsrt.manifest(written), tmp_path, allow_bad=True).records["JPCLN001"][1]
    image = official.pixels(example)
    top, left, bottom, right = (example["boxes"]["bbox"][0] * 32).round().astype(int)
    inside = np.zeros(image.shape, bool)
    inside[top:bottom, left:right] = True
    assert inside.sum() == 36
    assert image[inside].min() == 255 > image[~inside].max()


def test_published_counts(written):
    assert jsrt.manifest(written).published == {"pictures": 247, "label Nodule": 154, "with a mask": 247}
    assert len(jsrt.STEMS) == 247


def test_records_without_line_ends_are_told_apart(raw):
    path = raw / "Clinical_Information" / "CLNDAT_EN.txt"
    path.unlink()
    path.write_text(NO_SIZE + NODULE)
    rows = {row.image_id: row for row in jsrt.manifest(raw).rows}
    assert [(rows[stem].sex, rows[stem].age, len(rows[stem].boxes)) for stem in STEMS[:2]] == [
        ("M", 53, 1),
        ("F", -1, 0),
    ]


def test_masks_and_clinical_tables_are_optional(raw, tmp_path):
    shutil.rmtree(raw / "scratch")
    shutil.rmtree(raw / "Clinical_Information")
    manifest = jsrt.manifest(raw)
    assert not manifest.has_mask and not manifest.has_boxes and manifest.extra_mask_names == ()
    assert "There are no SCR masks" in manifest.remarks[1]
    assert "There is no CLNDAT_EN.txt" in manifest.remarks[2]
    example = official.convert(manifest, tmp_path, allow_bad=True).records["JPCNN001"][1]
    assert (example["sex"], example["age"]) == ("", -1)
    assert "mask" not in example and "mask_heart" not in example


def test_a_missing_mask_is_named_and_half_a_lung_mask_is_none(raw):
    (raw / "scratch" / "fold1" / "masks" / "left lung" / "JPCLN001.gif").unlink()
    manifest = jsrt.manifest(raw)
    problem = next(problem for problem in manifest.problems if problem.kind == "mask")
    assert problem == ("JPCLN001.IMG", "mask", "It has no mask of the left lung.")
    assert [len(row.masks) for row in manifest.rows] == [0, 2, 2]
    assert [len(part) for part in manifest.rows[0].extra_masks] == [1, 2]


def test_half_a_download_and_strangers_are_named(raw):
    (raw / "All247images" / "copy of JPCLN001.IMG").touch()
    manifest = jsrt.manifest(raw)
    assert missing(manifest)[0].file == "JPCLN003.IMG"
    assert "244 of the 247 pictures that the tables name are missing" in manifest.remarks[0]
    assert manifest.problems[-1] == ("copy of JPCLN001.IMG", "row", "It is none of the 247 pictures of JSRT.")


def test_other_folders_get_their_sentences(raw):
    with pytest.raises(LayoutError, match="is a file, not a folder"):
        jsrt.manifest(raw / "Clinical_Information" / "CLNDAT_EN.txt")
    shutil.rmtree(raw / "All247images")
    (raw / "All247images.zip").touch()
    with pytest.raises(LayoutError, match=r"has no .img file; it holds 15 x .gif, .*; unpack All247images.zip first"):
        jsrt.manifest(raw)
