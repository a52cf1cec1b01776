"""Google's labels of ChestX-ray14 in their published form, beside a small ChestX-ray14."""

import cv2
import pytest

from cxrjax.datasets import catalogue, nih_google
from cxrjax.datasets.release import LayoutError, is_validation
from tests import official

PEOPLE = {"00000001_000.png": 1, "00000001_001.png": 1, "00000002_000.png": 2, "00000013_004.png": 13}
ENTRY = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]\n"
)
FOUR = "Image Index,Finding Labels,Patient ID,Fracture,Pneumothorax,Airspace opacity,Nodule or mass\n"
ALL = "Image ID,Patient ID,Abnormal,{},Other\n".format(
    "Atelectasis,Cardiomegaly,Effusion,Infiltration,Mass,Nodule,Pneumonia,Pneumothorax,Consolidation,Edema,Emphysema,"
    "Fibrosis,Pleural Thickening,Hernia"
)


@pytest.fixture
def raw(tmp_path):
    raw = tmp_path / "nih"
    (raw / "images").mkdir(parents=True)
    for picture, name in zip(official.pictures(4), PEOPLE, strict=True):
        cv2.imwrite(str(raw / "images" / name), picture)
    rows = [f"{name},Mass,0,{patient},57,F,PA,2682,2749,0.143,0.143\n" for name, patient in PEOPLE.items()]
    (raw / "Data_Entry_2017_v2020.csv").write_text(ENTRY + "".join(rows))
    *train_val, test = PEOPLE
    (raw / "train_val_list.txt").write_text("\n".join(train_val))
    (raw / "test_list.txt").write_text(test)
    folder = raw / "four_findings_expert_labels"
    folder.mkdir()
    (folder / "validation_labels.csv").write_text(
        FOUR + "00000001_001.png,Mass,1,NO,YES,NO,YES\n00000002_000.png,Mass,2,YES,NO,NO,\n"
    )
    (folder / "test_labels.csv").write_text(FOUR + "00000013_004.png,Mass,13,NO,NO,YES,HEDGE\n")
    cells = ["NO"] * 15
    cells[12] = "YES"  # pleural thickening
    (raw / "all_findings_expert_labels_test_labels.csv").write_text(ALL + f"00000013_004.png,13,1,{','.join(cells)}\n")
    return raw


def test_four_findings_come_back(raw, tmp_path):
    made = official.convert(catalogue.manifest("nih_google", raw), tmp_path)
    assert not made.conversion.problems and "4374" in made.conversion.counts
    labels = {name: example["labels"].tolist() for name, (_, example) in made.records.items()}
    assert labels == {
        "00000001_001.png": [0, 1, 0, 1],
        "00000002_000.png": [1, 0, 0, -2],
        "00000013_004.png": [0, 0, 1, -1],
    }
    for name, (split, example) in made.records.items():
        held_out = "val" if is_validation("nih_google", example["patient_id"]) else "train"
        assert split == ("test" if name == "00000013_004.png" else held_out)
        assert example["same_picture"] == f"chestxray14:{name}"
        assert example["same_patient"] == f"chestxray14:{PEOPLE[name]}"
        assert (example["view"], example["sex"], example["age"]) == ("PA", "F", 57)


def test_all_findings_come_back_and_no_finding_is_what_is_not_abnormal(raw, tmp_path):
    made = official.convert(catalogue.manifest("nih_google", raw, labels="all"), tmp_path)
    ((split, example),) = made.records.values()
    present = [name for name, label in zip(nih_google.ALL, example["labels"], strict=True) if label == 1]
    assert split == "test" and present == ["Pleural_Thickening"] and set(example["labels"]) == {0, 1}
    table = raw / "all_findings_expert_labels_test_labels.csv"
    table.write_text(table.read_text().replace(",13,1,", ",13,0,").replace("YES", "NO"))
    (row,) = nih_google.manifest(raw, labels="all").rows
    assert [name for name, label in zip(nih_google.ALL, row.labels, strict=True) if label == 1] == ["No Finding"]


def test_patients_of_the_test_part_are_left_out_of_validation_and_odd_rows_are_named(raw):
    path = raw / "four_findings_expert_labels" / "test_labels.csv"
    path.write_text(
        path.read_text() + "00000001_000.png,Mass,1,NO,NO,NO,NO\n00000099_000.png,Mass,9,NO,NO,NO,NO\n"
        "00000002_000.png,Mass,2,NO^,NO,NO,NO\n"
    )
    (raw / "images" / "00000013_004.png").unlink()
    made = nih_google.manifest(raw)
    assert [row.image_id for row in made.rows] == ["00000001_000.png", "00000002_000.png"]
    assert {(problem.file, problem.kind) for problem in made.problems} == {
        ("00000099_000.png", "row"),
        ("00000002_000.png", "row"),
        ("00000013_004.png", "missing"),
    }
    assert any("1 pictures of the validation part were left out" in remark for remark in made.remarks)


def test_a_missing_table_is_named(raw):
    (raw / "four_findings_expert_labels" / "test_labels.csv").unlink()
    with pytest.raises(LayoutError, match="has no four_findings_expert_labels_test_labels.csv.*healthcare-api"):
        nih_google.manifest(raw)
