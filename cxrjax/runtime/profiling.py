"""A trace of some steps by JAX's profiler, to be read with TensorBoard's profile plugin or Perfetto."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

SKIPPED = 3
"""Steps before the first one that is traced: they compile, and fill queues."""


@contextlib.contextmanager
def traced(folder: Path, steps: int, start: int) -> Iterator[Callable[[int, Any], None]]:
    """Gives a function (step, arrays that it computed) to be called after every step of a run that begins at `start`.

    The trace of `steps` steps goes to `folder`; 0 traces nothing. A run that ends before leaves what there is.
    """
    first, running = start + SKIPPED, False

    def after(done: int, computed: Any) -> None:
        nonlocal running
        if not running and steps and done == first:
            jax.block_until_ready(computed)
            jax.profiler.start_trace(str(folder))
            running = True
        elif running and done == first + steps:
            jax.block_until_ready(computed)
            jax.profiler.stop_trace()
            running = False
            print(f"the trace of steps {first + 1} to {done} is in {folder}", flush=True)

    try:
        yield after
    finally:
        if running:
            jax.profiler.stop_trace()
