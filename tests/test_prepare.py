"""The prepare command: exit codes, sentences, and what it says."""

import json

import cv2
import numpy as np
import pytest

from cxrjax import prepare
from cxrjax.datasets import mapping
from cxrjax.input import converted_sets, source


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(tmp_path / "data"))
    raw = tmp_path / "raw"
    raw.mkdir()
    for i in range(3):
        cv2.imwrite(str(raw / f"{i}.png"), np.random.default_rng(i).integers(0, 255, (40, 40), np.uint8))
    (raw / "list.csv").write_text("ID,Who,Dx,Part\n0,a,Mass;Effusion,train\n1,a,Mass,train\n2,b,Normal,test\n")
    return raw


ARGUMENTS = ["--map", "file={ID}.png", "patient=Who", "labels=Dx", "split=Part", "--separator", ";"]


def folder(raw, *more):
    return prepare.main(["folder", "--raw", str(raw), "--short-side", "32", *more])


def test_a_folder_is_converted_from_arguments_and_listed(raw, capsys):
    assert folder(raw, "--name", "clinic", "--table", "list.csv", *ARGUMENTS) == 0
    out = capsys.readouterr().out
    assert "label Effusion" in out and "Converted set:" in out
    assert prepare.main(["--list"]) == 0
    assert "clinic/32: train 2, test 1; 3 labels" in capsys.readouterr().out


def test_a_mapping_file_with_options_that_win(raw, tmp_path, capsys):
    keys = {"name": "other", "table": "list.csv", "file": "{ID}.png", "patient": "Nobody", "split": "Part"}
    (tmp_path / "mapping.json").write_text(json.dumps(keys))
    file = ["--mapping", str(tmp_path / "mapping.json")]
    assert folder(raw, *file) == 2
    assert "no column 'Nobody'; its columns are: ID, Who, Dx, Part" in capsys.readouterr().err
    assert folder(raw, *file, "--name", "clinic", "--map", "patient=Who", "--format", "png") == 0
    assert (tmp_path / "data" / "clinic" / "32-png" / "1.0.0" / "features.json").exists()


def test_bad_files_end_with_1_unless_allowed(raw, tmp_path, capsys):
    (raw / "1.png").write_bytes(b"")
    arguments = ["--name", "clinic", "--table", "list.csv", *ARGUMENTS]
    assert folder(raw, *arguments) == 1
    said = capsys.readouterr()
    assert "empty (0 bytes)" in said.out and "problems.csv" in said.out
    assert "--allow-bad" in said.err
    assert folder(raw, *arguments, "--allow-bad") == 0


def test_a_dry_run_says_what_would_be_and_writes_nothing(raw, tmp_path, capsys):
    arguments = ["--name", "clinic", "--table", "list.csv", *ARGUMENTS, "--dry-run"]
    assert folder(raw, *arguments) == 0
    said = capsys.readouterr().out
    assert "Read: 3 of 3 pictures" in said and "label Effusion" in said and "Nothing was written" in said
    assert not (tmp_path / "data").exists()
    (raw / "1.png").write_bytes(b"")
    (raw / "2.png").unlink()
    assert folder(raw, *arguments, "all") == 1
    said = capsys.readouterr().out
    assert "Problems: 2 (1 x missing, 1 x picture)" in said and "empty (0 bytes)" in said
    assert next(line.split() for line in said.splitlines() if line.startswith("pictures")) == ["pictures", "1", "1"]
    assert folder(raw, *arguments, "1") == 1
    assert "Read: 1 of 2 pictures" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()


def test_a_dry_run_estimates_the_size_of_the_set(raw, tmp_path, capsys):
    for i in range(3, 40):
        cv2.imwrite(str(raw / f"{i}.png"), np.random.default_rng(i).integers(0, 255, (40, 40), np.uint8))
    (raw / "list.csv").unlink()
    assert folder(raw, "--name", "clinic", "--format", "png", "--dry-run", "10") == 0
    estimate = float(capsys.readouterr().out.split("Estimated size: ")[1].split()[0]) * 1e9
    assert folder(raw, "--name", "clinic", "--format", "png") == 0
    made = converted_sets.open_set("clinic", tmp_path / "data")
    written = sum(len(example["image"]) for split in made.split_sizes for example in source.select(made, split))
    assert abs(estimate / written - 1) < 0.05


def test_mistakes_end_with_2_and_a_sentence(raw, tmp_path, capsys):
    assert folder(raw) == 2
    assert "The set has no name: give --name" in capsys.readouterr().err
    assert folder(tmp_path / "nowhere", "--name", "clinic") == 2
    assert "does not exist" in capsys.readouterr().err
    assert folder(raw, "--name", "clinic", "--map", "patient") == 2
    assert "'patient' is not key=value" in capsys.readouterr().err
    (tmp_path / "broken.json").write_text("{")
    assert folder(raw, "--mapping", str(tmp_path / "broken.json")) == 2
    assert "broken.json is not valid JSON" in capsys.readouterr().err
    assert folder(raw, "--name", "clinic", "--short-side", "4") == 2
    assert "short side of 4 px is too small" in capsys.readouterr().err
    assert prepare.main([]) == 2


def test_help_names_every_mapping_key(capsys):
    with pytest.raises(SystemExit, match="0"):
        prepare.main(["folder", "--help"])
    out = capsys.readouterr().out
    for key in mapping.Mapping._fields:
        assert f"\n  {key}: " in out


def test_arguments_become_mapping_keys():
    keys = mapping.from_arguments(
        ["file={ID}.png", "label_columns=icu, died", "view_values=L:LATERAL,X:", 'split_values={"a": "train"}']
    )
    assert keys == {
        "file": "{ID}.png",
        "label_columns": ["icu", "died"],
        "view_values": {"L": "LATERAL", "X": None},
        "split_values": {"a": "train"},
    }
    assert mapping.load(keys | {"name": "x", "table": "t", "view_values": {}}).label_columns == {
        "icu": "icu",
        "died": "died",
    }


def test_the_phantom_is_built(tmp_path, capsys):
    assert prepare.main(["--data-dir", str(tmp_path), "phantom", "--studies", "12", "--short-side", "32"]) == 0
    assert list(tmp_path.rglob("dataset_info.json"))


def test_findings_are_those_of_converted_sets_and_of_the_table(raw, capsys):
    assert folder(raw, "--name", "clinic", "--table", "list.csv", *ARGUMENTS) == 0
    assert prepare.main(["--findings", "clinic/32", "chestxray14"]) == 0
    out = capsys.readouterr().out
    assert "Mass = clinic/32 Mass; chestxray14 Mass." in out and "clinic/32 has besides" in out
    assert prepare.main(["--findings", "hospital"]) == 2
    assert "neither converted nor in the table" in capsys.readouterr().err
