"""One owner of a work folder: what a second start sees, on this machine and on another."""

import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from cxrjax import main
from cxrjax.runtime import lock
from tests import runs

HOLD = """
import sys, time
from cxrjax.runtime import lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_start_is_told_who_has_the_folder_and_gets_in_after_a_kill(tmp_path, owner):
    said = json.loads((tmp_path / lock.FILE).read_text())
    assert said["pid"] == owner.pid
    with pytest.raises(
        lock.InUse, match=rf"in use by process {owner.pid} on {said['host']} since {said['since'][:10]}"
    ):
        with lock.hold(tmp_path):
            pass
    owner.kill()
    owner.wait()
    with lock.hold(tmp_path), pytest.raises(lock.InUse, match="in use by this process"), lock.hold(tmp_path):
        pass
    with lock.hold(tmp_path):
        pass


def test_without_locks_of_the_disk_the_process_tells(tmp_path, owner, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    with pytest.raises(lock.InUse, match=f"process {owner.pid}"), lock.hold(tmp_path):
        pass
    owner.kill()
    owner.wait()
    with lock.hold(tmp_path):
        assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()


def elsewhere(workdir, seconds_ago):
    file = workdir / lock.FILE
    file.write_text(json.dumps({"host": "node7", "pid": 1, "boot": "b", "namespace": "n", "since": "noon"}))
    os.utime(file, (time.time() - seconds_ago,) * 2)
    return file


def test_an_owner_on_another_machine_is_dead_without_a_sign_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE_S", 3)
    elsewhere(tmp_path, seconds_ago=10)
    with lock.hold(tmp_path):  # at once
        pass
    file = elsewhere(tmp_path, seconds_ago=1)
    began = time.monotonic()
    with lock.hold(tmp_path):
        assert 1.5 < time.monotonic() - began < 10
    file = elsewhere(tmp_path, seconds_ago=1)
    touch = threading.Timer(0.5, lambda: os.utime(file))
    touch.start()
    with pytest.raises(lock.InUse, match="process 1 on node7 since noon"), lock.hold(tmp_path):
        pass


def test_who_lost_the_folder_writes_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    with lock.hold(tmp_path):
        lock.check(tmp_path / "cell")
        before = os.stat(tmp_path / lock.FILE).st_mtime_ns
        time.sleep(0.3)
        assert os.stat(tmp_path / lock.FILE).st_mtime_ns > before
        elsewhere(tmp_path, seconds_ago=0)
        time.sleep(0.3)
        with pytest.raises(lock.InUse, match="node7.*counted as dead"):
            lock.check(tmp_path / "cell")
    assert "node7" in (tmp_path / lock.FILE).read_text()


def test_claims_at_the_same_time_do_not_meet(tmp_path):
    """As of the hosts of one run, which share the folder."""
    failures = []

    def claim():
        try:
            for _ in range(30):
                main.claim(tmp_path, runs.config())
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and {path.name for path in tmp_path.iterdir()} == {"config.json"}
