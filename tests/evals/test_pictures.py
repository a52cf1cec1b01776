"""Fitted pictures that are kept beside their set: each is decoded once, whoever asks, and never stale."""

import errno
import os

import numpy as np
import pytest

from cxrjax.evals import encoders, pictures
from cxrjax.evals.features import features
from cxrjax.input import converted_sets, crops, record_index, source
from tests import radiographs


@pytest.fixture
def converted(tmp_path):
    rows = [(f"{n}", f"patient {n}", "train", radiographs.radiograph(n)) for n in range(5)]
    rows += [(f"{n}", f"patient {n}", ("val", "test")[n % 2], radiographs.radiograph(n)) for n in range(5, 9)]
    return radiographs.write(tmp_path, "clinic", rows)


@pytest.fixture
def decoded(monkeypatch):
    """How often a picture was decoded."""
    calls, decode = [], crops.decode
    monkeypatch.setattr(crops, "decode", lambda *given: calls.append(1) or decode(*given))
    return calls


def whole(chosen, px=16, size=2, **options):
    return np.concatenate(list(pictures.batches(chosen, px, size, **options)))


def test_many_checkpoints_decode_a_picture_once(converted, decoded, tmp_path):
    train = source.select(converted, "train")
    for step in range(3):
        encoder = encoders.pixels(16)._replace(digest=f"{step}", name=f"checkpoint {step}")
        table = features(encoder, train, 2, tmp_path / f"run {step}")
        assert len(decoded) == 5, "a second checkpoint, in a workdir of its own, reads what the first one left"
        picture = crops.fit(crops.decode(train[4]["image"]), 16)
        decoded.pop()
        np.testing.assert_allclose(table.features[4], picture.ravel() / 255, atol=1e-6)


def test_parts_of_a_split_share_what_is_there(converted, decoded):
    train = source.select(converted, "train")
    some = source.Source(converted, "train", [3, 1])
    first = whole(some)
    assert len(decoded) == 2 and first.shape == (2, 16, 16, 1)
    everything = whole(train)
    assert len(decoded) == 5
    np.testing.assert_array_equal(everything[[3, 1]], first)
    np.testing.assert_array_equal(everything[5], everything[4])  # the last batch is filled up
    assert whole(train, px=8).shape == (6, 8, 8, 1) and len(decoded) == 10


def test_what_is_no_square_is_kept_beside_squares(converted, decoded):
    train = source.select(converted, "train")
    whole(train)
    found = whole(train, px=(24, 16))
    np.testing.assert_array_equal(found[1, ..., 0], crops.fit(crops.decode(train[1]["image"]), (24, 16)))
    decoded.clear()
    np.testing.assert_array_equal(whole(train, px=(24, 16)), found)
    assert whole(train).shape == (6, 16, 16, 1) and not decoded, "both are there"
    table = features(encoders.pixels(16)._replace(image_px=(24, 16)), train, 2)
    assert table.features.shape == (5, 24 * 16)


def test_several_splits_as_one(converted):
    joined = source.select(converted, "test", folds=3, fold=1)
    expected = [crops.fit(crops.decode(joined[i]["image"]), 16) for i in range(len(joined))]
    np.testing.assert_array_equal(whole(joined, size=len(joined))[..., 0], expected)


def test_a_set_that_was_converted_again_is_read_again(converted, decoded, tmp_path):
    train = source.select(converted, "train")
    whole(train)
    (record,) = converted.directory.glob("*train*array_record*")
    os.utime(record, ns=(1, 1))
    whole(train)
    assert len(decoded) == 10
    assert len(list((converted.directory / "fitted").glob("train-16-image-*.pixels"))) == 1, "the old file is gone"


def test_what_cannot_be_kept_is_decoded_each_time(converted, decoded, monkeypatch, caplog):
    train = source.select(converted, "train")
    kept = whole(train)
    np.testing.assert_array_equal(whole(train, px=8, limit_bytes=5 * 64 - 1), whole(train, px=8, limit_bytes=0))
    assert len(decoded) == 5 + 6 + 6
    assert not list((converted.directory / "fitted").glob("train-8-*"))

    def refuse(*_, **__):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(pictures, "_open", refuse)
    np.testing.assert_array_equal(whole(train), kept)
    assert "decoded every time: read-only file system" in caplog.text


def test_a_crash_leaves_nothing_marked_that_is_not_there(converted, monkeypatch):
    train, fitted, calls = source.select(converted, "train"), pictures.fitted, []

    def crash(*given, **named):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("the machine stopped")
        return fitted(*given, **named)

    expected = whole(train, limit_bytes=0)
    monkeypatch.setattr(pictures, "fitted", crash)
    with pytest.raises(RuntimeError):
        whole(train)
    monkeypatch.setattr(pictures, "fitted", fitted)
    np.testing.assert_array_equal(whole(train), expected)


def test_a_full_disk_costs_time_alone(converted, monkeypatch, caplog):
    """Writing through a map would end the process by a signal."""
    expected = whole(source.select(converted, "train"), limit_bytes=0)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    np.testing.assert_array_equal(whole(source.select(converted, "train")), expected)
    assert "decoded every time: [Errno 28] No space left" in caplog.text


def test_masks_are_kept_too_and_unknown_ones_are_told(phantom_dir, decoded):
    chosen = source.select(converted_sets.open_set("phantom", phantom_dir), "val", projections=("PA", "AP"))
    masks = whole(chosen, px=24, what="mask")
    assert set(np.unique(masks)) == {0, 255} and 0.1 < (masks == 255).mean() < 0.5
    before = len(decoded)
    whole(chosen, px=24, what="mask")
    assert len(decoded) == before

    example = {**chosen[0], "has_mask": np.bool_(False)}
    assert set(np.unique(pictures.fitted(example, None, 24, "mask")["pixels"])) == {pictures.UNKNOWN}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_kept_pictures_that_the_disk_changed_are_made_again(converted, decoded, caplog):
    """A flipped bit, and a file that was cut: neither is seen by a judge."""
    train = source.select(converted, "train")
    expected = whole(train)
    (pixels,) = (converted.directory / "fitted").glob("*.pixels")
    flip(pixels)
    np.testing.assert_array_equal(whole(train), expected)
    assert len(decoded) == 6 and "1 kept pictures of" in caplog.text
    pixels.write_bytes(pixels.read_bytes()[:300])
    np.testing.assert_array_equal(whole(train), expected)
    before = len(decoded)
    np.testing.assert_array_equal(whole(train), expected)
    assert len(decoded) == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_features_are_made_again(converted, tmp_path, caplog, damage):
    train, encoder = source.select(converted, "train"), encoders.pixels(16)
    expected = features(encoder, train, 2, tmp_path)
    (kept,) = tmp_path.glob("*.npz")
    if damage == "flipped":
        flip(kept)
    else:
        kept.write_bytes(kept.read_bytes()[: 500 if damage == "cut" else 0])
    found = features(encoder, train, 2, tmp_path)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert "is damaged" in caplog.text and "made again" in caplog.text
    caplog.clear()
    features(encoder, train, 2, tmp_path)
    assert not caplog.text


def test_a_damaged_index_is_made_again(converted, caplog):
    expected = record_index.index(converted, "train")
    kept = converted.directory / "index-train.parquet"
    for end in (20, None):
        content = bytearray(kept.read_bytes())
        content[20] ^= 255  # in the first column's values
        kept.write_bytes(content[:end])
        assert record_index.index(converted, "train").equals(expected)
        assert "index-train.parquet is damaged" in caplog.text
        caplog.clear()
