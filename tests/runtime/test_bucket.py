"""A work folder in a bucket, for which a folder stands."""

import contextlib
import json
import os
import shutil
import signal
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from cxrjax import checkpoint
from cxrjax.runtime import bucket, integrity, lock
from tests import bucket as fake
from tests import processes

ADDRESS = "gs://mine/runs/spcl"
WANTED = {"w": jnp.zeros(3)}


@pytest.fixture(autouse=True)
def buckets(tmp_path, monkeypatch):
    monkeypatch.setenv("CXRJAX_TEST_BUCKETS", str(tmp_path / "cloud"))
    monkeypatch.setattr(bucket, "_PAUSE_S", 0.01)
    monkeypatch.setattr(lock, "STALE_S", 60)  # cores may be shared; a sign of life is seen at once
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    assert fake.Bucket is not None
    return tmp_path / "cloud"


def train(folder, steps, **options):
    """What a run does to its folder."""
    (folder / "config.json").write_text('{"name": "spcl"}')
    (folder / "evals" / "probe").mkdir(parents=True, exist_ok=True)
    with checkpoint.open(folder / "checkpoints", **options) as saved, (folder / "metrics.jsonl").open("a") as metrics:
        for step in steps:
            metrics.write(json.dumps({"step": step}) + "\n")
            metrics.flush()
            saved.save(step, {"w": jnp.full(3, float(step))}, {})
            saved.rank(step, {"auroc": 0.5})
            (folder / "evals" / "probe" / "results.json").write_text(str(step))
    (folder / "evals" / f".results.json.{os.getpid()}").write_text("half")


def test_another_machine_goes_on_where_the_first_one_ended(tmp_path, buckets):
    one, other = tmp_path / "one", tmp_path / "other"
    with lock.hold(one), bucket.mirrored(ADDRESS, one):
        train(one, (1, 2, 3))
    there = buckets / "mine" / "runs" / "spcl"
    assert sorted(path.name for path in there.iterdir()) == ["checkpoints", "config.json", "evals", "metrics.jsonl"]
    assert (there / "evals" / "probe" / "results.json").read_text() == "3"
    assert not list(there.rglob(".*")), "nothing that is being written"
    other.mkdir()
    (other / "old").write_text("of an earlier start")
    with lock.hold(other), bucket.mirrored(ADDRESS, other):
        assert not (other / "old").exists()
        assert checkpoint.steps(other) == checkpoint.steps(one) == [2, 3]
        np.testing.assert_array_equal(checkpoint.load_params(other, "latest", WANTED)["w"], 3)
        assert (other / "metrics.jsonl").read_text() == (one / "metrics.jsonl").read_text()
        train(other, (4,))
    assert checkpoint.steps(there) == [3, 4] and (there / "metrics.jsonl").read_text().count("step") == 4


def test_killed_after_any_file_what_is_there_can_be_resumed(tmp_path, buckets, monkeypatch):
    """A machine that is gone in the middle of copying: the newest step whose files are all there is resumed."""
    one, copy, left = tmp_path / "one", bucket._copy, [0]
    with lock.hold(one), bucket.mirrored(ADDRESS, one):
        train(one, (1,))
    first = shutil.copytree(buckets / "mine" / "runs" / "spcl", tmp_path / "first")
    train(one, (2,), keep_latest=1)
    (one / lock.FILE).unlink()

    def only_some(source, target):
        if left[0] == 0:
            raise ConnectionError("gone")
        left[0] -= 1
        copy(source, target)

    found = []
    while not found or found[-1] != 2:
        shutil.rmtree(buckets / "mine" / "runs" / "killed", ignore_errors=True)
        shutil.copytree(first, buckets / "mine" / "runs" / "killed")
        mirror = idle("gs://mine/runs/killed", tmp_path / "two")
        shutil.rmtree(tmp_path / "two")
        shutil.copytree(one, tmp_path / "two")
        left[0] = len(found)
        monkeypatch.setattr(bucket, "_copy", only_some)
        with contextlib.suppress(ConnectionError):
            mirror._push()
        monkeypatch.setattr(bucket, "_copy", copy)
        (buckets / "mine" / "runs" / "killed" / lock.FILE).unlink()
        bucket._fetch(epath.Path("gs://mine/runs/killed"), tmp_path / "three")
        newest = checkpoint.load_params(tmp_path / "three", "latest", WANTED)["w"]
        found.append(int(newest[0]))
        assert (newest == found[-1]).all() and len(found) < 40
        lines = [json.loads(line)["step"] for line in (tmp_path / "three" / "metrics.jsonl").read_text().splitlines()]
        assert max(lines) >= found[-1], "the records reach as far as the step"
    assert len(found) > 8 and set(found) == {1, 2}


def idle(address, folder):
    """A mirror whose thread does nothing, as on a machine that is gone."""
    mirror = bucket._Mirror(address, folder)
    mirror._ended.set()
    mirror._thread.join()
    return mirror


def test_one_machine_has_the_run_at_a_time(tmp_path, monkeypatch):
    one, other = tmp_path / "one", tmp_path / "other"
    with lock.hold(one), bucket.mirrored(ADDRESS, one):
        with pytest.raises(lock.InUse, match=r"gs://mine/runs/spcl is in use by process \d+ on"), lock.hold(other):
            with bucket.mirrored(ADDRESS, other):
                pass
    idle(ADDRESS, one)
    monkeypatch.setattr(lock, "STALE_S", 0.5)
    began = time.monotonic()
    with lock.hold(other), bucket.mirrored(ADDRESS, other):
        assert time.monotonic() - began > lock.STALE_S, "a machine that is silent for so long is dead"


def test_a_machine_that_counted_as_dead_copies_no_more(tmp_path, buckets):
    one = tmp_path / "one"
    with lock.hold(one), bucket.mirrored(ADDRESS, one):
        train(one, (1,))
        owner = buckets / "mine" / "runs" / "spcl" / lock.FILE
        with pytest.raises(lock.InUse, match="node7 since noon"):
            while True:  # its owner may be writing its own sign of life at the moment
                owner.write_text(json.dumps({"nonce": "x", "host": "node7", "pid": 1, "since": "noon"}))
                time.sleep(0.05)
                lock.check(one)
        (one / "late").write_text("")
    assert "node7" in owner.read_text() and not (owner.parent / "late").exists()


def test_what_could_not_be_copied_is_said_and_the_run_starts_again(tmp_path, monkeypatch):
    def refuse(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(bucket, "_copy", refuse)
    with pytest.raises(SystemExit, match=f"could not all be copied to {ADDRESS}: no route; see that the bucket"):
        with lock.hold(tmp_path / "one"), bucket.mirrored(ADDRESS, tmp_path / "one"):
            train(tmp_path / "one", (1,))


@pytest.mark.slow
def test_a_run_in_a_bucket_ends_with_the_bits_of_one_on_a_disk(tmp_path, buckets, phantom_dir, monkeypatch):
    """Killed on one machine, gone on with on another, which has nothing but the bucket and the sets."""
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    options = {"duration__total_steps": 16, "checkpoint__every_steps": 4}
    whole = tmp_path / "whole"
    assert processes.ended([processes.start(whole, **options)])[0] == [0]

    def start():
        return processes.popen([sys.executable, "-m", "tests.bucket", *processes.start_flags(ADDRESS, **options)])

    there = buckets / "mine" / "runs" / "spcl"
    process = start()
    # The digests go last: a step without them is none, and the second machine would begin again.
    processes.wait_until(lambda: any(map(integrity.is_known, (there / "checkpoints").glob("*"))), [process])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    shutil.rmtree(phantom_dir / "buckets")
    (code,), (output,) = processes.ended([start()])
    assert code == 0 and "resuming from step" in output and f"done: {ADDRESS}" in output, output
    processes.assert_same(there, whole)
    assert (there / "evals" / "phantom_probe" / "16" / "results.json").exists()
