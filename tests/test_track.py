import json
import os
import pty
import re
import subprocess
import sys
import termios
import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cxrjax import track
from cxrjax.runtime import goodput


def lines(workdir, timed=False):
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if timed or not k.startswith("time/")} for record in records]


def train(workdir, start, stop, save_every=4, total=12):
    """A run that logs every second step, evaluates every third, saves; returns the step it can be resumed from."""
    saved = start
    with track.Tracker(workdir, total, batch_size=8, every=2, start=start) as tracker:
        for step in range(start + 1, stop + 1):
            loss = jnp.float32(1) / step
            if tracker.due(step):
                tracker.log(step, {"train/loss": loss, "train/lr": 0.1 * step})
            if step % 3 == 0:
                tracker.log(step, {"eval/phantom/knn/auroc": step / 100})
            if step % save_every == 0:
                tracker.check_finite(step, {"train/loss": loss})
                saved = step
        if stop < total:
            tracker._pending = None  # killed: what is pending is never written
    return saved


def test_records(tmp_path):
    train(tmp_path, 0, 6, total=6)
    assert lines(tmp_path) == [
        {"step": 2, "train/loss": 0.5, "train/lr": 0.2},
        {"step": 3, "eval/phantom/knn/auroc": 0.03},
        {"step": 4, "train/loss": 0.25, "train/lr": 0.4},
        {"step": 6, "train/loss": float(np.float32(1 / 6)), "train/lr": pytest.approx(0.6)},
        {"step": 6, "eval/phantom/knn/auroc": 0.06},
    ]
    assert {"time/unix_s", "time/images_per_second"} <= set(lines(tmp_path, timed=True)[2])


def test_the_last_step_is_logged_whatever_is_left_over(tmp_path):
    train(tmp_path, 0, 5, total=5)
    assert [line["step"] for line in lines(tmp_path) if "train/loss" in line] == [2, 4, 5]


@pytest.mark.parametrize("killed_at", [2, 4, 5, 7, 9, 11])
def test_resumed_file_equals_an_uninterrupted_one(tmp_path, killed_at):
    train(tmp_path / "whole", 0, 12)
    saved = train(tmp_path / "resumed", 0, killed_at)
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "train/lo')  # a line cut off by the kill
    train(tmp_path / "resumed", saved, 12)
    assert lines(tmp_path / "resumed") == lines(tmp_path / "whole")


def test_tensorboard_shows_a_step_once_after_a_kill_before_the_first_checkpoint(tmp_path):
    assert train(tmp_path, 0, 3) == 0
    train(tmp_path, 0, 12)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6, 8, 10, 12]


def test_records_tell_where_the_time_went_of_all_starts(tmp_path):
    train(tmp_path, 0, 7)
    told = [{k: v for k, v in line.items() if "seconds/" in k} for line in lines(tmp_path, timed=True)]
    assert set(told[0]) == {f"time/seconds/{kind}" for kind in goodput.KINDS}
    file = tmp_path / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:  # 10 s a step
        record["time/seconds/stepping"] = 10.0 * record["step"]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    last = records[-1]["step"]
    time_of = goodput.Goodput()
    with track.Tracker(tmp_path, 12, batch_size=8, every=2, start=4, time_of=time_of):
        found = time_of.seconds()
    assert found["lost"] == pytest.approx(10 * (last - 4), abs=0.1) and 40 <= found["stepping"] < 41


def test_log_does_not_wait_for_the_device(tmp_path):
    """The record is read when the next one comes, not before."""
    long = jax.jit(lambda x: jax.lax.fori_loop(0, 40, lambda _, y: y @ x, x)[0, 0])
    eye = jnp.eye(700)
    long(eye).block_until_ready()
    with track.Tracker(tmp_path, 9, batch_size=8) as tracker:
        loss = long(eye)
        tracker.log(1, {"train/loss": loss})
        assert not loss.is_ready() and not lines(tmp_path)
        tracker.log(2, {"train/loss": 2.0})
        assert lines(tmp_path) == [{"step": 1, "train/loss": 1.0}]
    assert [record["step"] for record in lines(tmp_path)] == [1, 2]


def test_non_finite_names_the_term_and_the_step(tmp_path):
    with pytest.raises(track.NonFinite, match=r"step 5: train/term/variance = inf, train/loss = nan; 1 of 3"):
        with track.Tracker(tmp_path, 9, batch_size=8) as tracker:
            bad = {"train/loss": jnp.nan, "train/term/variance": jnp.array(jnp.inf), "train/term/invariance": 1.0}
            tracker.log(5, bad)
            tracker.log(6, {"train/loss": 1.0})
    assert lines(tmp_path) == [
        {"step": 5, "train/loss": None, "train/term/variance": None, "train/term/invariance": 1.0}
    ]


def test_non_finite_is_met_before_a_save_and_at_the_end(tmp_path):
    with track.Tracker(tmp_path, 9, batch_size=8) as tracker:
        with pytest.raises(track.NonFinite, match="step 3: train/loss = nan"):
            tracker.check_finite(3, {"train/loss": jnp.float32(jnp.nan)})
        tracker.check_finite(3, {"train/loss": jnp.float32(1), "eval/auroc": float("nan")})
    with pytest.raises(track.NonFinite, match="step 4"):
        with track.Tracker(tmp_path, 9, batch_size=8) as tracker:
            tracker.log(4, {"train/loss": float("-inf")})
    with pytest.raises(KeyError):  # the run's own error is not hidden by what is pending
        with track.Tracker(tmp_path, 9, batch_size=8, start=4) as tracker:
            tracker.log(5, {"train/loss": float("nan")})
            raise KeyError
    assert [record["step"] for record in lines(tmp_path)] == [4, 5]


def test_arrays_are_refused_by_name(tmp_path):
    with track.Tracker(tmp_path, 9, batch_size=8) as tracker:
        with pytest.raises(ValueError, match=r"these are arrays: \{'train/histogram': \(3,\)\}"):
            tracker.check_finite(1, {"train/loss": 1.0, "train/histogram": jnp.ones(3)})


def test_images_per_second_leaves_out_evaluation(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(track.time, "monotonic", lambda: now[0])
    with track.Tracker(tmp_path, 100, batch_size=32) as tracker:
        for step, seconds, scalars in [
            (10, 50.0, {"train/loss": 1.0}),  # compiling
            (20, 5.0, {"train/loss": 1.0}),
            (20, 100.0, {"eval/auroc": 1.0}),
            (30, 10.0, {"train/loss": 1.0}),
        ]:
            now[0] += seconds
            tracker.log(step, scalars)
    rates = [record.get("time/images_per_second") for record in lines(tmp_path, timed=True)]
    assert rates == [None, 64.0, None, 32.0]


def test_tensorboard_holds_scalars_and_forgets_what_was_redone(tmp_path):
    for start, stop, value in [(0, 4, 1.0), (2, 4, 2.0)]:
        with track.Tracker(tmp_path, 4, batch_size=8, start=start) as tracker:
            for step in range(start + 1, stop + 1):
                tracker.log(step, {"train/loss": value})
        time.sleep(1.1)  # event files are told apart by the second
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 1), (2, 1), (3, 2), (4, 2)]


def test_picture(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8, 1)
    red = np.zeros((4, 5, 3), np.uint8) + np.array([255, 0, 9], np.uint8)
    with track.Tracker(tmp_path, 4, batch_size=8) as tracker:
        tracker.picture("views", grey)
        tracker.picture("figures/red", red, step=3)
        with pytest.raises(ValueError, match=r"'views' is float32 \(6, 8, 1\); give uint8"):
            tracker.picture("views", grey.astype(np.float32))
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "views.png"), cv2.IMREAD_UNCHANGED), grey[..., 0])
    assert cv2.imread(str(tmp_path / "figures" / "red.png"))[0, 0].tolist() == [9, 0, 255]
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert (found.Images("views")[0].width, found.Images("views")[0].height) == (8, 6)


def test_only_process_zero_writes_but_all_check(tmp_path, monkeypatch):
    monkeypatch.setattr(track.jax, "process_index", lambda: 1)
    with track.Tracker(tmp_path / "run", 4, batch_size=8) as tracker:
        tracker.log(1, {"train/loss": 1.0})
        tracker.picture("views", np.zeros((2, 2), np.uint8))
        tracker.flush()
        with pytest.raises(track.NonFinite):
            tracker.check_finite(2, {"train/loss": float("nan")})
    assert not (tmp_path / "run").exists()


def test_plain_lines_are_few_and_the_last_is_there(tmp_path, capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(track.time, "monotonic", lambda: now[0])
    with track.Tracker(tmp_path, 100, batch_size=32) as tracker:
        for step in range(1, 101):
            now[0] += 1.0
            tracker.log(step, {"train/loss": 2.5})
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 11
    assert said[1] == "step 11/100 (11%)  loss 2.5  32 images/s  input 0%  ETA 0:01:29"
    assert said[-1].startswith("step 100/100 (100%)  loss 2.5")


def test_progress_shows_a_collapse_and_the_last_judgement(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(track, "_SECONDS_BETWEEN_LINES", 0)
    watched = {
        "train/monitor/feature_std": 0.03125,
        "train/monitor/effective_rank": 1.0,
        "train/monitor/uniformity": -0.1,
    }
    with track.Tracker(tmp_path, 4, batch_size=8) as tracker:
        tracker.log(1, {"train/loss": 2.5, **watched})
        judged = {"eval/phantom/all/knn_auroc": 0.625, "eval/phantom/all/knn_auroc/Mass": 0.9, "eval/nih/tb/auroc": 0.5}
        tracker.log(1, judged | {"eval/nih/tb/knn_auroc": 0.75})
        tracker.log(2, {"train/loss": 2.25, **watched})
        tracker.log(3, {"eval/phantom/all/knn_auroc": 0.5})
        tracker.log(4, {"train/loss": 2.0})
    said = [
        re.sub("  [^ ]+ images/s  input [0-9]+%|  ETA.*", "", line) for line in capsys.readouterr().out.splitlines()
    ]
    assert said == [
        "step 1/4 (25%)  loss 2.5  std 0.03125  rank 1",
        "step 2/4 (50%)  loss 2.25  std 0.03125  rank 1  knn nih 0.75 phantom 0.625  probe nih 0.5",
        "step 4/4 (100%)  loss 2  std 0.03125  rank 1  knn nih 0.75 phantom 0.5  probe nih 0.5",
    ]
    assert lines(tmp_path)[0]["train/monitor/effective_rank"] == 1 and len(lines(tmp_path)) == 5


def test_bar_on_a_terminal(tmp_path):
    code = (
        "import sys; from cxrjax.track import Tracker\n"
        "with Tracker(sys.argv[1], 20, batch_size=8) as t:\n"
        "    for step in range(1, 21): t.log(step, {'train/loss': 0.25, 'train/monitor/feature_std': 0.75})\n"
        "    t.log(20, {'eval/phantom/all/knn_auroc': 0.625})\n"
    )
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))  # tqdm shows nothing on a terminal without columns
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(ours)
    out, _ = process.communicate()
    assert process.returncode == 0 and out == b""
    last = shown.decode().strip().split("\r")[-1]
    assert re.search(r"100%.*20/20 .*loss 0.25, std 0.75, knn phantom 0.625", last), last
