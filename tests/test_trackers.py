"""Other trackers get what the run's own files get, by stand-ins for their modules; none of them can end a run."""

import json
import sys
import types

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams

from cxrjax import track, trackers

SETTINGS = {"optim.lr": 0.1, "method": "spcl", "cls_shortcut": True, "init_from": ""}


def stand_in(monkeypatch, name):
    """A module that notes what is called on it."""
    module, calls = types.ModuleType(name), []

    def note(called):
        def call(*given, **named):
            calls.append((called, given, named))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

        return call

    for called in ("init", "log", "finish", "set_experiment", "start_run", "log_params", "log_metrics", "log_artifact"):
        setattr(module, called, note(called))
    module.end_run = note("end_run")
    module.Image = lambda path: ("image", path)
    monkeypatch.setitem(sys.modules, name, module)
    return calls


def a_run(workdir, names, start=0):
    with track.Tracker(workdir, 4, batch_size=8, every=2, start=start, settings=SETTINGS, others=names) as tracker:
        tracker.picture("views", np.zeros((4, 4), np.uint8))
        tracker.log(start + 2, {"train/loss": 1.5, "eval/none": float("nan")})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio(monkeypatch, tmp_path, name):
    calls = stand_in(monkeypatch, name)
    a_run(tmp_path / "x", [name])
    (init, image, log, finish) = calls
    assert init[2]["config"] == SETTINGS and init[2]["name"] == "x" and init[2]["resume"] == "allow"
    assert ("id" in init[2]) == (name == "wandb")
    assert image[1] == ({"views": ("image", str(tmp_path / "x" / "views.png"))},) and image[2] == {"step": 0}
    assert log[1][0]["train/loss"] == 1.5 and "eval/none" not in log[1][0] and log[2] == {"step": 2}
    assert finish[0] == "finish"


def test_a_resumed_run_of_mlflow_is_found_again(monkeypatch, tmp_path):
    calls = stand_in(monkeypatch, "mlflow")
    a_run(tmp_path, ["mlflow"])
    a_run(tmp_path, ["mlflow"], start=2)
    assert [named for called, _, named in calls if called == "start_run"] == [
        {"run_name": tmp_path.name},
        {"run_id": "r1"},
    ]
    assert [given for called, given, _ in calls if called == "log_params"] == [
        ({"optim.lr": "0.1", "method": "spcl", "cls_shortcut": "True", "init_from": ""},)
    ]
    assert [named for called, _, named in calls if called == "log_metrics"] == [{"step": 2}, {"step": 4}]


def test_a_tracker_that_fails_does_not_end_the_run(monkeypatch, tmp_path, caplog):
    calls = stand_in(monkeypatch, "wandb")

    def fail(*_, **__):
        raise ConnectionError("no network")

    sys.modules["wandb"].log = fail
    a_run(tmp_path, ["wandb"])
    assert "Wandb is left out from here on: no network" in caplog.text and len(calls) == 1
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["train/loss"] == 1.5


def test_what_is_not_there_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ValueError, match=r"mlflow is not installed .* pip install 'cxrjax\[mlflow\]'"):
        trackers.check(["mlflow"])
    with pytest.raises(ValueError, match="there is no 'neptune'; there are wandb, mlflow, trackio"):
        trackers.check(["neptune"])


def test_tensorboard_has_the_settings(tmp_path):
    a_run(tmp_path, [])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    text = events.Tensors("config")[0].tensor_proto.string_val[0].decode()
    assert "| optim.lr | `0.1` |" in text
    content = events.SummaryMetadata(hparams.SESSION_START_INFO_TAG).plugin_data.content
    found = hparams.parse_session_start_info_plugin_data(content).hparams
    assert found["optim.lr"].number_value == 0.1 and found["cls_shortcut"].bool_value and "init_from" not in found


def test_a_tracker_of_ones_own_is_a_file(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "import types\n"
        "def open(workdir, settings):\n"
        "    note = lambda *given: (workdir / 'told.txt').open('a').write(f'{given}\\n')\n"
        "    end = lambda: note('closed', settings['method'])\n"
        "    return types.SimpleNamespace(scalars=note, picture=note, close=end)\n"
    )
    a_run(tmp_path / "x", [str(own)])
    told = (tmp_path / "x" / "told.txt").read_text()
    assert "1.5" in told and "views.png" in told and told.endswith("('closed', 'spcl')\n")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="empty.py has no open"):
        trackers.check([str(tmp_path / "empty.py")])
    with pytest.raises(ValueError, match="there is no 'wandbb'; there are wandb, .* or the file of your own"):
        trackers.check(["wandbb"])
