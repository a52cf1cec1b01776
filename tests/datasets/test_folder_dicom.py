"""Folders of DICOM files without a table: patients, studies and pictures as the files themselves say."""

import numpy as np
import pytest

from cxrjax.datasets import folder, schema
from cxrjax.datasets.mapping import load
from tests import dicom_files, official


def write(folder_, name, seed, **tags):
    path = folder_ / name
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 255, (32, 32), np.uint8)
    return dicom_files.write(
        path, array, **{"PatientID": f"P{seed // 2}", "StudyInstanceUID": f"1.2.{seed // 2}"} | tags
    )


@pytest.fixture
def raw(tmp_path):
    """Twelve patients with a frontal and a lateral picture each."""
    for seed in range(24):
        write(tmp_path / "raw", f"{seed:02d}.dcm", seed, ViewPosition=("PA", "LL")[seed % 2], PatientSex="F")
    return tmp_path / "raw"


def test_one_patient_is_in_one_split(raw, tmp_path):
    made = official.convert(folder.manifest(raw, load({"name": "clinic"})), tmp_path)
    assert len(made.records) == 24
    splits = {}
    for split, example in made.records.values():
        splits.setdefault(example["patient_id"], set()).add(split)
        assert split == schema.assign_split("clinic", example["patient_id"])
    assert set(splits) == {f"P{number}" for number in range(12)}
    assert all(len(found) == 1 for found in splits.values())
    record = made.records["03.dcm"][1]
    assert (record["study_id"], record["sex"], record["view"]) == ("1.2.1", "F", "LATERAL")
    assert "12 patients and 12 studies of 24 pictures" in made.said


def test_ids_can_be_hashed_with_a_secret(raw):
    plain = folder.manifest(raw, load({"name": "clinic"}))
    one, same, other = (folder.manifest(raw, load({"name": "clinic", "hash_ids": key})) for key in ("a", "a", "b"))
    ids = {row.patient_id for row in one.rows} | {row.study_id for row in one.rows}
    assert len(ids) == 24 and not ids & {row.patient_id for row in plain.rows} and all(len(each) == 20 for each in ids)
    assert one.rows == same.rows and not ids & {row.patient_id for row in other.rows}
    by_file = {row.file: row.patient_id for row in one.rows}
    assert by_file[raw / "00.dcm"] == by_file[raw / "01.dcm"] != by_file[raw / "02.dcm"]


def test_ids_of_a_table_are_hashed_too(raw):
    (raw / "t.csv").write_text("file,who,visit\n00.dcm,Anna,1\n01.dcm,Anna,2\n")
    keys = {"name": "x", "table": "t.csv", "patient": "who", "study": "visit", "hash_ids": "a"}
    rows = folder.manifest(raw, load(keys)).rows
    assert rows[0].patient_id == rows[1].patient_id and len({row.study_id for row in rows}) == 2
    assert "Anna" not in repr(rows)


def test_a_table_without_patients_takes_those_of_the_headers(raw):
    (raw / "t.csv").write_text("file,dx\n00.dcm,Mass\n01.dcm,\n")
    made = folder.manifest(raw, load({"name": "x", "table": "t.csv", "labels": "dx"}))
    assert [(row.patient_id, row.study_id) for row in made.rows] == [("P0", "1.2.0")] * 2
    assert any("1 patients and 1 studies of 2 pictures" in remark for remark in made.remarks)


def test_a_name_for_everybody_is_no_patient_and_a_suspicious_one_is_told(tmp_path):
    for seed in range(24):
        write(tmp_path, f"{seed}.dcm", seed, PatientID="ANONYMOUS" if seed < 2 else "000")
    made = folder.manifest(tmp_path, load({"name": "x"}))
    assert {row.patient_id for row in made.rows} == {"1.2.0", "000"}
    said = "\n".join(made.remarks)
    assert "2 pictures have a study but no patient" in said
    assert "22 of 24 pictures are of the patient '000'. If de-identification wrote that" in said
    by_study = folder.manifest(tmp_path, load({"name": "x", "dicom_patient": "StudyInstanceUID"}))
    assert len({row.patient_id for row in by_study.rows}) == 12


def test_exports_without_suffix_are_found_and_their_index_is_not(tmp_path):
    for seed, name in enumerate(["PA1/SE1/IM0", "PA1/SE1/IM1", "x.IMA", "1.2.840.113", "plain.dcm"]):
        write(tmp_path, name, seed)
    (tmp_path / "DICOMDIR").write_bytes((tmp_path / "plain.dcm").read_bytes())
    (tmp_path / "README").write_text("Exported on a Monday.")
    (tmp_path / "VERSION.7").write_text("7")
    made = folder.manifest(tmp_path, load({"name": "x"}))
    assert sorted(row.image_id for row in made.rows) == [
        "1.2.840.113",
        "PA1/SE1/IM0",
        "PA1/SE1/IM1",
        "plain.dcm",
        "x.IMA",
    ]


@pytest.mark.parametrize(
    ("tags", "age"),
    [
        ({"PatientBirthDate": "19600502", "StudyDate": "20200501"}, 59),
        ({"PatientBirthDate": "19600501", "StudyDate": "20200501"}, 60),
        ({"PatientBirthDate": "19600501", "StudyDate": "20200501", "PatientAge": "031Y"}, 31),
        ({"PatientBirthDate": "20300501", "StudyDate": "20200501"}, -1),
        ({"StudyDate": "20200501"}, -1),
    ],
)
def test_the_age_follows_from_dates_where_none_is_given(tmp_path, tags, age):
    write(tmp_path / "raw", "a.dcm", 0, **tags)
    made = official.convert(folder.manifest(tmp_path / "raw", load({"name": "x"})), tmp_path)
    assert made.records["a.dcm"][1]["age"] == age
