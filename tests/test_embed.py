"""Embedding a folder: rows are the method's features, broken pictures are told, a second call does what is left."""

import os
import re

import cv2
import jax
import numpy as np
import pandas
import pyarrow
import pytest

from cxrjax import embed, encoder, methods
from cxrjax.embedding import growing
from cxrjax.imaging import reader
from cxrjax.input import crops
from tests import dicom_files, mixed, runs


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
    original = reader.read
    monkeypatch.setattr(reader, "read", lambda path, **options: read.append(str(path)) or original(path))
    assert command(run, [first, tmp_path / "pictures"], output) == 0
    assert sorted(read) == others
    assert sorted(pandas.read_parquet(output).path) == sorted(pictures)


def test_a_run_that_was_stopped_ends_in_the_same_bytes(run, tmp_path, monkeypatch):
    """Stopped twice: in the third part, and between the table and its unreadable pictures."""
    monkeypatch.setattr(growing, "PART", 8)
    folder = mixed.write(tmp_path / "pictures", 30, 5)
    assert command(run, [folder], tmp_path / "whole.parquet", "--patches", "float16") == 1
    original, output = reader.read, tmp_path / "features.parquet"

    def stopped(path, **options):
        if path.endswith(sorted(mixed.names(30))[20]):
            raise KeyboardInterrupt
        return original(path, **options)

    for owner, name, instead in ((reader, "read", stopped), (growing.shutil, "rmtree", stop)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, instead)
            command(run, [folder], output, "--patches", "float16")
    assert command(run, [folder], output, "--patches", "float16") == 1
    assert not list(tmp_path.glob("*.parts"))
    mixed.assert_same(output, tmp_path / "whole.parquet")
    found = pandas.read_parquet(output)
    assert (len(found), len(pandas.read_csv(output.with_suffix(".unreadable.csv")))) == (25, 5)


def stop(*arguments, **options):
    raise KeyboardInterrupt


def test_patches_and_attention_lie_beside_the_table(run, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(growing, "PART", 2)
    output = tmp_path / "features.parquet"
    assert command(run, [tmp_path / "pictures"], output, "--patches", "float16", "--attention") == 0
    encode = jax.jit(methods.make(runs.config()).encode)
    looks = dict(zip(pictures, encoder.load(run[0]).attention(list(pictures)), strict=True))
    for row in pandas.read_parquet(output).itertuples():
        patches = np.load(tmp_path / "features.patches" / f"{row.patch_part:05d}.npy", mmap_mode="r")[row.patch_row]
        expected = encode(run[1], {}, crops.fit(pictures[row.path], 32)[None, :, :, None])["patches"][0]
        np.testing.assert_allclose(patches, expected, atol=4e-3)
        assert patches.dtype == np.float16
        looked = np.load(tmp_path / "features.attention" / f"{row.patch_part:05d}.npy")[row.patch_row]
        np.testing.assert_allclose(looked, looks[row.path], atol=1e-3)


def test_what_is_like_a_picture_and_the_copies_are_told(run, pictures, tmp_path, capsys):
    output, (first, *_) = tmp_path / "features.parquet", sorted(pictures)
    cv2.imwrite(str(tmp_path / "pictures" / "copy.jpg"), pictures[first])
    more = ["--like", first, "--nearest", "2", "--duplicates", "--map", str(tmp_path / "map.png")]
    assert command(run, [tmp_path / "pictures"], output, *more) == 0
    said = capsys.readouterr().out
    assert [line.split("/")[-1] for line in said.splitlines()[1:3]] == ["a.png", "copy.jpg"]
    (pair,) = pandas.read_csv(tmp_path / "features.duplicates.csv").itertuples()
    assert [path.split("/")[-1] for path in (pair.path, pair.other)] == ["a.png", "copy.jpg"]
    assert pair.how in ("both", "fingerprint") and pair.bits < 200
    assert cv2.imread(str(tmp_path / "map.png")).shape[1] == 900
    assert embed.main(["--output", str(output), "--map", str(tmp_path / "map.png"), "--colour", "age"]) == 2
    assert "has no column 'age' to colour by; it has path, height" in capsys.readouterr().err


def test_features_of_two_checkpoints_are_not_mixed(run, pictures, tmp_path, capsys):
    output = tmp_path / "features.parquet"
    assert command(run, [tmp_path / "pictures"], output) == 0
    runs.write(tmp_path / "other", runs.config(), seed=1)
    assert command((tmp_path / "other",), [tmp_path / "pictures"], output) == 2
    assert "holds features of another checkpoint" in capsys.readouterr().err
    output.write_text("no table")
    assert command(run, [tmp_path / "pictures"], output) == 2
    assert "no Parquet table" in capsys.readouterr().err


def test_a_table_of_pictures_none_of_which_can_be_read(run, tmp_path, capsys):
    """Columns that are kept have no row then, either."""
    (tmp_path / "list.csv").write_text("path,age\ngone.png,7\n")
    output = tmp_path / "features.parquet"
    flags = ["--table", str(tmp_path / "list.csv"), "--keep", "age", "--output", str(output)]
    assert embed.main(["--checkpoint", str(run[0]), *flags]) == 1
    assert "0 pictures in" in capsys.readouterr().out and len(pandas.read_parquet(output)) == 0


@pytest.mark.parametrize(
    ("given", "sentence"),
    [("empty", "No .png, .jpg, .jpeg, .dcm, .dicom, .img below"), ("absent", "no file or folder")],
)
def test_no_picture_is_an_error(run, tmp_path, capsys, given, sentence):
    (tmp_path / "empty").mkdir()
    assert command(run, [tmp_path / given], tmp_path / "features.parquet") == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("none", "There is no table .* to ask"),
        ("text", "is no Parquet table"),
        ("older", "lacks the columns fingerprint"),
        ("empty", "has no rows to ask"),
    ],
)
def test_what_cannot_be_asked_is_said(tmp_path, capsys, table, sentence):
    output, rows = tmp_path / "f.parquet", pyarrow.table({name: [] for name in growing.COLUMNS.names})
    if table == "text":
        output.write_text("path,embedding")
    elif table != "none":
        schema = rows.drop_columns("fingerprint").schema if table == "older" else rows.schema
        growing.write(output, schema, [])
    assert embed.main(["--output", str(output), "--duplicates"]) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert not output.with_suffix(".duplicates.csv").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--nearest", "0"], "argument --nearest: '0' is no whole number from 1 on"),
        (["--batch-size", "0"], "argument --batch-size: '0' is no whole number"),
        (["--threads", "x"], "argument --threads: 'x' is no whole number"),
        (["--keep", "age"], "--keep goes with --table alone"),
        (["--split", "test"], "--split goes with --set alone"),
        (["--root", "."], "--root goes with --list or --table alone"),
        (["--colour", "view"], "--colour goes with --map alone"),
    ],
)
def test_an_option_that_would_do_nothing_is_an_error(tmp_path, capsys, options, sentence):
    with pytest.raises(SystemExit):
        embed.main([str(tmp_path), "--checkpoint", "runs/x", "--output", str(tmp_path / "f.parquet"), *options])
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (("features.csv",), "--output features.csv is written as parquet"),
        (("features.parquet", "--map", "map.pdf"), "--map map.pdf is written as png"),
    ],
)
def test_files_are_named_as_what_they_are(files, says, capsys):
    with pytest.raises(SystemExit):
        embed.main(["--checkpoint", "nowhere", "a.png", "--output", *files])
    assert f"{says}; give a name that ends in ." in capsys.readouterr().err
