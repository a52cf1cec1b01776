"""Embedding a folder: rows are the method's features, broken pictures are told, a second call does what is left."""

import os

import cv2
import jax
import numpy as np
import pandas
import pyarrow
import pytest

from cxrjax import embed, methods, parallel
from cxrjax.input import crops
from tests import dicom_files, runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "spcl"
    return folder, runs.write(folder, runs.config())


@pytest.fixture
def pictures(tmp_path):
    """Three pictures of other sizes, one in a subfolder, and their pixels by path."""
    rng, found = np.random.default_rng(0), {}
    for name, shape in (("a.png", (40, 32)), ("b.PNG", (32, 32)), ("deep/c.png", (70, 90))):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        found[str(path)] = rng.integers(0, 256, shape, dtype=np.uint8)
        path.write_bytes(cv2.imencode(".png", found[str(path)])[1].tobytes())
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    return found


def command(run, images, output, *more):
    return embed.main(["--checkpoint", str(run[0]), *map(str, images), "--output", str(output), *more])


def test_rows_are_the_features_of_the_fitted_pictures(run, pictures, tmp_path, capsys):
    output = tmp_path / "features.parquet"
    assert command(run, [tmp_path / "pictures"], output, "--batch-size", "8") == 0
    assert "3 pictures in" in capsys.readouterr().out
    table = pandas.read_parquet(output).set_index("path")
    assert set(table.index) == set(pictures)
    encode = jax.jit(methods.make(runs.config()).encode)
    for path, image in pictures.items():
        expected = encode(run[1], {}, crops.fit(image, 32)[None, :, :, None])["pooled"][0]
        np.testing.assert_allclose(table.embedding[path], expected, atol=1e-5)
        assert (table.height[path], table.width[path]) == image.shape


def test_dicom_files_are_found_and_embedded_as_they_are_shown(run, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    for suffix in ("dcm", "dicom"):
        dicom_files.write(tmp_path / f"inverted.{suffix}", image, photometric="MONOCHROME1")
    assert command(run, [tmp_path], tmp_path / "features.parquet") == 0
    table = pandas.read_parquet(tmp_path / "features.parquet")
    assert sorted(path.rsplit(".")[-1] for path in table.path) == ["dcm", "dicom"]
    expected = jax.jit(methods.make(runs.config()).encode)(run[1], {}, 255 - image[None, :, :, None])["pooled"][0]
    for embedding, steps in zip(table.embedding, table.steps, strict=True):
        np.testing.assert_allclose(embedding, expected, atol=1e-5)
        assert list(steps) == ["inverted: MONOCHROME1"]


def test_dicom_without_suffix_and_names_in_other_bytes_are_embedded(run, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    (tmp_path / "raw").mkdir()
    dicom_files.write(tmp_path / "raw" / "IM0", image)
    (tmp_path / "raw" / "README").write_text("no picture")
    with open(os.path.join(os.fsencode(tmp_path / "raw"), b"radio\xe9.png"), "wb") as file:
        file.write(cv2.imencode(".png", image)[1].tobytes())
    for _ in range(2):
        assert command(run, [tmp_path / "raw"], tmp_path / "features.parquet") == 0
    table = pandas.read_parquet(tmp_path / "features.parquet")
    assert [path.rsplit("/")[-1] for path in table.path] == ["IM0", r"radio\xe9.png"]


def test_what_was_done_to_a_picture_is_in_its_row(run, tmp_path):
    picture = tmp_path / "colour.png"
    cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    assert command(run, [picture], tmp_path / "features.parquet") == 0
    (steps,) = pandas.read_parquet(tmp_path / "features.parquet").steps
    assert len(steps) == 1 and "colour to luma" in steps[0]


def test_broken_pictures_are_told_and_the_rest_is_embedded(run, pictures, tmp_path, capsys):
    whole = (tmp_path / "pictures" / "a.png").read_bytes()
    (tmp_path / "pictures" / "cut.png").write_bytes(whole[: len(whole) // 2])
    output = tmp_path / "features.parquet"
    assert command(run, [tmp_path / "pictures"], output) == 1
    assert "cut.png: The PNG data are truncated" in capsys.readouterr().err
    assert len(pandas.read_parquet(output)) == 3
    reasons = pandas.read_csv(tmp_path / "features.unreadable.csv")
    assert [path.rsplit("/")[-1] for path in reasons.path] == ["cut.png"]
    assert command(run, [tmp_path / "pictures"], output, "--allow-bad") == 0
    (tmp_path / "pictures" / "cut.png").write_bytes(whole)
    assert command(run, [tmp_path / "pictures"], output) == 0
    assert len(pandas.read_parquet(output)) == 4 and not (tmp_path / "features.unreadable.csv").exists()


def test_second_call_only_reads_what_is_left(run, pictures, tmp_path, monkeypatch):
    output, read, (first, *others) = tmp_path / "features.parquet", [], sorted(pictures)
    assert command(run, [first], output) == 0
    original = embed.reader.read
    monkeypatch.setattr(embed.reader, "read", lambda path, **options: read.append(str(path)) or original(path))
    assert command(run, [first, tmp_path / "pictures"], output) == 0
    assert sorted(read) == others
    assert sorted(pandas.read_parquet(output).path) == sorted(pictures)


def test_rows_survive_an_interruption(run, pictures, tmp_path, monkeypatch):
    output = tmp_path / "features.parquet"
    last = sorted(pictures)[-1]
    original = embed.reader.read

    def interrupted(path, **options):
        if str(path) == last:
            raise KeyboardInterrupt
        return original(path)

    monkeypatch.setattr(embed.reader, "read", interrupted)
    monkeypatch.setattr(parallel, "num_devices", lambda mesh: 1)
    monkeypatch.setattr(parallel, "to_global", lambda batch, mesh: batch)
    with pytest.raises(KeyboardInterrupt):
        command(run, [tmp_path / "pictures"], output, "--batch-size", "1")
    assert 1 <= len(pandas.read_parquet(output)) <= 2


def test_a_write_that_fails_leaves_the_table_before(tmp_path, monkeypatch):
    output, table = tmp_path / "features.parquet", pyarrow.table({"path": ["a"]})
    embed._save(table, output)

    def full(table, place):
        place.write_bytes(b"PAR1")
        raise OSError("no space left on device")

    monkeypatch.setattr(embed.parquet, "write_table", full)
    with pytest.raises(OSError, match="no space"):
        embed._save(table, output)
    assert pandas.read_parquet(output)["path"].tolist() == ["a"]


def test_features_of_two_checkpoints_are_not_mixed(run, pictures, tmp_path, capsys):
    output = tmp_path / "features.parquet"
    assert command(run, [tmp_path / "pictures"], output) == 0
    runs.write(tmp_path / "other", runs.config(), seed=1)
    assert command((tmp_path / "other",), [tmp_path / "pictures"], output) == 2
    assert "holds features of another checkpoint" in capsys.readouterr().err
    output.write_text("no table")
    assert command(run, [tmp_path / "pictures"], output) == 2
    assert "no Parquet table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "sentence"),
    [("empty", "No .png, .jpg, .jpeg, .dcm, .dicom, .img below"), ("absent", "no file or folder")],
)
def test_no_picture_is_an_error(run, tmp_path, capsys, given, sentence):
    (tmp_path / "empty").mkdir()
    assert command(run, [tmp_path / given], tmp_path / "features.parquet") == 2
    assert sentence in capsys.readouterr().err
