"""Features of a split, computed once per (encoder, pictures, preprocessing) and kept as .npz.

Every judge of frozen features starts from the same table, so a second task or judge on a checkpoint reads no picture.
"""

import os
from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cxrjax import parallel
from cxrjax.evals.base import Encoder, FeatureTable, digest
from cxrjax.input import pipeline, views
from cxrjax.input.source import Source

PREPROCESSING = "fit-1"
"""Names what `views.fit` does to a picture; a change of its pixels needs a new name, or old caches stay valid."""


def features(
    encoder: Encoder,
    source: Source,
    batch_size: int,
    cache_dir: str | os.PathLike | None = None,
    cache_bytes: float = 8 * 2**30,
) -> FeatureTable:
    """Pooled features of every picture of the source, in its order.

    batch_size: pictures at once on all devices together, rounded up to a multiple of their number; one shape serves.
    cache_dir: where tables are kept (None: nowhere); the least recently used go when they exceed cache_bytes together.
    """
    directory = None if cache_dir is None else Path(cache_dir)
    identity = digest(encoder.digest, encoder.image_px, PREPROCESSING, source_digest(source))
    path = None if directory is None else directory / f"{identity}.npz"
    if path is not None and _everywhere(path.is_file()):
        os.utime(path)
        with np.load(path) as stored:
            return FeatureTable(*(stored[name] for name in FeatureTable._fields))
    table = source.table
    result = FeatureTable(
        _encode(encoder, source, batch_size),
        np.stack(table["labels"].tolist()).astype(np.int8),
        table["patient_id"].to_numpy(str),
        table["image_id"].to_numpy(str),
    )
    if path is not None and jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        with unfinished.open("wb") as file:
            np.savez(file, **result._asdict())
        os.replace(unfinished, path)
        _make_room(directory, cache_bytes, path)
    return result


def source_digest(source: Source) -> str:
    """Hash of what a source gives: the pictures chosen, their labels, and the set's records by file name and size."""
    converted, table = source.converted_set, source.table
    beside = (".parquet", ".json")
    files = [path for path in converted.directory.iterdir() if path.is_file() and path.suffix not in beside]
    stored = sorted((path.name, path.stat().st_size) for path in files if not path.name.startswith("."))
    names = (table["image_id"].to_numpy(str), table["patient_id"].to_numpy(str))
    labels = np.stack(table["labels"].tolist())
    return digest(converted.name, list(converted.label_names), stored, source.split, *names, labels)


def _encode(encoder: Encoder, source: Source, batch_size: int) -> np.ndarray:
    processes = jax.process_count()
    devices = 1 if encoder.mesh is None else parallel.num_devices(encoder.mesh)
    batch_size = -(-batch_size // devices) * devices
    own = source
    if processes > 1:
        # Every process must take part in the same number of batches, so the last one is filled up for all together.
        filled = -(-len(source) // batch_size) * batch_size
        order = np.minimum(np.arange(filled), len(source) - 1).reshape(-1, processes, batch_size // processes)
        own = Source(source.converted_set, source.split, source.positions[order[:, jax.process_index()].ravel()])
    running, done = deque(), []
    fit = partial(_fit, px=encoder.image_px)
    for batch, _ in pipeline.evaluation_batches(own, fit, batch_size // processes):
        images = batch["image"] if encoder.mesh is None else parallel.to_global(batch["image"], encoder.mesh)
        running.append(encoder.encode(images)["pooled"])
        if len(running) > 1:  # fetch a batch only while the next one is computed
            done.append(_fetch(running.popleft()))
    done.append(_fetch(running.popleft()))
    return np.concatenate(done)[: len(source)].astype(np.float32)


def _fit(example: Mapping[str, Any], rng: np.random.Generator, px: int) -> dict[str, np.ndarray]:
    return {"image": views.fit(views.decode(example["image"]), px)[..., None]}


def _fetch(values: jax.Array) -> np.ndarray:
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
