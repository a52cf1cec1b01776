"""Two and four processes of this machine that are one run: what they compute, and what they survive."""

import os
import shutil
import signal
import sys

import numpy as np
import pytest

from cxrjax import checkpoint
from tests import processes

STEPS = 60
OPTIONS = {"duration__total_steps": STEPS, "checkpoint__every_steps": 4, "mesh__data": -1}
SPCL = {"duration__total_steps": 16, "checkpoint__every_steps": 4}

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


def assert_close(workdir, expected, of_loss, of_arrays):
    """Another order of sums: the same records, with numbers that differ by rounding."""
    ours, theirs = processes.records(workdir), processes.records(expected)
    assert [record.keys() for record in ours] == [record.keys() for record in theirs]
    for one, other in zip(ours, theirs, strict=True):
        if "train/loss" in one:
            assert one["train/loss"] == pytest.approx(other["train/loss"], rel=of_loss), one["step"]
    found = processes.arrays(expected)
    for path, leaf in processes.arrays(workdir).items():
        one, other = (_with_a_gradient(path, each) for each in (leaf, found[path]))
        np.testing.assert_allclose(one, other, rtol=0, atol=of_arrays, err_msg=path)


def _with_a_gradient(path, leaf):
    """All of an array but biases of keys: softmax takes them out, and Adam makes full steps of the rounding left."""
    if not path.endswith("qkv/bias"):
        return leaf
    queries, _, values = np.split(leaf, 3, axis=-1)
    return np.concatenate([queries, values], axis=-1)


@pytest.fixture(scope="module")
def one_process(folder):
    """S-PCL with its judges."""
    codes, outputs = processes.ended([processes.start(folder / "one process", **SPCL)])
    assert codes == [0], outputs
    return folder / "one process"


@pytest.mark.slow
@pytest.mark.parametrize(("count", "sharding"), [(2, ""), (4, ""), (2, "fsdp")])
def test_several_processes_train_as_one_does(folder, one_process, count, sharding):
    """They log, judge and save once; the losses are those of one process."""
    workdir = folder / f"{count} processes {sharding}"
    codes, outputs = processes.ended(processes.together(count, workdir, **SPCL, sharding=sharding))
    assert codes == [0] * count and "step 16: phantom_probe" in outputs[0], outputs
    assert_close(workdir, one_process, of_loss=2e-3, of_arrays=2e-3)
    assert checkpoint.steps(workdir) == checkpoint.steps(one_process)
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert (workdir / "evals" / "phantom_probe" / "16" / "results.json").exists()


# From here on: a method that takes no time to compile.


@pytest.fixture(scope="module")
def alone(folder):
    return run(1, folder / "alone")


@pytest.fixture(scope="module")
def pair(folder):
    return run(2, folder / "pair")


def run(count, workdir):
    codes = processes.joined(processes.fork(count, workdir, **OPTIONS))
    assert codes == [0] * count, [processes.said(workdir, number) for number in range(count)]
    return workdir


def broken(workdir, number, victims, count=2):
    """Ends the run at a step after its first checkpoint by a signal; all have to end by themselves."""
    several = processes.fork(count, workdir, **OPTIONS)
    processes.wait_until(lambda: 4 in checkpoint.steps(workdir), several)
    for victim in victims:
        os.kill(several[victim].pid, number)
    codes = processes.joined(several)
    assert checkpoint.steps(workdir)[-1] < STEPS, "it was over before the signal came"
    return codes


@pytest.mark.slow
def test_many_processes_of_the_small_method_are_one_run(folder, alone, pair):
    assert_close(pair, alone, of_loss=1e-5, of_arrays=1e-5)
    assert_close(run(4, folder / "four"), alone, of_loss=1e-5, of_arrays=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)], ids=["first", "second", "all"])
def test_killed_processes_end_the_run_and_it_goes_on(folder, pair, victims):
    """Who is left does not wait for ever, and tells the launcher by its exit code to start again."""
    workdir = folder / f"killed {len(victims)}{victims[0]}"
    codes = broken(workdir, signal.SIGKILL, victims)
    assert all(codes[victim] == -signal.SIGKILL for victim in victims)
    assert all(code not in (0, 2, 130) for code in codes), codes
    processes.assert_same(run(2, workdir), pair)


@pytest.mark.slow
@pytest.mark.parametrize("victims", [(1,), (0, 1)], ids=["second", "all"])
def test_sigterm_saves_one_step_and_ends_all_and_the_run_goes_on(folder, pair, victims):
    """The step that the sentence names is on disk."""
    workdir = folder / f"terminated {len(victims)}"
    codes = broken(workdir, signal.SIGTERM, victims)
    assert codes == [143, 143], [processes.said(workdir, number) for number in range(2)]
    newest, who = checkpoint.steps(workdir)[-1], "SIGTERM" if 0 in victims else "a signal on another host"
    assert f"{who}: step {newest} is saved; the same command resumes there" in processes.said(workdir)
    processes.assert_same(run(2, workdir), pair)


@pytest.mark.slow
def test_other_settings_are_refused(folder, pair):
    several = processes.fork(2, pair, **OPTIONS | {"seed": 1})
    assert processes.joined(several)[0] == 1 and "holds a run with other settings" in processes.said(pair)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4), (4, 2)])
def test_goes_on_with_another_number_of_processes(folder, alone, before, after):
    workdir = folder / f"{before} then {after}"
    assert broken(workdir, signal.SIGTERM, range(before), before) == [143] * before
    newest = checkpoint.steps(workdir)[-1]
    run(after, workdir)
    assert f"resuming from step {newest} of {STEPS}" in processes.said(workdir)
    assert_close(workdir, alone, of_loss=1e-5, of_arrays=1e-5)


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_had_in_parts(folder, one_process):
    workdir = folder / "parts then whole"
    several = processes.together(2, workdir, **SPCL, sharding="fsdp")
    processes.wait_until(lambda: 4 in checkpoint.steps(workdir), several)
    several[0].send_signal(signal.SIGTERM)
    codes, outputs = processes.ended(several)
    assert codes == [143, 143], outputs
    newest = checkpoint.steps(workdir)[-1]
    codes, outputs = processes.ended([processes.start(workdir, **SPCL)])
    assert codes == [0] and f"resuming from step {newest} of 16" in outputs[0], outputs
    assert_close(workdir, one_process, of_loss=2e-3, of_arrays=2e-3)


@pytest.mark.slow
def test_sets_may_lie_on_disks_of_their_own_and_the_work_folder_not(folder, pair, phantom_dir, tmp_path):
    for number in range(2):
        shutil.copytree(phantom_dir, tmp_path / f"data {number}")
    own = [{"CXRJAX_DATA": str(tmp_path / f"data {number}")} for number in range(2)]
    workdir = tmp_path / "run"
    assert processes.joined(processes.fork(2, workdir, own, **OPTIONS)) == [0, 0], processes.said(workdir)
    processes.assert_same(workdir, pair)

    codes, outputs = processes.ended(processes.together(2, [tmp_path / "one", tmp_path / "other"], **SPCL))
    assert codes == [2, 2] and "one of the first host is not seen by [1]: it must be a disk that all" in outputs[0]
