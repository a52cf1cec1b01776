"""The mesh and what lies where on it: the only file that names devices.

Losses and methods are written on global arrays; here the batch is spread over the axes `data` and `fsdp`, and the
parameters and optimizer moments follow a table of (regex over the path, partition). Every function works the same on
one device, on eight, and on several hosts.
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


def shardings(abstract_tree: Any, mesh: Mesh, rules: Sequence[tuple[str, Sequence]] = ()) -> Any:
    """A tree of NamedSharding for a tree of arrays or ShapeDtypeStruct.

    rules: (regex, partition) pairs; the first regex found (`re.search`) in a leaf's path "a/b/c" wins, and a leaf that
    none fits is replicated. A partition is one entry per axis: a mesh axis name, a tuple of names, or None.
    Optimizer moments carry the parameter's path inside theirs ("0/mu/encoder/cls"), so do not anchor with ^.
    Raises ValueError naming the leaf where a partition has too many axes, an unknown name, or does not divide.
    """
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: _leaf_sharding(keys, leaf, mesh, rules), abstract_tree)


def abstract(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, Sequence]] = ()) -> Any:
    """`tree` (arrays or `jax.eval_shape` output) as ShapeDtypeStructs that know their place on `mesh`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh, rules),
    )


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


def _leaf_sharding(keys, leaf, mesh: Mesh, rules) -> NamedSharding:
    path = jax.tree_util.keystr(keys, simple=True, separator="/")
    partition = next((tuple(partition) for pattern, partition in rules if re.search(pattern, path)), ())
    said = f"{path} {tuple(leaf.shape)}: partition {partition}"
    if len(partition) > len(leaf.shape):
        raise ValueError(f"{said} has more axes than the array; give at most {len(leaf.shape)} entries")
    for size, names in zip(leaf.shape, partition, strict=False):
        names = () if names is None else (names,) if isinstance(names, str) else tuple(names)
        unknown = [name for name in names if name not in mesh.shape]
        if unknown:
            raise ValueError(f"{said} names {unknown}; the mesh has the axes {dict(mesh.shape)}")
        parts = math.prod(mesh.shape[name] for name in names)
        if size % parts:
            raise ValueError(f"{said} does not fit: {size} cannot be divided into {parts}; change the rule or the mesh")
    return NamedSharding(mesh, PartitionSpec(*partition))
