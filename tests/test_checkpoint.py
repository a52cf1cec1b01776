import errno
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxrjax import checkpoint, optim, parallel
from cxrjax.runtime import integrity
from tests import runs


class TrainState(NamedTuple):
    step: Any
    params: Any
    state: Any
    opt: Any


def train_state(seed=0, **config):
    draw = np.random.default_rng(seed)
    params = {
        "encoder": {"blocks": {"kernel": jnp.asarray(draw.normal(size=(3, 64, 32)), jnp.float32)}, "cls": jnp.ones(4)},
        "head": {"bias": jnp.asarray(draw.normal(size=5), jnp.bfloat16)},
    }
    transformation, _ = optim.make(runs.optim(lr=0.1, wd=0.1, **config), params, 10, 8, 1)
    moments = transformation.init(params)
    _, moments = transformation.update(jax.tree.map(jnp.sin, params), moments, params)
    return TrainState(jnp.int32(3), params, {"teacher": {"cls": jnp.full(4, 0.5)}, "queue": None}, moments)


def abstract(state, devices=1):
    return parallel.abstract(state, parallel.make_mesh({"fsdp": devices}))


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def save(directory, *saved, **options):
    with checkpoint.open(directory, **options) as checkpoints:
        for step, state, metrics in saved:
            assert checkpoints.save(step, state, {"config": "abc"}, metrics)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work folder whose steps 1 to 5 are the states of seeds 1 to 5, made on 8 devices."""
    workdir = tmp_path_factory.mktemp("run")
    mesh = parallel.make_mesh({"data": 4, "fsdp": 2})
    states = {step: train_state(step) for step in range(1, 6)}
    scores = {1: 0.2, 2: 0.9, 3: float("nan"), 4: 0.4, 5: 0.3}
    placed = {step: jax.device_put(state, parallel.shardings(state, mesh)) for step, state in states.items()}
    assert placed[1].params["encoder"]["blocks"]["kernel"].sharding.shard_shape((3, 64, 32)) == (3, 32, 32)
    save(
        workdir / "checkpoints",
        *((step, state, {"auroc": scores[step]}) for step, state in placed.items()),
        keep_latest=2,
        keep_best=1,
        metric="auroc",
    )
    return workdir, states


@pytest.mark.parametrize("devices", [8, 1, 4])
def test_made_on_eight_devices_restores_on_any(run, devices):
    workdir, states = run
    devices = {"data": 1} if devices == 1 else {"data": 4, "fsdp": devices // 4}
    target = parallel.abstract(states[5], parallel.make_mesh(devices))
    with checkpoint.open(workdir / "checkpoints", keep_latest=9) as checkpoints:
        found = checkpoints.restore(5, target)
    assert_same(found, states[5])
    for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(target), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_from_eight_to_one_to_four(run, tmp_path):
    workdir, states = run
    one = checkpoint.load_params(workdir, 5, abstract(states[5], 1))
    save(tmp_path, (5, one, None))
    with checkpoint.open(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(5, abstract(states[5], 4)), states[5])


def test_keeps_the_latest_and_the_best(run):
    workdir, states = run
    assert checkpoint.steps(workdir) == [2, 4, 5]
    assert checkpoint.find(workdir, "best").name == "2"
    assert checkpoint.find(workdir, "latest").name == "5"
    assert checkpoint.read_meta(workdir, "best") == {"step": 2, "config": "abc"}


def test_keeps_the_best_by_the_smallest(tmp_path):
    small = {"w": jnp.ones(2)}
    values = [(1, small, {"loss": 3.0}), (2, small, {"loss": 1.0}), (3, small, None), (4, small, {"loss": 2.0})]
    save(tmp_path, *values, (5, small, {"loss": 7.0}), keep_latest=1, keep_best=1, metric="loss", mode="min")
    assert checkpoint.steps(tmp_path) == [2, 5]
    assert checkpoint.find(tmp_path, "best").name == "2"


def test_load_params_reads_no_moments(run, tmp_path):
    """From a checkpoint whose optimizer state is another one than the config's, and from all three kinds of folder."""
    workdir, states = run
    wanted = {"params": states[4].params, "state": {"teacher": states[4].state["teacher"]}}
    shapes = jax.eval_shape(lambda: wanted)
    for folder in (workdir, workdir / "checkpoints", workdir / "checkpoints" / "4"):
        found = checkpoint.load_params(folder, 4, shapes)
        assert_same(found, wanted)
    assert found["params"]["head"]["bias"].is_fully_replicated
    encoder = {"params": {"encoder": {"cls": states[4].params["encoder"]["cls"]}}}
    assert_same(checkpoint.load_params(workdir, "latest", jax.eval_shape(lambda: encoder)), encoder)


def test_digest_tells_checkpoints_apart(run):
    workdir, _ = run
    assert checkpoint.digest(workdir, 4) == checkpoint.digest(workdir / "checkpoints" / "4")
    assert checkpoint.digest(workdir, 4) != checkpoint.digest(workdir, 5)


@pytest.mark.parametrize(
    ("below", "step", "message"),
    [
        ("nowhere", "latest", "no folder .*nowhere; give a work folder"),
        ("empty", "latest", "no complete checkpoint in .*empty"),
        ("", 3, r"no step 3 in .*checkpoints; there are \[2, 4, 5\], 'latest' and 'best'"),
        ("checkpoints/4", 5, "is one checkpoint, not step 5"),
    ],
)
def test_not_found_says_what_is_there(run, below, step, message):
    workdir, _ = run
    (workdir / "empty").mkdir(exist_ok=True)
    with pytest.raises(checkpoint.CheckpointNotFound, match=message):
        checkpoint.find(workdir / below, step)


def test_best_without_metrics_says_what_is_stored(tmp_path):
    save(tmp_path, (1, {"w": jnp.ones(2)}, {"loss": 1.0}))
    with pytest.raises(
        checkpoint.CheckpointNotFound, match=r"named no checkpoint.best_metric .* one of the steps \[1\]"
    ):
        checkpoint.find(tmp_path, "best")


def test_a_step_may_be_a_word_of_the_command_line(run):
    directory, _ = run
    newest = checkpoint.steps(directory)[-1]
    assert checkpoint.find(directory, str(newest)) == checkpoint.find(directory, newest)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def largest(step):
    return max((path for path in step.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_a_flipped_bit_is_noticed_and_the_file_named(tmp_path):
    """By the run and by those who read its parameters; what is offered is the newest step that is whole."""
    state = train_state()
    save(tmp_path, *((step, state, None) for step in (1, 2, 3)), keep_latest=3)
    files = [largest(tmp_path / str(step)) for step in (2, 3)]
    for file in files:
        flip(file)
    sentence = (
        f"3 is damaged .*{files[1].relative_to(tmp_path / '3')} is not what was written.*; rename it, and step 1 is"
    )
    with checkpoint.open(tmp_path, keep_latest=3) as saved, pytest.raises(checkpoint.CheckpointDamaged, match=sentence):
        saved.restore(3, abstract(state))
    with pytest.raises(checkpoint.CheckpointDamaged, match="2 is damaged"):
        checkpoint.load_params(tmp_path, 2, jax.eval_shape(lambda: {"params": state.params}))
    largest(tmp_path / "3").unlink()
    with pytest.raises(checkpoint.CheckpointDamaged, match="is missing"):
        checkpoint.load_params(tmp_path, 3, jax.eval_shape(lambda: {"params": state.params}))
    flip(largest(tmp_path / "1"))
    with pytest.raises(checkpoint.CheckpointDamaged, match=r"the other steps \[2, 3\] are damaged as well"):
        checkpoint.load_params(tmp_path, 1, jax.eval_shape(lambda: {"params": state.params}))


@pytest.mark.slow
def test_sixty_flipped_bits_are_noticed(tmp_path):
    """Any bit of any file that holds arrays, one at a time."""
    state, draw, noticed = train_state(), np.random.default_rng(0), []
    save(tmp_path, (1, state, None))
    files = sorted(path for path in (tmp_path / "1" / "train_state").rglob("d/*") if path.is_file())
    wanted = jax.eval_shape(lambda: {"params": state.params})
    for _ in range(60):
        file = files[draw.integers(len(files))]
        before = file.read_bytes()
        content = bytearray(before)
        content[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
        file.write_bytes(content)
        with pytest.raises(checkpoint.CheckpointDamaged, match=f"{file.name} is not what was written"):
            checkpoint.load_params(tmp_path, 1, wanted)
        file.write_bytes(before)
        noticed.append(file.name)
    checkpoint.load_params(tmp_path, 1, wanted)
    print(
        f"noticed {len(noticed)} flipped bits in {len(set(noticed))} files of {sum(map(os.path.getsize, files))} bytes"
    )


def test_killed_between_commit_and_digests_is_read_and_gets_them(tmp_path, caplog):
    state = train_state()
    save(tmp_path, (1, state, None))
    (tmp_path / "1" / integrity.DIGESTS).unlink()
    (tmp_path / "1" / f"{integrity.DIGESTS}.partial").write_text('{"run": ')
    with caplog.at_level(logging.WARNING), checkpoint.open(tmp_path) as saved:
        assert_same(saved.restore(1, abstract(state)), state)
    assert "its files are not checked" in caplog.text and integrity.is_known(checkpoint.find(tmp_path))
    flip(largest(tmp_path / "1"))
    with pytest.raises(checkpoint.CheckpointDamaged):
        checkpoint.load_params(tmp_path, 1, jax.eval_shape(lambda: {"params": state.params}))


def test_a_step_of_another_run_and_another_config_are_noticed(tmp_path):
    small = {"w": jnp.arange(3.0)}
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"name": "same"}')
        save(tmp_path / name / "checkpoints", (1, small, None), (2 if name == "one" else 3, small, None))
    shutil.copytree(tmp_path / "other" / "checkpoints" / "3", tmp_path / "one" / "checkpoints" / "3")
    with pytest.raises(checkpoint.CheckpointDamaged, match="3 is not of this run .*another run.*step 2 is whole"):
        checkpoint.load_params(tmp_path / "one", "latest", small)
    shutil.copytree(tmp_path / "other", tmp_path / "moved")
    (tmp_path / "moved" / "config.json").write_text('{ "name":  "same" }')  # the same settings
    checkpoint.load_params(tmp_path / "moved", "latest", small)
    (tmp_path / "moved" / "config.json").write_text('{"name": "sale"}')
    with pytest.raises(checkpoint.CheckpointDamaged, match="config.json is not the one .*put that back, or delete"):
        checkpoint.load_params(tmp_path / "moved", "latest", small)


@pytest.mark.parametrize("saves", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_saves_leave_no_thread_and_no_open_file(tmp_path, saves):
    counts = []
    with checkpoint.open(tmp_path) as checkpoints:
        for step in range(saves):
            checkpoints.save(step, {"w": jnp.zeros(4)}, {})
            checkpoints.wait()
            counts.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
    print(f"descriptors and threads after 3 and {saves} saves: {counts[2]} and {counts[-1]}")
    assert counts[-1] == counts[2]


def test_a_step_is_ranked_by_what_it_came_to_later(tmp_path):
    """Judges look at a step that is safe: what they find decides which step stays, also in the next start."""
    options = {"keep_latest": 1, "keep_best": 1, "metric": "auroc"}
    small = {"w": jnp.arange(3.0)}
    for steps in (((1, 0.2), (2, 0.9)), ((3, 0.4), (4, 0.5))):
        with checkpoint.open(tmp_path, **options) as checkpoints:
            for step, auroc in steps:
                checkpoints.save(step, small, {})
                checkpoints.rank(step, {"auroc": auroc})
    assert checkpoint.steps(tmp_path) == [2, 4]
    assert checkpoint.find(tmp_path, "best").name == "2"


@pytest.mark.parametrize("damage", ["arrays", "names"])
def test_a_damaged_checkpoint_is_a_sentence_with_what_is_left(tmp_path, damage):
    state = train_state()
    save(tmp_path, (1, state, None), (2, state, None))
    arrays = [path for path in (tmp_path / "2" / "train_state").rglob("d/*") if path.is_file()]
    metadata = tmp_path / "2" / "train_state" / "_METADATA"
    for path in arrays if damage == "arrays" else [metadata]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with (
        checkpoint.open(tmp_path) as saved,
        pytest.raises(checkpoint.CheckpointDamaged, match=r"/2 is damaged .*written.*step 1 is whole and left"),
    ):
        saved.restore(2, abstract(state))


def test_mismatch_names_the_leaves_before_reading(run, monkeypatch):
    workdir, states = run
    monkeypatch.setattr(checkpoint.ocp, "load_checkpointables", lambda *args: pytest.fail("read before comparing"))
    target = abstract(states[5])
    params = dict(target.params)
    params["encoder"] = {"blocks": {"kernel": jax.ShapeDtypeStruct((3, 8, 6), "float32")}, "register": target.step}
    params["head"] = {"bias": jax.ShapeDtypeStruct((5,), "float32")}
    with checkpoint.open(workdir / "checkpoints", keep_latest=9) as checkpoints:
        with pytest.raises(checkpoint.CheckpointMismatch) as caught:
            checkpoints.restore(5, target._replace(params=params))
    lines = [" ".join(line.split()) for line in str(caught.value).splitlines()]
    assert "1 missing and 2 different, 1 unexpected" in lines[0]
    assert lines[1:] == [
        "missing params/encoder/register int32[]",
        "unexpected params/encoder/cls float32[4]",
        "different params/encoder/blocks/kernel float32[3,64,32] != float32[3,8,6] expected",
        "different params/head/bias bfloat16[5] != float32[5] expected",
    ]


def test_mismatch_of_another_optimizer_and_long_lists(run):
    workdir, states = run
    with pytest.raises(checkpoint.CheckpointMismatch, match="of 30 arrays 30 missing") as caught:
        checkpoint.load_params(workdir, 5, {f"extra{i}": jax.ShapeDtypeStruct((), "float32") for i in range(30)})
    assert len(str(caught.value).splitlines()) == 22 and "… and 10 more" in str(caught.value)
    with checkpoint.open(workdir / "checkpoints", keep_latest=9) as checkpoints:
        with pytest.raises(checkpoint.CheckpointMismatch, match="unexpected  opt/.*/nu/head/bias"):
            checkpoints.restore(5, abstract(train_state(5, name="sgd")))


def test_frozen_parameters_and_empty_parts_come_back(tmp_path):
    state = train_state(frozen=["encoder/"], grad_clip=1.0)._replace(state={})
    save(tmp_path, (1, state, None))
    with checkpoint.open(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(1, abstract(state)), state)


def test_donating_right_after_a_save_does_not_change_what_is_saved(tmp_path):
    count = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    tree = {str(i): jnp.zeros((500, 1000)) for i in range(4)}
    with checkpoint.open(tmp_path, keep_latest=3) as checkpoints:
        for step in range(3):
            checkpoints.save(step, tree, {})
            tree = count(tree)
    for step in range(3):
        found = checkpoint.load_params(tmp_path, step, jax.eval_shape(lambda: tree))
        assert {float(leaf.min()) for leaf in found.values()} | {float(leaf.max()) for leaf in found.values()} == {step}


def test_saving_a_step_again(tmp_path):
    with checkpoint.open(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.save(1, {"w": jnp.zeros(2)}, {})
        assert not checkpoints.save(1, {"w": jnp.ones(2)}, {})
        checkpoints.wait()
        assert checkpoints.latest_step() == 1
        assert checkpoints.save(1, {"w": jnp.full(2, 7.0)}, {}, force=True)
    found = checkpoint.load_params(tmp_path, 1, {"w": jax.ShapeDtypeStruct((2,), "float32")})
    np.testing.assert_array_equal(found["w"], 7)
    with checkpoint.open(tmp_path) as checkpoints, pytest.raises(TypeError, match="JSON"):
        checkpoints.save(2, {"w": jnp.zeros(2)}, {"not json": object()})


def test_what_a_killed_run_leaves_is_not_picked(tmp_path, caplog):
    """Orbax's temporary folder, a folder with a number but nothing in it, and one that lost its record."""
    small = {"w": jnp.arange(3.0)}
    save(tmp_path, (1, small, None), (2, small, None), (3, small, None), keep_latest=3)
    (tmp_path / "7.orbax-checkpoint-tmp" / "train_state").mkdir(parents=True)
    (tmp_path / "9").mkdir()
    (tmp_path / "3" / "_CHECKPOINT_METADATA").unlink()
    record = json.loads((tmp_path / "2" / "_CHECKPOINT_METADATA").read_text())
    assert checkpoint.steps(tmp_path) == [1, 2]
    (tmp_path / "2" / "_CHECKPOINT_METADATA").write_text(json.dumps(record | {"commit_timestamp_nsecs": None}))
    assert checkpoint.find(tmp_path).name == "1"
    with caplog.at_level(logging.WARNING), checkpoint.open(tmp_path, keep_latest=2) as checkpoints:
        assert checkpoints.latest_step() == 1
        assert checkpoints.save(2, small, {}) and checkpoints.save(3, small, {})
    assert "9 is not a complete checkpoint: renamed to 9.incomplete" in caplog.text
    assert checkpoint.steps(tmp_path) == [2, 3]
    assert not (tmp_path / "7.orbax-checkpoint-tmp").exists()


SAVE_FOR_EVER = """
import sys, jax.numpy as jnp
from cxrjax import checkpoint
shapes = {str(i): jnp.zeros((1000, 1000)) for i in range(8)}
with checkpoint.open(sys.argv[1], keep_latest=2) as checkpoints:
    first = checkpoints.latest_step() or 0
    for step in range(first + 1, first + 1000):
        checkpoints.save(step, {name: leaf + step for name, leaf in shapes.items()}, {})
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_a_save(tmp_path):
    shapes = {str(i): jax.ShapeDtypeStruct((1000, 1000), "float32") for i in range(8)}
    seen = [0]
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)])
        deadline = time.time() + 60
        while time.time() < deadline and process.poll() is None:
            being_written = [path for path in tmp_path.glob("*.orbax-checkpoint-tmp") if path.stem.split(".")[0]]
            if being_written and max(checkpoint.steps(tmp_path), default=0) > seen[-1]:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append(checkpoint.steps(tmp_path)[-1])
        assert seen[-1] > seen[-2]
        found = checkpoint.load_params(tmp_path, "latest", shapes)
        assert {(float(leaf.min()), float(leaf.max())) for leaf in found.values()} == {(seen[-1], seen[-1])}


@pytest.fixture
def small_files():
    """No file may grow above 64 KiB: the write fails in TensorStore's threads, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_failed_write_reaches_the_caller_as_one_sentence(tmp_path, small_files):
    large = {"w": jax.random.normal(jax.random.key(0), (300, 300))}
    sentence = "the checkpoint of step 1 could not be written to .*: File too large; give"
    with pytest.raises(checkpoint.CheckpointNotWritten, match=sentence):
        with checkpoint.open(tmp_path / "at_the_end") as checkpoints:
            checkpoints.save(1, large, {})
    with checkpoint.open(tmp_path / "at_the_next") as checkpoints:
        checkpoints.save(1, large, {})
        with pytest.raises(checkpoint.CheckpointNotWritten, match=sentence):
            checkpoints.save(2, large, {})
    with pytest.raises(KeyError) as caught:
        with checkpoint.open(tmp_path / "beside_another") as checkpoints:
            checkpoints.save(1, large, {})
            raise KeyError("the run's own error")
    assert "File too large" in caught.value.__notes__[0]
    assert checkpoint.steps(tmp_path / "at_the_end") == checkpoint.steps(tmp_path / "at_the_next") == []


def test_full_disk_says_to_free_space(tmp_path, monkeypatch):
    def full(self):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 16 bytes: No space left on device [os_error_code='28']")

    with checkpoint.open(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(4)}, {})
        monkeypatch.setattr(checkpoint.ocp.training.Checkpointer, "wait", full)
        with pytest.raises(checkpoint.CheckpointNotWritten, match=f"step 1 .*{os.strerror(errno.ENOSPC)}; free some"):
            checkpoints.wait()


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        checkpoint.CheckpointNotWritten, match="cannot be kept in .*Not a directory; give a work folder"
    ):
        checkpoint.open(tmp_path / "file" / "checkpoints")


def test_options_that_keep_nothing():
    with pytest.raises(ValueError, match="keep at least 1"):
        checkpoint.open("unused", keep_latest=0)
    with pytest.raises(ValueError, match="needs a metric"):
        checkpoint.open("unused", keep_best=1)


def test_optimizer_goes_on_bit_for_bit(tmp_path):
    """Restored moments and step count give the update that the running optimizer gives."""
    state = train_state(warmup_steps=5)
    transformation, _ = optim.make(runs.optim(lr=0.1, wd=0.1, warmup_steps=5), state.params, 10, 8, 1)
    save(tmp_path, (3, state, None))
    with checkpoint.open(tmp_path) as checkpoints:
        restored = checkpoints.restore(3, abstract(state))
    steps = [transformation.update(one.params, one.opt, one.params) for one in (state, restored)]
    assert_same(*(optax.apply_updates(state.params, updates) for updates, _ in steps))
    assert_same(*(moments for _, moments in steps))
