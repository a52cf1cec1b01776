"""What sets share is found by id, through third sets and by fingerprint; nothing else is. Training leaves it out."""

import numpy as np
import pandas as pd
import pytest

from cxrjax.input import converted_sets, overlap, record_index, source
from tests.radiographs import gamma, jpeg, linear, radiograph, short_side, write

DISGUISES = (
    lambda p: jpeg(p, 40),
    lambda p: short_side(p, 96),
    lambda p: gamma(p, 1.5),
    lambda p: jpeg(short_side(gamma(p, 0.7), 160), 60),
    lambda p: linear(p, 0.6, -20),
    lambda p: 255 - p,
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Four sets that share pictures.

    "hospital": patients p0 ... p11 of three pictures each, p0 ... p7 in train.
    "challenge" (no ids): disguised copies of the first picture of p0 ... p5 in test, of p6 in train; six others.
    "clinic", whose pictures look like no other: a0 in test says that it is p1's second picture, a1 in test that its
        patient is p7, a5 in train that it is p9's, of test.
    "gathered": g0 in val says that it is a2 of "clinic", which says that it is p2's third picture.
    """
    folder = tmp_path_factory.mktemp("sets")
    hospital = [
        (f"h{3 * patient + k}", f"p{patient}", "train" if patient < 8 else "test", radiograph(3 * patient + k))
        for patient in range(12)
        for k in range(3)
    ]
    write(folder, "hospital", hospital)
    copies = [
        (f"c{number}", f"c{number}", "test", disguise(radiograph(3 * number)))
        for number, disguise in enumerate(DISGUISES)
    ]
    others = [
        (f"o{number}", f"o{number}", ("val", "test")[number % 2], radiograph(500 + number)) for number in range(6)
    ]
    write(folder, "challenge", [*copies, *others, ("t", "t", "train", jpeg(radiograph(18), 60))])
    clinic = [
        ("a0", "x0", "test", radiograph(600), ("hospital:h4",)),
        ("a1", "x1", "test", radiograph(601), (), ("hospital:p7",)),
        ("a 2.png", "x2", "train", radiograph(602), ("hospital:h8",), ("hospital:",)),
        ("a3", "x3", "train", radiograph(603), ("hospital:h15", "elsewhere:1"), ("hospital:",)),
        ("a4", "x4", "val", radiograph(604)),
        ("a5", "x5", "train", radiograph(605), ("hospital:h27",)),
    ]
    write(folder, "clinic", clinic)
    gathered = [
        ("g0", "y0", "val", radiograph(700), ("clinic:a 2.png", "elsewhere:7")),
        ("g1", "y1", "test", radiograph(701), ("elsewhere:2",)),
    ]
    write(folder, "gathered", gathered)
    return folder


@pytest.fixture
def training(data_dir):
    return source.select(converted_sets.open_set("hospital", data_dir), "train")


def part(data_dir, name, *splits):
    table = overlap.rows(converted_sets.open_set(name, data_dir))
    return table[table["split"].isin(splits)].reset_index(drop=True)


def test_copies_are_found_by_look_and_nothing_else(data_dir):
    a, b = part(data_dir, "hospital", "train", "test"), part(data_dir, "challenge", "train", "val", "test")
    found = overlap.overlap(a, b)
    pairs = {(a["image_id"][i], b["image_id"][j]) for i, j, _ in found.by_fingerprint}
    assert pairs == {(f"h{3 * number}", f"c{number}") for number in range(6)} | {("h18", "t")}
    assert found.by_id == []
    shared = set(found.persons_a) & set(found.persons_b)
    assert set(a["patient_id"][np.isin(found.persons_a, list(shared))]) == {f"p{number}" for number in range(7)}


def test_ids_are_followed_through_other_sets(data_dir):
    a, b, bridge = (
        overlap.rows(converted_sets.open_set(name, data_dir)) for name in ("hospital", "gathered", "clinic")
    )
    assert overlap.overlap(a, b).by_id == []
    found = overlap.overlap(a, b, [bridge])
    assert [(a["image_id"][i], b["image_id"][j]) for i, j in found.by_id] == [("h8", "g0")]
    shared = set(found.persons_a) & set(found.persons_b)
    assert set(a["patient_id"][np.isin(found.persons_a, list(shared))]) == {"p2"}


@pytest.mark.parametrize(
    ("judged", "patients", "counts"),
    [
        (("challenge",), "p0 p1 p2 p3 p4 p5", "18 pictures of 6 patients (0 by id, 6 by fingerprint, 12 others"),
        (("clinic",), "p1 p7", "6 pictures of 2 patients (1 by id, 0 by fingerprint, 5 others"),
        (
            ("gathered", "clinic"),
            "p1 p2 p7",
            "gathered/96-png: 3 pictures of 1 patients (1 by id, 0 by fingerprint, 2 others",
        ),
        (("gathered",), "", None),
        (("hospital",), "", None),
        ((), "", None),
    ],
)
def test_patients_of_held_out_pictures_are_excluded(data_dir, training, judged, patients, counts):
    found = overlap.exclusions([training], judged, data_dir)
    assert found.patient_ids == (frozenset(patients.split()),)
    assert overlap.exclusions([training], judged, data_dir) == found
    if counts is None:
        assert found.sentences == ()
    else:
        assert counts in " ".join(found.sentences) and found.sentences[0].startswith("hospital/96-png: left out")


def test_only_what_is_trained_on_is_counted(data_dir):
    some = source.select(converted_sets.open_set("hospital", data_dir), "train", exclude_patient_ids=["p0"])
    found = overlap.exclusions([some], ["challenge"], data_dir)
    assert "15 pictures of 5 patients (0 by id, 5 by fingerprint" in found.sentences[0]


def test_every_source_has_its_own_exclusions(data_dir, training):
    other = source.select(converted_sets.open_set("clinic", data_dir), "train")
    found = overlap.exclusions([training, other], ["challenge", "hospital"], data_dir)
    assert found.patient_ids == (frozenset({"p0", "p1", "p2", "p3", "p4", "p5"}), frozenset({"x5"}))
    assert [sentence.split(":")[0] for sentence in found.sentences] == ["hospital/96-png", "clinic/96-png"]


def test_another_size_of_the_same_set_is_known_by_id(data_dir, training, tmp_path):
    """Split in another way, too; no picture is looked at."""
    rows = [
        (f"h{number}", f"p{number // 3}", "test" if number < 3 else "train", radiograph(800)) for number in range(9)
    ]
    other = write(tmp_path, "hospital", rows, short_side=64)
    found = overlap.exclusions([training], [str(other.directory)])
    assert found.patient_ids == (frozenset({"p0"}),) and "3 by id, 0 by fingerprint" in found.sentences[0]


def test_its_own_splits_cost_nothing(data_dir, training, monkeypatch):
    monkeypatch.setattr(overlap, "rows", None)
    assert overlap.exclusions([training], ["hospital"], data_dir).patient_ids == (frozenset(),)


def test_nothing_left_is_an_error(data_dir):
    few = source.select(converted_sets.open_set("hospital", data_dir), "train", image_ids=["h0", "h1", "h3"])
    with pytest.raises(
        ValueError, match="Nothing of hospital/96-png is left .* all 3 pictures .*exclude_overlap=False"
    ):
        overlap.exclusions([few], ["challenge"], data_dir)
    with pytest.raises(converted_sets.SetNotFound, match="'nowhere'"):
        overlap.exclusions([few], ["nowhere"], data_dir)


def test_sets_without_fingerprints_get_them_once(data_dir, training, monkeypatch):
    there = training.converted_set
    stored = overlap.fingerprints(there, "train")
    whole = record_index.index

    def older(converted_set, split):
        return whole(converted_set, split).drop(columns=["fingerprint", "same_picture", "same_patient"])

    monkeypatch.setattr(record_index, "index", older)
    kept = there.directory / "fingerprints-train.parquet"
    try:
        assert overlap.fingerprints(there, "train") == stored
        assert pd.read_parquet(kept)["image_id"].tolist() == older(there, "train")["image_id"].tolist()
        assert overlap.exclusions([training], ["challenge"], data_dir).patient_ids[0] == {f"p{n}" for n in range(6)}
        monkeypatch.setattr(overlap, "fingerprint", None)
        assert overlap.fingerprints(there, "train") == stored
        kept.write_bytes(kept.read_bytes()[:50])
        with pytest.raises(TypeError):  # damaged: they are made again
            overlap.fingerprints(there, "train")
        pd.DataFrame({"image_id": ["h0"], "fingerprint": ["00"]}).to_parquet(kept)
        with pytest.raises(TypeError):  # of another set: they are made again
            overlap.fingerprints(there, "train")
    finally:
        kept.unlink(missing_ok=True)


def test_audit_of_two_sets(data_dir):
    said = overlap.audit("hospital", "clinic", data_dir).splitlines()
    lines = {tuple(line.split()[:3]): line.split()[3:] for line in said}
    assert lines["train", "-", "test"] == ["1", "0", "2"] and lines["train", "-", "train"] == ["2", "0", "2"]
    assert lines["train", "-", "val"] == ["0", "0", "0"] == lines["test", "-", "test"]
    assert lines["test", "-", "train"] == ["1", "0", "1"]
    assert "  h4 (train) = a0 (test), by id" in said
    said = overlap.audit("hospital", "challenge", data_dir)
    assert "  h18 (train) = t (train), by fingerprint, distance " in said


def test_audit_of_one_set(tmp_path):
    rows = [(f"i{number}", f"p{number // 2}", "train", radiograph(number)) for number in range(8)]
    rows += [("again", "p3", "train", jpeg(radiograph(6), 50)), ("stranger", "p9", "test", jpeg(radiograph(2), 50))]
    write(tmp_path, "clinic", rows)
    said = overlap.audit("clinic", "clinic", tmp_path)
    assert "2 pairs look the same, 1 of them under two patients, 1 of these in two splits" in said
    assert "  i2 (patient p1, train) = stranger (patient p9, test), distance " in said and "again" not in said


def test_notes_on_what_was_trained_on_of_the_judged_set_itself(data_dir, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(data_dir))
    judged = converted_sets.open_set("hospital")
    assert overlap.notes(["hospital"], "train", judged) == []
    (said,) = overlap.notes(["hospital"], "train+test", judged)
    assert "was trained on test of hospital/96-png itself" in said


def test_notes_on_what_was_not_left_out(data_dir, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(data_dir))
    judged = converted_sets.open_set("challenge")
    (note,) = overlap.notes(["hospital", "challenge", "clinic"], "train", judged)
    assert "trained on hospital/96-png" in note and "18 pictures of 6 patients" in note
    assert overlap.notes(["hospital"], "train", converted_sets.open_set("gathered")) == []
    (note,) = overlap.notes(["covidx/256"], "train", judged._replace(name="rsna_pneumonia/512"))
    assert "covidx/256, which is known to share pictures with rsna_pneumonia/512 but is not converted" in note
    assert overlap.notes(["covidx"], "train", judged) == []
