"""A run that is killed again and again, at every bad moment, ends with the bits of one that never was."""

import os
import random
import signal
import time

import pytest

from cxrjax import checkpoint
from tests import processes

KILLS = int(os.environ.get("CXRJAX_TEST_KILLS", "20"))
"""How many kills there are in all; docs/records tells of 100."""
MOMENTS = ("start", "step", "saving", "saved")
STEPS = 24
OPTIONS = {"duration__total_steps": STEPS, "checkpoint__every_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, phantom_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXRJAX_DATA", str(phantom_dir))
        yield tmp_path_factory.mktemp("kills")


def wait_for(moment, workdir, process, draw, start_s=10.0):
    """Returns when `moment` has come, some milliseconds or some steps later, as is drawn."""
    before, later = names(workdir), processes.newest_step(workdir) + draw.randint(1, 5)
    reached = {
        "start": lambda: True,
        "step": lambda: processes.newest_step(workdir) >= later,
        "saving": lambda: any("tmp" in name for name in names(workdir) - before),
        "saved": lambda: any(name.isdigit() for name in names(workdir) - before),
        "judging": lambda: str(STEPS) in names(workdir),
    }
    processes.wait_until(reached[moment], [process], pause=0.02)
    time.sleep(draw.uniform(0, {"start": start_s, "judging": 2}.get(moment, 0.05)))


def names(workdir):
    """Of the folders beside each other: steps, and those that are being written."""
    return {path.name for path in (workdir / "checkpoints").glob("*")}


@pytest.mark.slow
def test_killed_at_every_moment_it_ends_with_the_same_bits(folder):
    """While it starts, steps, writes a checkpoint and has just written it; a run of its own for every few kills."""
    draw, kills, number = random.Random(0), 0, 0
    whole = folder / "whole"
    assert processes.joined(processes.fork(1, whole, **OPTIONS)) == [0], processes.said(whole)
    while kills < KILLS:
        workdir, resumed = folder / f"run {number}", []
        number += 1
        while True:
            (process,) = processes.fork(1, workdir, **OPTIONS)
            if kills < KILLS:
                moment = draw.choice(MOMENTS)
                wait_for(moment, workdir, process, draw, start_s=3.0)
                process.kill()
            process.join()
            if process.exitcode != -signal.SIGKILL:
                break
            kills += 1
            resumed.append(max(checkpoint.steps(workdir), default=0))
            print(
                f"kill {kills}, {moment}: run {number}, line {processes.newest_step(workdir)}, whole step {resumed[-1]}"
            )
        said = processes.said(workdir)
        assert process.exitcode == 0, said
        assert all(f"resuming from step {step} of" in said for step in resumed[-1:] if step), said
        processes.assert_same(workdir, whole)
    print(f"{kills} kills in {number} runs: the same records, and the same bits, as without")


@pytest.mark.slow
def test_the_command_is_killed_and_terminated_and_judged(folder):
    """S-PCL with its judges, by the command itself; and SIGTERM saves where nothing else would."""
    assert processes.ended([processes.start(folder / "spcl", **OPTIONS)])[0] == [0]
    draw, workdir = random.Random(1), folder / "killed spcl"
    for moment in ("start", "saving", "step", "judging"):
        process = processes.start(workdir, **OPTIONS)
        wait_for(moment, workdir, process, draw)
        process.kill()
        assert processes.ended([process])[0] == [-signal.SIGKILL]
    (code,), (output,) = processes.ended([processes.start(workdir, **OPTIONS)])
    assert code == 0 and f"resuming from step {STEPS}" in output, output
    processes.assert_same(workdir, folder / "spcl")

    workdir = folder / "terminated spcl"
    process = processes.start(workdir, **OPTIONS | {"checkpoint__every_steps": 1000})
    processes.wait_until(lambda: processes.newest_step(workdir) >= 3, [process])
    process.send_signal(signal.SIGTERM)
    (code,), (output,) = processes.ended([process])
    (step,) = checkpoint.steps(workdir)
    assert code == 143 and f"SIGTERM: step {step} is saved; the same command resumes there" in output, output
    (code,), (output,) = processes.ended([processes.start(workdir, **OPTIONS)])
    assert code == 0 and f"resuming from step {step} of {STEPS}" in output, output
    processes.assert_same(workdir, folder / "spcl")
