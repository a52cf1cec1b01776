"""What several hosts of one run know of each other: joining, agreeing on a step, and starting from the same."""

import functools
import hashlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from cxrjax import parallel

_TEXT_BYTES = 96


def connect(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None, bind: str | None = None
) -> str:
    """Joins this process to the others of its run, and says in a sentence what it joined.

    coordinator: "host:port" of the first process, processes: how many there are, process: which this one is, from 0.
    Without them JAX looks for a TPU slice, Slurm, Kubernetes or MPI. bind: "address:port" that the first process
    listens on; by default all addresses of its machine. Raises ValueError for a part of the three, and where the
    others cannot be joined.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [f"--{name}" for name, value in given.items() if value in (None, "")]
    if 0 < len(missing) < len(given):
        raise ValueError(f"--coordinator, --processes and --process go together; {' and '.join(missing)} is not given")
    if not missing and not (processes and process is not None and 0 <= process < processes):
        raise ValueError(f"--process={process} of --processes={processes}: it must be from 0 to {processes} - 1")
    if coordinator and not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"--coordinator={coordinator}: give an address and a port, such as 10.0.0.1:1234")
    # Its handler would swallow a SIGTERM that comes before the trainer's own is in place.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator or None, processes, process, coordinator_bind_address=bind or None)
    except (RuntimeError, ValueError, TypeError) as error:
        how = "give --coordinator=ADDRESS:PORT --processes=N --process=I on each host, the same port for all"
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"the other processes could not be joined ({first}); {how}") from error
    here, everywhere = jax.local_device_count(), jax.device_count()
    at = f" at {coordinator}" if coordinator else ""
    return f"process {jax.process_index()} of {jax.process_count()}{at}: {here} of {everywhere} devices are here"


def is_first() -> bool:
    """Whether this process is the first of all: it writes what is written once."""
    return jax.process_index() == 0


class Votes:
    """What any host wants (to stop, to save), known to all at the same step, without waiting for the device.

    Each step every host casts its votes, and their union is read `late` steps later, when it has long been computed.
    A single host gets its own votes back at once.
    """

    def __init__(self, late: int = 2):
        self.late = late
        self._waiting: deque = deque()

    def cast(self, *votes: bool) -> tuple[bool, ...]:
        """The votes of some host `late` steps ago; to be called by all hosts at every step."""
        if jax.process_count() == 1:
            return votes
        union, sharding = _union(len(votes))
        mine = np.tile(np.array(votes, np.uint8), (jax.local_device_count(), 1))
        self._waiting.append(union(jax.make_array_from_process_local_data(sharding, mine)))
        if len(self._waiting) <= self.late:
            return (False,) * len(votes)
        return tuple(bool(vote) for vote in np.asarray(self._waiting.popleft()))

    def forget(self) -> None:
        """Leaves out the votes that were not read yet, since what they wanted was done; all hosts do it together."""
        self._waiting.clear()


@functools.cache
def _union(votes: int) -> tuple[Callable, NamedSharding]:
    mesh = parallel.make_mesh({"all": -1})
    union = jax.jit(lambda each: each.max(0), out_shardings=NamedSharding(mesh, PartitionSpec()))
    return union, NamedSharding(mesh, PartitionSpec("all"))


def agree(facts: Mapping[str, Any], remedy: str) -> None:
    """Raises ValueError on all hosts, naming the first fact that they differ in and `remedy`; all hosts call it.

    facts: values by name, or functions that give them, which a single host does not call.
    """
    if jax.process_count() == 1:
        return
    for name, value in facts.items():
        text = str(value() if callable(value) else value)
        short = len(text.encode()) <= _TEXT_BYTES
        values = _gathered(text if short else hashlib.sha256(text.encode()).hexdigest()[:16])
        if len(set(values)) > 1:
            other = next(number for number, one in enumerate(values) if one != values[0])
            raise ValueError(
                f"the hosts differ in {name}: {values[0]} on the first one, {values[other]} on number {other}; {remedy}"
            )


def check_shared(read: Callable[[], str], folder: Any, wait_s: float = 60) -> None:
    """Raises ValueError on all hosts unless each reads in `folder` what the first one has written there.

    Disks of networks may take up to a minute until a new file is seen.
    """
    if jax.process_count() == 1:
        return
    expected, began = _gathered(read() if is_first() else "")[0], time.monotonic()
    while (found := read()) != expected and time.monotonic() - began < wait_s:
        time.sleep(1)
    blind = [number for number, seen in enumerate(_gathered(str(found == expected))) if seen != "True"]
    if blind:
        raise ValueError(f"{folder} of the first host is not seen by {blind}: it must be a disk that all hosts share")


def whole(tree: Any) -> Any:
    """The tree with arrays that lie on several hosts as NumPy arrays, all of them on each host; all hosts call it."""

    def on_each(leaf):
        if getattr(leaf, "is_fully_addressable", True):
            return leaf
        if leaf.is_fully_replicated:
            return np.asarray(leaf.addressable_data(0))
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(on_each, tree)


def local_digest(tree: Any) -> str:
    """Of the arrays that each device has whole, as they are on this host, for `agree`."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if getattr(leaf, "is_fully_replicated", True):
            value = leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
            found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()[:16]


def _gathered(text: str) -> list[str]:
    """The texts of all hosts, cut to `_TEXT_BYTES`."""
    mine = np.zeros(_TEXT_BYTES, np.uint8)
    content = np.frombuffer(text.encode()[:_TEXT_BYTES], np.uint8)
    mine[: len(content)] = content
    everyone = np.asarray(multihost_utils.process_allgather(mine)).reshape(-1, _TEXT_BYTES)
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in everyone]
