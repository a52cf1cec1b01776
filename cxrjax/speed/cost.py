"""What a method's step costs, counted in the traced program, and the large product that shows a device's peak."""

import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cxrjax import methods, parallel
from cxrjax.config import ConfigDict
from cxrjax.speed import flops


class Cost(NamedTuple):
    """MACs per picture: useful forward, useful training step, executed training step, forward between pictures."""

    forward: float
    train: float
    executed: float
    pairwise: float


def of_step(config: ConfigDict, params: Any, state: Any, batch: Any) -> Cost:
    """Counts method.loss and its gradient. params, state and batch (leading axis b) may be ShapeDtypeStructs."""
    size = jax.tree.leaves(batch)[0].shape[0]

    def count(transform: Callable, **settings) -> flops.Macs:
        method = methods.make(_with(config, settings), total_steps=1)  # no cost depends on how many

        def loss(params, state, batch, key):
            return method.loss(params, state, batch, key, jnp.zeros((), jnp.int32))[0]

        return flops.count(transform(loss), params, state, batch, jax.random.key(0))

    # In half precision a GPU runs attention kernels that hide their products; they are the same in float32.
    forward = count(lambda loss: loss, dtype="float32", remat="none")
    useful = count(jax.grad, dtype="float32", remat="none")
    executed = count(jax.grad, dtype="float32")
    return Cost(forward.single / size, useful.single / size, executed.single / size, forward.pairwise / size)


def large_product(mesh: Mesh, dtype: str) -> tuple[Callable, int, int]:
    """A product of square matrices on every device at once: the call, its FLOP on all devices, and the side."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    rows = NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))
    left = jax.device_put(jnp.ones((mesh.size * side, side), dtype), rows)
    right = jax.device_put(jnp.ones((side, side), dtype), parallel.replicated(mesh))
    multiply = jax.jit(jnp.matmul, out_shardings=rows)
    return lambda: multiply(left, right), 2 * mesh.size * side**3, side


def going_on(step: Callable, state: Any, batch: Any) -> Callable[[], Any]:
    """A call that takes one training step from where the last one ended, and gives what it has to wait for."""
    held = [state]

    def one() -> Any:
        held[0], scalars = step(held[0], batch)
        return held[0], scalars

    return one


def in_turns(calls: dict[str, Callable[[], Any]], turns: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of every call in every turn, until what it gives is there; other load on the machine meets all alike.

    warm: turns before these that do not count, since they fill caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm + turns):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn >= warm:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _with(config: ConfigDict, settings: dict) -> ConfigDict:
    """A copy in which every key of `settings`, at any depth where it is present, has the given value."""
    config = copy.deepcopy(config)
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            config[key] = _with(value, settings)
        elif key in settings:
            config[key] = settings[key]
    return config
