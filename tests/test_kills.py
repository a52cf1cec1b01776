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
MOMENTS = ("start", "step", "saving", "saved", "judging")
STEPS = 40
OPTIONS = {"duration__total_steps": STEPS, "checkpoint__every_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, phantom_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXRJAX_DATA", str(phantom_dir))
        yield tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def whole(folder):
    """A run that was left alone."""
    assert processes.ended([processes.start(folder / "whole", **OPTIONS)])[0] == [0]
    return folder / "whole"


def wait_for(moment, workdir, process, draw):
    """Returns when `moment` has come, some milliseconds later or some steps, as is drawn."""
    before = max(processes.newest_step(workdir), *checkpoint.steps(workdir), 0)
    temporary = {path.name for path in (workdir / "checkpoints").glob("*-tmp*")}

    def saving():
        return any(path.name not in temporary for path in (workdir / "checkpoints").glob("*-tmp*"))

    def saved():
        return max(checkpoint.steps(workdir), default=0) > before

    later = before + draw.randint(1, 6)
    reached = {
        "start": lambda: True,
        "step": lambda: processes.newest_step(workdir) >= later,
        "saving": saving,
        "saved": saved,
        "judging": lambda: STEPS in checkpoint.steps(workdir),
    }
    processes.wait_until(reached[moment], [process])
    time.sleep(draw.uniform(0, {"start": 10, "judging": 2}.get(moment, 0.02)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(-(-KILLS // len(MOMENTS))))
def test_killed_at_every_moment_it_ends_with_the_same_bits(folder, whole, seed):
    """While it starts, steps, writes a checkpoint, has written it, and is judged."""
    draw, workdir = random.Random(seed), folder / str(seed)
    for moment in (*draw.sample(MOMENTS[:-1], len(MOMENTS) - 1), "judging"):
        process = processes.start(workdir, **OPTIONS)
        wait_for(moment, workdir, process, draw)
        assert process.poll() is None, (moment, process.communicate()[0])
        process.send_signal(signal.SIGKILL)
        process.communicate()
        print(f"killed at {moment}: line {processes.newest_step(workdir)}, steps {checkpoint.steps(workdir)}")
    (code,), (output,) = processes.ended([processes.start(workdir, **OPTIONS)])
    assert code == 0 and f"resuming from step {STEPS}" in output, output
    processes.assert_same(workdir, whole)


@pytest.mark.slow
def test_sigterm_saves_and_ends_and_the_run_goes_on(folder, whole):
    workdir = folder / "terminated"
    process = processes.start(workdir, **OPTIONS | {"checkpoint__every_steps": 1000})
    processes.wait_until(lambda: processes.newest_step(workdir) >= 3, [process])
    process.send_signal(signal.SIGTERM)
    (code,), (output,) = processes.ended([process])
    (step,) = checkpoint.steps(workdir)
    assert code == 143 and f"SIGTERM: step {step} is saved; the same command resumes there" in output, output
    (code,), (output,) = processes.ended([processes.start(workdir, **OPTIONS)])
    assert code == 0 and f"resuming from step {step} of {STEPS}" in output, output
    processes.assert_same(workdir, whole)
