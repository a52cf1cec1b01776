"""Half an hour on one GPU: how fast the methods' steps are there, beside the GPU's peak and PyTorch.

    python -m cxrjax.benchmark --suite=gpu [--output=DIR] [--minutes=25] [--tiny]

Every entry runs in a process of its own, so that the memory it reports is its own and one that fails stops no other.
Batches are made up: neither sets nor the packages that read pictures are needed. suite.md and suite.json are written
anew after each entry. When the minutes are over, the entries that are left are named and not run. --tiny shrinks all of
it to what a CPU does in minutes.
"""

import argparse
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, NamedTuple

from cxrjax import config as shared
from cxrjax import recipes, sizes

LONGEST_S = 300  # of one entry
STEPS, EPOCH = 100_000, 100_000  # of the run that a step is taken from; warm-ups of epochs must end before it does
READERS = (
    "cv2",
    "PIL",
    "tensorflow_datasets",
    "grain",
    "array_record",
    "simplejpeg",
    "pandas",
    "pyarrow",
    "tokenizers",
)


class Entry(NamedTuple):
    """A config, what is changed in it, pictures in a batch, and whether PyTorch has the same step (torch_steps.py)."""

    config: str
    words: str
    changes: dict[str, Any]
    batch_size: int
    torch: bool = False


def _vit(variant: str) -> dict[str, Any]:
    return {"model.variant": variant, "model.image_px": 224, "model.patch_px": 16, "model.dtype": "bfloat16"}


def _vits(name: str, recipe: str, batch_size: int, torch: bool = False, **changes: Any) -> dict[str, Entry]:
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config, _, words = recipe.partition(":")
    return {
        f"{name} ViT-{variant}": Entry(config, words, _vit(variant) | changes, size, torch)
        for variant, size in (("B", batch_size), ("L", batch_size // 2))
    }


ENTRIES = {
    **_vits("S-PCL ρ=1", "spcl:chestxray14", 256, torch=True),
    **_vits("S-PCL ρ=0.2", "spcl:chestxray14,lowflop", 1024),
    **_vits("MAE", "mae:chestxray14", 512, torch=True),
    **_vits("supervised", "supervised:chestxray14", 256, torch=True, model__drop_path=0.0),
    **_vits("SimCLR", "simclr:", 128),
    **_vits("DINO", "dino:chestxray14", 64),
    "MLVICX ResNet-50": Entry("mlvicx", "chestxray14", {"model.variant": "resnet50"}, 256),
    "SISTA": Entry("sista", "mimic_cxr", {}, 144),
    "F-L": Entry("frontal_lateral", "mimic_cxr", {}, 96),
}
LARGEST = "S-PCL ρ=1 ViT-B"
"""The entry whose largest batch is looked for, in an entry of its own."""


def main(argv: list[str]) -> None:
    """The command; with --entry one entry, printed as a line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m cxrjax.benchmark", description=__doc__)
    parser.add_argument("--suite", choices=["gpu"], required=True)
    parser.add_argument("--output", type=Path, default=Path("suite"), help="folder of suite.md and suite.json")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--tiny", action="store_true", help="tiny models, for a CPU")
    parser.add_argument("--entry", help="one entry alone, in this process")
    options = parser.parse_args(argv)
    known = [*ENTRIES, f"largest batch of {LARGEST}"]
    if options.entry is None:
        run(options.output, options.minutes, options.tiny)
        return
    if options.entry not in known:
        parser.error(f"there is no entry {options.entry!r}; there are {', '.join(known)}")
    stand_in_for_readers()
    largest = options.entry not in ENTRIES
    entry = ENTRIES[LARGEST if largest else options.entry]
    print(json.dumps(largest_batch(entry, options.tiny) if largest else measure(entry, options.tiny)), flush=True)


def run(output: Path, minutes: float, tiny: bool) -> dict[str, Any]:
    """Runs all entries and writes suite.md and suite.json; returns what is in the latter."""
    output.mkdir(parents=True, exist_ok=True)
    start, found = time.monotonic(), {}
    for name in (*ENTRIES, f"largest batch of {LARGEST}"):
        left = 60 * minutes - (time.monotonic() - start)
        found[name] = {"left_out": "the minutes were over"} if left < 0 else _in_a_process(name, tiny, left)
        print(_row(name, found[name]), flush=True)
        (output / "suite.json").write_text(json.dumps(found, indent=2) + "\n")
        (output / "suite.md").write_text("\n".join([HEADING, *(_row(*each) for each in found.items())]) + "\n")
    return found


def _in_a_process(name: str, tiny: bool, left: float) -> dict[str, Any]:
    """What `measure` found, or why nothing was found."""
    command = [
        sys.executable,
        "-m",
        "cxrjax.benchmark",
        "--suite=gpu",
        f"--entry={name}",
        *(["--tiny"] if tiny else []),
    ]
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # PyTorch needs memory, too
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=min(LONGEST_S, max(left, 30))
        )
    except subprocess.TimeoutExpired as stopped:
        return {"left_out": f"stopped after {stopped.timeout:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"left_out": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:300]}
    return json.loads(lines[-1])


def measure(entry: Entry, tiny: bool, steps: int = 20) -> dict[str, Any]:
    """Times training steps in turns with a large matrix product and, where there are such, PyTorch's steps.

    Keys: pictures_per_s, share_of_peak (useful work of the step by the fastest product), peak_flops, step_s, compile_s,
    planned_bytes (arguments and temporaries), measured_bytes (None on a CPU), device; torch_pictures_per_s and
    torch_compiled_pictures_per_s where a PyTorch for this device is there.
    """
    import jax

    from cxrjax import parallel
    from cxrjax.accelerators import aot
    from cxrjax.speed import cost

    config, method, made, batch = _made(entry, tiny)
    began = time.perf_counter()
    step = made.step.lower(made.abstract, batch).compile()
    compile_s = time.perf_counter() - began
    product, product_flop, _ = cost.large_product(parallel.make_mesh({"data": 1}), config.model.dtype)
    ours = cost.going_on(step, made.init(), batch)
    seconds = cost.in_turns({"step": ours, "product": product}, steps, warm=2)
    stats = jax.devices()[0].memory_stats() or {}
    counted = cost.of_step(config, made.abstract.params, made.abstract.state, batch)
    rate, peak = config.batch_size / median(seconds["step"]), product_flop / min(seconds["product"])
    found = {
        "device": jax.devices()[0].device_kind,
        "batch_size": config.batch_size,
        "pictures_per_s": rate,
        "share_of_peak": 2 * counted.train * rate / peak,
        "peak_flops": peak,
        "step_s": median(seconds["step"]),
        "compile_s": compile_s,
        "planned_bytes": aot.memory_of(step).peak,
        "measured_bytes": stats.get("peak_bytes_in_use"),
    }
    return found | (_beside_torch(entry, config, ours, steps) if entry.torch else {})


def _beside_torch(entry: Entry, config: Any, ours: Callable[[], Any], steps: int) -> dict[str, Any]:
    """PyTorch's pictures per second in turns with our steps, eager and compiled; why not, where there are none."""
    from cxrjax.speed import cost, torch_steps

    if (reason := torch_steps.missing()) is not None:
        return {"torch": reason}
    found: dict[str, Any] = {}
    for key, compiled in (("torch", False), ("torch_compiled", True)):
        try:
            theirs = torch_steps.step(entry.config, config, compiled)
            theirs()
            seconds = cost.in_turns({"theirs": theirs, "ours": ours}, steps, warm=2)
        except Exception as error:  # whatever a compiler of another project raises
            found[key] = f"{type(error).__name__}: {error}"[:300]
            continue
        found[f"{key}_pictures_per_s"] = config.batch_size / median(seconds["theirs"])
        ratios = (ours / theirs for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True))
        found[f"time_by_{key}"] = median(ratios)
    return found


def largest_batch(entry: Entry, tiny: bool) -> dict[str, Any]:
    """Doubles the batch for as long as a step runs; on a CPU, once."""
    import jax

    size, ran = entry.batch_size, 0
    while True:
        config, _, made, batch = _made(entry._replace(batch_size=size), tiny)
        try:
            jax.block_until_ready(made.step(made.init(), batch))
        except jax.errors.JaxRuntimeError as error:
            return {"device": jax.devices()[0].device_kind, "batch_size": ran, "stopped_by": str(error)[:200]}
        ran = config.batch_size
        if tiny:
            return {"device": jax.devices()[0].device_kind, "batch_size": ran, "stopped_by": "tiny"}
        size *= 2


def _made(entry: Entry, tiny: bool) -> tuple[Any, Any, Any, dict]:
    """The config, the method, its program on one device, and a batch that is made up."""
    import jax

    from cxrjax import methods, parallel
    from cxrjax.step import program

    config = settings(entry, tiny)
    mesh = parallel.make_mesh({"data": 1}, jax.devices()[:1])
    with _with_words(config) as worded:
        method = methods.make(worded, STEPS)
    batch = made_up(config)
    made = program(config, method, mesh, STEPS, EPOCH, {name: value[:1] for name, value in batch.items()})
    return config, method, made, parallel.to_global(batch, mesh)


def settings(entry: Entry, tiny: bool) -> Any:
    """The config of an entry."""
    config = shared.load(f"{entry.config}:{'smoke' if tiny else entry.words}")
    if not tiny:
        if entry.changes.get("model.variant") in ("B", "L"):  # a recipe of a ResNet as well
            config.model = recipes.vit() | {"pool": config.model.get("pool", "cls")}
        config.update_from_flattened_dict(entry.changes)
    config.batch_size = 8 if tiny else entry.batch_size
    config.duration = {"total_steps": STEPS}
    if "text" in config and config.text.vocab_size is None:  # no set is read that would tell
        config.text.vocab_size = 1024
    return config


def made_up(config: Any) -> dict[str, Any]:
    """A batch of noise in the shapes that the method's own `views` give."""
    import numpy as np

    rng, b, px = np.random.default_rng(0), config.batch_size, config.model.image_px

    def pictures(views: int, px: sizes.Px) -> np.ndarray:
        return rng.integers(0, 256, (b, views, *sizes.sides(px), 1), np.uint8)

    views = 2 if config.method in ("simclr", "dino", "mlvicx", "frontal_lateral") else 1
    batch: dict[str, Any] = {"image": pictures(views, px)}
    if config.method == "spcl":
        batch["patient"] = np.arange(b, dtype=np.int32)
    elif config.method == "dino":
        batch["local"] = pictures(config.local_views.count, config.local_views.px)
    elif config.method == "supervised":
        batch["labels"] = rng.integers(0, 2, (b, len(config.labels.split(","))), np.int8)
    if "text" in config:
        tokens = (b, config.text.length)
        batch |= {
            "report": np.arange(b, dtype=np.int32),
            "ids": rng.integers(5, 100, tokens, np.int32),
            "text_mask": np.ones(tokens, bool),
            "word_index": np.broadcast_to(np.arange(tokens[1], dtype=np.int32), tokens).copy(),
        }
    if config.method == "sista":
        batch["report_embedding"] = rng.standard_normal((b, 1)).astype(np.float32)
    elif config.method == "frontal_lateral":
        batch |= {"has_lateral": np.ones(b, bool), "entity": np.zeros(tokens, bool)}
    return batch


@contextlib.contextmanager
def _with_words(config: Any) -> Iterator[Any]:
    """The config with a vocabulary, where the method reads reports; that needs the packages that read sets."""
    if "text" not in config:
        yield config
        return
    from cxrjax import stand_ins

    with stand_ins.of(config) as worded:
        yield worded


HEADING = (
    "| entry | batch | pictures/s | share of peak | GiB measured, planned | compiled | time by PyTorch, compiled |\n"
    "|---|---:|---:|---:|---:|---:|---:|"
)


def _row(name: str, found: dict[str, Any]) -> str:
    if "left_out" in found:
        return f"| {name} | left out: {found['left_out']} | | | | | |"
    if "stopped_by" in found:
        return f"| {name} | {found['batch_size']} | | | | | |"
    measured = found["measured_bytes"]
    memory = f"{measured / 2**30:.1f}" if measured else "?"
    ratios = [f"{found[key]:.2f}" if key in found else "" for key in ("time_by_torch", "time_by_torch_compiled")]
    return (
        f"| {name} | {found['batch_size']} | {found['pictures_per_s']:,.0f} | {found['share_of_peak']:.1%} "
        f"| {memory}, {found['planned_bytes'] / 2**30:.1f} | {found['compile_s']:.0f} s "
        f"| {', '.join(filter(None, ratios))} |"
    )


def stand_in_for_readers() -> None:
    """Lets methods be imported where packages that only read pictures and sets are missing: nothing of them is used."""
    missing = {name for name in READERS if importlib.util.find_spec(name) is None}
    if missing:
        sys.meta_path.append(_Absent(missing))


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules whose every name is there and does nothing."""

    def __init__(self, names: set[str]):
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Nothing(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        return None


class _Any(type):
    """A class whose every attribute is such a class, and which gives itself when it is called."""

    def __call__(cls, *_: Any, **__: Any) -> Any:
        return cls

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Any(name, (), {})


class _Nothing(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Any(name, (), {})
