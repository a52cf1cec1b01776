"""Runs as processes of their own, one or several of them for one run, and what they leave behind."""

import json
import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from cxrjax import checkpoint

CONFIG = "configs/spcl.py:smoke"
FLAGS = {"log_every_steps": 1, "evals.phantom_knn.every_steps": 1000, "evals.phantom_probe.every_steps": 1000}


def start(workdir, *arguments, config=CONFIG, environment=None, **options):
    """One process of main; options are keys of the config with __ for the dot."""
    flags = FLAGS | {key.replace("__", "."): value for key, value in options.items()}
    command = [sys.executable, "-m", "cxrjax.main", f"--config={config}", f"--workdir={workdir}", *arguments]
    return popen([*command, *(f"--config.{key}={value}" for key, value in flags.items())], environment)


def popen(command, environment=None):
    """A command on one CPU device, with what it prints in a pipe."""
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=os.environ | settings | (environment or {}), **pipes)


def together(count, workdir, *arguments, environments=None, **options):
    """`count` processes that are one run; workdir: of all, or a list of one for each."""
    workdirs = workdir if isinstance(workdir, list) else [workdir] * count
    environments = environments or [None] * count
    flags = meeting(count)
    return [start(workdirs[i], *flags[i], *arguments, environment=environments[i], **options) for i in range(count)]


def meeting(count):
    """The flags by which each of `count` processes joins the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        (f"--coordinator={at}", f"--bind={at}", f"--processes={count}", f"--process={number}")
        for number in range(count)
    ]


def ended(processes, timeout=900):
    """The exit codes and the outputs of processes that end by themselves."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def wait_until(true, processes, timeout=600):
    """Returns when `true()` is, or a process has ended."""
    until = time.monotonic() + timeout
    while not true() and all(process.poll() is None for process in processes) and time.monotonic() < until:
        time.sleep(0.005)


def newest_step(workdir):
    """The last step that metrics.jsonl tells of, or 0."""
    try:
        return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    except (FileNotFoundError, IndexError, json.JSONDecodeError):
        return 0


def records(workdir):
    """The records of metrics.jsonl, without what they say of time."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def arrays(workdir):
    """Every array of the newest checkpoint, by path."""
    step = checkpoint.find(workdir)
    stored = checkpoint.ocp.checkpointables_metadata(step).metadata["train_state"]
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), stored)
    found = jax.tree_util.tree_leaves_with_path(checkpoint.load_params(workdir, "latest", abstract))
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): np.asarray(leaf) for keys, leaf in found}


def assert_same(workdir, expected):
    """The same records, and the same bits of parameters, moments and state."""
    assert records(workdir) == records(expected)
    ours, theirs = arrays(workdir), arrays(expected)
    assert ours.keys() == theirs.keys()
    for path, leaf in theirs.items():
        assert ours[path].dtype == leaf.dtype
        np.testing.assert_array_equal(ours[path], leaf, err_msg=path)
