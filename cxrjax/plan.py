"""Plan a pre-training run for hardware that is not there: compiles its real step, runs nothing, costs nothing.

    python -m cxrjax.plan --config=configs/spcl.py:chestxray14 --on=h100:8 [--fetch] [--pictures=N]

It prints the parameters, multiply–accumulates per picture, memory per device beside what the device has, the data
exchanges of a step, how long a step takes at least, and steps, hours and checkpoints of the whole run. Where the run
does not fit, changes are tried, the smallest first, and the first that fits is printed as flags to paste. Targets are
h100, h200, a100-80, a100-40, l4, rtx4090, v4, v5e, v5p, v6e, each with :COUNT; several, with commas, give a Markdown
table. --fetch brings the compiler once by pip.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from absl import flags

from cxrjax import command, initial, methods, optim, parallel, ranges, stand_ins, train
from cxrjax.accelerators import aot, hardware
from cxrjax.config import ConfigDict, names
from cxrjax.datasets import catalogue
from cxrjax.phantom import phantom_set
from cxrjax.speed import cost
from cxrjax.step import program

USABLE = 0.92
"""Share of a device's memory that a step may take; our choice: the rest is for the runtime and what is freed in pieces.
On GPUs jax takes three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION says more."""
WORTH = 0.1
"""Of a device's usable memory: where sharding frees less it is no part of further changes; our choice."""
EFFICIENCIES = (0.4, 0.25)
"""Shares of the peak at which times are given; our choice: what leads, and what good pre-training of ViTs reaches."""


class Plan(NamedTuple):
    """What was found for one config on one target. counted: MACs per picture. pictures: in one epoch."""

    target: hardware.Target
    parameters: int
    counted: cost.Cost
    batch_size: int
    memory: aot.Memory
    collectives: dict[str, aot.Collective]
    pictures: int
    total_steps: int
    checkpoint_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the peak is within the usable part of a device's memory."""
        return self.memory.peak <= USABLE * self.target.device.memory_bytes

    @property
    def exchange_seconds(self) -> float:
        """Least time of a step's data exchanges: in a ring an all-reduce moves its bytes twice, the others once."""
        moved = sum((2 if kind == "all-reduce" else 1) * found.bytes for kind, found in self.collectives.items())
        return moved / self.target.link_bytes_per_s

    def step_seconds(self, efficiency: float = 1.0) -> float:
        """Of the arithmetic alone, on all devices at this share of their bf16 peak."""
        flop = 2 * self.counted.executed * self.batch_size
        return flop / (self.target.count * self.target.device.bf16_flops * efficiency)


def main(config: ConfigDict, name: str, options: Any) -> None:
    """Prints the plan; see `command.run` for the arguments. Raises ValueError where nothing that was tried fits."""
    targets = [hardware.parse(word) for word in names(options.on) or [""]]
    for target in targets:
        if options.fetch:
            print(f"compiler: {aot.fetch(target.device.platform)}", flush=True)
        aot.devices(target)  # says what is missing before any work
    if config.get("job") != "pretrain":
        raise ValueError(f"config.job is {config.get('job')!r}: only pre-training configs (job 'pretrain') are planned")
    with stand_ins.of(config) as standing:
        config = initial.of_run(standing)
        if len(targets) > 1:
            print(HEADING, flush=True)
            for target in targets:
                print(row(name, plan(config, target, options.pictures)), flush=True)
            return
        (target,) = targets
        found = plan(config, target, options.pictures)
        print(f"{name} on {target}\n" + "\n".join(lines(found)), flush=True)
        if not found.fits:
            advise(config, found, options.pictures)


def plan(config: ConfigDict, target: hardware.Target, pictures: int | None = None) -> Plan:
    """Compiles the step of a pre-training config for a target.

    pictures: in one epoch; by default those of the converted sets, or else what their publishers count.
    Raises ValueError for a config that cannot be laid out on the target, aot.NoCompiler.
    """
    ranges.check(config)
    mesh = parallel.run_mesh(config, aot.devices(target))
    if mesh.size < target.count:
        raise ValueError(
            f"mesh {dict(mesh.shape)} leaves devices of {target} idle: plan for {mesh.size}, or leave mesh.data out"
        )
    parallel.check_batch(config.batch_size, mesh)
    pictures = pictures or count_pictures(config)
    total_steps = optim.duration(config.duration, "total", config.batch_size, pictures)
    method = methods.make(config, total_steps)
    with aot.answering_for(target):
        made = program(config, method, mesh, total_steps, pictures)
        batch = abstract_batch(method, config.batch_size, mesh)
        compiled = aot.compiled(made.step.lower(made.abstract, batch), target)
    state = made.abstract
    return Plan(
        target,
        sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        cost.of_step(config, state.params, state.state, batch),
        config.batch_size,
        aot.memory_of(compiled),
        aot.collectives(compiled.as_text() or ""),
        pictures,
        total_steps,
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
    )


def abstract_batch(method: methods.Method, batch_size: int, mesh: Any) -> Any:
    """A batch of the method's shapes, spread over a mesh, without contents."""

    def whole(value: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *value.shape[1:]), value.dtype, sharding=parallel.batch_sharding(mesh))

    return jax.tree.map(whole, methods.blank_batch(method))


def count_pictures(config: ConfigDict) -> int:
    """Examples in one epoch: of the converted sets, or where one is not converted the pictures its publisher counts.

    Raises ValueError for a set that is neither converted nor one of the catalogue's.
    """
    absent = [stand_ins.stood_in_for(name) for name in names(config.data.sets)]
    if not any(absent):
        config = config.copy_and_resolve_references()
        config.data.exclude_overlap = False  # sets that the run is judged on need not be here
        return sum(len(source) for source in train.training_sources(config, methods.make(config))[0])
    return sum(_published(name) for name in absent if name)


def _published(name: str) -> int:
    if name in phantom_set.BUILT_ON_DEMAND:
        return phantom_set.BUILT_ON_DEMAND[name]["studies"]
    known = catalogue.SETS.get(name.split("/")[0])
    match = re.match(r"[\d,]+", known.size) if known else None
    if match is None:
        raise ValueError(
            f"data.sets: {name!r} is not converted and no published count is known; give --pictures, those of an epoch"
        )
    return int(match[0].replace(",", ""))


def advise(config: ConfigDict, found: Plan, pictures: int | None) -> None:
    """Tries changes, the smallest first, and prints the first with which the run fits, as flags to paste.

    Raises ValueError where nothing that was tried fits.
    """
    for changes in candidates(config, found):
        said = " ".join(f"--config.{key}={value}" for key, value in changes.items())
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        try:
            tried = plan(changed, found.target, pictures)
        except ValueError as refused:
            print(f"  {said}: {refused}", flush=True)
            continue
        print(f"  {said}: {_gib(tried.memory.peak)}", flush=True)
        if tried.fits:
            print(f"fits with {said}", flush=True)
            return
    raise ValueError(f"nothing that was tried fits {found.target}; take more devices, or larger ones")


def candidates(config: ConfigDict, found: Plan) -> Iterator[dict[str, Any]]:
    """Changes to try, the smallest first: what costs time alone, then what changes the batch and so the numbers.

    Numbers of slices and sizes of batches double or halve from the first at which the temporaries, shrunk in
    proportion, could fit.
    """
    usable, count = USABLE * found.target.device.memory_bytes, found.target.count
    # A step whose train state lies in parts exchanges as many bytes as one with whole ones, so this costs the least.
    sharded = {"sharding": "fsdp"} if count > 1 and _is_whole(config) else {}
    freed = found.memory.arguments * (1 - 1 / count) if sharded else 0.0
    if sharded and found.memory.peak - freed <= usable:
        yield sharded
    cheaper = {"model.remat": "full"} if "remat" in config.model and config.model.remat != "full" else {}
    if cheaper:
        yield cheaper
    state, shrink = found.memory.arguments, 8 if cheaper else 1
    if freed >= WORTH * usable:
        state -= freed
        if cheaper:
            yield {**cheaper, **sharded}
        cheaper = {**cheaper, **sharded}
    room = usable - state
    if room <= 0:
        return
    least = 2 ** max(1, math.ceil(math.log2(found.memory.temporaries / room / shrink)))
    parts = [least, 2 * least, 4 * least]
    per_device = config.batch_size // count
    yield from ({**cheaper, "accumulate": n} for n in parts if per_device % n == 0)
    yield from ({**cheaper, "batch_size": config.batch_size // n} for n in parts if per_device % n == 0)


def _is_whole(config: ConfigDict) -> bool:
    """Whether the train state is whole on every device because nothing was said of the mesh."""
    return not config.sharding and config.mesh.get("fsdp") is None and config.mesh.get("data") in (None, -1)


def lines(found: Plan) -> list[str]:
    """The plan in words."""
    device, memory, counted = found.target.device, found.memory, found.counted
    rows = [
        f"parameters        {found.parameters / 1e6:.2f} M",
        f"arithmetic        {counted.forward / 1e9:.4g} GMAC forward, {counted.train / 1e9:.4g} a training step, "
        f"{counted.executed / 1e9:.4g} with what is computed twice; per picture",
        f"memory            {_gib(memory.peak)} of {_gib(device.memory_bytes)} a device "
        f"({_gib(memory.arguments)} state and batch, {_gib(memory.temporaries)} temporaries): "
        + ("fits" if found.fits else f"does not fit in {USABLE:.0%} of it"),
    ]
    for kind, each in found.collectives.items():
        rows.append(f"{kind:<17} {each.count} a step, {each.bytes / 1e6:,.1f} MB a device")
    if found.collectives:
        rows.append(f"exchanges         at least {1e3 * found.exchange_seconds:.3g} ms a step at the links' rate")
    rows.append(f"step              at least {1e3 * found.step_seconds():.3g} ms of arithmetic at the peak of bf16")
    for share in EFFICIENCIES:
        seconds = found.step_seconds(share)
        rows.append(
            f"at {share:.0%} of peak    {1e3 * seconds:.3g} ms a step, {found.batch_size / seconds:,.0f} pictures/s of "
            f"input, {found.total_steps * seconds / 3600:,.1f} h for the run"
        )
    rows.append(
        f"run               {found.total_steps:,} steps of {found.batch_size:,}; {found.pictures:,} examples an epoch"
    )
    rows.append(f"checkpoint        {_gib(found.checkpoint_bytes)} each")
    return rows


HEADING = (
    "| recipe | target | fits | GiB a device | of which state, batch | exchanges a step | MB in them | ms at peak |\n"
    "|---|---|---|---:|---:|---:|---:|---:|"
)


def row(name: str, found: Plan) -> str:
    """The plan as a row under HEADING."""
    memory = found.memory
    return (
        f"| {name} | {found.target} | {'yes' if found.fits else 'no'} | {memory.peak / 2**30:.2f} "
        f"| {memory.arguments / 2**30:.2f} | {sum(each.count for each in found.collectives.values())} "
        f"| {sum(each.bytes for each in found.collectives.values()) / 1e6:,.1f} | {1e3 * found.step_seconds():.3g} |"
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _define_flags() -> None:
    flags.DEFINE_string("on", None, "target, such as h100:8 or v5e-64; several with commas", required=True)
    flags.DEFINE_bool("fetch", False, "bring the compiler by pip, once")
    flags.DEFINE_integer("pictures", None, "in one epoch, where the sets are not converted", lower_bound=1)


if __name__ == "__main__":
    command.run(main, __doc__, _define_flags)
