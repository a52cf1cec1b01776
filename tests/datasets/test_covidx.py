"""COVIDx CXR-3 in the official layout: lists without a header, PNG and JPEG, grey and colour; read back."""

import shutil

import cv2
import numpy as np
import pytest

from cxrjax.datasets import catalogue, covidx
from cxrjax.datasets.release import LayoutError, is_validation
from tests import official

UUID = "47c78742-4998-4878-aec4-37b11b1354ac"
TRAIN = [
    "2 auntminnie-a-2020_01_28_23_51_6665.jpeg COVID-19 cohen",
    "COVID_86 COVID(86).png COVID-19 sirm",
    f"{UUID} {UUID}.png normal rsna",
    "87 two words day0.jpg pneumonia cohen",
    "419639-003251 MIDRC-RICORD-1C-419639-003251-11111-0.png COVID-19 ricord",
]
TEST = [
    "419639-003251 MIDRC-RICORD-1C-419639-003251-46647-0.png COVID-19 ricord",
    "419639-001464 MIDRC-RICORD-1C-419639-001464-39871-0.png COVID-19 ricord",
]


def file_name(line):
    return line.split(" ", 1)[1].rsplit(" ", 2)[0]


@pytest.fixture
def raw(tmp_path):
    raw = tmp_path / "covidx-cxr3"
    made = iter(official.pictures(len(TRAIN + TEST), 48, 64))
    for part, lines in (("train", TRAIN), ("test", TEST)):
        (raw / part).mkdir(parents=True)
        for line in lines:
            picture = next(made)
            coloured = np.stack([picture] * 3, axis=2) if "sirm" in line else picture
            cv2.imwrite(str(raw / part / file_name(line)), coloured)
        (raw / f"{part}_COVIDx_CXR-3A.txt").write_text("\n".join(lines) + "\n")
        binary = [
            line.replace(" normal ", " negative ")
            .replace(" pneumonia ", " negative ")
            .replace(" COVID-19 ", " positive ")
            for line in lines
        ]
        (raw / f"{part}.txt").write_text("\n".join(binary) + "\n")
    return raw


def test_every_field_comes_back(raw, tmp_path):
    manifest = covidx.manifest(raw)
    assert manifest.problems == ()
    assert manifest.label_names == ("Normal", "Pneumonia", "COVID-19")
    converted = official.convert(manifest, tmp_path)
    labels = {
        "two words day0.jpg": [0, 1, 0],
        f"{UUID}.png": [1, 0, 0],
        "COVID(86).png": [0, 0, 1],
        "auntminnie-a-2020_01_28_23_51_6665.jpeg": [0, 0, 1],
        **{file_name(line): [0, 0, 1] for line in TEST},
    }
    assert {name: list(example["labels"]) for name, (_, example) in converted.records.items()} == labels, converted.said
    for line in TEST:
        split, example = converted.records[file_name(line)]
        assert (split, example["patient_id"]) == ("test", line.split()[0])
    split, example = converted.records["two words day0.jpg"]
    assert example["patient_id"] == "87"
    assert split == ("val" if is_validation("covidx", "87") else "train")
    assert (example["view"], example["sex"], example["age"]) == ("UNKNOWN", "", -1)


def test_every_picture_names_where_it_comes_from(raw):
    rows = {row.image_id: row for row in covidx.manifest(raw).rows}
    assert rows[f"{UUID}.png"].same_picture == rows[f"{UUID}.png"].same_patient == (f"rsna_pneumonia:{UUID}",)
    assert rows["two words day0.jpg"].same_picture == ("covid_chestxray:two words day0.jpg",)
    assert rows["two words day0.jpg"].same_patient == ("covid_chestxray:87",)
    assert rows["COVID(86).png"].same_picture == ("sirm:COVID(86).png",)
    assert rows[file_name(TEST[0])].same_patient == ("ricord:419639-003251",)


def test_a_patient_of_both_lists_stays_in_the_test_part(raw):
    manifest = covidx.manifest(raw)
    assert file_name(TRAIN[4]) not in {row.image_id for row in manifest.rows}
    assert file_name(TEST[0]) in {row.image_id for row in manifest.rows if row.split == "test"}
    assert manifest.remarks == (
        "1 patients of the train list are in a later one too (419639-003251): their 1 pictures of the train list are "
        "left out.",
    )


def test_variant_b_reads_the_lists_of_the_kaggle_download(raw):
    manifest = catalogue.manifest("covidx", raw, variant="3B")
    assert manifest.label_names == ("No COVID-19", "COVID-19")
    assert {row.image_id: row.labels for row in manifest.rows}[f"{UUID}.png"] == (1, 0)
    assert sum(row.labels == (0, 1) for row in manifest.rows) == 4
    assert manifest.published["pictures"] == 30386


def test_the_other_variants_lists_are_recognised(raw):
    for part in ("train", "test"):
        (raw / f"{part}_COVIDx_CXR-3A.txt").unlink()
    with pytest.raises(
        LayoutError, match=r"no line of variant 3A, but the classes positive. Convert it with --variant 3B"
    ):
        covidx.manifest(raw)


def test_the_share_of_validation_is_an_option(raw):
    lines = [f"{number} {number}.png normal rsna" for number in range(300)]
    (raw / "train_COVIDx_CXR-3A.txt").write_text("\n".join(lines))
    for number in range(300):
        (raw / "train" / f"{number}.png").touch()
    shares = [
        sum(row.split == "val" for row in covidx.manifest(raw, val=percent).rows) / 300 for percent in ("10", "20")
    ]
    assert 0.05 < shares[0] < 0.15 < shares[1] < 0.26


def test_bad_lines_are_named_by_number(raw):
    lines = ["419639-002887 a.png COVID-19", *TRAIN, f"{UUID} {UUID}.png Normal rsna", TRAIN[3]]
    (raw / "train_COVIDx_CXR-3A.txt").write_text("\n".join(lines))
    problems = covidx.manifest(raw).problems
    assert [problem.kind for problem in problems] == ["row"] * 3
    assert problems[0].reason.startswith("Line 1 of train_COVIDx_CXR-3A.txt is '419639-002887 a.png COVID-19', not")
    assert problems[1].reason.startswith("Line 7 of train_COVIDx_CXR-3A.txt has the class 'Normal'; known are normal,")
    assert problems[2].reason == "Line 8 of train_COVIDx_CXR-3A.txt names a picture for the second time."


def test_half_a_download_is_named_and_counted(raw, tmp_path):
    (raw / "train" / "COVID(86).png").unlink()
    manifest = covidx.manifest(raw)
    assert [(problem.file, problem.kind) for problem in manifest.problems] == [("train/COVID(86).png", "missing")]
    assert "1 of the 6 pictures that the tables name are missing" in manifest.remarks[-1]
    assert official.convert(manifest, tmp_path).conversion.directory is None


def test_missing_lists_and_other_folders_get_their_sentences(raw, tmp_path):
    with pytest.raises(LayoutError, match="is a file, not a folder"):
        covidx.manifest(raw / "train.txt")
    shutil.rmtree(raw / "test")
    (raw / "archive.zip").touch()
    with pytest.raises(LayoutError, match="The folder 'test' below .* has no .png .*; unpack archive.zip first"):
        covidx.manifest(raw)
    for name in ("test.txt", "test_COVIDx_CXR-3A.txt"):
        (raw / name).unlink()
    with pytest.raises(
        LayoutError, match=r"no test_COVIDx_CXR-3A.txt or test.txt .*; lists there: train.txt, train_COV"
    ):
        covidx.manifest(raw)
    (tmp_path / "other").mkdir()
    with pytest.raises(LayoutError, match="is empty. Give the folder of the official download of covidx"):
        covidx.manifest(tmp_path / "other")


def test_cxr_4_has_its_own_validation_and_no_patient_twice(raw):
    """Lists as the Kaggle download has them, with one patient of train in val and one of val in test."""
    for part, lines in (
        ("train", [("1", "a.png", "positive"), ("2", "b.png", "negative"), ("3", "c.png", "positive")]),
        ("val", [("2", "d.png", "negative"), ("4", "e.png", "positive")]),
        ("test", [("4", "f.png", "positive"), ("5", "g.png", "negative")]),
    ):
        (raw / part).mkdir(exist_ok=True)
        for _, name, _ in lines:
            cv2.imwrite(str(raw / part / name), official.pictures(1)[0])
        (raw / f"{part}.txt").write_text("".join(f"{patient} {name} {word} bimcv\n" for patient, name, word in lines))
    made = catalogue.manifest("covidx", raw, variant="4")
    assert {row.image_id: (row.split, row.labels) for row in made.rows} == {
        "a.png": ("train", (0, 1)),
        "c.png": ("train", (0, 1)),
        "d.png": ("val", (1, 0)),
        "f.png": ("test", (0, 1)),
        "g.png": ("test", (1, 0)),
    }
    assert made.problems == () and made.published["pictures"] == 84818
    assert any("1 patients of the val list are in a later one too (4)" in remark for remark in made.remarks)
