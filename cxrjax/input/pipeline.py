"""Sources -> host batches through Grain. The position in the data is the step, and nothing else.

Every picture and every draw is a function of (seed, index in the stream), so batches are the same for any number of
threads, worker processes and hosts, and a run resumes at a step without any stored iterator.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, overload

import grain
import numpy as np

from cxrjax.datasets.writer import cores
from cxrjax.input.crops import Undecodable
from cxrjax.input.source import Source
from cxrjax.runtime import interruption

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
    order: str = "mixed",
) -> grain.MapDataset:
    """Endless batches of one host, by step: `dataset(...)[step]` -> dict of NumPy arrays.

    sources: the sets to draw from. Each is passed through in a new order every epoch.
    weights: share of each set in the stream (Grain rounds it to within 1 %); by default proportional to size.
    order: of several sets, "mixed", or "cyclic": an epoch of the first, then one of the second, and so on, again and
        again; only batches that begin in one set and end in the next hold both.
    views: (example, rng) -> dict of arrays or scalars.
    batch_size: of all hosts together, b; this host's batches have leading axis b // process_count. They are the rows
        process_index * b // process_count and on of the batch that one host alone would get.
    Raises ValueError for no source, weights that do not match, another word as order, weights in a cycle, or a batch
    that the hosts cannot share evenly.
    """
    _check(sources, weights, batch_size, process_index, process_count)
    if order not in ("mixed", "cyclic") or (order == "cyclic" and weights is not None):
        raise ValueError(
            f"data.order must be 'mixed', or 'cyclic' without data.weights, got {order!r} with weights {weights}"
        )
    orders = [_Epochs(number, len(source), seed) for number, source in enumerate(sources)]
    shares = [len(source) for source in sources] if weights is None else list(weights)
    if len(orders) == 1:
        addresses = orders[0]
    else:
        addresses = _Cycle(orders) if order == "cyclic" else grain.MapDataset.mix(orders, shares)
    rows = batch_size // process_count
    return _HostBatches(addresses, partial(_read, tuple(sources), views), seed, batch_size, process_index * rows, rows)


def threads(wanted: int | None) -> int:
    """How many threads make batches: as many as are wanted, by default one for each core of this process, 16 at most.

    Our choice: above 16 the threads of one process wait for each other in Python; then `workers` help.
    """
    return min(cores(), 16) if wanted is None else wanted


def iterator(
    dataset: grain.MapDataset, start_step: int = 0, num_threads: int = 2, prefetch: int = 8, workers: int = 0
) -> Iterator[Batch]:
    """Batches from `start_step` on, made ahead of time.

    num_threads: threads that make batches; OpenCV lets them run at once. prefetch: batches that may wait ready.
    workers: processes with that many threads each, for machines with many cores; they take seconds to start.
    None of the three changes the batches.
    """
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads))
    ahead = dataset[start_step:].to_iter_dataset(options)
    if workers:
        _let_grain_read_its_flags()
        ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), interruption.ignore)
    return iter(ahead)


def evaluation_batches(
    source: Source, views: Views, batch_size: int, num_threads: int = 2
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Every record once, in the order of the source: (batch, valid bool (b,)).

    views: as in `dataset`; its generator is a function of the record's number. `labels` int8 (b, c) is passed through
    where `views` does not return it; ids are in `source.table`, in the same order.
    The last batch is filled up by repeating its last record, which `valid` marks False.
    """
    numbers = grain.MapDataset.range(math.ceil(len(source) / batch_size) * batch_size)
    batches = _HostBatches(numbers, partial(_read_in_order, source, views), 0, batch_size, 0, batch_size)
    for step, batch in enumerate(iterator(batches, num_threads=num_threads)):
        yield batch, np.arange(step * batch_size, (step + 1) * batch_size) < len(source)


class _Endless(grain.MapDataset):
    """(set number, record number) of every place of a stream without an end; `at` says which."""

    def __len__(self) -> int:
        return sys.maxsize

    @overload
    def __getitem__(self, index: slice) -> grain.MapDataset: ...

    @overload
    def __getitem__(self, index: int) -> tuple[int, int]: ...

    def __getitem__(self, index: int | slice) -> tuple[int, int] | grain.MapDataset:
        if isinstance(index, slice):
            return self.slice(index)
        return self.at(index)

    def at(self, place: int) -> tuple[int, int]:
        raise NotImplementedError


class _Epochs(_Endless):
    """Endless (set number, record number): one set passed through again and again, in a new order each time.

    In place of Grain's shuffle, whose cost per record grows as the set shrinks (0.5 ms for 48 records, all of it under
    Python's lock), and of its source stage, which measures every record that it reads.
    """

    def __init__(self, set_number: int, size: int, seed: int):
        super().__init__()
        self.set_number, self.size, self.stream_seed = set_number, size, seed
        self._orders: dict[int, np.ndarray] = {}

    def at(self, place: int) -> tuple[int, int]:
        epoch, within = divmod(place, self.size)
        return self.set_number, int(self._order(epoch)[within])

    def _order(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            order = np.random.default_rng((self.stream_seed, self.set_number, epoch)).permutation(self.size)
            # Threads are at most a few batches apart: this epoch and its neighbours are all they can need.
            near = {other: known for other, known in self._orders.items() if abs(other - epoch) == 1}
            self._orders = near | {epoch: order}
        return order


class _Cycle(_Endless):
    """Endless (set number, record number): an epoch of each set after an epoch of the set before."""

    def __init__(self, orders: Sequence[_Epochs]):
        super().__init__(orders)
        self.orders, self.ends = orders, np.cumsum([order.size for order in orders])

    def at(self, place: int) -> tuple[int, int]:
        epoch, within = divmod(place, int(self.ends[-1]))
        number = int(np.searchsorted(self.ends, within, side="right"))
        order = self.orders[number]
        return order.at(epoch * order.size + within - int(self.ends[number]) + order.size)


class _HostBatches(grain.MapDataset):
    """Makes `rows` examples, from row `first` on, of every `batch_size` addresses, as arrays.

    make: (address, rng) -> dict; the generator is a function of the seed and the address' place in the stream.
    Each example goes into the batch as soon as it is made. Grain's stages for random maps and batches do the same, but
    what they record about every element and the examples that they hold cost as much as reading the record.
    """

    def __init__(self, addresses: grain.MapDataset, make: Callable, seed: int, batch_size: int, first: int, rows: int):
        super().__init__(addresses)
        self.addresses, self.make, self.draw_seed = addresses, make, seed
        self.batch_size, self.first, self.rows = batch_size, first, rows

    def __len__(self) -> int:
        return len(self.addresses) // self.batch_size

    @overload
    def __getitem__(self, index: slice) -> grain.MapDataset: ...

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    def __getitem__(self, index: int | slice) -> Batch | grain.MapDataset:
        if isinstance(index, slice):
            return self.slice(index)
        rng = np.random.Generator(np.random.Philox(self.draw_seed))
        unused = rng.bit_generator.state
        batch: Batch = {}
        for row in range(self.rows):
            place = index * self.batch_size + self.first + row
            # The last word of Philox' counter is a stream of its own for each place; a new generator costs far more.
            unused["state"]["counter"][-1] = place
            rng.bit_generator.state = unused
            example = self.make(self.addresses[place], rng)
            batch = batch or {name: _empty(self.rows, name, value) for name, value in example.items()}
            _place(example, batch, row)
        return batch


def _place(example: Mapping[str, Any], batch: Batch, row: int) -> None:
    if example.keys() != batch.keys():
        raise ValueError(f"views returned {list(example)} for one picture and {list(batch)} for another of its batch.")
    for name, value in example.items():
        rows = batch[name]
        if np.shape(value) != rows.shape[1:] or _dtype(value) != rows.dtype:
            raise ValueError(
                f"views returned {name!r} as {_dtype(value)} {np.shape(value)} for one picture and as {rows.dtype} "
                f"{rows.shape[1:]} for another of its batch."
            )
        rows[row] = value


def _empty(rows: int, name: str, value: Any) -> np.ndarray:
    if _dtype(value).kind not in "biuf":
        raise ValueError(
            f"views returned {name!r} as {type(value).__name__}, but a batch holds numbers only; the ids of the "
            "pictures are in `source.table`."
        )
    return np.empty((rows, *np.shape(value)), _dtype(value))


def _dtype(value: Any) -> np.dtype:
    return value.dtype if isinstance(value, np.ndarray | np.generic) else np.asarray(value).dtype


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


def _read(
    sources: tuple[Source, ...], views: Views, address: tuple[int, int], rng: np.random.Generator
) -> dict[str, Any]:
    set_number, record = address
    return _named_views(views, sources[set_number][record], rng)


def _read_in_order(source: Source, views: Views, number: int, rng: np.random.Generator) -> dict[str, Any]:
    example = source[min(number, len(source) - 1)]
    return {"labels": example["labels"]} | _named_views(views, example, rng)


def check(sources: Sequence[Source], views: Views) -> None:
    """Raises ValueError for what a method refuses of a set, such as its labels: makes views of its first record."""
    for one in sources:
        _named_views(views, one[0], np.random.default_rng(0))


def _named_views(views: Views, example: Example, rng: np.random.Generator) -> dict[str, Any]:
    try:
        return views(example, rng)
    except Undecodable as error:
        raise ValueError(
            f"Picture {example['image_id']!r} of set {example['set']!r} cannot be decoded: {error} "
            "The converted set is damaged; convert it again, or leave the picture out with exclude_image_ids."
        ) from error


def _let_grain_read_its_flags() -> None:
    """Grain 0.2.18 reads absl flags when processes start and fails where absl.app has not parsed any (issue 1355)."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
