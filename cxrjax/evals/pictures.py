"""Pictures and masks of a set as the judges see them, fitted to a size once and then read without decoding.

<set's folder>/fitted/<split>-<px>-<what>-<stamp>.pixels    n h w uint8, in the order of the records
                      <the same>.sums                       n uint32, CRC-32 of a record's pixels, 0 where not written

All judges of all checkpoints read the same file of a split, whatever part of it they look at. A record's pixels are
filled in when they are first asked for. Several processes may do so at once, since they write the same. The stamp
stands for the set's files: what was kept of a set that has been converted again is removed. Pixels that a disk has
changed are made again. Where a file would be
larger than allowed, or the folder cannot be written, pictures are decoded each time.
"""

import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cxrjax.input import crops, masks, pipeline
from cxrjax.input.record_index import index, stamp
from cxrjax.input.source import Source
from cxrjax.sizes import Px, said, sides

PREPROCESSING = "fit-1"
"""Names what `crops.fit` does to a picture; a change of its pixels needs a new name, or what was kept stays valid."""
IMAGE = "image"
WHOLE, PADDED = "whole", "padded"
LIMIT_BYTES = 16 * 2**30
UNKNOWN = 127
"""In masks, which are 255 inside and 0 outside: every pixel of a picture without a mask."""


def batches(
    source: Source,
    px: Px,
    batch_size: int,
    what: str = IMAGE,
    limit_bytes: float = LIMIT_BYTES,
    sees: str = IMAGE,
) -> Iterator[np.ndarray]:
    """Every record once, in the order of the source: uint8 b h w 1; the last batch repeats the last record.

    px: height and width, see `sizes`. what: a word of `crops.fit_as`, such as "image", or "whole", the picture without
    its aspect as detectors see it; or a mask as `input.masks` knows it: 255 inside, 0 outside, UNKNOWN where the
    picture has none.
    limit_bytes: what would be larger is not kept. sees: of a mask, how its picture is fitted, as for `crops.fit_as`.
    """
    change = partial(fitted, px=px, what=what, sees=sees)
    kept = _kept(source, px, what if sees == IMAGE or _is_picture(what) else f"{what}+{sees}", change, limit_bytes)
    if kept is None:
        for batch, _ in pipeline.evaluation_batches(source, change, batch_size):
            yield batch["pixels"]
        return
    for start in range(0, len(source), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(source) - 1)
        yield kept.read(source, source.positions[rows], change)[..., None]


def _is_picture(what: str) -> bool:
    return what.startswith(IMAGE) or what in (WHOLE, PADDED)


def fitted(
    example: Mapping[str, Any], rng: np.random.Generator, px: Px, what: str, sees: str = IMAGE
) -> dict[str, np.ndarray]:
    """The pixels of one record, h w 1, as `pipeline.evaluation_batches` wants them."""
    image = crops.decode(example["image"])
    if _is_picture(what):
        return {"pixels": crops.fit_as(image, px, what)[..., None]}
    inside, known = masks.mask(example, what, image.shape)
    _, inside = masks.together(image, inside, partial(crops.fit_as, px=px, how=sees))
    return {"pixels": (inside if known else np.full_like(inside, UNKNOWN))[..., None]}


class _Kept(NamedTuple):
    """The files of a split: pixels n h w; sums n, see `_sum`, with 0 where a record's pixels are not written."""

    folder: Path
    stem: str
    pixels: np.ndarray
    sums: np.ndarray

    def read(self, source: Source, positions: np.ndarray, change: Callable) -> np.ndarray:
        """The pixels of some records, b h w; what a disk has changed is made again by `change`. Raises OSError."""
        found = self.pixels[positions]
        wrong = [row for row, position in enumerate(positions) if _sum(found[row]) != self.sums[position]]
        if wrong:
            logging.warning("%d kept pictures of %s are damaged and made again", len(wrong), self.folder.parent)
            self.fill(source, np.unique(positions[wrong]), change)
            found = self.pixels[positions]
        return found

    def fill(self, source: Source, missing: np.ndarray, change: Callable) -> None:
        """Decodes some records and writes their pixels. Raises OSError where the disk refuses them."""
        rest = Source(source.converted_set, source.split, missing)
        size, done = min(64, len(missing)), 0
        for batch, valid in pipeline.evaluation_batches(rest, change, size):
            rows = missing[done : done + size]
            pixels = batch["pixels"][valid, ..., 0]
            # Not through the map: where a disk is full, writing to one ends the process.
            _write(self.folder / f"{self.stem}.pixels", rows, pixels)
            # Only now: a reader of the same file takes what is marked.
            _write(self.folder / f"{self.stem}.sums", rows, np.array([_sum(one) for one in pixels], np.uint32))
            done += size


def _kept(source: Source, px: Px, what: str, change: Callable, limit_bytes: float) -> _Kept | None:
    """The files in which all records of the source are; None where nothing can be kept."""
    (height, width), size = sides(px), said(px).replace(" ", "")
    name = f"{source.split}-{size}-{what}"
    count = len(index(source.converted_set, source.split))
    if count * height * width > limit_bytes:
        return None
    folder = source.converted_set.directory / "fitted"
    stem = f"{name}-{PREPROCESSING}-{stamp(source.converted_set, source.split).decode()[:12]}"
    try:
        folder.mkdir(exist_ok=True)
        for old in folder.glob(f"{name}-*"):
            if not old.name.startswith(stem) or old.suffix not in (".pixels", ".sums"):
                old.unlink(missing_ok=True)
        files = (
            (folder / f"{stem}.pixels", np.uint8, (count, height, width)),
            (folder / f"{stem}.sums", np.uint32, (count,)),
        )
        kept = _Kept(folder, stem, *(_open(*file) for file in files))
        missing = np.unique(source.positions[kept.sums[source.positions] == 0])
        if len(missing):
            kept.fill(source, missing, change)
    except OSError as error:
        logging.warning("pictures of %s are decoded every time: %s", source.converted_set.name, error)
        return None
    return kept


def _sum(pixels: np.ndarray) -> int:
    """CRC-32 of a record's pixels, never 0."""
    return zlib.crc32(np.ascontiguousarray(pixels).data) or 1


def _write(path: Path, rows: np.ndarray, values: np.ndarray) -> None:
    with path.open("r+b") as file:
        for row, value in zip(rows, values, strict=True):
            os.pwrite(file.fileno(), value.tobytes(), int(row) * value.nbytes)
        os.fdatasync(file.fileno())


def _open(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with path.open("ab") as file:
        if os.fstat(file.fileno()).st_size != size:
            file.truncate(size)  # zeros, and on most file systems no space until they are written
    return np.memmap(path, dtype, "r+", shape=shape)
