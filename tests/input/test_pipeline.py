import hashlib
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cxrjax.input import converted_sets, crops, pipeline, source

CROP = crops.transform("crop_flip", 16)


def two_views(example, rng):
    image = crops.decode(example["image"])
    return {
        "image": np.stack([CROP(image, rng), CROP(image, rng)])[..., None],
        "record": np.int32(example["image_id"].split("-")[1]),
        "from_rich": np.bool_(example["set"] == "rich"),
    }


def digest(batch):
    return hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest()


def sources(data_dir):
    return [source.select(converted_sets.open_set(name, data_dir), "train") for name in ("rich", "plain")]


@pytest.fixture(scope="module")
def both(written):
    return sources(written.data_dir)


def test_batch_has_what_views_returns(both):
    batch = pipeline.dataset(both, None, two_views, 8, seed=0)[0]
    assert {name: (rows.shape, rows.dtype.str) for name, rows in batch.items()} == {
        "image": ((8, 2, 16, 16, 1), "|u1"),
        "record": ((8,), "<i4"),
        "from_rich": ((8,), "|b1"),
    }
    assert (batch["image"][:, 0] != batch["image"][:, 1]).any((1, 2, 3)).all()


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_batches_do_not_depend_on_threads_and_resume_at_any_step(both, threads):
    stream = pipeline.dataset(both, None, two_views, 4, seed=0)
    expected = [digest(stream[step]) for step in range(12)]
    assert len(set(expected)) == 12
    for start in (0, 5):
        made = pipeline.iterator(stream, start, threads)
        assert [digest(next(made)) for _ in range(12 - start)] == expected[start:]


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_get_the_batch_of_one_host(both, hosts):
    whole = pipeline.dataset(both, None, two_views, 8, seed=3)
    parts = [pipeline.dataset(both, None, two_views, 8, 3, host, hosts) for host in range(hosts)]
    for step in (0, 1, 9):
        rows = [part[step] for part in parts]
        assert all(len(part["record"]) == 8 // hosts for part in rows)
        assert digest({name: np.concatenate([part[name] for part in rows]) for name in rows[0]}) == digest(whole[step])


def test_every_epoch_has_every_picture_once_in_a_new_order(both):
    stream = pipeline.dataset(both[:1], None, two_views, 13, seed=0)
    halves = [stream[step]["record"] for step in range(6)]
    epochs = [np.concatenate(halves[2 * epoch : 2 * epoch + 2]) for epoch in range(3)]
    for order in epochs:
        assert sorted(order) == list(range(26))
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])


def test_sets_come_one_after_the_other_in_a_cycle(both):
    """Every picture of the first, then every one of the second, in new orders in the next round."""
    sizes = [len(each) for each in both]
    stream = pipeline.dataset(both, None, two_views, 1, seed=0, order="cyclic")
    rounds = [[stream[r * sum(sizes) + i] for i in range(sum(sizes))] for r in range(2)]
    seen = [[(bool(one["from_rich"][0]), int(one["record"][0])) for one in each] for each in rounds]
    for each in seen:
        assert [rich for rich, _ in each] == [True] * sizes[0] + [False] * sizes[1]
        assert len(set(each)) == sum(sizes)
    assert seen[0][: sizes[0]] != seen[1][: sizes[0]] and seen[0][sizes[0] :] != seen[1][sizes[0] :]
    with pytest.raises(ValueError, match="'cyclic' without data.weights, got 'cyclic' with weights"):
        pipeline.dataset(both, [1, 2], two_views, 4, seed=0, order="cyclic")
    with pytest.raises(ValueError, match="must be 'mixed', or 'cyclic' without data.weights, got 'one'"):
        pipeline.dataset(both, None, two_views, 4, seed=0, order="one")


def test_a_picture_is_cut_anew_in_every_epoch(both):
    stream = pipeline.dataset(both[:1], None, two_views, 26, seed=0)
    first, second = (stream[epoch]["image"][np.argsort(stream[epoch]["record"])] for epoch in (0, 1))
    assert (first != second).any((1, 2, 3, 4)).mean() > 0.9


def test_every_picture_of_every_step_and_host_gets_a_draw_of_its_own():
    """Whatever is drawn depends on the place in the stream, not on the row of the batch or on the record."""

    def drawn(step, host):
        def make(address, rng):
            return {"x": rng.random()}

        return pipeline._HostBatches(range(40), make, 0, 8, 4 * host, 4)[step]["x"].tolist()

    assert len({x for step in range(5) for host in range(2) for x in drawn(step, host)}) == 40


def test_seed_changes_order_and_draws(both):
    records = [pipeline.dataset(both, None, two_views, 32, seed)[0]["record"] for seed in (0, 1)]
    assert not np.array_equal(*records)

    def draw(example, rng):
        return {"x": rng.random()}

    draws = [pipeline.dataset(both, None, draw, 4, seed)[0]["x"] for seed in (0, 1)]
    assert len({*draws[0], *draws[1]}) == 8


@pytest.mark.parametrize(("weights", "share"), [(None, 26 / 43), ([1, 3], 0.25), ([0.9, 0.1], 0.9)])
def test_sets_are_mixed_by_weight_or_size(both, weights, share):
    stream = pipeline.dataset(both, weights, two_views, 43, seed=0)
    from_rich = np.concatenate([stream[step]["from_rich"] for step in range(10)])
    assert abs(from_rich.mean() - share) < 0.02
    # The sets alternate: no batch is without one of them.
    assert all(0 < stream[step]["from_rich"].sum() < 43 for step in range(10))


def test_sets_of_one_size_are_not_in_one_order(both):
    twice = pipeline.dataset([both[0], both[0]], None, two_views, 52, seed=0)[0]["record"]
    assert Counter(twice) == {record: 2 for record in range(26)}
    assert not np.array_equal(twice[::2], twice[1::2])


DIGEST = """
import sys
from tests.input import test_pipeline as t
stream = t.pipeline.dataset(t.sources(sys.argv[1]), None, t.two_views, 8, seed=0)
print(t.digest(stream[7]))
"""


def test_same_batches_in_every_process(both, written):
    ran = subprocess.run(
        [sys.executable, "-c", DIGEST, written.data_dir],
        env={**os.environ, "PYTHONHASHSEED": "11"},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert ran.stdout.strip() == digest(pipeline.dataset(both, None, two_views, 8, seed=0)[7])


@pytest.mark.slow
def test_batches_do_not_depend_on_worker_processes(both):
    stream = pipeline.dataset(both, None, two_views, 4, seed=0)
    made = pipeline.iterator(stream, start_step=3, workers=2)
    assert [digest(next(made)) for _ in range(4)] == [digest(stream[step]) for step in range(3, 7)]
    made.close()


def test_impossible_requests_are_refused(both):
    make = partial(pipeline.dataset, views=two_views, seed=0)
    with pytest.raises(ValueError, match="batch_size 10 .* multiple of their number, 4; the nearest are 8 and 12"):
        make(both, None, batch_size=10, process_count=4)
    with pytest.raises(ValueError, match="batch_size 2 .* the nearest are 4"):
        make(both, None, batch_size=2, process_count=4)
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="one positive number for each of the 2 sets"):
            make(both, weights, batch_size=4)
    with pytest.raises(ValueError, match="No source was given"):
        make([], None, batch_size=4)
    with pytest.raises(ValueError, match="must be in 0 ... 1"):
        make(both, None, batch_size=4, process_index=2, process_count=2)


def test_broken_picture_is_named_from_within_a_thread(written):
    broken = source.select(converted_sets.open_set("plain", written.data_dir), "test")
    with pytest.raises(ValueError, match="Picture 'test-1' of set 'plain' cannot be decoded") as raised:
        list(pipeline.evaluation_batches(broken, two_views, 2))
    assert isinstance(raised.value.__cause__, crops.Undecodable)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda number: {"image_id": str(number)}, r"'image_id' as str, but a batch holds numbers only"),
        (lambda number: {"x": np.zeros(1 + number % 2)}, r"'x' as float64 \(2,\) .* float64 \(1,\)|\(1,\) .* \(2,\)"),
        (lambda number: {"x": np.zeros(1, [np.int8, np.int64][number % 2])}, "'x' as int"),
        (lambda number: {"x": 0} | {f"y{number % 2}": 0}, "and .* for another of its batch"),
    ],
)
def test_views_that_do_not_make_a_batch_are_refused(both, returned, message):
    stream = pipeline.dataset(both[:1], None, lambda example, rng: returned(int(example["image_id"][6:])), 26, seed=0)
    with pytest.raises(ValueError, match=message):
        stream[0]


def test_evaluation_reads_every_record_once_in_order_with_labels(both):
    read = both[1]
    batches = list(pipeline.evaluation_batches(read, two_views, 5))
    assert [list(valid) for _, valid in batches] == [[True] * 5] * 3 + [[True, True, False, False, False]]
    assert all(len(batch["record"]) == 5 for batch, _ in batches)
    kept = {name: np.concatenate([batch[name][valid] for batch, valid in batches]) for name in batches[0][0]}
    assert [f"train-{record}" for record in kept["record"]] == list(read.table["image_id"])
    np.testing.assert_array_equal(kept["labels"], np.stack(read.table["labels"]))
    assert kept["labels"].dtype == np.int8
    last, valid = batches[-1]
    assert (last["record"][~valid] == last["record"][1]).all()
    again = [digest(batch) for batch, _ in pipeline.evaluation_batches(read, two_views, 5, num_threads=1)]
    assert again == [digest(batch) for batch, _ in batches]


def test_threads_are_the_cores_unless_said(monkeypatch):
    monkeypatch.setattr(pipeline, "cores", lambda: 6)
    assert (pipeline.threads(None), pipeline.threads(0), pipeline.threads(3)) == (6, 0, 3)
    monkeypatch.setattr(pipeline, "cores", lambda: 96)
    assert pipeline.threads(None) == 16
