"""Shards of WebDataset and Parquet files of Hugging Face become the set that their samples describe."""

import io
import json
import tarfile

import cv2
import pandas
import pytest

from cxrjax import prepare
from cxrjax.datasets import folder, unpack
from cxrjax.datasets.mapping import load
from tests import dicom_files, official


def png(picture):
    return cv2.imencode(".png", picture)[1].tobytes()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    """Two training shards and one for tests; a DICOM file, a report, a mask, and names that lead out of the folder."""
    one, two, three, mask = official.pictures(4)
    raw = tmp_path / "shards"
    fields = {"patient": 7, "labels": ["Mass", "Effusion"]}
    write_tar(
        raw / "cxr-train-000000.tar",
        {
            **{"a/0001.png": png(one), "a/0001.json": json.dumps(fields).encode(), "a/0001.mask.png": png(mask)},
            **{"b/0001.png": png(two), "b/0001.json": b'{"patient": "8", "labels": []}', ".hidden": b"x"},
        },
    )
    dicom = dicom_files.write(tmp_path / "one.dcm", three).read_bytes()
    write_tar(raw / "cxr-test-000000.tar", {"../../evil.dcm": dicom, "../../evil.txt": "Kein Erguß.".encode("cp1252")})
    return raw


def test_samples_of_tar_files_come_back(shards, tmp_path):
    made = unpack.unpack(shards, tmp_path / "plain", progress=False, say=lambda line: None)
    assert (made.rows, made.pictures) == (3, 4)
    rows = folder.manifest(
        tmp_path / "plain",
        load(
            {"name": "x", "table": "table.csv", "file": "image", "labels": "labels", "split": "split", "mask": "mask"}
            | {"text": "txt", "patient": "key"}
        ),
    ).rows
    assert [row.split for row in rows] == ["test", "train", "train"]
    assert [row.labels for row in rows] == [(-2, -2), (1, 1), (-2, -2)]
    assert rows[0].text == "Kein Erguß." and rows[0].file.suffix == ".dcm"
    assert [len(row.masks) for row in rows] == [0, 1, 0]
    assert rows[1].file.read_bytes() == png(official.pictures(1)[0])
    outside = {path.name for path in tmp_path.iterdir()}
    assert outside == {"shards", "plain", "one.dcm"}, "a member's name must not say where it is written"


def test_samples_of_parquet_files_come_back(tmp_path, capsys):
    pictures = official.pictures(3)
    for part, chosen in (("train", pictures[:2]), ("validation", pictures[2:])):
        rows = [
            {"image": {"bytes": png(each), "path": f"{number}.png"}, "subject_id": number, "findings": "Clear."}
            for number, each in enumerate(chosen)
        ]
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        pandas.DataFrame(rows).to_parquet(tmp_path / "hub" / "data" / f"{part}-00000-of-00001.parquet")
    assert prepare.main(["unpack", "--raw", str(tmp_path / "hub"), "--to", str(tmp_path / "plain")]) == 0
    assert "3 samples with 3 pictures; columns: image, subject_id, findings, split." in capsys.readouterr().out
    keys = {"name": "x", "table": "table.csv", "file": "image", "split": "split", "findings": "findings"}
    made = official.convert(folder.manifest(tmp_path / "plain", load(keys)), tmp_path, short_side="original")
    assert sorted(split for split, _ in made.records.values()) == ["train", "train", "val"]
    name = "data/train-00000-of-00001/1.png"
    assert (official.pixels(made.records[name][1]) == pictures[1]).all()
    assert made.records[name][1]["report"]["findings"] == "Clear."


def test_broken_shards_and_other_folders_get_a_sentence(shards, tmp_path, capsys):
    path = shards / "cxr-train-000000.tar"
    path.write_bytes(path.read_bytes()[:700])
    for raw, sentence in (
        (shards, "cxr-train-000000.tar is broken"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "empty", "has no .tar or .parquet file"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert prepare.main(["unpack", "--raw", str(raw), "--to", str(tmp_path / "plain")]) == 2
        assert sentence in capsys.readouterr().err
    (shards / "cxr-train-000000.tar").unlink()
    (shards / "x.parquet").write_bytes(b"PAR1 nothing")
    assert prepare.main(["unpack", "--raw", str(shards), "--to", str(tmp_path / "plain")]) == 2
    assert "x.parquet is broken" in capsys.readouterr().err
