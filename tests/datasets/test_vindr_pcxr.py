"""A small VinDr-PCXR in PhysioNet's layout: one reader a picture, diagnoses, and boxes of findings."""

import numpy as np

from cxrjax.datasets import catalogue
from cxrjax.datasets.release import is_validation
from tests import official
from tests.datasets.test_vindr_cxr import write_csv, write_dicom

DIAGNOSES = ["No finding", "Bronchitis", "Broncho-pneumonia", "Other disease", "Pneumonia"]
A, B, C = (f"{number:032x}" for number in (20, 21, 22))


def test_every_field_comes_back(tmp_path):
    raw = tmp_path / "raw"
    for image_id, picture in zip((A, B, C), official.pictures(3, 64, 96), strict=True):
        tags = {"PatientSex": "M", "PatientAge": "003Y", "ViewPosition": "AP"}
        write_dicom(raw / ("test" if image_id == C else "train") / f"{image_id}.dicom", picture, **tags)
    head = ",".join(["image_id", "rad_ID", *DIAGNOSES])
    write_csv(raw / "image_labels_train.csv", head, [[A, "R1", 1, 0, 0, 0, 0], [B, "R2", 0, 0, 1, 1, 0]])
    write_csv(raw / "image_labels_test.csv", head, [[C, "R3", 0, 0, 0, 0, 1]])
    head = "image_id,rad_ID,class_name,x_min,y_min,x_max,y_max,class_id"
    rows = [[A, "R1", "No finding", "", "", "", "", 0], [B, "R2", "Peribronchovascular opacity", 24, 16, 48, 32, 5]]
    write_csv(raw / "annotations_train.csv", head, rows)
    write_csv(raw / "annotations_test.csv", head, [[C, "R3", "No finding", "", "", "", "", 0]])
    made = official.convert(catalogue.manifest("vindr_pcxr", raw), tmp_path)
    assert made.conversion.problems == () and set(made.records) == {A, B, C}
    assert made.records[C][0] == "test"
    assert made.records[A][0] == ("val" if is_validation("vindr_pcxr", A) else "train")
    example = made.records[B][1]
    assert example["labels"].tolist() == [0, 0, 1, 1, 0]
    assert (example["view"], example["sex"], example["age"]) == ("AP", "M", 3)
    assert sorted(zip(example["boxes"]["label"], example["boxes"]["reader"], strict=True)) == [
        ("Peribronchovascular opacity", ""),
        ("Peribronchovascular opacity", "R2"),
    ]
    np.testing.assert_allclose(example["boxes"]["bbox"][0], [0.25, 0.25, 0.5, 0.5])
