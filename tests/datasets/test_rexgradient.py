"""A small ReXGradient-160K in the published layout, with invented reports; and broken downloads."""

import json

import cv2
import pytest

from cxrjax.datasets import catalogue, rexgradient
from cxrjax.datasets.release import LayoutError
from tests import official

VIEWS = ["PA", "LATERAL", "POSTERO_ANTERIOR", "AP AXIAL", "ANTERO_POSTERIOR", None]
STUDIES = {
    # part: study: patient, sex, age, pictures
    "train": {"t1": ("A", "F", "057Y", (0, 1)), "t2": ("B", "M", "060Y", (2,)), "t3": ("C", "O", "", (3,))},
    "valid": {"v1": ("D", "M", "003Y", (4,))},
    "test": {"e1": ("E", "F", "044Y", (5,)), "e2": ("B", "M", "061Y", ())},
}


def place(study, number):
    return f"deid_png/GRDN{study}/ACC{study}/studies/1.2.{study}/series/1/instances/{number}.png"


@pytest.fixture
def raw(tmp_path):
    raw = tmp_path / "raw"
    (raw / "metadata").mkdir(parents=True)
    pictures = official.pictures(6)
    for part, studies in STUDIES.items():
        entries = {}
        for study, (patient, sex, age, numbers) in studies.items():
            entries[f"GRDN{study}"] = {
                **{"PatientID": f"GRDN{patient}", "StudyInstanceUid": f"1.2.{study}", "AccessionNumber": f"ACC{study}"},
                **{"PatientSex": sex, "PatientAge": age, "StudyDate": "20200101", "Indication": "A cough.\n"},
                **{"Comparison": "None", "Findings": f"Findings of {study}.", "Impression": f"Impression of {study}."},
                "ImagePath": [f"../{place(study, number)}" for number in numbers],
                "ImageViewPosition": [VIEWS[number] for number in numbers],
            }
            for number in numbers:
                (raw / place(study, number)).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(raw / place(study, number)), pictures[number])
        (raw / "metadata" / f"{part}_metadata_view_position.json").write_text(json.dumps(entries))
    return raw


def test_every_field_comes_back(raw, tmp_path):
    made = official.convert(catalogue.manifest("rexgradient", raw), tmp_path)
    assert made.conversion.problems == ()
    by_study = {}
    for image_id, (split, example) in made.records.items():
        by_study.setdefault(example["study_id"], []).append((split, example, image_id))
    assert {study: found[0][0] for study, found in by_study.items()} == {
        **{"1.2.t1": "train", "1.2.t3": "train", "1.2.v1": "val", "1.2.e1": "test"}
    }
    assert sorted(example["view"] for _, example, _ in by_study["1.2.t1"]) == ["LATERAL", "PA"]
    assert [by_study[f"1.2.{study}"][0][1]["view"] for study in ("t3", "v1", "e1")] == ["UNKNOWN", "AP", "UNKNOWN"]
    _, example, image_id = by_study["1.2.v1"][0]
    assert (example["patient_id"], example["sex"], example["age"]) == ("GRDND", "M", 3)
    assert image_id == "GRDNv1/ACCv1/studies/1.2.v1/series/1/instances/4"
    text = "INDICATION: A cough.\n\nFINDINGS: Findings of v1.\n\nIMPRESSION: Impression of v1."
    assert example["report"] == {"findings": "Findings of v1.", "impression": "Impression of v1.", "text": text}


def test_a_patient_of_the_test_part_is_in_no_other(raw):
    made = rexgradient.manifest(raw)
    assert "GRDNB" not in {row.patient_id for row in made.rows}
    assert "1 studies of train and val were left out: their patients are in val or test." in made.remarks


def test_missing_pictures_and_other_metadata_are_told(raw):
    (raw / place("t1", 0)).unlink()
    made = rexgradient.manifest(raw)
    assert [(problem.kind, problem.file) for problem in made.problems] == [("missing", f"../{place('t1', 0)}")]
    assert any("1 of the 5 pictures that the tables name are missing" in remark for remark in made.remarks)
    path = raw / "metadata" / "valid_metadata_view_position.json"
    for text in ("[]", '{"a": {}}', '{"a": {"ImagePath": [1]}}', "{"):
        path.write_text(text)
        with pytest.raises(LayoutError, match="is no metadata of ReXGradient"):
            rexgradient.manifest(raw)
    path.unlink()
    with pytest.raises(LayoutError, match="has no valid_metadata_view_position.json. .*huggingface.co"):
        rexgradient.manifest(raw)
