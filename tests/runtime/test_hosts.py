"""What hosts agree on; two processes of this machine stand for two hosts."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from cxrjax import checkpoint
from cxrjax.runtime import hosts


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"coordinator": "a:1"}, "--processes and --process is not given"),
        ({"processes": 2, "process": 0}, "--coordinator is not given"),
        (
            {"coordinator": "a:1", "processes": 2, "process": 2},
            "--process=2 of --processes=2: it must be from 0 to 2 - 1",
        ),
        ({"coordinator": "a", "processes": 2, "process": 1}, "an address and a port"),
    ],
)
def test_a_coordinator_needs_to_be_whole(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        hosts.connect(**given)


def test_a_single_host_has_its_own_way():
    votes = hosts.Votes()
    assert votes.cast(True, False) == (True, False)
    hosts.agree({"never called": lambda: 1 / 0}, "")


def test_a_difference_is_named(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(hosts, "_gathered", lambda text: [text, text, "7"])
    hosts.agree({"step": 7}, "start again")
    with pytest.raises(ValueError, match="differ in step: 8 on the first one, 7 on number 2; start again"):
        hosts.agree({"step": 8}, "start again")


def test_a_disk_that_one_host_does_not_see_is_named(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "_gathered", lambda text: [text, "False"])
    with pytest.raises(ValueError, match=r"/run of the first host is not seen by \[1\]: it must be a disk"):
        hosts.check_shared(lambda: "same", "/run", wait_s=0)


def test_digests_of_arrays_follow_their_values():
    one, other = {"a": np.arange(3.0)}, {"a": jax.numpy.arange(3.0) + 1}
    assert hosts.local_digest(one) == hosts.local_digest(dict(one)) != hosts.local_digest(other)
    assert hosts.whole(one) == one


def start(workdir, port, number, *flags):
    options = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "cxrjax.main", "--config=configs/spcl.py:smoke", f"--workdir={workdir}"]
    command += [f"--coordinator=127.0.0.1:{port}", f"--bind=127.0.0.1:{port}", "--processes=2", f"--process={number}"]
    command += ["--config.duration.total_steps=24", "--config.log_every_steps=12", "--config.checkpoint.every_steps=5"]
    command += [f"--config.evals.{name}.every_steps=1000" for name in ("phantom_knn", "phantom_probe")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *flags], env=os.environ | options, **pipes)


def both(workdir, *flags):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(workdir, port, number, *flags) for number in range(2)]


def ended(processes):
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    return [process.returncode for process in processes], outputs


@pytest.mark.slow
def test_a_signal_to_one_host_saves_and_ends_both_and_the_run_goes_on(tmp_path, phantom_dir, monkeypatch):
    """The step that the sentence names is on disk, steps are saved between logged ones, and the bits are the same."""
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    codes, outputs = ended(both(tmp_path / "whole"))
    assert codes == [0, 0], outputs
    assert "process 1 of 2 at 127.0.0.1" in outputs[1] and "1 of 2 devices are here" in outputs[1]

    processes = both(tmp_path / "broken")
    while 5 not in checkpoint.steps(tmp_path / "broken") and processes[0].poll() is None:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = ended(processes)
    assert codes == [143, 143], outputs
    newest = checkpoint.steps(tmp_path / "broken")[-1]
    assert f"a signal on another host: step {newest} is saved" in outputs[0] and 5 <= newest < 24
    codes, outputs = ended(both(tmp_path / "broken"))
    assert codes == [0, 0] and f"resuming from step {newest}" in outputs[0], outputs
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "broken")]
    untimed = [[{k: v for k, v in json.loads(line).items() if "time/" not in k} for line in each] for each in lines]
    assert untimed[0] == untimed[1]

    other = both(tmp_path / "whole", "--config.seed=1")  # the same folder, other settings: all are told
    codes, outputs = ended(other)
    assert codes[0] == 2 and "holds a run with other settings" in outputs[0]
    shutil.rmtree(tmp_path / "whole")


def test_sharded_parameters_have_a_digest():
    """As one host sees them; on several each host gathers them first."""
    from cxrjax.evals.base import digest

    params = {"w": jax.numpy.arange(8.0)}
    mesh = jax.make_mesh((8,), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(params, jax.NamedSharding(mesh, jax.P("all")))
    assert digest(hosts.whole(spread)) == digest(params)
