"""Compiling for accelerators that are not there: XLA's GPU and TPU compilers run on a CPU.

The compilers are pip packages: `jax-cuda13-plugin` and `jax-cuda13-pjrt` of jax's own version, or `libtpu` of the
version that jax names. `fetch` brings them into a folder of their own below the data folder. In the environment itself
they would make every start of jax print a traceback, so only a process that calls `devices` sees them.

Source: jax.experimental.topologies; MaxText's train_compile.py does the same for TPUs.
"""

import contextlib
import importlib.metadata
import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cxrjax.accelerators.hardware import CUDNN, Target, gpu_target_config
from cxrjax.datasets import schema

# Without a device nothing can be timed, and Triton's matrix products need timings to choose their tiles.
_WITHOUT_A_GPU = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}


class NoCompiler(ValueError):
    """The compiler for a target's platform is not here."""


class Collective(NamedTuple):
    """One kind of data exchange between devices: how many in a step, and the bytes of whole arrays on one device.

    Those are what a gather or a reduction gives, and what a reduction to parts is given.
    """

    count: int
    bytes: int


class Memory(NamedTuple):
    """Bytes on each device: train state and batch; temporaries of a step; the most that is held at one time."""

    arguments: int
    temporaries: int
    peak: int


def packages(platform: str) -> tuple[str, ...]:
    """The pip requirements of the compiler for "cuda" or "tpu", of the version that belongs to the installed jax."""
    version = jax.__version__
    if platform == "cuda":
        return (f"jax-cuda13-plugin=={version}", f"jax-cuda13-pjrt=={version}")
    for requirement in importlib.metadata.requires("jax") or ():
        if match := re.match(r"libtpu\s*(==[\d.*]+)", requirement):
            return (f"libtpu{match[1]}",)
    raise NoCompiler(f"jax {version} names no version of libtpu, so its TPU compiler cannot be fetched")


def folder(platform: str) -> Path:
    """Where the compiler for a platform and the installed jax lies, or would lie."""
    return schema.data_dir() / "compilers" / f"{platform}-jax-{jax.__version__}"


def fetch(platform: str) -> Path:
    """Brings the compiler by pip, unless it is there, and returns its folder (about 130 MB).

    Raises NoCompiler with the last line of what pip said where it could not be had, such as without a network.
    """
    place = folder(platform)
    if place.is_dir():
        return place
    unfinished = place.with_name(f".{place.name}.{os.getpid()}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--target", str(unfinished), *packages(platform)], capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines() or ["nothing"]
        raise NoCompiler(f"pip could not bring {' and '.join(packages(platform))}; it said: {said[-1].strip()}")
    with contextlib.suppress(OSError):  # another process was first
        unfinished.rename(place)
    shutil.rmtree(unfinished, ignore_errors=True)
    return place


def devices(target: Target) -> list[Any]:
    """Devices of a target to lay arrays out on and to compile for; nothing can run on them.

    Where jax is installed with that platform its own compiler serves, else the one that `fetch` brought: then this
    process computes on the CPU, and has to call this before jax looks for its platforms, which the first array makes it
    do. Raises NoCompiler where there is no compiler, or where it is too late for one that was fetched.
    """
    from jax.experimental import topologies

    platform = target.device.platform
    if not _installed(platform):
        place = folder(platform)
        if not place.is_dir():
            others = sorted(other.name for other in place.parent.glob(f"{platform}-jax-*"))
            there = f"; there is one for another jax: {', '.join(others)}" if others else ""
            raise NoCompiler(
                f"the compiler for {platform} and jax {jax.__version__} is not here{there}: add --fetch, which brings "
                "it by pip once (130 MB)"
            )
        _see(place)
    try:
        if platform == "tpu":
            return list(topologies.get_topology_desc(platform="tpu", topology_name=target.topology).devices)
        named = {"target_config": gpu_target_config(target.device), "topology": target.topology}
        return list(topologies.get_topology_desc(platform="cuda", **named).devices)
    except NotImplementedError as error:
        raise NoCompiler(f"jax had started before the compiler for {platform} could be shown to it") from error
    except (RuntimeError, ImportError) as error:
        raise NoCompiler(f"the compiler for {target} does not start: {str(error).splitlines()[0]}") from error


def _installed(platform: str) -> bool:
    """Whether jax was installed with this platform."""
    plugins = {"cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin"), "tpu": ("libtpu",)}[platform]
    fetched = str(folder(platform))
    found = (importlib.util.find_spec(name) for name in plugins)
    return any(spec is not None and not str(spec.origin).startswith(fetched) for spec in found)


def _see(place: Path) -> None:
    """Shows a fetched compiler to this process, which goes on to compute on the CPU."""
    if str(place) in sys.path:
        return
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # libtpu locks out other processes, whose plans may be at work
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # only a device that is there can read a program back
    sys.path.insert(0, str(place))


@contextlib.contextmanager
def answering_for(target: Target) -> Iterator[None]:
    """Answers jax's questions about cuDNN for the target, as a device would that is not there.

    While tracing a fused attention call jax asks the installed cuDNN for its version and the first GPU for its compute
    capability (jax._src.cudnn.fused_attention_stablehlo); it has no public way to be told.
    """
    if target.device.platform != "cuda":
        yield
        return
    from jax._src.cudnn import fused_attention_stablehlo as fused

    major, minor = (int(target.device.config[name]) for name in ("major", "minor"))
    answers = {
        "check_cudnn_version": lambda: CUDNN[0] * 10_000 + CUDNN[1] * 100 + CUDNN[2],
        "check_compute_capability": lambda least: (major, minor) >= tuple(map(int, least.split("."))),
        "is_cuda_compute_capability_equal": lambda asked: (major, minor) == tuple(map(int, asked.split("."))),
    }
    before = {name: getattr(fused, name) for name in answers}
    for name, answer in answers.items():
        setattr(fused, name, answer)
    try:
        yield
    finally:
        for name, asked in before.items():
            setattr(fused, name, asked)


def compiled(lowered: jax.stages.Lowered, target: Target) -> jax.stages.Compiled:
    """What was lowered for devices of the target, compiled."""
    return lowered.compile(_WITHOUT_A_GPU if target.device.platform == "cuda" else None)


def memory_of(compiled: Any) -> Memory:
    """Of one device, as XLA's buffer assignment has it."""
    found = compiled.memory_analysis()
    arguments, temporaries = found.argument_size_in_bytes, found.temp_size_in_bytes
    peak = arguments + temporaries + found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(arguments, temporaries, peak)


# "%x = (f32[8,128]{1,0}, f32[4]{0}) all-reduce-start(…", and what a computation calls.
_SHAPE = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+|c\d+)\[([\d,]*)\]")
_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all)(-start)?\("
)
# Which devices exchange: "{{0,1},{2,3}}", "[2,2]<=[4]" or "mesh['a'=2,'b'=2] {'b'}".
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]|mesh\[([^]]*)\] *\{([^}]*)\})")
# The TPU's compiler lays one exchange beside many steps of the computation, each of which names it by its channel.
_CHAIN = re.compile(r'channel_id=(\d+),.*chain_id="\d+"')
ENTRY = "ENTRY"
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# A loop of the TPU's programs does not name its trips; its condition ends "ROOT %go = pred[] compare(%i, %n), …".
_LENGTH = re.compile(r"^ *%?([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)")
_ROOT = re.compile(r"^ *ROOT .* compare\(([^)]*)\), direction=(?:LT|GT)\b")
_CONDITION = re.compile(r" while\(.*condition=%?([\w.\-]+)")


def collectives(text: str) -> dict[str, Collective]:
    """Data exchanges in one run of a compiled program, by kind.

    text: `compiled.as_text()`, optimised HLO. What stands in a loop counts as often as the loop runs, or once where
    neither the loop nor a condition as `jax.lax.scan` has it says how often. Of an asynchronous pair its start counts,
    and of what is laid beside several steps the one that runs least often.
    """
    lengths = _lengths(text)
    found: dict[str, list[tuple[str, int, str]]] = defaultdict(list)
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for here, line in _lines(text):
        trips = 1
        if match := _TRIPS.search(line):
            trips = int(match[1])
        elif match := _CONDITION.search(line):
            trips = lengths.get(match[1], 1)
        calls[here] += [(name, trips) for name in _CALLED.findall(line)]
        for names in _BRANCHES.findall(line):
            calls[here] += [(name.strip().lstrip("%"), 1) for name in names.split(",")]
        if match := _COLLECTIVE.search(line):
            # Contexts of a permute are scalars of u32.
            shapes = [_bytes(*shape) for shape in _SHAPE.findall(line[: match.start()]) if shape != ("u32", "")]
            # The start of an asynchronous gather, scatter or permute returns its operands before its results.
            if match[2] and match[1] != "all-reduce":
                half = len(shapes) // 2
                size = max(sum(shapes[:half]), sum(shapes[half:]))
            else:
                size = sum(shapes) * (_group_size(line) if match[1] == "reduce-scatter" else 1)
            found[here].append((match[1], size, chain[1] if (chain := _CHAIN.search(line)) else ""))
    counts, sizes = Counter(), Counter()
    chained: dict[tuple[str, int, str], int] = {}  # times of the step that runs least often

    def walk(name: str, times: int) -> None:
        for exchange in found.get(name, ()):
            kind, size, chain = exchange
            if chain:
                chained[exchange] = min(times, chained.get(exchange, times))
            else:
                counts[kind] += times
                sizes[kind] += times * size
        for called, trips in calls.get(name, ()):
            walk(called, times * trips)

    walk(ENTRY, 1)
    for (kind, size, _), times in chained.items():
        counts[kind] += times
        sizes[kind] += times * size
    return {kind: Collective(counts[kind], sizes[kind]) for kind in sorted(counts)}


def _lengths(text: str) -> dict[str, int]:
    """How often a loop runs that counts from 0, by the computation that is its condition."""
    found: dict[str, int] = {}
    constants: dict[tuple[str, str], int] = {}
    for here, line in _lines(text):
        if match := _LENGTH.match(line):
            constants[here, match[1]] = int(match[2])
        elif match := _ROOT.match(line):
            compared = ((here, name.split()[-1].lstrip("%")) for name in match[1].split(", "))
            found[here] = next((constants[each] for each in compared if each in constants), 1)
    return found


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """The lines of a program, each with the computation that it is of, which is ENTRY where the program begins."""
    here = ""
    for line in text.splitlines():
        if match := _HEAD.match(line.strip()) if not line.startswith(" ") else None:
            here = ENTRY if match[1] else match[2]
        else:
            yield here, line


def _group_size(line: str) -> int:
    """Between how many devices a line of HLO exchanges; 1 where it does not say."""
    if not (match := _GROUPS.search(line)):
        return 1
    if match[1]:
        return match[1].count(",") + 1
    if match[2]:
        return int(match[2])
    return math.prod(int(size) for name, size in re.findall(r"('[^']*')=(\d+)", match[3]) if name in match[4])


def _bytes(kind: str, shape: str) -> int:
    bits = 8 if kind == "pred" or kind.startswith("f8") else int(re.sub(r"\D", "", kind))
    size = bits / 8
    for length in shape.split(","):
        size *= int(length) if length else 1
    return int(size)
