"""Configs of older versions are read under today's keys."""

import json
import logging

import pytest

from cxrjax import config as shared


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
    found, changes = shared.translated({"model": {"patch_px": 8}, "data": {"sets": "x", "folds": 5}, "pool": "mean"})
    assert found["model"] == {"patch_px": 8, "pool": "mean"}
    assert found["data"]["folds"] == 5 and found["data"]["fold"] == 0 and found["data"]["exclude_overlap"] is False
    assert "data.fold = 0" in changes and not any(change.startswith("data.folds") for change in changes)
    assert shared.translated({"model": {"patch_px": 8}})[0]["model"]["pool"] == "cls"
    assert shared.translated({"model": {"image_px": 8}, "job": "evaluate"}) == (
        {"model": {"image_px": 8}, "job": "evaluate"},
        [],
    )


def test_a_key_can_move_to_another_place():
    found, changes = shared.translated({"pool": "mean", "model": {"px": 1}, "evals": {}}, {"pool": "model.pool"})
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
