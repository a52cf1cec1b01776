"""Centring, what is kept beside a set and when it is made again, and the look at thresholds."""

import threading
import zlib

import numpy as np
import pytest

from cxrjax import report_similarity
from cxrjax.datasets import schema
from cxrjax.evals.features import source_digest
from cxrjax.input import converted_sets, paired, source, studies
from cxrjax.report_encoders import similarity
from tests import runs


@pytest.fixture(scope="module")
def phantom(phantom_dir):
    return converted_sets.open_set("phantom", phantom_dir)


@pytest.fixture(scope="module")
def reader():
    return paired.StudyReader(runs.config("sista"))


def crowded(texts):
    """Vectors of texts that have nothing to do with each other, but for one long part that all share."""
    return np.stack([50 + np.random.default_rng(zlib.crc32(text.encode())).normal(size=16) for text in texts])


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """A folder, and vectors that crowd around one direction as a BERT's do; `calls` are the texts it was given."""
    (tmp_path / "config.json").write_text("{}")
    calls = []

    def embed(folder, texts):
        calls.append(list(texts))
        return crowded(texts)

    monkeypatch.setattr(similarity.report_encoder, "embed", embed)
    return tmp_path, calls


def test_centring_forgets_an_offset():
    """The mean is over all reports, equal texts counted as often as they come."""
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(6, 4))
    found = similarity.centred(raw)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(similarity.centred(raw + rng.normal(size=4) * 100), found, atol=1e-5)
    several = np.concatenate([raw, raw[:1], raw[:1]])
    np.testing.assert_allclose(similarity.centred(raw, [3, 1, 1, 1, 1, 1]), similarity.centred(several)[:6], atol=1e-6)
    by_hand = raw[1] - several.mean(axis=0)
    np.testing.assert_allclose(similarity.centred(several)[1], by_hand / np.linalg.norm(by_hand), atol=1e-6)
    with pytest.raises(ValueError, match="vectors of 3 different reports are all the same"):
        similarity.centred(np.ones((3, 4)))


def test_bag_of_words():
    """A word is a direction of its own, weighed by how few of the corpus' reports have it."""
    texts = ["clear lungs", "Lungs, clear; lungs.", "clear effusion", "clear"]
    vectors = similarity.bag_of_words(texts, [1, 1, 2, 1])
    np.testing.assert_allclose(vectors[0], vectors[1])
    assert np.linalg.norm(vectors[3]) < 1e-9  # which all have
    lungs, effusion = (np.linalg.norm(vectors[i]) / 16 for i in (0, 2))  # √256 is the length of a direction
    assert lungs == pytest.approx(np.log(6 / 3), rel=0.2) and effusion == pytest.approx(np.log(6 / 3), rel=0.2)
    rarer = similarity.bag_of_words(texts, [1, 1, 1, 1])
    np.testing.assert_allclose(rarer[2] * np.log(6 / 3), vectors[2] * np.log(5 / 2), rtol=1e-6)
    assert not similarity.bag_of_words(["", "a"], [1, 1])[0].any()


def test_vectors_of_a_set(phantom, reader, encoder):
    """Each study finds that of its own text; equal texts one and the same; none for a study without a report."""
    folder, calls = encoder
    found = similarity.load(similarity.made(phantom, reader, folder))
    whole = studies.studies(source.select(phantom, "train"))
    texts = [reader.text(whole[i]["report"]) for i in range(len(whole))]
    assert len(found.rows) == len(whole) and sorted(set(texts)) == calls[0]
    expected = similarity.centred(crowded(texts))
    ours = np.stack([found.find(whole[i]["patient_id"], whole[i]["study_id"]) for i in range(len(whole))])
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    likeness = ours @ ours.T
    equal = np.array(texts)[:, None] == np.array(texts)
    np.testing.assert_allclose(likeness[equal], 1, atol=1e-6)
    assert likeness[~equal].min() < -0.2 and abs(likeness.mean()) < 0.1  # not crowded
    assert not found.find("nobody", "nothing").any()


def test_made_once(phantom, reader, encoder, tmp_path):
    """Two that ask at a time, then one more: a single pass. Other words or another encoder make others."""
    folder, calls = encoder
    (folder / "config.json").write_text('{"another": 1}')
    before = source_digest(source.select(phantom, "train"))
    both = [threading.Thread(target=similarity.made, args=(phantom, reader, folder)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    path = similarity.made(phantom, reader, folder)
    assert len(calls) == 1 and path.parent == phantom.directory / "report_embeddings"
    other = paired.StudyReader(runs.config("sista", text__sections="findings"))
    assert similarity.made(phantom, other, folder) != path and len(calls) == 2
    assert similarity.made(phantom, reader, folder, "val") != path and len(calls) == 3
    another = tmp_path / "another"
    another.mkdir()
    (another / "config.json").write_text('{"another": 2}')
    assert similarity.made(phantom, reader, another) != path and len(calls) == 4
    assert source_digest(source.select(phantom, "train")) == before, "or no run on the set could be resumed"
    assert not list(path.parent.glob("*.unfinished"))


def test_damaged_vectors_are_made_again(phantom, reader, encoder, caplog):
    folder, calls = encoder
    path = similarity.made(phantom, reader, folder)
    before, made = path.read_bytes(), len(calls)
    for file in (path, path.with_suffix(".parquet")):
        file.write_bytes(file.read_bytes()[:100])
        assert similarity.made(phantom, reader, folder) == path and path.read_bytes() == before
        made += 1
        assert len(calls) == made and "is damaged" in caplog.text


def test_a_folder_that_cannot_be_written(phantom, reader, encoder, tmp_path):
    set_folder = tmp_path / "set"
    set_folder.mkdir()
    (set_folder / "report_embeddings").write_text("in the way")
    with pytest.raises(ValueError, match="report_embeddings cannot be written .*so the reports of 'phantom' get no"):
        similarity.made(phantom._replace(directory=set_folder), reader, encoder[0])


def test_calibration():
    """Two kinds of reports, three of one and five of the other; one of the five is labelled like the three."""
    vectors = similarity.centred(np.array([[1.0, 0], [0, 1]]))
    keys = [("p", str(i)) for i in range(8)]
    found = similarity.Table(vectors, {key: int(i >= 3) for i, key in enumerate(keys)})
    kinds = [0, 0, 0, 1, 1, 1, 1, 0]
    labels = {
        key: np.array([schema.PRESENT if kind else schema.ABSENT, schema.NOT_MENTIONED], np.int8)
        for key, kind in zip(keys, kinds, strict=True)
    }
    grid, base, suggested = report_similarity.calibration(found, labels, pairs=40_000)
    pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
    alike = np.array([(i >= 3) == (j >= 3) for i, j in pairs])
    same = np.array([kinds[i] == kinds[j] for i, j in pairs])
    assert base == pytest.approx(same.mean(), abs=0.01)
    line = grid[grid["threshold"] == 0.5].iloc[0]
    assert line["above"] == pytest.approx(alike.mean(), abs=0.01)
    assert line["precision"] == pytest.approx(same[alike].mean(), abs=0.01)
    assert suggested == pytest.approx(1)
    with pytest.raises(ValueError, match="at least two studies with reports and labels, and there are 1"):
        report_similarity.calibration(found, {keys[0]: labels[keys[0]]})


def test_command(phantom_dir, monkeypatch, capsys):
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    assert report_similarity.main(["phantom", "--encoder", "words"]) == 0
    said = capsys.readouterr().out
    assert "reports, " in said and "any pair   100.00%" in said and "2% of the pairs are above" in said
    assert report_similarity.main(["fantom"]) == 2
    assert "Set 'fantom' is neither a set" in capsys.readouterr().err
