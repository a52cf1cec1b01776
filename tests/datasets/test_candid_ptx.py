"""A small CANDID-PTX in the published layout: DICOM without suffix, three kinds of masks, reports, and broken rows."""

import csv

import numpy as np
import pytest

from cxrjax.datasets import candid_ptx, catalogue
from cxrjax.datasets.release import LayoutError
from cxrjax.datasets.schema import assign_split
from cxrjax.imaging.masks import run_lengths
from tests import dicom_files, official

UID = "1.2.826.0.1.3680043.8.498"
NAMES = [f"{UID}.{number}" for number in range(4)]


def square(top, bottom, left, right):
    mask = np.zeros((1024, 1024), np.uint8)
    mask[top:bottom, left:right] = 1
    return run_lengths(mask).pairs


REPORTS = [
    # picture, file, mask
    (NAMES[0], "P1_20101_0.dcm", square(256, 384, 128, 384)),
    (NAMES[0], "P1_20101_0.dcm", square(768, 896, 640, 704)),
    (NAMES[1], "P1_20102_0.dcm", "-1"),
    (NAMES[2], "P2_20101_0.dcm", "-1"),
    (NAMES[3], "P3_20101_0.dcm", "-1"),
]


def write_tables(raw, reports=REPORTS, fractures="acute_rib_fracture.csv"):
    def write(name, head, rows):
        with open(raw / name, "w", newline="") as file:
            csv.writer(file).writerows([head, *rows])

    head = ["filename", "SOPInstanceUID", "StudyInstanceUID", "EncodedPixels", "Report"]
    write(
        "Pneumothorax_reports.csv",
        head,
        [[file, name, f"{name}.9", mask, f"CHEST\nReport, of {name}."] for name, file, mask in reports],
    )
    head = ["anon_SOPUID", "annotation_ref", "mask_rle"]
    write(fractures, head, [[NAMES[1], "a", square(0, 128, 0, 128)]])
    write("chest_tube.csv", head, [[NAMES[0], "a", square(512, 1024, 512, 544)], [NAMES[2], "b", "-1"]])


@pytest.fixture
def raw(tmp_path):
    raw = tmp_path / "candid"
    (raw / "dataset").mkdir(parents=True)
    for name, picture in zip(NAMES, official.pictures(4), strict=True):
        dicom_files.write(raw / "dataset" / name, picture)
    write_tables(raw)
    return raw


def test_every_field_comes_back(raw, tmp_path):
    made = official.convert(catalogue.manifest("candid_ptx", raw), tmp_path)
    assert not made.conversion.problems and set(made.records) == set(NAMES) and "19237" in made.conversion.counts
    labels = {name: example["labels"].tolist() for name, (_, example) in made.records.items()}
    assert labels == {NAMES[0]: [1, 0, 1], NAMES[1]: [0, 1, 0], NAMES[2]: [0, 0, 0], NAMES[3]: [0, 0, 0]}
    split, example = made.records[NAMES[0]]
    assert split == made.records[NAMES[1]][0] == assign_split("candid_ptx", "P1")
    assert (example["patient_id"], example["study_id"]) == ("P1", f"{NAMES[0]}.9")
    assert example["report"]["text"] == f"CHEST\nReport, of {NAMES[0]}."
    masks = {name: official.pixels(example, name) > 0 for name in ("mask", "mask_rib_fracture", "mask_chest_tube")}
    assert masks["mask"][8:12, 4:12].all() and masks["mask"][24:28, 20:22].all() and masks["mask"].sum() == 40
    assert masks["mask_chest_tube"][16:, 16].all() and masks["mask_chest_tube"].sum() == 16
    assert not masks["mask_rib_fracture"].any()
    fracture = official.pixels(made.records[NAMES[1]][1], "mask_rib_fracture") > 0
    assert fracture[:4, :4].all() and fracture.sum() == 16
    assert all(example["has_mask"] for _, example in made.records.values())


def test_the_other_name_of_the_fractures_is_taken(raw):
    expected = candid_ptx.manifest(raw)
    (raw / "acute_rib_fracture.csv").rename(raw / "Rib_fracture_mask_rle.csv")
    assert candid_ptx.manifest(raw).rows == expected.rows


def test_odd_rows_and_missing_pictures_are_named(raw):
    (raw / "dataset" / NAMES[3]).unlink()
    strange = [
        *REPORTS,
        (NAMES[2], "P7_1.dcm", "-1"),
        (NAMES[1], "P1_1.dcm", square(0, 8, 0, 8)),
        ("5", "P5_1.dcm", ""),
    ]
    write_tables(raw, [*strange[1:], ("6", "", "-1")])
    made = candid_ptx.manifest(raw)
    assert [row.image_id for row in made.rows] == [NAMES[0]]
    said = {problem.file: problem.reason for problem in made.problems}
    assert "both -1 and run lengths" in said[NAMES[1]] and "several patients, P2, P7" in said[NAMES[2]]
    assert "blank mask" in said["5"] and "no filename" in said["6"] and "no such file" in said[NAMES[3]]
    write_tables(raw, REPORTS[2:])
    assert [problem.file for problem in candid_ptx.manifest(raw).problems if problem.kind == "mask"] == [NAMES[0]]


def test_a_missing_table_is_named(raw):
    (raw / "chest_tube.csv").unlink()
    with pytest.raises(LayoutError, match="has no chest_tube.csv.*tables there: .*doi 10.17608"):
        candid_ptx.manifest(raw)
