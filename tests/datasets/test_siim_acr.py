"""SIIM-ACR: nested DICOM folders, the odd header, and masks from relative run lengths."""

import cv2
import numpy as np
import pytest

from cxrjax.datasets import release, siim_acr
from cxrjax.imaging.masks import run_lengths
from tests import dicom_files, official

UID = "1.2.276.0.7230010.3.1"
STUDIES = {f"{UID}.4.{number}": f"{UID}.2.{number}" for number in range(4)}  # picture -> study
NAMES = list(STUDIES)

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR AS")  # the release writes ages as "28"


def square(top, bottom, left, right):
    mask = np.zeros((1024, 1024), np.uint8)
    mask[top:bottom, left:right] = 1
    return run_lengths(mask).pairs


TWO_MASKS = (square(256, 384, 128, 384), square(768, 896, 640, 704))
TABLE = [(NAMES[0], " -1"), (NAMES[1], f" {TWO_MASKS[0]}"), (NAMES[1], f" {TWO_MASKS[1]}"), (NAMES[2], "-1")]


def write_table(path, rows, header="ImageId, EncodedPixels"):
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")


@pytest.fixture
def raw(tmp_path):
    """Three pictures with rows, the second bright where its two masks are, and one without."""
    raw = tmp_path / "siim"
    pictures = [np.minimum(picture, 200) for picture in official.pictures(4)]
    pictures[1][16:24, 8:24] = 255
    pictures[1][48:56, 40:44] = 255
    for number, (name, study) in enumerate(STUDIES.items()):
        folder = raw / "dicom-images-train" / study / f"{UID}.3.{number}"
        folder.mkdir(parents=True)
        tags = {"ViewPosition": "AP", "PatientSex": "F", "PatientAge": "28"}
        dicom_files.write(folder / f"{name}.dcm", pictures[number], transfer_syntax="jpeg", **tags)
    write_table(raw / "train-rle.csv", TABLE)
    return raw


def test_every_field_comes_back(raw, tmp_path):
    made = siim_acr.manifest(raw)
    assert made.problems == ()
    assert made.remarks == (f"1 pictures have no row in train-rle.csv and were left out: {NAMES[3]}.dcm.",)
    done = official.convert(made, tmp_path)
    assert done.conversion.problems == () and set(done.records) == set(NAMES[:3])
    assert {name: record["labels"].tolist() for name, (_, record) in done.records.items()} == {
        NAMES[0]: [0],
        NAMES[1]: [1],
        NAMES[2]: [0],
    }
    record = done.records[NAMES[1]][1]
    assert record["patient_id"] == record["study_id"] == STUDIES[NAMES[1]]
    assert (record["view"], record["sex"], record["age"]) == ("AP", "F", 28)
    mask = official.pixels(record, "mask")
    assert mask.shape == (32, 32) and set(np.unique(mask)) == {0, 255}
    np.testing.assert_array_equal(mask > 0, official.pixels(record) > 240)
    assert mask[8:12, 4:12].all() and mask[24:28, 20:22].all() and (mask > 0).sum() == 40
    for name in (NAMES[0], NAMES[2]):  # looked at and without pneumothorax: an empty mask, not an unknown one
        assert done.records[name][1]["has_mask"] and not official.pixels(done.records[name][1], "mask").any()


def test_later_table_and_pictures_in_one_folder(raw, tmp_path):
    flat = tmp_path / "flat" / "stage_2_images"
    flat.mkdir(parents=True)
    for path in sorted(raw.rglob("*.dcm")):
        path.rename(flat / path.name)
    write_table(flat.parent / "stage_2_train.csv", TABLE + [(NAMES[3], "-1")], header="ImageId,EncodedPixels")
    write_table(flat.parent / "train-rle.csv", TABLE)
    made = siim_acr.manifest(flat.parent)
    assert made.problems == () and made.remarks == ()
    assert [row.patient_id for row in made.rows] == NAMES and [len(row.masks) for row in made.rows] == [1, 2, 1, 1]


def test_absolute_run_lengths_are_reported_not_drawn(raw, tmp_path):
    absolute = " ".join(f"{131329 + 1024 * column} 128" for column in range(20))
    write_table(raw / "train-rle.csv", [(NAMES[0], "-1"), (NAMES[1], absolute)])
    made = siim_acr.manifest(raw)
    assert made.problems == ()
    done = official.convert(made, tmp_path, allow_bad=True)
    (problem,) = done.conversion.problems
    assert problem.kind == "mask" and "not relative run lengths" in problem.reason
    record = done.records[NAMES[1]][1]
    assert not record["has_mask"] and record["labels"].tolist() == [1]


def test_half_a_download_and_odd_rows_are_reported(raw, tmp_path):
    next(raw.rglob(f"{NAMES[0]}.dcm")).unlink()
    write_table(raw / "train-rle.csv", [*TABLE, (NAMES[2], TWO_MASKS[0]), (NAMES[3], "")])
    made = siim_acr.manifest(raw)
    assert [(problem.kind, problem.file) for problem in made.problems] == [
        ("missing", f"{NAMES[0]}.dcm"),
        ("row", f"{NAMES[2]}.dcm"),
        ("row", f"{NAMES[3]}.dcm"),
    ]
    assert "both -1 and run lengths" in made.problems[1].reason and "a blank cell" in made.problems[2].reason
    assert "1 of the 4 pictures that the tables name are missing" in made.remarks[0]
    assert official.convert(made, tmp_path).conversion.directory is None
    assert set(official.convert(made, tmp_path, allow_bad=True).records) == {NAMES[1]}


def test_other_folders_get_their_sentence(raw, tmp_path):
    with pytest.raises(release.LayoutError, match="is a file, not a folder"):
        siim_acr.manifest(raw / "train-rle.csv")
    with pytest.raises(
        release.LayoutError, match="no stage_2_train.csv or train-rle.csv.*holds 4 x .dcm.*kaggle.com/c/siim"
    ):
        siim_acr.manifest(raw / "dicom-images-train")
    other = tmp_path / "png"
    other.mkdir()
    write_table(other / "train-rle.csv", TABLE)
    cv2.imwrite(str(other / f"{NAMES[0]}.png"), official.pictures(1)[0])
    with pytest.raises(release.LayoutError, match=r"has no \.dcm file; it holds .*1 x \.png"):
        siim_acr.manifest(other)
