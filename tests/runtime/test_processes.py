"""Two and four processes of this machine that are one run: what they compute, and what they survive."""

import shutil
import signal
import sys

import numpy as np
import pytest

from cxrjax import checkpoint
from tests import processes

STEPS = 16
OPTIONS = {"duration__total_steps": STEPS, "checkpoint__every_steps": 4}

TOGETHER = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from cxrjax import checkpoint, parallel
from cxrjax.runtime import hosts, lock
number, at, workdir = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
print(hosts.connect(at, 2, number, at))
mesh = parallel.make_mesh({"fsdp": -1})
with lock.hold(workdir):
    hosts.agree({"step": 7}, "")
    votes = hosts.Votes()
    print([votes.cast(number == 1 and step == 1) for step in range(4)])
    try:
        hosts.agree({"pictures": number}, "convert them again")
    except ValueError as error:
        print(error)
    mine = np.arange(3.0) + 3 * number
    state = {"w": parallel.to_global(mine, mesh), "step": parallel.to_global(np.int32(1), mesh)}
    print(float(jax.jit(jnp.sum)(state["w"])))
    with checkpoint.open(workdir / "checkpoints") as saved:
        saved.save(1, state, {})
        saved.wait()
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        found = saved.restore(1, abstract)
    assert found["w"].addressable_data(0).tolist() == mine.tolist()
    print(hosts.whole(found)["w"].tolist())
"""


def test_two_processes_join_agree_and_keep_one_checkpoint(tmp_path):
    """Each has half of the array; one process reads it whole afterwards."""
    at = processes.meeting(2)[0][0].partition("=")[2]
    both = [processes.popen([sys.executable, "-c", TOGETHER, str(number), at, str(tmp_path)]) for number in range(2)]
    codes, outputs = processes.ended(both, timeout=300)
    assert codes == [0, 0], outputs
    for number, output in enumerate(outputs):
        assert f"process {number} of 2 at {at}: 1 of 2 devices are here" in output
        assert "[(False,), (False,), (False,), (True,)]" in output, "what one wants, both know two steps later"
        assert "the hosts differ in pictures: 0 on the first one, 1 on number 1; convert them again" in output
        assert "\n15.0\n[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]" in output
    np.testing.assert_array_equal(processes.arrays(tmp_path)["w"], np.arange(6.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, phantom_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXRJAX_DATA", str(phantom_dir))
        yield tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def alone(folder):
    """The run of one process."""
    codes, outputs = processes.ended([processes.start(folder / "alone", **OPTIONS)])
    assert codes == [0], outputs
    return folder / "alone"


@pytest.fixture(scope="module")
def pair(folder):
    """The run of two processes that were left alone."""
    return run(2, folder / "pair")


def run(count, workdir, **options):
    codes, outputs = processes.ended(processes.together(count, workdir, **OPTIONS, **options))
    assert codes == [0] * count, outputs
    assert "step 16: phantom_probe" in outputs[0]
    return workdir


def assert_close(workdir, expected):
    """Another order of sums: the same records, with numbers that differ by rounding."""
    ours, theirs = processes.records(workdir), processes.records(expected)
    assert [record.keys() for record in ours] == [record.keys() for record in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for name in one:
            judged = name.startswith("eval/")
            assert judged or one[name] == pytest.approx(other[name], rel=2e-3, abs=2e-4), (one["step"], name)
    for one, other in zip(ours[:5], theirs[:5], strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-5)
    found = processes.arrays(expected)
    for path, leaf in processes.arrays(workdir).items():
        np.testing.assert_allclose(leaf, found[path], rtol=0, atol=2e-3, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "sharding"), [(2, ""), (4, ""), (2, "fsdp")])
def test_several_processes_train_as_one_does(folder, alone, count, sharding):
    """They log, judge and save once; the losses are those of one process."""
    workdir = run(count, folder / f"{count} processes {sharding}", sharding=sharding)
    assert_close(workdir, alone)
    assert checkpoint.steps(workdir) == checkpoint.steps(alone)
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert (workdir / "evals" / "phantom_probe" / str(STEPS) / "results.json").exists()


def broken(workdir, number, victims, count=2, **options):
    """Ends the run at a step after its first checkpoint by a signal; all have to end by themselves."""
    several = processes.together(count, workdir, **OPTIONS, **options)
    processes.wait_until(lambda: 4 in checkpoint.steps(workdir), several)
    for victim in victims:
        several[victim].send_signal(number)
    return processes.ended(several)


@pytest.mark.slow
@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)], ids=["first", "second", "all"])
def test_killed_processes_end_the_run_and_it_goes_on(folder, pair, victims):
    """Who is left does not wait for ever, and tells the launcher by its exit code to start again."""
    workdir = folder / f"killed {len(victims)}{victims[0]}"
    codes, outputs = broken(workdir, signal.SIGKILL, victims)
    assert all(code == -signal.SIGKILL for code in (codes[victim] for victim in victims)), outputs
    assert all(code not in (0, 2, 130) for code in codes), outputs
    assert checkpoint.steps(workdir)[-1] < STEPS
    processes.assert_same(run(2, workdir), pair)


@pytest.mark.slow
@pytest.mark.parametrize("victims", [(1,), (0, 1)], ids=["second", "all"])
def test_sigterm_saves_one_step_and_ends_all_and_the_run_goes_on(folder, pair, victims):
    """The step that the sentence names is on disk."""
    workdir = folder / f"terminated {len(victims)}"
    codes, outputs = broken(workdir, signal.SIGTERM, victims)
    assert codes == [143, 143], outputs
    newest, who = checkpoint.steps(workdir)[-1], "SIGTERM" if 0 in victims else "a signal on another host"
    assert f"{who}: step {newest} is saved; the same command resumes there" in outputs[0] and newest < STEPS
    processes.assert_same(run(2, workdir), pair)


@pytest.mark.slow
def test_other_settings_are_refused(pair):
    codes, outputs = processes.ended(processes.together(2, pair, **OPTIONS, seed=1))
    assert codes[0] == 2 and "holds a run with other settings" in outputs[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "sharding"), [(2, 1, ""), (1, 2, ""), (2, 4, ""), (4, 2, ""), (2, 1, "fsdp")]
)
def test_goes_on_with_another_number_of_processes(folder, alone, before, after, sharding):
    """And with a whole train state where it was in parts."""
    workdir = folder / f"{before} then {after} {sharding}"
    codes, outputs = broken(workdir, signal.SIGTERM, range(before), before, sharding=sharding)
    assert codes == [143] * before, outputs
    newest = checkpoint.steps(workdir)[-1]
    codes, outputs = processes.ended(processes.together(after, workdir, **OPTIONS))
    assert codes == [0] * after and f"resuming from step {newest} of {STEPS}" in outputs[0], outputs
    assert_close(workdir, alone)


@pytest.mark.slow
def test_sets_may_lie_on_disks_of_their_own(folder, pair, phantom_dir, tmp_path):
    """The work folder may not: a host that does not see it is named. Nor may the sets differ."""
    for number in range(2):
        shutil.copytree(phantom_dir, tmp_path / f"data {number}")
    own = [{"CXRJAX_DATA": str(tmp_path / f"data {number}")} for number in range(2)]
    codes, outputs = processes.ended(processes.together(2, tmp_path / "run", environments=own, **OPTIONS))
    assert codes == [0, 0], outputs
    processes.assert_same(tmp_path / "run", pair)

    codes, outputs = processes.ended(processes.together(2, [tmp_path / "one", tmp_path / "other"], **OPTIONS))
    assert codes == [2, 2] and "one of the first host is not seen by [1]: it must be a disk that all" in outputs[0]
