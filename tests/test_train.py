"""The trainer: killed, terminated and resumed runs, other meshes, NaN, and what it leaves behind."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import cv2
import jax
import numpy as np
import pytest

from cxrjax import checkpoint, train
from cxrjax.track import NonFinite
from tests import runs

STEPS = 40


@pytest.fixture(autouse=True)
def data_folder(monkeypatch, phantom_dir):
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))


def records(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def leaves(workdir):
    """Every array of the newest checkpoint, by path."""
    abstract = train.build(runs.config(mesh__data=1, **OPTIONS)).abstract
    with checkpoint.open(workdir / "checkpoints") as saved:
        state = saved.restore(saved.latest_step(), abstract)
    return {jax.tree_util.keystr(keys): np.asarray(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(state)}


OPTIONS = {"duration__total_steps": STEPS, "log_every_steps": 1, "checkpoint__every_steps": 4}


def command(workdir, **options):
    flags = {"duration.total_steps": STEPS, "log_every_steps": 1, "checkpoint.every_steps": 4, "mesh.data": 1}
    flags = [f"--config.{key}={value}" for key, value in (flags | options).items()]
    return [sys.executable, "-m", "cxrjax.main", "--config=configs/spcl.py:smoke", f"--workdir={workdir}", *flags]


def start(workdir, cache, **options):
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        command(workdir, **options), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def newest_step(workdir):
    try:
        return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    except (FileNotFoundError, IndexError, json.JSONDecodeError):
        return 0


@pytest.mark.slow
def test_killed_five_times_ends_with_the_same_bits(tmp_path):
    """SIGKILL at random steps, and one SIGTERM: same metrics.jsonl, same parameters and moments as without."""
    cache = tmp_path / "compiled"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole, cache).wait() == 0
    rng, reached = random.Random(0), 0
    for interruption in range(6):
        process = start(broken, cache)
        target = max(newest_step(broken), reached) + rng.randint(1, 5)  # lines after `reached` are from before the kill
        while newest_step(broken) < target and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, process.stdout.read()
        process.send_signal(signal.SIGTERM if interruption == 3 else signal.SIGKILL)
        output = process.communicate()[0]
        if interruption == 3:
            assert process.returncode == 143 and "the same command resumes" in output
        reached = max(checkpoint.steps(broken), default=0)
    process = start(broken, cache)
    output = process.communicate()[0]
    assert process.returncode == 0 and f"resuming from step {reached}" in output
    assert records(broken) == records(whole)
    ours, theirs = leaves(broken), leaves(whole)
    assert ours.keys() == theirs.keys()
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(ours[path], leaf, err_msg=path)


@pytest.mark.slow
def test_resumes_on_other_meshes(tmp_path):
    """Saved on 8 devices at step 4, resumed on 8, 4 and 1: the same run up to the order of sums."""
    config = runs.config(**{**OPTIONS, "duration__total_steps": 8}, mesh__data=8)
    reference = train.fit(config, tmp_path / "eight")
    shutil.rmtree(tmp_path / "eight" / "checkpoints" / "8")
    for devices in (8, 4, 1):
        workdir = tmp_path / str(devices)
        shutil.copytree(tmp_path / "eight", workdir)
        config.mesh.data = devices
        resumed = train.fit(config, workdir)
        assert int(resumed.step) == 8
        tolerance = 0 if devices == 8 else 2e-4
        jax.tree.map(
            lambda a, b, atol=tolerance: np.testing.assert_allclose(a, b, rtol=0, atol=atol),
            jax.device_get(resumed.params),
            jax.device_get(reference.params),
        )
        assert [line["step"] for line in records(workdir)] == [1, 2, 3, 4, 5, 6, 6, 7, 8, 8]


def test_a_run_leaves_its_records(tmp_path, capsys):
    config = runs.config(mesh__data=2)
    state = train.fit(config, tmp_path)
    assert int(state.step) == 6 and checkpoint.steps(tmp_path) == [6]
    lines = records(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6, 6]
    assert {"train/loss", "train/term/contrast", "train/report/feature_std", "train/lr", "train/norm/gradient"} <= set(
        lines[0]
    )
    assert 0 <= lines[-1]["eval/phantom_smoke/all/auroc"] <= 1
    sheet = cv2.imread(str(tmp_path / "views.png"), cv2.IMREAD_GRAYSCALE)
    assert sheet.shape == (32, 8 * 32) and sheet.std() > 10
    assert (tmp_path / "evals" / "phantom_probe" / "6" / "results.json").exists()
    assert "2 device(s)" in capsys.readouterr().out


def test_nan_stops_the_run_and_keeps_what_was_saved(tmp_path):
    config = runs.config(optim__lr=1e30, checkpoint__every_steps=1, duration__total_steps=12, log_every_steps=1)
    with pytest.raises(NonFinite, match="train/"):
        train.fit(config, tmp_path)
    assert all(np.isfinite(line["train/loss"]) for line in records(tmp_path)[:1])
    saved = checkpoint.steps(tmp_path)
    assert saved and max(saved) < 12


def test_best_checkpoint_is_kept(tmp_path):
    metric = "eval/phantom_smoke/all/auroc"
    config = runs.config(checkpoint__best_metric=metric, checkpoint__keep_latest=1, duration__total_steps=8)
    config.evals.phantom_probe.every_steps = 2
    train.fit(config, tmp_path)
    scores = {line["step"]: line[metric] for line in records(tmp_path) if metric in line}
    best = max(scores, key=scores.get)
    assert set(checkpoint.steps(tmp_path)) == {best, 8}
    assert int(checkpoint.find(tmp_path, "best").name) == best


def test_batch_must_divide_over_the_devices(tmp_path):
    with pytest.raises(ValueError, match="multiple of 8; use 16 or 24"):
        train.build(runs.config(batch_size=20, mesh__data=8))
