"""Configs of older versions are read under today's keys."""

import json
import logging

import pytest

from cxrjax import config as shared
from cxrjax import older, ranges
from tests import runs


def test_old_keys_get_their_new_names(tmp_path, caplog):
    old = {
        "data": {"views": "PA"},
        "views": {"flip": 0.5},
        "evals": {"a": {"views": "AP", "set": "x"}, "b": {"set": "y", "projections": "PA", "views": "AP"}},
        "loss": {"shifted_looks": True},
        "grid": "",
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    with caplog.at_level(logging.WARNING):
        found = shared.read(tmp_path / "config.json").to_dict()
    assert found == {
        "data": {"projections": "PA"},
        "views": {"flip": 0.5},
        "evals": {"a": {"projections": "AP", "set": "x"}, "b": {"set": "y", "projections": "PA"}},
        "loss": {"shifted_attention": True},
        "grid": "",
    }
    assert "older version" in caplog.text and "data.views → data.projections" in caplog.text
    assert "evals.a.views → evals.a.projections" in caplog.text


def test_keys_that_came_later_have_the_value_that_held_before():
    """Where their neighbour is there: an older config of another job, or of a ResNet, gets none."""
    found, changes = older.translated({"model": {"patch_px": 8}, "data": {"sets": "x", "folds": 5}, "pool": "mean"})
    assert found["model"] == {"patch_px": 8, "pool": "mean"}
    assert found["data"]["folds"] == 5 and found["data"]["fold"] == 0 and found["data"]["exclude_overlap"] is False
    assert "data.fold = 0" in changes and not any(change.startswith("data.folds") for change in changes)
    assert older.translated({"model": {"patch_px": 8}})[0]["model"]["pool"] == "cls"
    assert older.translated({"head": {"features": 16}})[0]["head"] == {"features": 16, "taps": "", "widths": ""}
    assert older.translated({"model": {"image_px": 8}, "job": "evaluate"}) == (
        {"model": {"image_px": 8}, "job": "evaluate"},
        [],
    )


def test_a_key_can_move_to_another_place():
    found, changes = older.translated({"pool": "mean", "model": {"px": 1}, "evals": {}}, {"pool": "model.pool"})
    assert found == {"model": {"px": 1, "pool": "mean"}, "evals": {}} and changes == ["pool → model.pool"]


def test_todays_configs_are_read_as_they_are(tmp_path, caplog):
    now = shared.pretrain()
    (tmp_path / "config.json").write_text(shared.to_json(now))
    with caplog.at_level(logging.WARNING):
        found = shared.read(tmp_path / "config.json")
    assert shared.to_json(found) == shared.to_json(now) and not caplog.text


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"data": {')
    with pytest.raises(ValueError, match="config.json is damaged"):
        shared.read(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim__lr": -1.0}, r"optim.lr = -1.0: it must be a number in \(0, inf\)"),
        ({"optim__lr": float("nan")}, "optim.lr = nan: it is not a number"),
        ({"loss__kappa": float("nan")}, "loss.kappa = nan: it is not a number"),
        ({"optim__wd": -0.1}, "optim.wd = -0.1"),
        ({"optim__betas": (0.9, 1.0)}, r"optim.betas = \(0.9, 1.0\): each must be a number in \[0, 1\)"),
        ({"optim__momentum": 1.0}, "optim.momentum = 1.0"),
        ({"optim__grad_clip": 0.0}, "optim.grad_clip = 0.0"),
        ({"optim__warmup_steps": -1}, "optim.warmup_steps = -1: it must be a whole number"),
        ({"batch_size": 0}, "batch_size = 0: it must be a whole number in"),
        ({"data__fraction": 0.0}, r"data.fraction = 0.0: it must be a number in \(0, 1\]"),
        ({"seed": -1}, "seed = -1"),
        ({"log_every_steps": 0}, "log_every_steps = 0"),
        ({"checkpoint__every_steps": 0}, "checkpoint.every_steps = 0"),
        ({"checkpoint__keep_latest": 0}, "checkpoint.keep_latest = 0"),
        ({"loss__temperature": 0.0}, "loss.temperature = 0.0"),
        ({"loss__groups": 0}, "loss.groups = 0"),
        ({"evals__phantom_knn__every_steps": 0}, "evals.phantom_knn.every_steps = 0"),
        ({"optim__lrr": 1.0}, "there is no setting optim.lrr. Did you mean 'optim.lr'?"),
        ({"data__fractoin": 0.1}, "there is no setting data.fractoin. Did you mean 'data.fraction'?"),
        ({"batchsize": 8}, "there is no setting batchsize. Did you mean 'batch_size'?"),
        ({"batch_size": 0, "seed": -1}, "(?s)batch_size.*seed|seed.*batch_size"),
    ],
)
def test_bad_values_and_keys_are_named_with_what_would_do(changes, message):
    with pytest.raises(ValueError, match=message):
        ranges.check(runs.config(**changes))


def test_a_seed_is_a_whole_number():
    config = runs.config()
    with config.ignore_type():
        config.seed = 1.5
    with pytest.raises(ValueError, match="seed = 1.5: it must be a whole number"):
        ranges.check(config)


@pytest.mark.parametrize("path", sorted(runs.CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_all_configs_pass_and_are_of_this_version(path):
    """Else a run could not be resumed: what is read of its config.json would be other settings."""
    for word in ("", *runs.words(path.stem)):
        config = runs.config(path.stem, word)
        ranges.check(config)
        if config.job == "pretrain":
            assert older.translated(json.loads(shared.to_json(config)))[1] == []
