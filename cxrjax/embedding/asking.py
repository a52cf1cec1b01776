"""What a table of features is asked: which pictures are like one, and which are there twice. Exact, in parts.

A part of a table lies in memory at a time, so that a million rows fit beside anything.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
from pyarrow import parquet

from cxrjax.embedding import growing
from cxrjax.evals import knn
from cxrjax.imaging import fingerprint

ROWS = 16384
ALIKE = 0.99
"""Cosine of centred features from which on the nearest other picture counts as a copy."""


class Copy(NamedTuple):
    """Two pictures that may be one. bits: in which their fingerprints differ, of 1024. cosine: of centred features.

    how: what tells, "fingerprint", "features" or "both".
    """

    path: str
    other: str
    bits: int
    cosine: float
    how: str


def check(file: Path) -> None:
    """Raises ValueError where there is no table of features to ask, in a sentence."""
    if not file.is_file():
        raise ValueError(f"There is no table {file} to ask; embed pictures into it first.")
    try:
        found = parquet.read_schema(file).names
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file} is no Parquet table ({error}); give the --output of an earlier run.") from None
    if lacking := [name for name in growing.COLUMNS.names if name not in found]:
        raise ValueError(
            f"{file} lacks the columns {', '.join(lacking)}, so it is no table of features, or of an older version; "
            "embed the pictures again."
        )
    if not parquet.read_metadata(file).num_rows:
        raise ValueError(f"{file} has no rows to ask; embed pictures into it first.")


def features(file: Path, rows: int = ROWS) -> Iterator[np.ndarray]:
    """The features of a table in parts, float32 b d."""
    with parquet.ParquetFile(file) as opened:
        for batch in opened.iter_batches(rows, columns=["embedding"]):
            column = batch.column(0)
            yield column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def nearest(file: Path, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows, m k each, of the pictures whose features are nearest to queries m d, nearest first.

    Of equal ones the earlier row comes first.
    """
    return _nearest(features(file), queries, count)


def copies(file: Path, alike: float = ALIKE) -> list[Copy]:
    """Pairs of pictures whose fingerprints are close, and each picture's nearest one where its cosine is `alike`.

    Features are centred by their mean over the table before, since all radiographs are somewhat alike. Time grows with
    the square of the rows.
    """
    column = parquet.read_table(file, columns=["path", "fingerprint"])
    paths, looks = (column[name].to_pylist() for name in ("path", "fingerprint"))
    found = {(i, j) for i, j, _ in _close(looks)}
    if not paths:
        return []
    middle = np.sum([part.sum(axis=0, dtype=np.float64) for part in features(file)], axis=0) / len(paths)
    by_features, start = set(), 0
    for part in features(file, fingerprint.BLOCK):
        rows = np.arange(start, start + len(part))
        others = (other - middle for other in features(file))
        cosine, place = _nearest(others, part - middle, 2)
        # The nearest is the picture itself, unless a copy has the very same features.
        of_other = np.argmax(place != rows[:, None], axis=1)
        for row, column in zip(rows.tolist(), of_other.tolist(), strict=True):
            at = row - start
            if place[at, column] != row and cosine[at, column] >= alike:
                by_features.add(tuple(sorted((row, int(place[at, column])))))
        start += len(part)
    pairs = sorted(found | by_features)
    cosines = _cosines(file, pairs, middle)
    how = {(True, True): "both", (True, False): "fingerprint", (False, True): "features"}
    told = [how[pair in found, pair in by_features] for pair in pairs]
    return [
        Copy(paths[i], paths[j], fingerprint.distance(looks[i], looks[j]), float(cosine), by)
        for (i, j), cosine, by in zip(pairs, cosines, told, strict=True)
    ]


def _close(looks: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """As `fingerprint.pairs` of a list with itself, each pair once."""
    for start in range(0, len(looks), fingerprint.BLOCK):
        for i, j, bits in fingerprint.pairs(looks[start : start + fingerprint.BLOCK], looks[start:]):
            if i < j:
                yield start + i, start + j, bits


def _nearest(parts: Iterator[np.ndarray], queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    queries, start = knn.unit(queries), 0
    cosine, place = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    for part in parts:
        rows = np.broadcast_to(np.arange(start, start + len(part)), (len(queries), len(part)))
        cosine = np.concatenate([cosine, queries @ knn.unit(part).T], axis=1)
        place = np.concatenate([place, rows], axis=1)
        if count < cosine.shape[1]:
            best = np.sort(np.argpartition(-cosine, count - 1, axis=1)[:, :count], axis=1)
            cosine, place = (np.take_along_axis(values, best, axis=1) for values in (cosine, place))
        start += len(part)
    order = np.argsort(-cosine, axis=1, kind="stable")
    return np.take_along_axis(cosine, order, axis=1), np.take_along_axis(place, order, axis=1)


def _cosines(file: Path, pairs: Sequence[tuple[int, int]], middle: np.ndarray) -> np.ndarray:
    """The cosine of the centred features of each pair of rows."""
    wanted, start = sorted({row for pair in pairs for row in pair}), 0
    kept: dict[int, np.ndarray] = {}
    for part in features(file):
        here = [row for row in wanted if start <= row < start + len(part)]
        kept |= zip(here, knn.unit(part[[row - start for row in here]] - middle), strict=True)
        start += len(part)
    return np.array([kept[a] @ kept[b] for a, b in pairs])
