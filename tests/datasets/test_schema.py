"""The schema: label axis, splits by patient, and where sets live."""

from pathlib import Path

import pytest

from cxrjax.datasets import schema


def test_data_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CXRJAX_DATA", str(tmp_path))
    assert schema.data_dir() == tmp_path
    monkeypatch.delenv("CXRJAX_DATA")
    assert schema.data_dir() == Path("~/.cache/cxrjax").expanduser()


def test_features_hold_what_was_asked_for():
    plain = {"image", "image_id", "patient_id", "study_id", "view", "labels"}
    plain |= {"sex", "age", "fingerprint", "same_picture", "same_patient"}
    assert set(schema.features(["a", "b"])) == plain
    full = schema.features(["a"], mask=True, boxes=True, report=True, finding_mask=True, extra_masks=("heart",))
    assert set(full) == plain | {"mask", "has_mask", "boxes", "report", "finding_mask", "mask_heart"}
    assert full["labels"].shape == (1,)
    assert tuple(full["view"].names) == schema.PROJECTIONS


def test_features_refuse_repeated_labels_and_unknown_formats():
    with pytest.raises(ValueError, match="these repeat: Effusion"):
        schema.features(["Effusion", "Mass", "Effusion"])
    with pytest.raises(ValueError, match="'gif' is not known; choose 'png' or 'jpeg'"):
        schema.features([], image_format="gif")


def test_assigned_splits_are_stable_and_have_their_shares():
    # sha256("clinic|1") begins with 8525edbd, so its position is about 0.52; the same arithmetic gives the others.
    known = {"1": "train", "11": "val", "15": "val", "18": "test", "28": "test", "29": "test"}
    assert {patient: schema.assign_split("clinic", patient) for patient in known} == known
    splits = [schema.assign_split("clinic", str(patient)) for patient in range(4000)]
    assert splits == [schema.assign_split("clinic", str(patient)) for patient in range(4000)]
    for split, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert splits.count(split) / 4000 == pytest.approx(share, abs=0.025)
    assert splits != [schema.assign_split("another", str(patient)) for patient in range(4000)]


def test_a_patient_in_two_splits_is_named():
    schema.assert_patients_disjoint({"train": ["a", "a", "b"], "test": ["c"]})
    with pytest.raises(
        ValueError, match=r"1 patient is in more than one split of set 'clinic': b \(test and train\)\."
    ):
        schema.assert_patients_disjoint({"train": ["a", "b"], "test": ["b", "c"]}, "clinic")
    many = [str(patient) for patient in range(100, 130)]
    with pytest.raises(ValueError, match="30 patients are .* and 20 more"):
        schema.assert_patients_disjoint({"train": many, "val": many})
