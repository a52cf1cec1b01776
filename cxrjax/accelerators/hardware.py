"""Accelerators that a run can be planned for: what one device can do and hold. Figures and sources: hardware.json.

A target is a device and how many of it, "h100:8", "v5e-64" or "l4". TPUs are counted in chips.
"""

import difflib
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_FILE = Path(__file__).with_suffix(".json")
# What all NVIDIA GPUs here have in common, in the fields of XLA's GpuTargetConfigProto.
_OF_ALL_GPUS = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
}
CUDNN = (9, 10, 0)
"""The version of cuDNN that is compiled for: that of XLA's own target files."""


class Device(NamedTuple):
    """One GPU, or one TPU chip.

    memory_bytes: in all. bf16_flops: dense peak, FLOP/s. link_bytes_per_s: from one device to the others of its machine
    or slice, in one direction; network_bytes_per_s: to other machines. per_machine: how many share the links. config: a
    GPU's fields of GpuTargetConfigProto. topologies: of a TPU, chips → shape of the slice.
    """

    name: str
    title: str
    platform: str
    memory_bytes: int
    bf16_flops: float
    link_bytes_per_s: float
    per_machine: int
    network_bytes_per_s: float
    source: str
    config: Mapping[str, float] = {}
    topologies: Mapping[str, str] = {}


class Target(NamedTuple):
    """So many of a device."""

    device: Device
    count: int

    @property
    def topology(self) -> str:
        """As XLA takes it: "1x2x8" (slices × machines × GPUs), "v5e:8x8"."""
        if self.device.platform == "tpu":
            return f"{self.device.name}:{self.device.topologies[str(self.count)]}"
        machines = -(-self.count // self.device.per_machine)
        return f"1x{machines}x{self.count // machines}"

    @property
    def link_bytes_per_s(self) -> float:
        """Of the slowest link that a collective over all devices crosses."""
        within = self.count <= self.device.per_machine
        return self.device.link_bytes_per_s if within else self.device.network_bytes_per_s

    def __str__(self) -> str:
        return f"{self.count} × {self.device.title}"


@functools.cache
def devices() -> dict[str, Device]:
    """All that are known, by name."""
    found: dict[str, dict[str, Any]] = json.loads(_FILE.read_text())
    known = {name: Device(name, **fields) for name, fields in found.items()}
    return {name: device._replace(memory_bytes=int(device.memory_bytes)) for name, device in known.items()}


def parse(text: str) -> Target:
    """The target that "h100:8", "v5e-64" or "l4" (one) names.

    Raises ValueError for an unknown device, naming those that are known, and for a count that cannot be had.
    """
    known = devices()
    name, count = text, "1"
    if text not in known:
        for separator in (":", "-"):
            head, found, tail = text.rpartition(separator)
            if found and (head in known or tail.lstrip("-").isdigit()):
                name, count = head, tail
                break
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no target {text!r}; known are {', '.join(known)}, each with :COUNT.{hint}")
    device = known[name]
    if not count.isdigit() or int(count) < 1:
        raise ValueError(f"target {text!r} asks for {count!r} devices: give a whole number from 1, such as {name}:8")
    if device.topologies and count not in device.topologies:
        raise ValueError(f"target {text!r}: slices of {name} have {', '.join(device.topologies)} chips")
    if not device.topologies and int(count) > device.per_machine and int(count) % device.per_machine:
        raise ValueError(f"target {text!r}: more than {device.per_machine} are planned in whole machines of as many")
    return Target(device, int(count))


def gpu_target_config(device: Device) -> str:
    """XLA's GpuTargetConfigProto of a GPU, as protobuf text."""
    fields = _OF_ALL_GPUS | {key: value for key, value in device.config.items() if key not in ("major", "minor")}
    fields |= {"device_memory_size": device.memory_bytes}
    capability = f"cuda_compute_capability {{ major: {device.config['major']} minor: {device.config['minor']} }}"
    info = " ".join(f"{key}: {value}" for key, value in fields.items())
    cudnn = "major: {} minor: {} patch: {}".format(*CUDNN)
    return (
        f'gpu_device_info {{ {info} {capability} }} platform_name: "CUDA" dnn_version_info {{ {cudnn} }} '
        f'runtime_version {{ major: 13 minor: 0 patch: 0 }} device_description_str: "{device.title}"'
    )
