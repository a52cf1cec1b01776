"""A small BRAX in the published layout: fields, DICOM or PNG, and odd rows."""

import csv

import cv2
import pytest

from cxrjax.datasets import brax, catalogue, schema
from tests import dicom_files, official

HEAD = ["DicomPath", "PngPath", "PatientID", "PatientSex", "PatientAge", "Manufacturer", "StudyDate", "AccessionNumber"]
HEAD += ["Rows", "Columns", "ViewPosition", *brax.LABELS]
ROWS = [("p1", "s1", "PA", "F", "045Y"), ("p1", "s1", "L", "F", "045Y"), ("p2", "s2", "AP", "M", "80 or more")]
ROWS += [("p3", "s3", "RL", "", "")]


def stem(number):
    return f"id_{ROWS[number][0]}/Study_{ROWS[number][1]}/Series_1/image-{number}"


def write_table(raw, rows=ROWS):
    with open(raw / "master_spreadsheet_update.csv", "w", newline="") as file:
        table = csv.DictWriter(file, HEAD, restval="")
        table.writeheader()
        for number, (patient, study, view, sex, age) in enumerate(rows):
            cells = {"DicomPath": f"Anonymized_DICOMs/{stem(number)}.dcm", "PngPath": f"images/{stem(number)}.png"}
            cells |= {"PatientID": patient, "AccessionNumber": study, "ViewPosition": view, "PatientSex": sex}
            table.writerow(cells | {"PatientAge": age, "Edema": "1", "Fracture": "0", "Pneumonia": "-1.0"})


@pytest.fixture
def raw(tmp_path):
    raw = tmp_path / "brax"
    for number, pixels in enumerate(official.pictures(4)):
        path = raw / "images" / f"{stem(number)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels)
    write_table(raw)
    return raw


def test_every_field_comes_back(raw, tmp_path):
    made = official.convert(catalogue.manifest("brax", raw), tmp_path)
    assert made.conversion.problems == () and "The PNG files were read." in made.said
    assert set(made.records) == {stem(number) for number in range(4)}
    views = [made.records[stem(number)][1]["view"] for number in range(4)]
    assert views == ["PA", "LATERAL", "AP", "LATERAL"]
    split, example = made.records[stem(0)]
    assert split == schema.assign_split("brax", "p1") == made.records[stem(1)][0]
    assert (example["patient_id"], example["study_id"], example["sex"], example["age"]) == ("p1", "s1", "F", 45)
    said = dict(zip(brax.LABELS, example["labels"].tolist(), strict=True))
    assert (said["Edema"], said["Fracture"], said["Pneumonia"], said["Cardiomegaly"]) == (1, 0, -1, -2)
    assert made.records[stem(2)][1]["age"] == -1


def test_dicom_files_are_taken_where_all_of_them_are_there(raw):
    for number, pixels in enumerate(official.pictures(4)):
        path = raw / "Anonymized_DICOMs" / f"{stem(number)}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        dicom_files.write(path, pixels)
    assert {row.file.suffix for row in brax.manifest(raw).rows} == {".dcm"}


def test_odd_rows_are_told(raw):
    (raw / "images" / f"{stem(3)}.png").unlink()
    write_table(raw, [("", *ROWS[0][1:]), *ROWS[1:]])
    made = brax.manifest(raw)
    kinds = [(problem.kind, problem.file) for problem in made.problems]
    assert kinds == [("row", f"images/{stem(0)}.png"), ("missing", f"images/{stem(3)}.png")]
