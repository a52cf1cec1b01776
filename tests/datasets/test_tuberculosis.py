"""Montgomery and Shenzhen in their official layouts, converted and read back; readings as irregular as they are."""

import shutil

import cv2
import numpy as np
import pytest

from cxrjax.datasets import montgomery, schema, shenzhen, tuberculosis
from cxrjax.datasets.release import LayoutError
from cxrjax.datasets.table import TableError
from tests import official

MONTGOMERY = {
    "MCUCXR_0001_0": "Patient's Sex: F\nPatient's Age: 027Y\nnormal\n",
    "MCUCXR_0104_1": "Patient's Sex: O\r\nPatient's Age: 005Y\r\nImproved LUL infiltrate.\r\nAFB smear positive.\r\n",
    "MCUCXR_0162_1": "Patient's Sex: M \nPatient's Age: 049Y\ncavity, right upper lobe",
    "MCUCXR_0166_1": "Patient's Sex: M \nPatient's Age: 049Y\nNO REPORT (same pt as MCUCXR_0162_1)",
}
SHENZHEN = {
    "CHNCXR_0001_0": "male 45yrs\nnormal\n",
    "CHNCXR_0076_0": "male 16month\nnormal",
    "CHNCXR_0331_1": "male , 29yrs  \t\nbilateral secondary PTB\n\nwith effusion",
    "CHNCXR_0332_1": "female24yrs\r\nsecondary PTB in the right upper field",
}
LUNGS = {"right": (slice(16, 48), slice(12, 34)), "left": (slice(16, 48), slice(62, 84))}


def mask_of(*sides):
    mask = np.zeros((64, 96), np.uint8)
    for side in sides:
        mask[LUNGS[side]] = 255
    return mask


def write_pictures(folder, stems):
    folder.mkdir(parents=True)
    for stem, picture in zip(stems, official.pictures(len(stems), 64, 96), strict=True):
        picture = np.where(mask_of("left", "right") > 0, 10, np.maximum(picture, 150))
        cv2.imwrite(str(folder / f"{stem}.png"), picture)


def write_readings(folder, readings):
    folder.mkdir(parents=True)
    for stem, text in readings.items():
        (folder / f"{stem}.txt").write_bytes(text.encode())


@pytest.fixture
def montgomery_raw(tmp_path):
    raw = tmp_path / "MontgomerySet"
    write_pictures(raw / "CXR_png", MONTGOMERY)
    write_readings(raw / "ClinicalReadings", MONTGOMERY)
    for side in LUNGS:
        (raw / "ManualMask" / f"{side}Mask").mkdir(parents=True)
        for stem in MONTGOMERY:
            cv2.imwrite(str(raw / "ManualMask" / f"{side}Mask" / f"{stem}.png"), mask_of(side))
    return raw


@pytest.fixture
def shenzhen_raw(tmp_path):
    raw = tmp_path / "shenzhen"
    write_pictures(raw / "ChinaSet_AllFiles" / "CXR_png", SHENZHEN)
    write_readings(raw / "ChinaSet_AllFiles" / "ClinicalReadings", SHENZHEN)
    (raw / "mask").mkdir()
    for stem in list(SHENZHEN)[:3]:
        cv2.imwrite(str(raw / "mask" / f"{stem}_mask.png"), mask_of("left", "right"))
    return raw


@pytest.mark.parametrize(
    ("text", "sex", "age"),
    [
        ("F 027Y", "F", 27),
        ("male 45yrs", "M", 45),
        ("Female, 28yrs", "F", 28),
        ("femal 32yrs", "F", 32),
        ("female24yrs", "F", 24),
        ("male , 29yrs  \t", "M", 29),
        ("male 16month", "M", 1),
        ("female 64days", "F", 0),
        ("male 42", "M", 42),
        ("O 005Y", "", 5),
        ("film of a man, 30yrs", "", 30),
        ("normal", "", -1),
    ],
)
def test_persons_as_irregular_as_they_are_written(text, sex, age):
    assert tuberculosis.person(text) == (sex, age)


def check_lungs_are_dark(example):
    image, mask = official.pixels(example), official.pixels(example, "mask") > 0
    assert image.shape == mask.shape == (32, 48)
    assert 0.2 < mask.mean() < 0.26
    assert mask[16, 12] and mask[16, 36] and not mask[16, 24]
    assert image[mask].mean() < 30 < 60 < image[~mask].min()


def test_montgomery_comes_back_as_it_was_written(montgomery_raw, tmp_path):
    manifest = montgomery.manifest(montgomery_raw)
    assert manifest.problems == manifest.remarks == ()
    assert manifest.label_names == ("Normal", "Tuberculosis")
    assert manifest.published["pictures"] == 138
    converted = official.convert(manifest, tmp_path)
    told = {
        "MCUCXR_0001_0": ([1, 0], "F", 27, "normal"),
        "MCUCXR_0104_1": ([0, 1], "", 5, "Improved LUL infiltrate.\nAFB smear positive."),
        "MCUCXR_0162_1": ([0, 1], "M", 49, "cavity, right upper lobe"),
        "MCUCXR_0166_1": ([0, 1], "M", 49, "NO REPORT (same pt as MCUCXR_0162_1)"),
    }
    assert set(converted.records) == set(told), converted.said
    for stem, (split, example) in converted.records.items():
        found = (list(example["labels"]), example["sex"], example["age"], example["report"]["text"])
        assert found == told[stem]
        assert example["view"] == "PA"
        assert split == schema.assign_split("montgomery", example["patient_id"])
        check_lungs_are_dark(example)


def test_two_pictures_of_one_patient_stay_in_one_split(montgomery_raw):
    rows = {row.image_id: row for row in montgomery.manifest(montgomery_raw).rows}
    assert rows["MCUCXR_0166_1"].patient_id == rows["MCUCXR_0162_1"].patient_id == "MCUCXR_0162_1"
    assert rows["MCUCXR_0001_0"].patient_id == "MCUCXR_0001_0"


def test_montgomery_names_what_is_missing(montgomery_raw, tmp_path):
    (montgomery_raw / "CXR_png" / "MCUCXR_0001_0.png").unlink()
    (montgomery_raw / "ManualMask" / "rightMask" / "MCUCXR_0104_1.png").unlink()
    manifest = montgomery.manifest(montgomery_raw)
    assert [(problem.file, problem.kind) for problem in manifest.problems] == [
        ("MCUCXR_0001_0.png", "missing"),
        ("MCUCXR_0104_1.png", "mask"),
    ]
    assert "It has no right lung mask." == manifest.problems[1].reason
    assert "1 of the 4 pictures that the tables name are missing" in manifest.remarks[0]
    records = official.convert(manifest, tmp_path, allow_bad=True).records
    assert {stem: example["has_mask"] for stem, (_, example) in records.items()} == {
        "MCUCXR_0104_1": False,
        "MCUCXR_0162_1": True,
        "MCUCXR_0166_1": True,
    }


def test_montgomery_without_readings_says_so(montgomery_raw):
    shutil.rmtree(montgomery_raw / "ClinicalReadings")
    manifest = montgomery.manifest(montgomery_raw)
    assert not manifest.has_report
    assert manifest.remarks == ("There is no folder ClinicalReadings: sex, age and readings stay blank.",)
    assert manifest.rows[0].labels == (1, 0)


def test_shenzhen_comes_back_as_it_was_written(shenzhen_raw, tmp_path):
    manifest = shenzhen.manifest(shenzhen_raw)
    assert manifest.problems == manifest.remarks == ()
    assert manifest.published["with a mask"] == 566
    converted = official.convert(manifest, tmp_path)
    told = {
        "CHNCXR_0001_0": ([1, 0], "M", 45, "normal", True),
        "CHNCXR_0076_0": ([1, 0], "M", 1, "normal", True),
        "CHNCXR_0331_1": ([0, 1], "M", 29, "bilateral secondary PTB\nwith effusion", True),
        "CHNCXR_0332_1": ([0, 1], "F", 24, "secondary PTB in the right upper field", False),
    }
    assert set(converted.records) == set(told), converted.said
    for stem, (split, example) in converted.records.items():
        found = (
            list(example["labels"]),
            example["sex"],
            example["age"],
            example["report"]["text"],
            example["has_mask"],
        )
        assert found == told[stem]
        assert split == schema.assign_split("shenzhen", stem)
        assert (example["view"], example["patient_id"]) == ("PA", stem)
        if example["has_mask"]:
            check_lungs_are_dark(example)


def test_shenzhen_reads_the_table_version_without_masks(shenzhen_raw):
    shutil.rmtree(shenzhen_raw / "mask")
    shutil.rmtree(shenzhen_raw / "ChinaSet_AllFiles" / "ClinicalReadings")
    (shenzhen_raw / "ChinaSet_AllFiles" / "CXR_png").rename(shenzhen_raw / "images")
    bare = shenzhen.manifest(shenzhen_raw)
    assert [remark.split(":")[0] for remark in bare.remarks] == [
        "There is no ClinicalReadings folder or shenzhen_metadata.csv",
        "There are no lung masks (mask/CHNCXR_0001_0_mask.png)",
    ]
    rows = ["CHNCXR_0001_0.png,Male,45,normal", 'CHNCXR_0332_1.png,Female,24,"PTB, right upper field"']
    table = shenzhen_raw / "shenzhen_metadata.csv"
    table.write_text("\n".join(["study_id,sex,age,findings", *rows, "CHNCXR_0700_1.png,Male,30,PTB"]))
    manifest = shenzhen.manifest(shenzhen_raw)
    found = {row.image_id: (row.sex, row.age, row.text) for row in manifest.rows}
    assert found["CHNCXR_0332_1"] == ("F", 24, "PTB, right upper field")
    assert found["CHNCXR_0331_1"] == ("", -1, "")
    assert [(problem.file, problem.kind) for problem in manifest.problems] == [("CHNCXR_0700_1.png", "missing")]
    assert manifest.has_report and not manifest.has_mask
    table.write_text("file,sex\nCHNCXR_0001_0.png,Male\n")
    with pytest.raises(TableError, match="no column 'study_id'; its columns are: file, sex"):
        shenzhen.manifest(shenzhen_raw)


def test_a_reading_without_a_person_is_all_text(shenzhen_raw):
    reading = shenzhen_raw / "ChinaSet_AllFiles" / "ClinicalReadings" / "CHNCXR_0001_0.txt"
    reading.write_text("normal\nno change")
    row = shenzhen.manifest(shenzhen_raw).rows[0]
    assert (row.sex, row.age, row.text) == ("", -1, "normal\nno change")


def test_half_a_shenzhen_download_is_named_and_counted(shenzhen_raw, tmp_path):
    (shenzhen_raw / "ChinaSet_AllFiles" / "CXR_png" / "CHNCXR_0332_1.png").unlink()
    manifest = shenzhen.manifest(shenzhen_raw)
    assert [(problem.file, problem.kind) for problem in manifest.problems] == [("CHNCXR_0332_1.png", "missing")]
    assert "1 of the 4 pictures" in manifest.remarks[0]
    assert official.convert(manifest, tmp_path).conversion.directory is None


def test_the_two_sets_are_told_apart(montgomery_raw, shenzhen_raw):
    with pytest.raises(
        LayoutError, match=r"has 4 PNG pictures, but none is named MCUCXR_0001_0.png .* CHNCXR_.*MontgomerySet"
    ):
        montgomery.manifest(shenzhen_raw)
    with pytest.raises(
        LayoutError, match=r"none is named CHNCXR_0001_0.png .*: this is not the shenzhen set.*ChinaSet"
    ):
        shenzhen.manifest(montgomery_raw)


@pytest.mark.parametrize("part", ["CXR_png", "ManualMask"])
def test_missing_folders_get_their_sentences(montgomery_raw, part):
    shutil.rmtree(montgomery_raw / part)
    with pytest.raises(LayoutError, match=r"The folder '(CXR_png|leftMask)' below .* has no .png file; it holds "):
        montgomery.manifest(montgomery_raw)


@pytest.mark.parametrize("builder", [montgomery, shenzhen])
def test_no_folder_at_all(builder, tmp_path):
    with pytest.raises(LayoutError, match="does not exist; give the folder of the download"):
        builder.manifest(tmp_path / "nowhere")
    (tmp_path / "set.zip").touch()
    with pytest.raises(LayoutError, match="is a file, not a folder: unpack it"):
        builder.manifest(tmp_path / "set.zip")
