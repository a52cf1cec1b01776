"""A small CheXpert Plus in the published layout, with invented reports: fields, splits, and the guard's names."""

import csv
import json

import cv2
import pytest

from cxrjax.datasets import catalogue, chexpert, chexpert_plus
from cxrjax.datasets.release import LayoutError, is_validation
from tests import dicom_files, official

HEAD = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,section_narrative,"
    "section_clinical_history,section_history,section_comparison,section_technique,section_procedure_comments,"
    "section_findings,section_impression,section_end_of_impression,section_summary,section_accession_number,age,sex,race,"
    "ethnicity,interpreter_needed,insurance_type,recent_bmi,deceased,split"
).split(",")
ROWS = [
    ("train/patient00001/study1/view1_frontal", "Frontal", "AP", "68.0", "Female", "train"),
    ("train/patient00002/study2/view1_frontal", "Frontal", "PA", "87.0", "Male", "train"),
    ("train/patient00002/study2/view2_lateral", "Lateral", "", "87.0", "Male", "train"),
    ("valid/patient64541/study1/view1_frontal", "Frontal", "PA", "0", "Unknown", "valid"),
]


def write(raw, suffix):
    (raw / "chexbert_labels").mkdir(parents=True)
    with open(raw / "df_chexpert_plus_240401.csv", "w", newline="") as file:
        table = csv.DictWriter(file, HEAD, restval="")
        table.writeheader()
        for stem, side, ap_pa, age, sex, split in ROWS:
            cells = {"path_to_image": f"{stem}.jpg", "path_to_dcm": f"{stem}.dcm", "frontal_lateral": side}
            cells |= {
                "ap_pa": ap_pa,
                "age": age,
                "sex": sex,
                "split": split,
                "section_findings": f"Findings\\nof {stem}.",
            }
            table.writerow(cells | {"section_impression": "Nothing.", "report": f"FINDINGS: Findings\nof {stem}."})
    lines = [{"path_to_image": f"{stem}.jpg"} | dict.fromkeys(chexpert.LABELS) for stem, *_ in ROWS[:3]]
    lines[0] |= {"Edema": 1.0, "Fracture": 0.0, "Pneumonia": -1.0}
    (raw / "chexbert_labels" / "impression_fixed.json").write_text("\n".join(map(json.dumps, lines)))
    for (stem, *_), pixels in zip(ROWS, official.pictures(4), strict=True):
        path = raw / suffix.strip(".").upper() / f"{stem}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".png":
            cv2.imwrite(str(path), pixels)
        else:
            dicom_files.write(path, pixels)
    return raw


@pytest.mark.parametrize("suffix", [".png", ".dcm"])
def test_every_field_comes_back(tmp_path, suffix):
    made = official.convert(catalogue.manifest("chexpert_plus", write(tmp_path / "raw", suffix)), tmp_path)
    assert made.conversion.problems == () and set(made.records) == {row[0] for row in ROWS}
    split, example = made.records[ROWS[0][0]]
    val = is_validation("chexpert", "patient00001", chexpert.VAL_SHARE)
    assert split == ("val" if val else "train") and (example["view"], example["sex"], example["age"]) == ("AP", "F", 68)
    said = dict(zip(chexpert.LABELS, example["labels"].tolist(), strict=True))
    assert (said["Edema"], said["Fracture"], said["Pneumonia"], said["Cardiomegaly"]) == (1, 0, -1, -2)
    assert example["report"]["findings"] == f"Findings\nof {ROWS[0][0]}."
    assert (
        example["same_picture"] == f"chexpert:{ROWS[0][0]}.jpg" and example["same_patient"] == "chexpert:patient00001"
    )
    assert made.records[ROWS[2][0]][1]["view"] == "LATERAL"
    split, example = made.records[ROWS[3][0]]
    assert (split, example["sex"], example["age"]) == ("test", "", -1) and set(example["labels"].tolist()) == {-2}
    assert "1 pictures have no labels in impression_fixed.json" in made.said


def test_its_ids_are_those_of_chexpert(tmp_path):
    """So that the guard finds the pictures of one set in the other."""
    made = chexpert_plus.manifest(write(tmp_path / "raw", ".png"))
    small = tmp_path / "CheXpert-v1.0-small"
    head = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(chexpert.LABELS)
    for part in ("train", "valid"):
        lines = [head]
        for stem in (row[0] for row in ROWS if row[0].startswith(part)):
            (small / stem).parent.mkdir(parents=True, exist_ok=True)
            (small / f"{stem}.jpg").touch()
            lines.append(f"CheXpert-v1.0-small/{stem}.jpg,Male,50,Frontal,PA" + "," * 14)
        (small / f"{part}.csv").write_text("\n".join(lines))
    theirs = {
        f"chexpert:{row.image_id}": (f"chexpert:{row.patient_id}", row.split) for row in chexpert.manifest(small).rows
    }
    assert {row.same_picture[0]: (row.same_patient[0], row.split) for row in made.rows} == theirs


def test_missing_labels_and_pictures_are_told(tmp_path):
    raw = write(tmp_path / "raw", ".png")
    (raw / "PNG" / f"{ROWS[1][0]}.png").unlink()
    with open(raw / "chexbert_labels" / "impression_fixed.json", "a") as file:
        file.write('\n{"path_to_image": "train/p/s/v.jpg", "Edema": 7}\nnonsense\n')
    made = chexpert_plus.manifest(raw)
    said = [(problem.file, problem.kind) for problem in made.problems]
    assert said == [("impression_fixed.json", "row")] * 2 + [(f"{ROWS[1][0]}.jpg", "missing")]
    assert "has the label '7.0'" in made.problems[0].reason
    assert ("findings_fixed.json", "missing") in [item[:2] for item in chexpert_plus.manifest(raw, "findings").problems]
    for path in raw.rglob("*.png"):
        path.unlink()
    with pytest.raises(LayoutError, match="has no .dcm or .png or .jpg file"):
        chexpert_plus.manifest(raw)
