"""Features of a split, computed once per (encoder, pictures, preprocessing) and kept as .npz.

Every judge of frozen features starts from the same table, so that a second task or judge on a checkpoint encodes no
picture. A second checkpoint encodes them again, but decodes none (see `pictures`).
"""

import logging
import os
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from cxrjax import parallel
from cxrjax.evals import pictures
from cxrjax.evals.base import Encoder, FeatureTable, digest
from cxrjax.input.source import Source
from cxrjax.runtime import hosts


def features(
    encoder: Encoder,
    source: Source,
    batch_size: int,
    cache_dir: str | os.PathLike | None = None,
    cache_bytes: float = 8 * 2**30,
    pictures_bytes: float = pictures.LIMIT_BYTES,
) -> FeatureTable:
    """Pooled features of every picture of the source, in its order.

    batch_size: pictures at once on all devices together, rounded up to a multiple of their number; one shape serves.
    cache_dir: where tables are kept (None: nowhere); the least recently used go when they exceed cache_bytes together.
    pictures_bytes: fitted pictures of a split that take more are not kept beside the set.
    """
    fitted = () if encoder.sees == pictures.IMAGE else (encoder.sees,)
    identity = digest(encoder.digest, encoder.image_px, pictures.PREPROCESSING, source_digest(source), *fitted)
    path = None if cache_dir is None else Path(cache_dir) / f"{identity}.npz"
    kept = None if path is None else _stored(path, len(source))
    complete = path is not None and _everywhere(kept is not None)
    if kept is not None and complete:
        return kept
    table = source.table
    result = FeatureTable(
        np.concatenate(list(outputs(encoder, source, batch_size, pictures_bytes)))[: len(source)].astype(np.float32),
        np.stack(table["labels"].tolist()).astype(np.int8),
        table["patient_id"].to_numpy(str),
        table["image_id"].to_numpy(str),
    )
    if path is not None and hosts.is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        with unfinished.open("wb") as file:
            np.savez(file, **result._asdict())
        os.replace(unfinished, path)
        _make_room(path.parent, cache_bytes, path)
    return result


def _stored(path: Path, count: int) -> FeatureTable | None:
    """The table of a file; None where there is none, or the disk has changed it: then it is made again."""
    if not path.is_file():
        return None
    try:
        os.utime(path)
        with np.load(path) as stored:
            found = FeatureTable(*(stored[name] for name in FeatureTable._fields))
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        logging.warning("%s is damaged (%s) and made again", path, error)
        return None
    return found if {len(column) for column in found} == {count} else None


def source_digest(source: Source) -> str:
    """Hash of what a source gives: the pictures chosen, their labels, and the set's records by file name and size."""
    converted, table = source.converted_set, source.table
    beside = (".parquet", ".json")
    files = [path for path in converted.directory.iterdir() if path.is_file() and path.suffix not in beside]
    stored = sorted((path.name, path.stat().st_size) for path in files if not path.name.startswith("."))
    names = (table["image_id"].to_numpy(str), table["patient_id"].to_numpy(str))
    labels = np.stack(table["labels"].tolist())
    return digest(converted.name, list(converted.label_names), stored, source.split, *names, labels)


def share(source: Source, batch_size: int, mesh: jax.sharding.Mesh | None) -> tuple[Source, int]:
    """What this process reads: (its records, its batch size), so that all take part in every batch.

    batch_size: at least so many pictures at once on all devices together, of one shape. Batches of all processes laid
    together are the records in their order, the last one filled up by the last record.
    """
    processes, devices = jax.process_count(), 1 if mesh is None else parallel.num_devices(mesh)
    batch_size = -(-batch_size // devices) * devices
    if processes == 1:
        return source, batch_size
    filled = -(-len(source) // batch_size) * batch_size
    order = np.minimum(np.arange(filled), len(source) - 1).reshape(-1, processes, batch_size // processes)
    own = Source(source.converted_set, source.split, source.positions[order[:, jax.process_index()].ravel()])
    return own, batch_size // processes


def outputs(
    encoder: Encoder, source: Source, batch_size: int, pictures_bytes: float, name: str = "pooled"
) -> Iterator[np.ndarray]:
    """What the encoder gives under a name, batch by batch in the order of the source; the last repeats its last record.

    batch_size, pictures_bytes: as of `features`.
    """
    own, size = share(source, batch_size, encoder.mesh)
    running = deque()
    for images in batches(encoder, own, size, pictures_bytes):
        images = images if encoder.mesh is None else parallel.to_global(images, encoder.mesh)
        running.append(encoder.encode(images)[name])
        if len(running) > 1:  # fetch a batch only while the next one is computed
            yield fetch(running.popleft())
    yield fetch(running.popleft())


def batches(encoder: Encoder, source: Source, batch_size: int, limit_bytes: float) -> Iterator[np.ndarray]:
    """What the encoder takes of a source, in its order; the last batch repeats the last record."""
    if encoder.read is not None:
        return encoder.read(source, batch_size, limit_bytes)
    return pictures.batches(source, encoder.image_px, batch_size, encoder.sees, limit_bytes)


def fetch(values: jax.Array) -> np.ndarray:
    """The whole of an array over all processes, on the host."""
    return np.asarray(values if jax.process_count() == 1 else multihost_utils.process_allgather(values, tiled=True))


def _everywhere(here: bool) -> bool:
    if jax.process_count() == 1:
        return here
    return bool(np.all(multihost_utils.process_allgather(np.array(here))))


def _make_room(directory: Path, limit: float, keep: Path) -> None:
    stored = sorted(
        ((path.stat().st_mtime, path.stat().st_size, path) for path in directory.glob("*.npz")), reverse=True
    )
    total = 0
    for _, size, path in stored:
        total += size
        if total > limit and path != keep:
            path.unlink(missing_ok=True)
