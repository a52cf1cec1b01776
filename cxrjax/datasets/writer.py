"""Writes a converted set as TFDS ArrayRecord, whole or not at all, without TensorFlow."""

import contextlib
import fcntl
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tqdm import tqdm

from cxrjax.datasets import schema

VERSION = "1.0.0"
UNFINISHED = ".converting"  # below the data folder: what is not finished, where no reader looks


class OutputError(OSError):
    """The data folder cannot be written."""


def unfinished_directory(data_dir: Path, name: str) -> Path:
    """Folder for the unfinished conversion of a set ("name" or "name/config"), made if need be; raises OutputError."""
    directory = data_dir / UNFINISHED / name
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(data_dir, error) from None
    return directory


def tidy(data_dir: Path, name: str) -> None:
    """Takes away what is left of the unfinished conversion of a set."""
    shutil.rmtree(data_dir / UNFINISHED / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # another set is being converted
        for folder in (data_dir / UNFINISHED / name).parents[: name.count("/") + 1]:
            folder.rmdir()


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Waits until no other process holds the lock file, and holds it until the block ends."""
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress_bar(total: int, said: str, unit: str, progress: bool, delay: float = 0) -> tqdm:
    """A bar with ETA on a terminal, a line every ten seconds elsewhere; delay: seconds without it."""
    interval = 0.2 if sys.stderr.isatty() else 10
    hidden = not (progress and total)
    return tqdm(total=total, desc=said, unit=unit, disable=hidden, mininterval=interval, delay=delay)


def output_error(data_dir: Path, error: OSError) -> OutputError:
    """The sentence for a data folder that is full, read-only or no folder."""
    return OutputError(
        f"The data folder {data_dir} cannot be written: {error.strerror or error}. Free some space or choose another "
        "folder with --data-dir or CXRJAX_DATA; what is converted already is kept."
    )


def write(
    data_dir: Path,
    name: str,
    *,
    features: tfds.features.FeaturesDict,
    examples: Mapping[str, Callable[[], Iterator[tuple[str, dict[str, Any]]]] | Any],
    metadata: Mapping[str, Any],
    description: str,
    finish: Callable[[Path], None] = lambda directory: None,
    download_config: tfds.download.DownloadConfig | None = None,
) -> Path:
    """Writes `<data_dir>/<name>/<version>/` and returns it; a set of that version that is there is replaced.

    name: "set" or "set/config". examples: split -> function that gives (unique key, example in the form of `features`)
    pairs, or a Beam transform that gives complete ones; download_config: how TFDS runs Beam. finish: gets the set's
    folder before readers see it, to add files.
    Readers see the old set or the new one, never a part: the set is written elsewhere and renamed. Raises OutputError.
    """
    unfinished = unfinished_directory(data_dir, name)
    scratch = unfinished / "set"
    target = data_dir / name / VERSION
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        builder = _builder(scratch, name, features, examples, metadata, description)
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download of unknown size
            builder.download_and_prepare(download_config=download_config)
        finish(scratch / name / VERSION)
        target.parent.mkdir(parents=True, exist_ok=True)
        replaced = unfinished / "replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            os.replace(target, replaced)
        os.replace(scratch / name / VERSION, target)
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise output_error(data_dir, error) from None
    return target


def add_metadata(directory: Path, found: Mapping[str, Any]) -> None:
    """Adds to the metadata of a set what was found out while it was written."""
    path = directory / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | dict(found)), encoding="utf-8")


def _builder(
    data_dir: Path,
    full_name: str,
    features: tfds.features.FeaturesDict,
    examples: Mapping[str, Callable[[], Iterator] | Any],
    metadata: Mapping[str, Any],
    description: str,
) -> tfds.core.DatasetBuilder:
    set_name, _, config_name = full_name.partition("/")

    class ConvertedSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = set_name
        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config_name)] if config_name else []
        code_path = None  # its discovery imports importlib_resources, which TFDS does not declare
        pkg_dir_path = None

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description=description,
                features=features,
                metadata=tfds.core.MetadataDict(metadata),
            )

        def _split_generators(self, dl_manager):
            return {
                split: self._generate_examples(made) if callable(made) else made for split, made in examples.items()
            }

        def _generate_examples(self, generate):
            for key, example in generate():
                yield key, schema.complete(example)

    return ConvertedSet(data_dir=data_dir, file_format="array_record")
