"""Random access into converted sets: find a set, index its records, select some of them, read one by number.

Nothing here imports a builder or TensorFlow; the phantom is the one set that is built when it is asked for and absent.
"""

import hashlib
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from cxrjax.datasets import schema
from cxrjax.input import boxes as box_fields
from cxrjax.input import records

INDEX_FIELDS = ("image_id", "patient_id", "study_id", "view", "labels")
ORIGIN_FIELDS = (
    "sex",
    "age",
    "fingerprint",
    "same_picture",
    "same_patient",
)  # not in sets that are converted long since


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
    data_dir = Path(data_dir) if data_dir is not None else schema.data_dir()
    directory = _find(str(name), data_dir)
    if directory is None and str(name).startswith("phantom"):
        from cxrjax.phantom import generate as phantom

        if name in phantom.BUILT_ON_DEMAND:
            phantom.build(data_dir, name=name, **phantom.BUILT_ON_DEMAND[name])
            directory = _find(name, data_dir)
    if directory is None:
        raise SetNotFound(_not_found(str(name), data_dir))
    info = tfds.builder_from_directory(str(directory)).info
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


def index(converted_set: ConvertedSet, split: str) -> pd.DataFrame:
    """One row per record of the split, in record order: image_id, patient_id, study_id, view (str), labels, and what
    the set knows of ORIGIN_FIELDS.

    labels: int8 (c,) in each cell. Kept as index-<split>.parquet beside the set and made again when the set's files
    changed; where that folder cannot be written the records are read each time.
    Raises ValueError for a split that the set does not have.
    """
    return _kept(converted_set, split, "index", INDEX_FIELDS, _scan)


def labels_of_boxes(converted_set: ConvertedSet, split: str) -> list[tuple[str, ...]]:
    """The labels of each record's boxes to judge by, in record order; kept as `index` is, in boxes-<split>.parquet.

    Raises ValueError for a split that the set does not have, and for a set whose records have no boxes.
    """
    return [tuple(found) for found in _kept(converted_set, split, "boxes", ("labels",), _scan_boxes)["labels"]]


def stamp(converted_set: ConvertedSet, split: str) -> bytes:
    """Hash of names, sizes and times of a split's files: whatever rewrites the set changes it."""
    info = tfds.builder_from_directory(str(converted_set.directory)).info
    states = [(path.name, path.stat()) for path in map(Path, info.splits[split].filepaths)]
    text = "\n".join(
        [
            " ".join(INDEX_FIELDS + ORIGIN_FIELDS),
            *(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states),
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest().encode()


def source(
    converted_set: ConvertedSet,
    split: str,
    *,
    views: Collection[str] | None = None,
    boxes: Collection[str] | None = None,
    or_labelled: str = "",
    image_ids: Collection[str] | None = None,
    exclude_image_ids: Collection[str] = (),
    exclude_patient_ids: Collection[str] = (),
    fraction: float = 1.0,
    fraction_seed: int = 0,
    folds: int = 0,
    fold: int = 0,
) -> "Source":
    """Selects records of a split; the filters apply in the order of the arguments, but for the folds, which come first.

    views: projections to keep, of UNKNOWN, PA, AP, LATERAL.
    boxes: keep only pictures with a box to judge by of one of these labels, of none given () of any. or_labelled: and
        those of which this label, such as "No Finding", is present. See `required`.
    image_ids: the only pictures to keep.
    fraction: share (0, 1] of the split's patients, as in the set's lists of fractions: a smaller share is contained in
        a larger one, and the choice depends on the set's name, the patient ids and fraction_seed only.
    folds, fold: where folds is not 0, the set's own splits are laid together and cut by patient into so many parts:
        "test" is part number `fold`, "val" the one after it, "train" the rest (see `schema.fold_of_patients`).
    Raises ValueError for an unknown split or view, a fraction outside (0, 1], boxes of a set that has none, a label
    that it does not have, or a filter that leaves no picture.
    """
    unknown_views = sorted(set(views or ()) - set(schema.VIEWS))
    if isinstance(views, str) or unknown_views:
        raise ValueError(f"views must be a list of {', '.join(schema.VIEWS)}, but it is {views!r}.")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, but it is {fraction}.")
    place, part = f"split {split!r} of set {converted_set.name!r}", split
    if folds:
        place = f"{place} in fold {fold} of {folds}"
        split = JOINED.join(name for name, size in converted_set.split_sizes.items() if size)
    table = index(converted_set, split)
    kept = np.arange(len(table))
    if folds:
        kept = _part(converted_set.name, table["patient_id"], part, folds, fold)
    if len(kept) == 0:
        raise ValueError(f"There are no pictures in {place}; its splits have {_sizes(converted_set)}.")

    def keep(mask: np.ndarray, filter_text: str) -> None:
        nonlocal kept
        if not mask.any():
            raise ValueError(
                f"No picture is left in {place}: the filter {filter_text} removes all of the {len(kept)} that reached "
                f"it (the split has {len(table)}). {_views_present(table)}"
            )
        kept = kept[mask]

    if views is not None:
        keep(table["view"].iloc[kept].isin(list(views)).to_numpy(), f"views={sorted(views)}")
    if boxes is not None:
        found = labels_of_boxes(converted_set, split)
        there = np.array([any(not boxes or label in boxes for label in each) for each in found], bool)
        if or_labelled:
            there |= _present(converted_set, table, or_labelled)
        known = ", ".join(f"{name} {count}" for name, count in Counter(itertools.chain(*found)).most_common()) or "none"
        text = f"boxes of {', '.join(boxes) or 'any label'}" + (f" or {or_labelled!r}" if or_labelled else "")
        keep(there[kept], f"{text} (the split's boxes: {known})")
    if image_ids is not None:
        wanted = set(image_ids)
        absent = wanted.difference(table["image_id"])
        if absent:
            logging.warning("%d of %d image_ids are not in %s, e.g. %s", len(absent), len(wanted), place, min(absent))
        keep(table["image_id"].iloc[kept].isin(wanted).to_numpy(), f"image_ids ({len(wanted)} given)")
    for column, excluded in (("image_id", exclude_image_ids), ("patient_id", exclude_patient_ids)):
        if excluded:
            keep(~table[column].iloc[kept].isin(set(excluded)).to_numpy(), f"exclude_{column}s ({len(excluded)} given)")
    if fraction < 1:
        chosen = schema.share_of_patients(converted_set.name, table["patient_id"], fraction, fraction_seed)
        keep(table["patient_id"].iloc[kept].isin(chosen).to_numpy(), f"fraction={fraction}")
    return Source(converted_set, split, kept)


def required(words: str, labels: Collection[str] = ()) -> dict[str, Any]:
    """The arguments of `source` that keep what pictures are required to have, in the words of data.require.

    words: "", "boxes", or "boxes or <label>", such as "boxes or No Finding". labels: of boxes that count; () all.
    Readers draw boxes on some pictures only of those with a finding. One that has the finding and no box is no picture
    without it, as detection would take it for: it is left out, and what a set labels as normal can be kept.
    Raises ValueError for other words.
    """
    if not words:
        return {}
    match = re.fullmatch(r"boxes(?: or (.+))?", words.strip())
    if match is None:
        raise ValueError(
            f"a picture cannot be required to have {words!r}, but 'boxes' or 'boxes or <label>', such as 'boxes or No "
            "Finding'; with data.unit='study' a study can be required to have: frontal, lateral, report"
        )
    return {"boxes": tuple(labels), "or_labelled": (match[1] or "").strip()}


def _present(converted_set: ConvertedSet, table: pd.DataFrame, label: str) -> np.ndarray:
    """n bool."""
    known = converted_set.label_names
    if label not in known:
        raise ValueError(f"Set {converted_set.name!r} has no label {label!r}; its labels are {', '.join(known)}.")
    return np.stack(table["labels"].tolist())[:, known.index(label)] == schema.PRESENT


def _part(set_name: str, patient_ids: pd.Series, part: str, folds: int, fold: int) -> np.ndarray:
    if part not in schema.SPLITS or not 0 <= fold < folds:
        raise ValueError(
            f"split {part!r}, fold {fold} of {folds}: folds are counted from 0, and are cut into {schema.SPLITS}"
        )
    number = patient_ids.map(schema.fold_of_patients(set_name, patient_ids, folds)).to_numpy()
    of_val = (fold + 1) % folds
    mask = {"test": number == fold, "val": number == of_val, "train": (number != fold) & (number != of_val)}
    return np.flatnonzero(mask[part])


class Source:
    """Records of a split, or of several as "train+val", by number: `len(source)`, `source[i]` -> example. It can be
    pickled.

    An example maps the set's fields: text is str, view its name, labels int8 (c,), pictures encoded bytes (`image`,
    and `mask` where the set has one); and `set`, the set's name.
    """

    def __init__(self, converted_set: ConvertedSet, split: str, positions: Sequence[int]):
        """positions: record numbers within the split, in the order in which they are wanted."""
        _check_split(converted_set, split)
        self.converted_set = converted_set
        self.split = split
        self.positions = np.asarray(positions, np.int64)
        self._stored, self._readers = _open_records(converted_set, split)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, item: int) -> records.Example:
        return records.Example(self._stored[self.positions[item]], self._readers, self.converted_set.name)

    def __repr__(self) -> str:
        return f"Source({self.converted_set.name!r}, {self.split!r}, {len(self)} pictures)"

    @property
    def table(self) -> pd.DataFrame:
        """The rows of `index` of these records, in the same order: ids, view and labels without reading pictures."""
        return index(self.converted_set, self.split).iloc[self.positions].reset_index(drop=True)


def converted(data_dir: str | os.PathLike | None = None) -> list[str]:
    """Names of the sets that are converted in data_dir, as `open_set` takes them."""
    data_dir = Path(data_dir) if data_dir is not None else schema.data_dir()
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
    there = ", ".join(converted(data_dir)) or "none"
    return (
        f"Set {name!r} is neither a set in {data_dir} nor the path of a converted one. Converted there: {there}. "
        f"Convert it with `python -m cxrjax.prepare {name} --raw DIR` (`--list` names the known sets), or point "
        "$CXRJAX_DATA to the folder that holds it."
    )


def _check_split(converted_set: ConvertedSet, split: str) -> None:
    if not set(split.split(JOINED)) <= set(converted_set.split_sizes):
        raise ValueError(f"Set {converted_set.name!r} has no split {split!r}; it has {_sizes(converted_set)}.")


def _sizes(converted_set: ConvertedSet) -> str:
    return ", ".join(f"{split} ({size})" for split, size in converted_set.split_sizes.items())


def _views_present(table: pd.DataFrame) -> str:
    counts = table["view"].value_counts()
    return f"Its views: {', '.join(f'{view} {count}' for view, count in counts.items())}."


def _open_records(converted_set: ConvertedSet, split: str) -> tuple[Sequence[bytes], Mapping[str, records.Reader]]:
    builder = tfds.builder_from_directory(str(converted_set.directory))
    stored = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    return stored.data_source, records.readers(builder.info.features)


def _kept(
    converted_set: ConvertedSet, split: str, name: str, fields: Sequence[str], scan: Callable[..., pd.DataFrame]
) -> pd.DataFrame:
    """What scan (set, split) makes of the records, from <name>-<split>.parquet beside the set as long as it is true."""
    _check_split(converted_set, split)
    if JOINED in split:
        parts = [_kept(converted_set, part, name, fields, scan) for part in split.split(JOINED)]
        return pd.concat(parts, ignore_index=True)
    if converted_set.split_sizes[split] == 0:
        return pd.DataFrame(columns=list(fields))
    path = converted_set.directory / f"{name}-{split}.parquet"
    made_of = stamp(converted_set, split)
    if path.exists():
        try:
            stored = pq.read_table(path)
        except (pa.ArrowInvalid, OSError):
            stored = None
        if stored is not None and (stored.schema.metadata or {}).get(b"cxrjax_stamp") == made_of:
            return stored.to_pandas()
    table = scan(converted_set, split)
    _write(path, table, made_of)
    return table


def _scan(converted_set: ConvertedSet, split: str) -> pd.DataFrame:
    whole = _whole(converted_set, split)
    fields = [*INDEX_FIELDS, *(name for name in ORIGIN_FIELDS if name in whole._readers)]
    rows = [[example[name] for name in fields] for example in whole]
    return pd.DataFrame(rows, columns=fields)


def _scan_boxes(converted_set: ConvertedSet, split: str) -> pd.DataFrame:
    return pd.DataFrame({"labels": [box_fields.labels(example) for example in _whole(converted_set, split)]})


def _whole(converted_set: ConvertedSet, split: str) -> "Source":
    return Source(converted_set, split, range(converted_set.split_sizes[split]))


def _write(path: Path, table: pd.DataFrame, stamp: bytes) -> None:
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"cxrjax_stamp": stamp})
    # Several hosts may write at once: each writes its own file, and renaming is atomic.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(arrow, temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
