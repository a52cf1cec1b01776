"""Converted sets on disk: find one by name, open it, read its records by number.

Nothing here imports a builder or TensorFlow. A phantom is the one set that is built when it is asked for and absent.
"""

import functools
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from cxrjax.config import nearest
from cxrjax.datasets import schema
from cxrjax.input import records

JOINED = "+"  # between the names of splits that are read as one


class SetNotFound(ValueError):
    """A set name that is not converted in the data folder."""


class ConvertedSet(NamedTuple):
    """A converted set on disk: its name, TFDS directory, the c label names, pictures per split, builder metadata."""

    name: str
    directory: Path
    label_names: tuple[str, ...]
    split_sizes: dict[str, int]
    metadata: dict[str, Any]


def open_set(name: str | os.PathLike, data_dir: str | os.PathLike | None = None) -> ConvertedSet:
    """Opens a converted set.

    name: a set below data_dir, "name" or "name/config" (newest version), or the path of a converted set.
    data_dir: by default `schema.data_dir()`. The phantom sets are built there if they are absent.
    Raises SetNotFound with what is converted and the command that converts the rest.
    """
    name, data_dir = str(name), schema.data_dir(data_dir)
    directory = _find(name, data_dir)
    if directory is None and name.startswith("phantom"):
        from cxrjax.phantom import phantom_set

        if name in phantom_set.BUILT_ON_DEMAND:
            settings = phantom_set.BUILT_ON_DEMAND[name]
            phantom_set.build(data_dir, name=name, studies=settings["studies"], short_side=settings["short_side"])
            directory = _find(name, data_dir)
    if directory is None:
        raise SetNotFound(_not_found(name, data_dir))
    info = builder(directory).info
    metadata = dict(info.metadata or {})
    if "label_names" not in metadata:
        raise ValueError(
            f"{directory} is a TFDS set without `label_names` in its metadata, so it was not written by a cxrjax "
            "builder; convert its raw data with python -m cxrjax.prepare."
        )
    return ConvertedSet(
        name=f"{info.name}/{info.config_name}" if info.config_name else info.name,
        directory=directory,
        label_names=tuple(metadata["label_names"]),
        split_sizes={split: split_info.num_examples for split, split_info in info.splits.items()},
        metadata=metadata,
    )


def builder(directory: Path) -> Any:  # a decorator of TFDS hides what its methods take
    """The TFDS builder of a converted set, read again only where the set was written anew."""
    state = (directory / "dataset_info.json").stat()
    return _builder(directory, (state.st_ino, state.st_size, state.st_mtime_ns))


@functools.lru_cache(maxsize=64)
def _builder(directory: Path, state: tuple[int, int, int]) -> Any:
    return tfds.builder_from_directory(str(directory))


def is_converted(name: str, data_dir: str | os.PathLike | None = None) -> bool:
    """Whether `open_set` would find the set as it is; builds none."""
    return _find(name, schema.data_dir(data_dir)) is not None


def converted(data_dir: str | os.PathLike | None = None) -> list[str]:
    """Names of the sets that are converted in data_dir, as `open_set` takes them."""
    data_dir = schema.data_dir(data_dir)
    folders = {info.parent.parent for depth in ("*/*", "*/*/*") for info in data_dir.glob(f"{depth}/dataset_info.json")}
    names = [str(folder.relative_to(data_dir)) for folder in folders if _versions(folder)]
    return sorted(name for name in names if not name.startswith("."))


def _find(name: str, data_dir: Path) -> Path | None:
    for directory in (data_dir / name, Path(name).expanduser()):
        if (directory / "dataset_info.json").is_file():
            return directory
        versions = _versions(directory)
        if versions:
            return versions[-1]
        configs = [config for config in sorted(directory.glob("*/")) if _versions(config)]
        if len(configs) == 1:
            return _versions(configs[0])[-1]
        if configs:
            options = ", ".join(f"{name}/{config.name}" for config in configs)
            raise ValueError(f"Set {name!r} is converted in several configurations; name one of {options}.")
    return None


def _versions(directory: Path) -> list[Path]:
    """Complete versions of a set in a folder, the newest last."""
    numbers = {}
    for info in directory.glob("*/dataset_info.json"):
        if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name):
            numbers[tuple(map(int, info.parent.name.split(".")))] = info.parent
    return [numbers[number] for number in sorted(numbers)]


def _not_found(name: str, data_dir: Path) -> str:
    near, there = nearest(name, converted(data_dir)).removeprefix("."), ", ".join(converted(data_dir)) or "none"
    return (
        f"Set {name!r} is neither a set in {data_dir} nor the path of a converted one. Converted there: {there}.{near} "
        f"Convert it with `python -m cxrjax.prepare {name} --raw DIR` (`--list` names the known sets), or point "
        "$CXRJAX_DATA to the folder that holds it."
    )


def check_split(converted_set: ConvertedSet, split: str) -> None:
    """Raises ValueError, with the splits that there are, for one that the set does not have."""
    if not set(split.split(JOINED)) <= set(converted_set.split_sizes):
        raise ValueError(f"Set {converted_set.name!r} has no split {split!r}; it has {sizes(converted_set)}.")


def sizes(converted_set: ConvertedSet) -> str:
    """ "train (700), val (100), test (200)": the splits for a message."""
    return ", ".join(f"{split} ({size})" for split, size in converted_set.split_sizes.items())


def open_records(converted_set: ConvertedSet, split: str) -> tuple[Sequence[bytes], Mapping[str, records.Reader]]:
    """The encoded records of a split by number, and how to read each of their fields."""
    whole = builder(converted_set.directory)
    stored = whole.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    features = whole.info.features
    assert isinstance(features, tfds.features.FeaturesDict)  # as every builder of ours declares
    files = [(str(part.filename), part.take) for part in whole.info.splits[split].file_instructions]
    return _Stored(stored.data_source, files, f"split {split!r} of set {converted_set.name!r}"), records.readers(
        features
    )


class _Stored(Sequence):
    """Encoded records by number; one that cannot be read is named."""

    def __init__(self, stored: Sequence[bytes], files: Sequence[tuple[str, int]], place: str):
        """files: (path, number of records) in the order of the records."""
        self.stored, self.files, self.place = stored, files, place

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, number: int) -> Any:
        try:
            return self.stored[number]
        except (RuntimeError, ValueError, OSError) as error:
            ends = itertools.accumulate(count for _, count in self.files)
            file = next((file for (file, _), end in zip(self.files, ends, strict=True) if number < end), "its file")
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"record {number} of {self.place} cannot be read: {file} is damaged ({why[:200]}). Copy the file "
                "again from where it came, or convert the set again with python -m cxrjax.prepare and --overwrite."
            ) from error
