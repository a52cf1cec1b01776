"""A finished run is trained longer, and its record says so; no other setting changes with it."""

import json

import numpy as np
import pytest

import cxrjax
from cxrjax import config as shared
from cxrjax import longer, main, trained
from cxrjax.runtime import integrity
from tests import runs


def finished(workdir, **changes):
    """A run of six steps that is over."""
    config = runs.config(**changes)
    runs.write(workdir, config, step=6)
    (workdir / "pictures.json").write_text(json.dumps({"phantom_smoke/train": {"pictures": 48}}))
    return config


def test_a_finished_run_can_grow_and_says_when(tmp_path, capsys):
    finished(tmp_path)
    (tmp_path / longer.FINISHED).write_text("{}")
    grown = main.claim(tmp_path, runs.config(duration__total_steps=9))
    assert not (tmp_path / longer.FINISHED).exists(), "a grid would take it for done"
    assert grown.lengthened == (6,) and "trained longer: from step 6 to 9" in capsys.readouterr().out
    assert shared.read(tmp_path / "config.json").duration.total_steps == 9
    assert trained.load(tmp_path).config.lengthened == [6]  # the step is of the new config.json
    step = trained.settings(tmp_path)[0]
    assert not integrity.foreign(step) and json.loads((step / integrity.DIGESTS).read_text())["config"]
    again = main.claim(tmp_path, runs.config(duration__total_steps=9))  # resumed before it ended
    assert list(again.lengthened) == [6] and shared.digest(again) == shared.digest(grown)
    assert shared.digest(grown) != shared.digest(runs.config(duration__total_steps=9))


def test_epochs_can_grow_as_well(tmp_path):
    epochs = {"duration__total_steps": None, "duration__total_epochs": 2.0}  # of 48 pictures in batches of 16
    finished(tmp_path, **epochs)
    grown = main.claim(tmp_path, runs.config(**epochs | {"duration__total_epochs": 3.0}))
    assert grown.lengthened == (6,)


@pytest.mark.parametrize(
    "changes",
    [
        {"duration__total_steps": 5},
        {"duration__total_steps": 9, "optim__wd": 0.1},
    ],
)
def test_nothing_else_may_change(tmp_path, changes):
    finished(tmp_path)
    with pytest.raises(ValueError, match="other settings .*A finished run can be given a longer duration"):
        main.claim(tmp_path, runs.config(**changes))


def test_a_run_that_is_not_finished_keeps_its_duration(tmp_path):
    finished(tmp_path, duration__total_steps=8)  # at step 6
    with pytest.raises(ValueError, match="other settings"):
        main.claim(tmp_path, runs.config(duration__total_steps=9))


def test_a_lengthened_run_is_not_begun_anew(tmp_path):
    finished(tmp_path / "a")
    grown = main.claim(tmp_path / "a", runs.config(duration__total_steps=9))
    with pytest.raises(ValueError, match="made longer after the steps"):
        main.claim(tmp_path / "b", grown)


@pytest.mark.slow
def test_pictures_in_memory_are_trained_on_and_on(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(tmp_path / "data"))
    pictures = np.random.default_rng(0).integers(0, 256, (40, 48, 40), dtype=np.uint8)
    mine = cxrjax.make_set("mine", pictures)
    given = {"sets": mine, "workdir": tmp_path / "run", "judge": False, "changes": {"optim.warmup_steps": 1}}
    encoder = cxrjax.pretrain("spcl:smoke", steps=2, **given)
    assert encoder.trained.step == 2 and encoder.embed(pictures[:3]).shape == (3, 64)
    grown = cxrjax.pretrain("spcl:smoke", steps=4, **given)
    assert grown.trained.step == 4 and grown.trained.config.lengthened == [2]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert not (tmp_path / "data" / "phantom_smoke").exists()
