"""NIH ChestX-ray14 in its official layouts, and the real pictures at hand."""

import csv
import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxrjax.datasets import chestxray14, release
from tests import official

HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
V2020 = HEADER + "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
ROWS = (
    "00000001_000.png,Cardiomegaly,0,1,{57},M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,Cardiomegaly|Pleural_Thickening,1,1,{58},M,PA,2894,2729,0.143,0.143",
    "00000002_000.png,No Finding,0,2,{80},F,AP,2500,2048,0.171,0.171",
    "00000013_004.png,Infiltration|Mass,4,13,{411},M,PA,2582,2991,0.143,0.143",
    "00000020_002.png,Infiltration|Effusion,2,20,{9},F,AP,2582,2991,0.143,0.143",
)
NAMES = [row[:16] for row in ROWS]
BOXES = (
    "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    "00000001_000.png,Cardiomegaly,512.0,256.0,256.0,128.0,,,\n"
    "00000013_004.png,Infiltrate,0,0,512,1024,,,\n"
    "00000013_004.png,Mass,64.5,128,32,64,,,\n"
)


def ages(rows, form):
    return [
        row[: row.index("{")] + form.format(int(row.split("{")[1].split("}")[0])) + row[row.index("}") + 1 :]
        for row in rows
    ]


@pytest.fixture
def raw(tmp_path):
    """Five pictures of four patients as the NIH archives unpack, with v2020's table."""
    raw = tmp_path / "nih"
    pictures = official.pictures(len(NAMES))
    pictures[0][16:24, 32:48] = 255  # what its box, in 1024 px, marks
    for number, (name, picture) in enumerate(zip(NAMES, pictures, strict=True)):
        folder = raw / f"images_{1 + number // 3:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), picture)
    (raw / "Data_Entry_2017_v2020.csv").write_text("\n".join([V2020, *ages(ROWS, "{}")]) + "\n")
    (raw / "BBox_List_2017.csv").write_text(BOXES)
    (raw / "train_val_list.txt").write_text("\n".join(NAMES[:3]))
    (raw / "test_list.txt").write_text("\n".join(NAMES[3:]) + "\n")
    return raw


def test_every_field_comes_back(raw, tmp_path):
    made = chestxray14.manifest(raw)
    assert made.problems == () and made.remarks == ()
    done = official.convert(made, tmp_path)
    assert set(done.records) == set(NAMES) and done.conversion.problems == ()
    split, first = done.records["00000001_000.png"]
    assert (first["patient_id"], first["study_id"], first["view"]) == ("1", "1_0", "PA")
    assert (first["sex"], first["age"]) == ("M", 57)
    assert [done.records[name][1]["age"] for name in NAMES[2:]] == [80, -1, 9]  # nobody is 411
    present = {
        name: [label for label, code in zip(made.label_names, record["labels"], strict=True) if code == 1]
        for name, (_, record) in done.records.items()
    }
    assert present == {
        "00000001_000.png": ["Cardiomegaly"],
        "00000001_001.png": ["Cardiomegaly", "Pleural_Thickening"],
        "00000002_000.png": ["No Finding"],
        "00000013_004.png": ["Infiltration", "Mass"],
        "00000020_002.png": ["Effusion", "Infiltration"],
    }
    assert min(record["labels"].min() for _, record in done.records.values()) == 0
    assert [done.records[name][0] for name in NAMES[3:]] == ["test", "test"]
    assert split == done.records["00000001_001.png"][0] and split in ("train", "val")


def test_boxes_lie_where_the_1024_px_picture_has_them(raw, tmp_path):
    done = official.convert(chestxray14.manifest(raw), tmp_path)
    first = done.records["00000001_000.png"][1]
    assert first["boxes"]["label"] == ["Cardiomegaly"] and first["boxes"]["reader"] == [""]
    np.testing.assert_allclose(first["boxes"]["bbox"], [(0.25, 0.5, 0.375, 0.75)])
    marked = official.pixels(first) == 255
    assert marked[8:12, 16:24].all() and marked.sum() == 32
    boxes = done.records["00000013_004.png"][1]["boxes"]
    assert boxes["label"] == ["Infiltration", "Mass"]
    np.testing.assert_allclose(boxes["bbox"], [(0, 0, 1, 0.5), (0.125, 64.5 / 1024, 0.1875, 96.5 / 1024)])


def test_kaggle_layout_and_the_table_of_2017(raw, tmp_path):
    for name in os.listdir(raw / "images_002" / "images"):
        (raw / "images_002" / "images" / name).rename(raw / "images_001" / "images" / name)
    (raw / "images_001" / "images").rename(raw / "images")
    (raw / "Data_Entry_2017_v2020.csv").unlink()
    lines = [line + "," for line in (V2020, *ages(ROWS, "{:03d}Y"))]
    (raw / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    (raw / "BBox_List_2017.csv").write_text(BOXES.replace(",,,\n", "\n").replace("h]\n", "h],,,\n"))
    made = chestxray14.manifest(raw)
    assert made.problems == () and [row.age for row in made.rows] == [57, 58, 80, -1, 9]
    assert [len(row.boxes) for row in made.rows] == [1, 0, 0, 2, 0]


def test_validation_is_a_tenth_of_the_patients():
    share = np.mean([release.is_validation("chestxray14", str(patient)) for patient in range(2000)])
    assert 0.08 < share < 0.12


def test_half_a_download_is_named_and_counted(raw, tmp_path):
    (raw / "images_002" / "images" / NAMES[4]).unlink()
    (raw / "BBox_List_2017.csv").unlink()
    made = chestxray14.manifest(raw)
    assert [(problem.file, problem.kind) for problem in made.problems] == [(NAMES[4], "missing")]
    assert "1 of the 5 pictures that the tables name are missing" in made.remarks[0]
    assert "without its boxes" in made.remarks[1]
    assert official.convert(made, tmp_path).conversion.directory is None
    assert set(official.convert(made, tmp_path, allow_bad=True).records) == set(NAMES[:4])


def test_pictures_and_boxes_outside_the_tables_are_reported(raw):
    extra = raw / "images_001" / "images" / "00000099_000.png"
    cv2.imwrite(str(extra), official.pictures(1)[0])
    (raw / "test_list.txt").write_text(NAMES[3])
    (raw / "BBox_List_2017.csv").write_text(
        BOXES + "00000001_001.png,Cardiomegaly,1,2,,4\n00000077_000.png,Mass,1,2,3,4\n"
    )
    table = raw / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("|Mass", "|Pleural Mass"))
    made = chestxray14.manifest(raw)
    said = {(problem.file, problem.kind): problem.reason for problem in made.problems}
    assert "neither train_val_list.txt nor test_list.txt" in said[NAMES[4], "row"]
    assert "Pleural Mass" in said[NAMES[3], "row"]
    assert "not four numbers" in said[NAMES[1], "box"] and "unknown" in said["00000077_000.png", "box"]
    assert len(made.rows) == 3 and len(said) == 4
    assert made.remarks == ("1 pictures are not in Data_Entry_2017_v2020.csv and were left out: 00000099_000.png.",)


def test_a_patient_of_both_lists_is_refused(raw, tmp_path):
    (raw / "test_list.txt").write_text("\n".join(NAMES[1:]))
    (raw / "train_val_list.txt").write_text(NAMES[0])
    with pytest.raises(ValueError, match=r"1 patient is in more than one split.*: 1 \("):
        official.convert(chestxray14.manifest(raw), tmp_path)


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("Data_Entry_2017_v2020.csv", "no Data_Entry_2017_v2020.csv or Data_Entry_2017.csv.*tables there: BBox_List"),
        ("train_val_list.txt", "no train_val_list.txt.*lists there: test_list.txt.*nihcc.app.box.com"),
    ],
)
def test_a_missing_table_is_named(raw, gone, sentence):
    (raw / gone).unlink()
    with pytest.raises(release.LayoutError, match=sentence):
        chestxray14.manifest(raw)


def test_other_folders_get_their_sentence(raw, tmp_path):
    with pytest.raises(release.LayoutError, match="is a file, not a folder"):
        chestxray14.manifest(raw / "test_list.txt")
    with pytest.raises(release.LayoutError, match="does not exist"):
        chestxray14.manifest(tmp_path / "nowhere")
    other = tmp_path / "chexpert"
    other.mkdir()
    (other / "train.csv").write_text("Path,Sex\na,F\n")
    with pytest.raises(release.LayoutError, match="tables there: train.csv"):
        chestxray14.manifest(other)


@pytest.mark.skipif("CXRJAX_REAL_DATA" not in os.environ, reason="needs the real pictures")
def test_real_pictures(tmp_path):
    real = Path(os.environ["CXRJAX_REAL_DATA"]) / "chestxray14_subset"
    raw = tmp_path / "raw"
    (raw / "images").mkdir(parents=True)
    for table in (real / "official_layout").iterdir():
        (raw / table.name).symlink_to(table)
    for picture in (real / "images").iterdir():
        (raw / "images" / f"{picture.stem}.png").symlink_to(picture)
    made = chestxray14.manifest(raw)
    assert made.problems == () and made.remarks == ()
    with open(real / "labels.csv", newline="") as file:
        rows = {Path(row["file"]).stem + ".png": row for row in csv.DictReader(file)}
    assert len(made.rows) == len(rows) == 802 and len({row.patient_id for row in made.rows}) == 556
    assert Counter(row.split == "test" for row in made.rows) == {True: 189, False: 613}
    for row in made.rows:
        known = rows[row.image_id]
        assert (row.patient_id, row.study_id, row.view) == (known["patient_id"], known["study_id"], known["view"])
        assert (row.sex, str(row.age), row.split == "test") == (known["sex"], known["age"], known["split"] == "test")
        labels = {name for name, code in zip(made.label_names, row.labels, strict=True) if code == 1}
        assert labels == set(known["labels"].split("|"))
    some = [row for row in made.rows if row.boxes] + [row for row in made.rows if not row.boxes][:5]
    done = official.convert(made._replace(rows=tuple(some)), tmp_path, image_format="jpeg")
    assert done.conversion.problems == () and set(done.records) == {row.image_id for row in some}
    with open(real / "boxes.csv", newline="") as file:
        for box in csv.DictReader(file):
            name, label = Path(box["file"]).stem + ".png", box["label"].replace("Infiltrate", "Infiltration")
            x, y, width, height = (float(box[key]) for key in ("x", "y", "width", "height"))
            size = np.array([rows[name]["height"], rows[name]["width"]] * 2, float)
            there = done.records[name][1]["boxes"]
            near = np.abs(there["bbox"] * size - (y, x, y + height, x + width)).max(axis=1) < 0.05
            assert near.sum() == 1 and there["label"][near.argmax()] == label
    assert sum(len(record["boxes"]["label"]) for _, record in done.records.values()) == 43
