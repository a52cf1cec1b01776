"""Sources -> host batches through Grain. The position in the data is the step, and nothing else.

Every picture and every draw is a function of (seed, index in the stream), so batches are the same for any number of
threads, worker processes and hosts, and a run resumes at a step without any stored iterator.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import grain
import numpy as np

from cxrjax.input.source import Source
from cxrjax.input.views import Undecodable

Example = Mapping[str, Any]
Views = Callable[[Example, np.random.Generator], dict[str, Any]]
Batch = dict[str, np.ndarray]


def dataset(
    sources: Sequence[Source],
    weights: Sequence[float] | None,
    views: Views,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Endless batches of one host, by step: `dataset(...)[step]` -> dict of NumPy arrays.

    sources: the sets to draw from. Each is passed through in a new order every epoch.
    weights: share of each set in the stream (Grain rounds it to within 1 %); by default proportional to size.
    views: (example, rng) -> dict of arrays or scalars.
    batch_size: of all hosts together, b; this host's batches have leading axis b // process_count. They are the rows
        process_index * b // process_count and on of the batch that one host alone would get.
    Raises ValueError for no source, weights that do not match, or a batch that the hosts cannot share evenly.
    """
    _check(sources, weights, batch_size, process_index, process_count)
    streams = [
        grain.MapDataset.source(source).seed(_seed_of_set(seed, number)).shuffle().repeat(None)
        for number, source in enumerate(sources)
    ]
    shares = [len(source) for source in sources] if weights is None else list(weights)
    stream = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, shares)
    # The draws depend on the index before the split over hosts, so they do not depend on the number of hosts.
    stream = stream.seed(seed).random_map(partial(_named_views, views))
    rows = batch_size // process_count
    if process_count > 1:
        mine = _HostRows(len(stream), batch_size, rows, first=process_index * rows)
        stream = grain.MapDataset.select_from_datasets([stream], mine)
    return stream.batch(rows, drop_remainder=True, batch_fn=_stack)


def iterator(dataset: grain.MapDataset, start_step: int = 0, num_threads: int = 2, workers: int = 0) -> Iterator[Batch]:
    """Batches from `start_step` on, made ahead of time.

    num_threads: threads that make batches; OpenCV lets them run at once. workers: processes with that many threads
    each, for machines with many cores; they take seconds to start. Neither changes the batches.
    """
    # Two batches for each thread hide the jitter of single batches; more only takes memory.
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    ahead = dataset[start_step:].to_iter_dataset(options)
    if workers:
        _let_grain_read_its_flags()
        ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(ahead)


def evaluation_batches(
    source: Source, views: Views, batch_size: int, num_threads: int = 2
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Every record once, in the order of the source: (batch, valid bool (b,)).

    views: as in `dataset`; its generator is a function of the record's number. `labels` int8 (b, c) is passed through
    where `views` does not return it; ids are in `source.table`, in the same order.
    The last batch is filled up by repeating its last record, which `valid` marks False.
    """
    records = grain.MapDataset.source(source).seed(0).random_map(partial(_labelled_views, views))
    ahead = iterator(records.batch(batch_size, batch_fn=_stack), num_threads=num_threads)
    for number, batch in enumerate(ahead):
        filled = min(batch_size, len(source) - number * batch_size)
        repeats = [1] * (filled - 1) + [1 + batch_size - filled]
        yield {name: np.repeat(rows, repeats, axis=0) for name, rows in batch.items()}, np.arange(batch_size) < filled


class _HostRows(grain.transforms.DatasetSelectionMap):
    """The rows of one host: a block of `rows` from every `batch_size` of the stream."""

    def __init__(self, stream_length: int, batch_size: int, rows: int, first: int):
        self.length = stream_length // batch_size * rows
        self.batch_size, self.rows, self.first = batch_size, rows, first

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, int]:
        step, row = divmod(index, self.rows)
        return 0, step * self.batch_size + self.first + row


def _check(
    sources: Sequence[Source], weights: Sequence[float] | None, batch_size: int, process_index: int, process_count: int
) -> None:
    if not sources:
        raise ValueError("No source was given; pass at least one, made by cxrjax.input.source.source(...).")
    if weights is not None and (len(weights) != len(sources) or not all(0 < share < math.inf for share in weights)):
        raise ValueError(
            f"weights must hold one positive number for each of the {len(sources)} sets, but they are {list(weights)}; "
            "leave a set out instead of giving it weight 0."
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} is the batch of all hosts together and must be a positive multiple of their "
            f"number, {process_count}; the nearest are {_nearest_multiples(batch_size, process_count)}."
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in 0 ... {process_count - 1}, but it is {process_index}.")


def _nearest_multiples(size: int, count: int) -> str:
    below = max(size, 0) // count * count
    return f"{below} and {below + count}" if below else str(count)


def _seed_of_set(seed: int, number: int) -> int:
    """Seeds that differ between sets: with one seed, sets of equal length would be passed through in one order."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def _named_views(views: Views, example: Example, rng: np.random.Generator) -> dict[str, Any]:
    try:
        return views(example, rng)
    except Undecodable as error:
        raise ValueError(
            f"Picture {example['image_id']!r} of set {example['set']!r} cannot be decoded: {error} "
            "The converted set is damaged; convert it again, or leave the picture out with exclude_image_ids."
        ) from error


def _labelled_views(views: Views, example: Example, rng: np.random.Generator) -> dict[str, Any]:
    return {"labels": example["labels"]} | _named_views(views, example, rng)


def _stack(examples: Sequence[Mapping[str, Any]]) -> Batch:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _let_grain_read_its_flags() -> None:
    """Grain 0.2.18 reads absl flags when processes start and fails where absl.app has not parsed any (issue 1355)."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
