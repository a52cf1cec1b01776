"""The mesh and what lies where on it: the only file that names devices.

Losses and methods are written on global arrays; here the batch is spread over the axes `data` and `fsdp`, and of the
train state each device of the axis `fsdp` keeps one part (ZeRO: Rajbhandari et al., SC 2020, arXiv 1910.02054; "fully
sharded" in PyTorch). A step gathers the parameters once, as large as they are, works on its part of the batch as
without parts, and reduces each gradient to the part that its device updates: the bytes of one all-reduce of the
gradients. Every function works the same on one device, on eight, and on several hosts.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")
SMALL = 2**12
"""Arrays of fewer numbers stay whole: to gather them would take the time of an exchange and save next to nothing."""


def num_devices(mesh: Mesh | None = None) -> int:
    """Devices of `mesh`, or of all processes together."""
    return jax.device_count() if mesh is None else mesh.size


def oldest_gpu() -> tuple[int, int] | None:
    """The least compute capability among this process' CUDA GPUs, or None where it computes on something else."""
    if jax.default_backend() != "gpu":
        return None
    known = [getattr(device, "compute_capability", "") for device in jax.local_devices()]
    parts = [capability.split(".") for capability in known if re.fullmatch(r"\d+\.\d+", str(capability))]
    return min(((int(major), int(minor)) for major, minor in parts), default=None)


def run_mesh(config: Any, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a run, from config.mesh and config.sharding.

    mesh.data: copies of the train state, by default as many as the devices make. mesh.fsdp: devices that share a copy,
    by default 1, and with sharding="fsdp" all that `data` leaves. devices: as in `make_mesh`.
    Raises ValueError for another word or axis, and where the sizes do not fit the devices.
    """
    word, given = config.sharding or "", {name: size for name, size in config.mesh.items() if size is not None}
    if word not in ("", "fsdp"):
        raise ValueError(f"sharding = {word!r}: it is 'fsdp', or empty for a whole train state on every device")
    if unknown := sorted(given.keys() - set(BATCH_AXES)):
        raise ValueError(f"mesh has no axis {', '.join(unknown)}: give mesh.data, mesh.fsdp or both")
    fsdp = given.get("fsdp", -1 if word else 1)
    data = given.get("data", -1)
    return make_mesh({"data": 1 if data == fsdp == -1 else data, "fsdp": fsdp}, devices)


def make_mesh(axes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh from {axis name: size} in that order; one size may be -1 and takes what is left.

    devices: by default those of all processes; or some to compile for (`aot.devices`).
    Sizes that multiply to less than the devices at hand leave the rest idle, on a single host only.
    Raises ValueError where the sizes do not fit the devices.
    """
    axes = dict(axes or {"data": -1})
    devices = jax.devices() if devices is None else devices
    total = len(devices)
    said = f"mesh {axes} on {total} {devices[0].platform} device(s)"
    open_axes = [name for name, size in axes.items() if size == -1]
    if len(open_axes) > 1 or any(size < 1 and size != -1 for size in axes.values()):
        raise ValueError(f"{said}: sizes are positive, and at most one is -1 (= all devices that are left)")
    fixed = math.prod(size for size in axes.values() if size != -1)
    if open_axes and total % fixed:
        raise ValueError(f"{said}: {total} devices cannot be divided by {fixed}; give sizes that divide {total}")
    if open_axes:
        axes[open_axes[0]] = total // fixed
    used = math.prod(axes.values())
    if used > total:
        raise ValueError(f"{said}: it needs {used} devices; use smaller sizes, or -1 for 'all that are left'")
    if used < total and jax.process_count() > 1:
        raise ValueError(f"{said}: with several processes every device must be in the mesh, this one uses {used}")
    # Without axis_types jax makes Explicit axes, under which a plain global `a @ b.T` is refused.
    types = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=devices[:used])


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis b over the mesh's `data` and `fsdp` axes, the others whole."""
    axes = tuple(name for name in mesh.axis_names if name in BATCH_AXES)
    return NamedSharding(mesh, PartitionSpec(axes) if axes else PartitionSpec())


def check_batch(batch_size: int, mesh: Mesh, process_count: int | None = None) -> None:
    """Raises ValueError, naming batch sizes that fit, unless the global `batch_size` divides over mesh and hosts."""
    process_count = jax.process_count() if process_count is None else process_count
    parts = math.lcm(batch_parts(mesh), process_count)
    if batch_size > 0 and batch_size % parts == 0:
        return
    below, above = batch_size // parts * parts, (batch_size // parts + 1) * parts
    nearest = f"{below} or {above}" if below > 0 else f"{max(above, parts)}"
    raise ValueError(
        f"batch_size = {batch_size}: a global batch of {batch_size} does not divide over {batch_parts(mesh)} device(s) "
        f"and {process_count} process(es): it must be a multiple of {parts}; use {nearest}"
    )


def shardings(abstract_tree: Any, mesh: Mesh) -> Any:
    """Where a train state, or a tree within it, lies on a mesh: a NamedSharding for each array or ShapeDtypeStruct.

    Over the axis `fsdp` kernels are cut along their inputs, the last axis but one, and where this does not divide, as
    all other arrays, along the last. Vectors, biases, scales, SMALL arrays and those that do not divide stay whole.
    Raises ValueError where there are large arrays and none of them divides.
    """
    found = jax.tree.map_with_path(lambda keys, leaf: _sharding(keys, leaf, mesh), abstract_tree)
    sizes = {_path(keys): leaf for keys, leaf in jax.tree.leaves_with_path(abstract_tree) if _may_be_cut(keys, leaf)}
    if sizes and state_parts(mesh) > 1 and all(each.is_fully_replicated for each in jax.tree.leaves(found)):
        largest = max(sizes, key=lambda path: sizes[path].size)
        raise ValueError(
            f"fsdp={state_parts(mesh)} divides the width of no large array, such as {largest} "
            f"{tuple(sizes[largest].shape)}: give a mesh.fsdp that divides the width of the network"
        )
    return found


def abstract(tree: Any, mesh: Mesh) -> Any:
    """`tree` (arrays or `jax.eval_shape` output) as ShapeDtypeStructs that know their place on `mesh`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh),
    )


def gathered(tree: Any, mesh: Mesh) -> Any:
    """Within a jitted step: the tree whole on every device of the mesh, whatever parts it comes in."""
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def scattered(tree: Any, mesh: Mesh) -> Any:
    """Within a jitted step: the tree, such as a gradient, in the parts of `shardings`; sums are reduced to these."""
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def to_global(host_batch: Any, mesh: Mesh) -> Any:
    """This process's part of a batch (NumPy, leading axis b / processes) as part of global arrays over the mesh."""
    sharding, whole = batch_sharding(mesh), replicated(mesh)

    def place(array):
        array = np.asarray(array)
        return jax.make_array_from_process_local_data(sharding if array.ndim else whole, array)

    return jax.tree.map(place, host_batch)


def any_process(flag: bool, meet: bool = True) -> bool:
    """Whether `flag` is set on any process, asked only where `meet` (the same on all of them) is true, else False.

    With a single process it is `flag` itself, whatever `meet` says.
    """
    if jax.process_count() == 1:
        return flag
    return meet and bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts of equal size `batch_sharding` cuts a batch."""
    return math.prod(size for name, size in mesh.shape.items() if name in BATCH_AXES)


def state_parts(mesh: Mesh) -> int:
    """In how many parts the train state lies on a mesh."""
    return mesh.shape.get("fsdp", 1)


def _sharding(keys: tuple, leaf: Any, mesh: Mesh) -> NamedSharding:
    count, last = state_parts(mesh), len(leaf.shape) - 1
    # A kernel's outputs may be those of several (q, k and v), and rows of a table are looked up one by one: a cut
    # through these would make devices exchange more than parts.
    inputs = [last - 1] if _name(keys) == "kernel" else []
    axes = [axis for axis in (*inputs, last) if leaf.shape[axis] % count == 0] if _may_be_cut(keys, leaf) else []
    if count == 1 or not axes:
        return replicated(mesh)
    return NamedSharding(mesh, PartitionSpec(*[None] * axes[0], "fsdp"))


def _may_be_cut(keys: tuple, leaf: Any) -> bool:
    return len(leaf.shape) > 1 and _name(keys) not in ("bias", "scale") and math.prod(leaf.shape) >= SMALL


def _name(keys: tuple) -> str:
    return _path(keys).rpartition("/")[2]


def _path(keys: tuple) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")
