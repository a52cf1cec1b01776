"""How fast the input path makes pictures, beside the same work without a pipeline."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np

from cxrjax.input import pipeline
from cxrjax.input.source import Source

MOST_HELD = 512


def measure(
    source: Source, views: pipeline.Views, batch_size: int, seconds: float = 10.0, threads: int = 2
) -> dict[str, float]:
    """Measures source -> Grain -> batches against a bare loop of `views` over records held in memory.

    Both run on `threads` threads and take turns, so that other load on the machine meets both alike.
    views: (example, rng) -> dict, as in `pipeline.dataset`. seconds: time to spend in all, about.
    Returns medians: grain_images_per_s, raw_images_per_s, and share, the median of their ratio turn by turn.
    """
    stream = pipeline.dataset([source], None, views, batch_size, seed=0)
    held = [source[item] for item in range(min(len(source), MOST_HELD))]

    def grain_batches(first: int, count: int) -> None:
        for _ in pipeline.iterator(stream[: first + count], first, threads):
            pass

    def raw_batches(first: int, count: int) -> None:
        def loop(number: int) -> None:
            rng = np.random.default_rng(number)
            for item in range(number * batch_size, (number + 1) * batch_size):
                views(held[item % len(held)], rng)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(loop, range(first, first + count)))

    turn = 2 * threads
    once = _seconds(grain_batches, 0, turn) + _seconds(raw_batches, 0, turn)
    # At least eight batches a thread in a turn: its start and its end, when threads idle, must not count for much.
    rounds = max(3, int(seconds / once / 4))
    rates: dict[str, list[float]] = {"grain": [], "raw": []}
    for number in range(rounds):
        for name, run in (("grain", grain_batches), ("raw", raw_batches)):
            count = 4 * turn
            rates[name].append(count * batch_size / _seconds(run, number * count, count))
    return {
        "grain_images_per_s": median(rates["grain"]),
        "raw_images_per_s": median(rates["raw"]),
        "share": median(made / bare for made, bare in zip(rates["grain"], rates["raw"], strict=True)),
    }


def _seconds(run: Callable[[int, int], None], first: int, count: int) -> float:
    start = time.perf_counter()
    run(first, count)
    return time.perf_counter() - start
