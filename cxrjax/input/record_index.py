"""What is known of a split's records without reading their pictures: one row per record, kept beside the set."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxrjax.input import boxes as box_fields
from cxrjax.input import records
from cxrjax.input.converted_sets import JOINED, ConvertedSet, builder, check_split, open_records

INDEX_FIELDS = ("image_id", "patient_id", "study_id", "view", "labels")
ORIGIN_FIELDS = ("sex", "age", "fingerprint", "same_picture", "same_patient")
"""Fields that sets converted by older versions do not have."""


def index(converted_set: ConvertedSet, split: str) -> pd.DataFrame:
    """One row per record of the split, in record order: image_id, patient_id, study_id, view (str), labels, and
    those of ORIGIN_FIELDS that the set has.

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
    info = builder(converted_set.directory).info
    states = [(path.name, path.stat()) for path in map(Path, info.splits[split].filepaths)]
    text = "\n".join(
        [
            " ".join(INDEX_FIELDS + ORIGIN_FIELDS),
            *(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states),
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest().encode()


def _kept(
    converted_set: ConvertedSet, split: str, name: str, fields: Sequence[str], scan: Callable[..., pd.DataFrame]
) -> pd.DataFrame:
    """What scan (set, split) makes of the records, kept as <name>-<split>.parquet until the set changes."""
    check_split(converted_set, split)
    if JOINED in split:
        parts = [_kept(converted_set, part, name, fields, scan) for part in split.split(JOINED)]
        return pd.concat(parts, ignore_index=True)
    if converted_set.split_sizes[split] == 0:
        return pd.DataFrame(columns=list(fields))
    path = converted_set.directory / f"{name}-{split}.parquet"
    made_of = stamp(converted_set, split)
    kept = read_cache(path, made_of)
    if kept is not None and len(kept) == converted_set.split_sizes[split]:
        return kept
    table = scan(converted_set, split)
    write_cache(path, table, made_of)
    return table


def _scan(converted_set: ConvertedSet, split: str) -> pd.DataFrame:
    _, readers = open_records(converted_set, split)
    fields = [*INDEX_FIELDS, *(name for name in ORIGIN_FIELDS if name in readers)]
    rows = [[example[name] for name in fields] for example in _whole(converted_set, split)]
    return pd.DataFrame(rows, columns=fields)


def _scan_boxes(converted_set: ConvertedSet, split: str) -> pd.DataFrame:
    return pd.DataFrame({"labels": [box_fields.labels(example) for example in _whole(converted_set, split)]})


def read_cache(path: Path, made_of: bytes | None = None) -> pd.DataFrame | None:
    """What `write_cache` wrote, for the same stamp if one is given; None where the disk has nothing, or changed it."""
    if not path.exists():
        return None
    try:
        stored = pq.read_table(path, page_checksum_verification=True)
        stamped = (stored.schema.metadata or {}).get(b"cxrjax_stamp")
        return stored.to_pandas() if made_of in (None, stamped) else None
    except (pa.ArrowException, OSError, ValueError) as error:
        logging.warning("%s is damaged (%s) and made again", path, str(error).splitlines()[0])
        return None


def write_cache(path: Path, table: pd.DataFrame, stamp: bytes = b"") -> None:
    """Keeps a table with checksums, if the folder can be written."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"cxrjax_stamp": stamp})
    # Several hosts may write at once: each writes its own file, and renaming is atomic.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(arrow, temporary, write_page_checksum=True)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)


def _whole(converted_set: ConvertedSet, split: str) -> Iterator[records.Example]:
    stored, readers = open_records(converted_set, split)
    return (records.Example(stored[number], readers, converted_set.name) for number in range(len(stored)))
