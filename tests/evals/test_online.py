"""The quick k-NN along training: few pictures, the same every time, and a collapse that shows wherever one looks."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cxrjax import tasks, train
from cxrjax.evals import encoders, features, run
from cxrjax.evals.base import Encoder, digest
from tests import runs


def entry(data_dir, **changes):
    quick = tasks.online_knn("phantom", every_steps=5) | {"limit": 6, "neighbours": (3,), "data_dir": str(data_dir)}
    return quick | changes


def test_a_limit_takes_the_same_few_pictures_every_time(phantom_dir, tmp_path):
    first = run.evaluate(encoders.pixels(8), entry(phantom_dir), tmp_path)
    again = run.evaluate(encoders.pixels(9)._replace(step=5), entry(phantom_dir), tmp_path / "other", seed=1)
    whole = run.evaluate(encoders.pixels(8), entry(phantom_dir, limit=0), tmp_path / "whole")
    sizes = {split: size["pictures"] for split, size in first.details["splits"].items()}
    total = {split: size["pictures"] for split, size in whole.details["splits"].items()}
    assert set(sizes.values()) == {6} and min(total.values()) > 6
    assert f"train: a random 6 of {total['train']} pictures, as the limit says" in first.notes
    assert not [note for note in whole.notes if "limit" in note]
    ids, all_ids = list(first.predictions["image_id"]), list(whole.predictions["image_id"])
    assert ids == list(again.predictions["image_id"]) == [name for name in all_ids if name in ids]
    assert ids != all_ids[: len(ids)]


def test_a_limit_encodes_no_picture_more(phantom_dir, tmp_path, monkeypatch):
    seen = []
    outputs = features.outputs
    monkeypatch.setattr(features, "outputs", lambda *given: seen.append(len(given[1])) or outputs(*given))
    run.evaluate(encoders.pixels(8), entry(phantom_dir), tmp_path)
    assert seen == [6, 6, 6]


def test_a_collapsed_encoder_is_at_one_half(phantom_dir, tmp_path):
    def collapsed(images):
        return {"pooled": jnp.ones((len(images), 4))}

    encoder = Encoder(collapsed, 16, digest("collapsed"), "collapsed")
    found = run.evaluate(encoder, entry(phantom_dir, limit=0), tmp_path)
    assert found.metrics["auroc"].value == 0.5


def test_it_shows_in_the_line_the_records_and_tensorboard(phantom_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    config = runs.config(duration__total_steps=4, log_every_steps=1, mesh__data=1)
    config.evals = {"online": tasks.online_knn("phantom_smoke", every_steps=2) | {"limit": 12, "neighbours": (3,)}}
    train.fit(config, tmp_path)
    name = "eval/phantom_smoke/all/knn_auroc"
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [(record["step"], record[name]) for record in records if name in record]
    assert [step for step, _ in found] == [2, 4] and all(0 <= value <= 1 for _, value in found)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    shown = [(event.step, event.value) for event in board.Scalars(name)]
    np.testing.assert_allclose(shown, found, rtol=1e-6)
    last = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 4/4")][-1]
    assert f"knn phantom_smoke {found[0][1]:.4g}" in last and "std " in last and "rank " in last
    assert pytest.approx(records[0]["train/wd"]) == config.optim.wd
