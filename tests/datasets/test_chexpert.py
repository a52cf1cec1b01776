"""CheXpert, small and full: every field, what is uncertain, and the drawing of 5x200."""

import gzip

import cv2
import numpy as np
import pandas
import pytest

from cxrjax.datasets import chexpert, release, schema
from cxrjax.input import converted_sets, record_index
from tests import official

HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(chexpert.LABELS)
TRAIN = {
    "patient00001/study1/view1_frontal.jpg": ("Female,68,Frontal,AP", "1.0,,,,,,,,,0.0,,,,1.0"),
    "patient00002/study2/view1_frontal.jpg": ("Female,87,Frontal,PA", ",,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,"),
    "patient00002/study2/view2_lateral.jpg": ("Female,87,Lateral,", ",,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,"),
    "patient00003/study1/view1_frontal.jpg": ("Unknown,0,Frontal,LL", ",,,,,1.0,,,,0.0,,,,"),
}
VALID = {"patient64541/study1/view1_frontal.jpg": ("Male,73,Frontal,AP", "0.0,1.0,1.0,1.0," + ",".join(["0.0"] * 10))}


def write(root, name):
    """CheXpert-v1.0-small or CheXpert-v1.0 with four pictures of train and one of valid."""
    pictures = iter(official.pictures(5, 48, 64))
    for part, rows in (("train", TRAIN), ("valid", VALID)):
        lines = [HEADER]
        for path, cells in rows.items():
            file = root / name / part / path
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), next(pictures))
            lines.append(",".join((f"{name}/{part}/{path}", *cells)))
        (root / name / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return root / name


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "raw", "CheXpert-v1.0-small")


def test_every_field_comes_back(folder, tmp_path):
    made = chexpert.manifest(folder.parent)
    assert made.problems == () and made.remarks == () and made.rows == chexpert.manifest(folder).rows
    done = official.convert(made, tmp_path)
    assert set(done.records) == {f"train/{path}" for path in TRAIN} | {f"valid/{path}" for path in VALID}
    split, test = done.records["valid/patient64541/study1/view1_frontal.jpg"]
    assert split == "test" and (test["sex"], test["age"], test["view"]) == ("M", 73, "AP")
    assert test["labels"].tolist() == [0, 1, 1, 1] + [0] * 10
    split, lateral = done.records["train/patient00002/study2/view2_lateral.jpg"]
    assert (lateral["patient_id"], lateral["study_id"]) == ("patient00002", "patient00002/study2")
    assert (lateral["view"], lateral["sex"], lateral["age"]) == ("LATERAL", "F", 87)
    assert split == done.records["train/patient00002/study2/view1_frontal.jpg"][0] and split in ("train", "val")
    said = dict(zip(made.label_names, lateral["labels"].tolist(), strict=True))
    assert said["Lung Opacity"] == said["Fracture"] == schema.PRESENT
    assert said["Edema"] == said["Pleural Effusion"] == schema.UNCERTAIN and said["Pneumonia"] == schema.NOT_MENTIONED
    stranger = done.records["train/patient00003/study1/view1_frontal.jpg"][1]
    assert (stranger["view"], stranger["sex"], stranger["age"]) == ("UNKNOWN", "", -1)
    assert stranger["labels"][made.label_names.index("Pneumothorax")] == schema.ABSENT


def test_validation_is_cut_from_train_alone(folder, monkeypatch):
    """The official validation pictures are the test part, whatever is drawn for validation."""
    for drawn, expected in ((True, {"val", "test"}), (False, {"train", "test"})):
        monkeypatch.setattr(release, "is_validation", lambda *_, drawn=drawn: drawn)
        rows = chexpert.manifest(folder.parent).rows
        assert {row.split for row in rows} == expected
        assert {row.image_id for row in rows if row.split == "test"} == {f"valid/{path}" for path in VALID}


def test_the_competitions_test_with_its_radiologists_labels(folder, monkeypatch):
    paths = [f"patient64741/study1/{view}.jpg" for view in ("view1_frontal", "view2_lateral")]
    for path in paths:
        (folder / "test" / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "test" / path), official.pictures(1, 48, 64)[0])
    cells = "0.0,0.0,1.0," + ",".join(["0.0"] * 11)
    lines = [f"Path,{','.join(chexpert.LABELS)}", *(f"test/{path},{cells}" for path in paths)]
    (folder / "test_labels.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(release, "is_validation", lambda *_: True)
    made = chexpert.manifest(folder, test="radiologist")
    assert made.problems == () and made.remarks == () and made.published["patients in test"] == 500
    splits = {row.image_id: (row.split, row.view) for row in made.rows}
    assert [splits[f"test/{path}"] for path in paths] == [("test", "UNKNOWN"), ("test", "LATERAL")]
    assert splits["valid/patient64541/study1/view1_frontal.jpg"][0] == "val"
    assert {split for split, _ in splits.values()} == {"train", "val", "test"} and len(splits) == 7
    assert made.rows[-1].labels[made.label_names.index("Cardiomegaly")] == schema.PRESENT
    assert (made.rows[-1].sex, made.rows[-1].age) == ("", -1)
    assert chexpert.manifest(folder).remarks[0].startswith("2 pictures are in no table")


def test_full_download_in_its_parts_and_gzipped_tables(tmp_path):
    full = write(tmp_path / "raw", "CheXpert-v1.0")
    batches = [tmp_path / "raw" / f"CheXpert-v1.0 batch {part}" for part in ("1 (validate & csv)", "2 (train 1)")]
    full.rename(batches[0])
    (batches[0] / "train").rename(batches[1])
    table = batches[0] / "valid.csv"
    (batches[0] / "valid.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
    table.unlink()
    made = chexpert.manifest(tmp_path / "raw")
    assert made.problems == () and len(made.rows) == 5
    assert made.rows[-1].image_id == "valid/patient64541/study1/view1_frontal.jpg" and made.rows[-1].split == "test"
    assert {row.file.parts[-4] for row in made.rows[:4]} == {"CheXpert-v1.0 batch 2 (train 1)"}


def test_half_a_download_and_odd_rows_are_reported(folder, tmp_path):
    (folder / "train" / "patient00001" / "study1" / "view1_frontal.jpg").unlink()
    extra = folder / "train" / "patient00009" / "study1"
    extra.mkdir(parents=True)
    cv2.imwrite(str(extra / "view1_frontal.jpg"), official.pictures(1)[0])
    table = folder / "valid.csv"
    table.write_text(table.read_text().replace("0.0,1.0,1.0", "0.0,yes,1.0"))
    made = chexpert.manifest(folder)
    assert [(problem.kind, problem.file.split("/")[1]) for problem in made.problems] == [
        ("missing", "train"),
        ("row", "valid"),
    ]
    assert "the label 'yes'" in made.problems[1].reason
    assert "1 of the 5 pictures that the tables name are missing" in made.remarks[0]
    assert "1 pictures are in no table and were left out: patient00009/study1/view1_frontal.jpg" in made.remarks[1]
    assert len(official.convert(made, tmp_path, allow_bad=True).records) == 3


def test_other_folders_get_their_sentence(folder, tmp_path):
    write(folder.parent, "CheXpert-v1.0")
    with pytest.raises(release.LayoutError, match="2 train.csv .CheXpert-v1.0-small/train.csv, CheXpert-v1.0/train"):
        chexpert.manifest(folder.parent)
    (folder / "valid.csv").unlink()
    with pytest.raises(release.LayoutError, match="no valid.csv.*tables there: train.csv.*stanfordmlgroup.github.io"):
        chexpert.manifest(folder)
    with pytest.raises(release.LayoutError, match="no train.csv"):
        chexpert.manifest(folder / "train")
    with pytest.raises(release.LayoutError, match="is a file"):
        chexpert.manifest(folder / "train.csv")
    tables = tmp_path / "tables"
    tables.mkdir()
    for name in ("train.csv", "valid.csv"):
        (tables / name).write_text((folder.parent / "CheXpert-v1.0" / name).read_text())
    with pytest.raises(release.LayoutError, match=r"no \.jpg file"):
        chexpert.manifest(tables)


def index(rows):
    """A table as input.record_index.index gives: rows of (image_id, projection, {label: value})."""
    labels = [[known.get(name, schema.NOT_MENTIONED) for name in chexpert.LABELS] for _, _, known in rows]
    return pandas.DataFrame(
        {
            "image_id": [name for name, _, _ in rows],
            "view": [projection for _, projection, _ in rows],
            "labels": [np.array(one, np.int8) for one in labels],
        }
    )


def pure(count):
    rows = [(f"{name}-{i}", ("PA", "AP")[i % 2], {name: 1}) for name in chexpert.COMPETITION for i in range(count)]
    return [(name, projection, labels | {"Pneumothorax": 0}) for name, projection, labels in rows]


def test_five_by_200_draws_frontals_that_have_one_finding_only():
    impure = [
        ("two", "PA", {"Edema": 1, "Cardiomegaly": 1}),
        ("opacity", "PA", {"Edema": 1, "Lung Opacity": 1}),
        ("uncertain", "PA", {"Edema": 1, "Consolidation": -1}),
        ("lateral", "LATERAL", {"Edema": 1}),
        ("unclear", "PA", {"Edema": -1}),
    ]
    rows = pure(6) + impure
    everything = chexpert.five_by_200(index(rows), chexpert.LABELS, per_class=6)
    assert {name: set(ids) for name, ids in everything.items()} == {
        name: {f"{name}-{i}" for i in range(6)} for name in chexpert.COMPETITION
    }
    drawn = chexpert.five_by_200(index(rows), chexpert.LABELS, per_class=3)
    assert all(len(ids) == 3 and set(ids) < set(everything[name]) for name, ids in drawn.items())
    assert drawn == chexpert.five_by_200(index(rows[::-1]), chexpert.LABELS, per_class=3)
    assert drawn != chexpert.five_by_200(index(rows), chexpert.LABELS, seed=1, per_class=3)
    with pytest.raises(ValueError, match="needs 7 frontals.*too few of: Atelectasis 6, .*Pleural Effusion 6"):
        chexpert.five_by_200(index(rows), chexpert.LABELS, per_class=7)


def test_five_by_200_reads_a_converted_set(folder, tmp_path):
    made = chexpert.manifest(folder)
    done = official.convert(made._replace(rows=tuple(row._replace(split="train") for row in made.rows)), tmp_path)
    table = record_index.index(converted_sets.open_set(done.conversion.directory), "train")
    with pytest.raises(ValueError, match="Edema 1"):
        chexpert.five_by_200(table, made.label_names, per_class=2)
