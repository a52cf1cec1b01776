"""Say what this machine and installation can do, and what is wrong: to read first, and to send along with a question.

    python -m cxrjax.doctor [--fast]

Versions, devices with their measured speed, what reads which pictures, disk, and every converted set with its records
read at both ends. What is wrong begins with "!" and says what to do; the exit status is then 1. Writes nothing that
stays. --fast measures no speed.
"""

import argparse
import importlib.util
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import jax

from cxrjax import __version__, parallel
from cxrjax.accelerators import compile_cache
from cxrjax.datasets import schema
from cxrjax.imaging import codecs
from cxrjax.input import converted_sets
from cxrjax.speed import cost

NEEDED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array-record", "tensorflow-datasets", "numpy")
EXTRAS = {
    "pydicom": "reads DICOM: pip install 'cxrjax[dicom]'",
    "torch": "compares exports with PyTorch: pip install torch transformers",
    "transformers": "as torch",
    "pycocotools": "judges boxes: pip install 'cxrjax[eval]'",
    "apache-beam": "converts on many machines: pip install 'cxrjax[beam]'",
}
CODECS = {"pylibjpeg": "openjpeg", "gdcm": "gdcm", "pyjpegls": "jpeg_ls"}
"""Module of each plug-in of pydicom that imaging/codecs.py asks."""
LOW_BYTES = 10 * 2**30
"""Free space under which a disk is said to be nearly full; our choice: a few checkpoints of a ViT-B, and a cache."""
TURNS = 5
WRITTEN_BYTES = 64 * 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Prints every part; returns 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        "python -m cxrjax.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="measure no speed")
    fast = parser.parse_args(argv).fast
    wrong = 0
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "Versions": versions,
        "Devices": lambda: devices(measure=not fast),
        "Pictures": pictures,
        "Disk": lambda: disk(measure=not fast),
        "Converted sets": sets,
        "Caches": caches,
    }
    for title, part in parts.items():
        print(title, flush=True)
        for line in part():
            wrong += line.startswith("!")
            print(f"  {line}", flush=True)
    print("Nothing is wrong." if not wrong else f"{wrong} lines begin with !: they say what to do.")
    return 1 if wrong else 0


def versions() -> Iterator[str]:
    """Of Python, of us, of what we need, and of extras that are here."""
    yield f"cxrjax {__version__}, Python {platform.python_version()}, {platform.platform()}"
    there = {name: version for name in (*NEEDED, *EXTRAS) if (version := _version(name))}
    yield ", ".join(f"{name} {version}" for name, version in there.items())
    for name in NEEDED:
        if name not in there:
            yield f"! {name} is not installed; install cxrjax anew: pip install --force-reinstall cxrjax"
    for name, use in EXTRAS.items():
        if name not in there:
            yield f"{name} is not installed; it {use}"


def devices(measure: bool) -> Iterator[str]:
    """What JAX sees, and what a large product of matrices reaches on all of it."""
    for device in jax.local_devices():
        limit = (device.memory_stats() or {}).get("bytes_limit")
        yield f"{device.id}: {device.device_kind} ({device.platform})" + (f", {_size(limit)}" if limit else "")
    if shutil.which("nvidia-smi") and jax.default_backend() == "cpu":
        yield "! there is an NVIDIA driver, and JAX uses the CPU: pip install 'cxrjax[cuda]'"
    for dtype in ("float32", "bfloat16") if measure else ():
        product, flop, side = cost.large_product(parallel.make_mesh(), dtype)
        seconds = min(cost.in_turns({"product": product}, TURNS)["product"])
        yield f"{flop / seconds / 1e12:.3g} TFLOP/s: products of {side} × {side} in {dtype}, best of {TURNS}"


def pictures() -> Iterator[str]:
    """Which kinds of files can be read."""
    yield "PNG and JPEG: yes"
    if importlib.util.find_spec("pydicom") is None:
        yield f"DICOM: no; {codecs.INSTALL}"
        return
    there = [name for name, module in CODECS.items() if importlib.util.find_spec(module)]
    yield f"DICOM: yes; compressed ones by {', '.join([*there, 'pydicom'])}"
    if not {"pylibjpeg", "gdcm"} & set(there):
        yield f"! no decoder of JPEG 2000 and lossless JPEG, which most archives use: {codecs.INSTALL}"


def disk(measure: bool) -> Iterator[str]:
    """The data folder: whether it can be written, how much is free, how fast."""
    folder = schema.data_dir()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    yield f"data folder {folder}" + ("" if folder.exists() else " (made when something is converted)")
    if free < LOW_BYTES:
        yield f"! only {_size(free)} free; make room, or set CXRJAX_DATA to a larger disk"
    else:
        yield f"{_size(free)} free"
    try:
        with tempfile.NamedTemporaryFile(dir=there) as file:
            began = time.perf_counter()
            file.write(bytes(WRITTEN_BYTES if measure else 1))
            file.flush()
            if measure:
                yield f"{WRITTEN_BYTES / 1e6 / (time.perf_counter() - began):,.0f} MB/s written to memory or disk"
    except OSError as error:
        yield f"! {there} cannot be written ({error.strerror}): set CXRJAX_DATA to a folder of yours"


def sets() -> Iterator[str]:
    """Each converted set: pictures a split, and whether the first and last record of each can be read."""
    names = converted_sets.converted()
    if not names:
        yield "none yet: python -m cxrjax.prepare --list"
    for name in names:
        try:
            found = converted_sets.open_set(name)
            for split, size in found.split_sizes.items():
                records, _ = converted_sets.open_records(found, split)
                if len(records) != size:
                    raise ValueError(f"split {split} has {len(records)} records and should have {size}")
                for number in {0, size - 1} if size else ():
                    records[number]
            yield f"{name}: {converted_sets.sizes(found)}; {_size(_bytes(found.directory))}"
        except (ValueError, OSError) as error:
            yield f"! {name}: {error}"


def caches() -> Iterator[str]:
    """What may be deleted at any time, with its size; it is made again when it is needed."""
    folder = schema.data_dir()
    places = {"compiled programs": compile_cache.folder().parent, "compilers of plan": folder / "compilers"}
    for what, place in places.items():
        if place.exists():
            yield f"{what}: {_size(_bytes(place))}; rm -r {place}"
    kept = [file for pattern in ("index-*", "boxes-*", "fingerprints-*") for file in folder.rglob(f"{pattern}.parquet")]
    if kept:
        size = _size(sum(file.stat().st_size for file in kept))
        yield f"indexes of sets: {size}, {len(kept)} files index-, boxes- and fingerprints-*.parquet in the sets"
    yield "features of runs: in evals/features of each workdir, at most 8 GiB each (the setting cache_gib of a judge)"


def _version(name: str) -> str:
    """ "" of what is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


if __name__ == "__main__":
    raise SystemExit(main())
