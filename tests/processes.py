"""Runs as processes of their own, one or several of them for one run, and what they leave behind."""

import contextlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np

from cxrjax import checkpoint, main, methods
from cxrjax.runtime import hosts
from tests import runs
from tests.tiny_method import LINE, line

CONFIG = "configs/spcl.py:smoke"
# Where cores are shared, processes may wait long for each other.
PATIENT = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
FLAGS = {"log_every_steps": 1, "evals.phantom_knn.every_steps": 1000, "evals.phantom_probe.every_steps": 1000}


def start(workdir, *arguments, environment=None, **options):
    """One process of main; options are keys of the config with __ for the dot."""
    return popen([sys.executable, "-m", "cxrjax.main", *start_flags(workdir, *arguments, **options)], environment)


def start_flags(workdir, *arguments, **options):
    """The flags of such a process."""
    keys = FLAGS | {key.replace("__", "."): value for key, value in options.items()}
    return [f"--config={CONFIG}", f"--workdir={workdir}", *arguments, *(f"--config.{k}={v}" for k, v in keys.items())]


def popen(command, environment=None):
    """A command on one CPU device, with what it prints in a pipe."""
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": PATIENT, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
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
    at = _free_address()
    return [
        (f"--coordinator={at}", f"--bind={at}", f"--processes={count}", f"--process={number}")
        for number in range(count)
    ]


def _free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def ended(processes, timeout=900):
    """The exit codes and the outputs of processes that end by themselves."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


# A server that has imported everything forks a process for each start, which then makes devices of its own.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.processes", "cxrjax.train", "cxrjax.initial", "cxrjax.grid"])


def fork(count, workdir, environments=None, **options):
    """`count` processes that are one run of a method of 64 numbers, as main runs it but for its command line.

    What they say goes to <workdir>.<number>.log. A refusal ends with 1, since no command makes a sentence of it.
    """
    workdir.parent.mkdir(parents=True, exist_ok=True)
    join = _free_address() if count > 1 else None
    several = []
    for number in range(count):
        environment = {"XLA_FLAGS": PATIENT, **(environments[number] if environments else {})}
        told = (workdir, LINE | options, environment, join and (join, count, number, join), number)
        several.append(_SERVER.Process(target=_pretrain, args=told))
        several[-1].start()
    return several


def _pretrain(workdir, settings, environment, join, number):
    os.environ.update(environment)
    methods.make = lambda config, total_steps=None: line()
    with open(f"{workdir}.{number}.log", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        if join:
            hosts.connect(*join)
        try:
            main.pretrain(runs.config(**settings), "line", SimpleNamespace(workdir=str(workdir), dry_run=False))
        except ValueError as error:
            print(f"error: {error}", flush=True)
            raise SystemExit(1) from None
        finally:
            if join:
                jax.distributed.shutdown()  # as Python does when a process ends that was not forked


def joined(several, timeout=900):
    """The exit codes of forked processes that end by themselves."""
    try:
        for process in several:
            process.join(timeout)
    finally:
        for process in several:
            process.kill()
            process.join()
    return [process.exitcode for process in several]


def said(workdir, number=0):
    """What a forked process has said, in all starts."""
    return workdir.with_name(f"{workdir.name}.{number}.log").read_text()


def wait_until(true, processes, timeout=600, pause=0.05):
    """Returns when `true()` is, or a process has ended; asks every `pause` seconds."""
    until = time.monotonic() + timeout

    def lives(process):
        return process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()

    while not true() and all(map(lives, processes)) and time.monotonic() < until:
        time.sleep(pause)


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
