"""Measure a pre-training config: cost per picture, speed, share of the devices' peak, input, memory. Writes nothing.

    python -m cxrjax.benchmark --config=configs/spcl.py [--config.any.key=value …] [--steps 10] [--input_seconds 10]
    python -m cxrjax.benchmark --suite=gpu               half an hour on one GPU, beside PyTorch (speed/gpu_suite.py)

MACs (multiply–accumulates, two floating-point operations each) are counted in the traced program: speed/flops.py.
What a block recomputes in the backward pass is executed but is no useful work: the training count is taken with remat
off, and the executed count is printed beside it. Peak is a large matrix product in the run's computation dtype on all
devices, timed in turns with the steps.
"""

import sys
from statistics import median
from typing import Any, NamedTuple

import jax
from absl import flags

from cxrjax import command, parallel
from cxrjax.accelerators import aot
from cxrjax.config import ConfigDict
from cxrjax.methods.mae import kept_patches
from cxrjax.methods.spcl import partition_sizes
from cxrjax.speed import cost, flops


class Row(NamedTuple):
    """One line of the result: value in `unit` (seconds, bytes, MAC …), and how it was come by."""

    name: str
    value: float
    unit: str
    note: str = ""


def main(config: ConfigDict, name: str, options: Any) -> None:
    """Prints the rows of `benchmark`; see `command.run` for the arguments."""
    rows = benchmark(config, options.steps, options.input_seconds)
    print(f"{name}: cost and speed of one picture through the whole of pre-training; 1 MAC = 2 FLOP")
    for row in rows:
        print(f"{row.name:<17} {_text(row.value, row.unit):<19} {row.note}".rstrip(), flush=True)


def benchmark(config: ConfigDict, steps: int = 10, input_seconds: float = 10.0) -> list[Row]:
    """Builds the run of `config`, counts, compiles, and times `steps` steps; raises ValueError for other jobs."""
    if config.job != "pretrain":
        raise ValueError(f"config.job is {config.job!r}: benchmark measures pre-training configs")
    from cxrjax import initial, train

    config = initial.of_run(config)
    run = train.build(config)
    batch = parallel.to_global(run.batches[0], run.mesh)
    counted = cost.of_step(config, run.abstract.params, run.abstract.state, batch)
    rows = [Row("parameters", sum(leaf.size for leaf in jax.tree.leaves(run.abstract.params)), "")]
    rows += _costs(config, counted)
    rows += _speed(config, run, batch, steps, counted)
    speed = next(row.value for row in rows if row.name == "speed")
    rows += _input(config, run, input_seconds, speed)
    return rows


def closed_form(config: ConfigDict) -> flops.Cost | None:
    """The formula of speed/flops.py at the config's sizes, or None for a method or options that have none."""
    return CLOSED_FORMS[config.method](config) if config.method in CLOSED_FORMS else None


def _spcl(config: ConfigDict) -> flops.Cost:
    model, head, width = config.model, config.head, flops.encoder(config.model.variant).width
    encoder = flops.encoder(model.variant, model.image_px, model.patch_px, model.channels)
    k_a, k_b = partition_sizes(encoder.n, config.partition.keep_ratio, config.partition.split_ratio)
    heads = {"none": 0, "linear": width * head.out, "mlp": width * head.hidden + head.hidden * head.out}
    # Parts of unequal length are encoded in two calls, each of which embeds every patch when told to.
    everything = encoder.n if k_a == k_b else 2 * encoder.n
    embedded = everything if config.partition.embed == "all" else k_a + k_b
    return flops.spcl(encoder, k_a, k_b, heads[head.kind], embedded, config.cls_shortcut)


def _mae(config: ConfigDict) -> flops.Cost:
    model, decoder = config.model, config.decoder
    encoder = flops.encoder(model.variant, model.image_px, model.patch_px, model.channels)
    kept = kept_patches(encoder.n, config.masking.ratio)
    embedded = {"kept": kept, "all": encoder.n}[config.masking.embed]
    return flops.mae(encoder, kept, decoder.width, decoder.depth, embedded)


def _spcxr(config: ConfigDict) -> flops.Cost | None:
    model = config.model
    encoder = flops.encoder(model.variant, model.image_px, model.patch_px, model.channels)
    return None if config.contrast.weight else flops.spcxr(encoder)


CLOSED_FORMS = {"spcl": _spcl, "mae": _mae, "spcxr": _spcxr}


def _costs(config: ConfigDict, counted: cost.Cost) -> list[Row]:
    formula = closed_form(config)

    def beside(name):
        if formula is None:
            return ""
        expected = getattr(formula, name)
        return ", as in closed form" if expected == getattr(counted, name) else f", in closed form {expected:,}"

    recomputed = counted.executed / counted.train - 1
    return [
        Row("forward", counted.forward, "MAC/picture", f"{counted.forward:,.0f} traced{beside('forward')}"),
        Row("train", counted.train, "MAC/picture", f"{counted.train:,.0f} traced{beside('train')}"),
        Row("train, executed", counted.executed, "MAC/picture", f"{recomputed:.0%} more: recomputed for the gradient"),
        Row(
            "between pictures",
            counted.pairwise,
            "MAC/picture",
            f"logits and monitors at {config.batch_size} pictures; not in the above",
        ),
    ]


def _speed(config: ConfigDict, run, batch, steps: int, counted: cost.Cost) -> list[Row]:
    step = run.step.lower(run.abstract, batch).compile()
    dtype = config.model.dtype
    product, product_flop, side = cost.large_product(run.mesh, dtype)
    seconds = cost.in_turns({"step": cost.going_on(step, run.init(), batch), "product": product}, steps)
    rate = config.batch_size / median(seconds["step"])
    useful, peak = 2 * counted.train * rate, product_flop / min(seconds["product"])
    devices = f"{run.mesh.size} {jax.default_backend()} device(s)"
    return [
        Row("step", median(seconds["step"]), "s", f"median of {steps}: {config.batch_size} pictures on {devices}"),
        Row("speed", rate, "pictures/s", "without input"),
        Row("peak", peak, "FLOP/s", f"best of {steps} products of {side} × {side} matrices a device, {dtype}"),
        Row("achieved", useful, "FLOP/s", f"useful: {useful / peak:.0%} of peak"),
        _memory(run.mesh, step),
    ]


def _memory(mesh, step) -> Row:
    stats = mesh.local_devices[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return Row("memory", stats["peak_bytes_in_use"], "B", "peak of the first device: device.memory_stats()")
    size = aot.memory_of(step).peak
    return Row("memory", size, "B", "arguments, results and temporaries of a step: compiled.memory_analysis()")


def _input(config: ConfigDict, run, seconds: float, eaten: float) -> list[Row]:
    from cxrjax.input import pipeline, throughput

    threads = max(pipeline.threads(config.input.threads), 1)
    found = throughput.measure(run.sources[0], run.method.views, config.batch_size, seconds, threads)
    note = f"{found['share']:.0%} of {found['raw_images_per_s']:.0f}/s, the same work in a bare loop of as many threads"
    given = found["grain_images_per_s"]
    verdict = (
        "the step never waits" if given >= eaten else f"the step waits for input {1 - given / eaten:.0%} of the time"
    )
    return [
        Row("input", given, "pictures/s", f"{threads} threads, {note}"),
        Row("input for speed", given / eaten, "", f"what the input gives of what the step eats: {verdict}"),
    ]


def _text(value: float, unit: str) -> str:
    """Four digits, with a prefix except for pictures: 17293971456 "MAC" → "17.29 GMAC"."""
    prefixes = () if unit.startswith("pictures") else ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    if unit == "s" and value < 1:
        prefixes = ((1e-3, "m"),)
    factor, prefix = next((p for p in prefixes if abs(value) >= p[0]), (1, ""))
    return f"{value / factor:.4g} {prefix}{unit}"


def _define_flags() -> None:
    flags.DEFINE_integer("steps", 10, "timed training steps", lower_bound=1)
    flags.DEFINE_float("input_seconds", 10.0, "about how long to measure the input", lower_bound=0.0)


if __name__ == "__main__":
    if any(argument.startswith("--suite") for argument in sys.argv[1:]):
        from cxrjax.speed import gpu_suite

        gpu_suite.main(sys.argv[1:])
        raise SystemExit
    command.run(main, __doc__, _define_flags)
