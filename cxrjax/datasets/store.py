"""Encoded pictures waiting to be written as a set: one SQLite file that survives the converter being killed."""

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from cxrjax.datasets import writer
from cxrjax.datasets.encode import Encoded

COMMIT_SECONDS = 2.0


class Store:
    """Encoded pictures by key. A second conversion of the same set is kept out while the store is open."""

    def __init__(self, path: Path, data_dir: Path):
        self._data_dir = data_dir
        self._committed = time.monotonic()
        try:
            self._connection = sqlite3.connect(path, timeout=0)
            self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._connection.execute("BEGIN EXCLUSIVE")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS encoded (key TEXT PRIMARY KEY, image BLOB, masks BLOB, record TEXT)"
            )
            self._connection.commit()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ValueError(f"Another conversion of this set is running: it holds {path}.") from None
            raise self._output_error(error) from None

    def records(self) -> Iterator[tuple[str, Encoded]]:
        """Every key with its record, the picture and masks themselves left empty."""
        for key, record in self._connection.execute("SELECT key, record FROM encoded"):
            yield key, _encoded(b"", b"", record)

    def put(self, key: str, encoded: Encoded) -> None:
        """Stores a picture; it is safe on disk about two seconds later. Raises OutputError."""
        sizes = [None if mask is None else len(mask) for mask in encoded.masks]
        row = (key, encoded.image, b"".join(filter(None, encoded.masks)), json.dumps((sizes, *encoded[2:])))
        try:
            self._connection.execute("REPLACE INTO encoded VALUES (?, ?, ?, ?)", row)
        except sqlite3.OperationalError as error:
            raise self._output_error(error) from None
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Makes everything that was put safe on disk. Raises OutputError."""
        try:
            self._connection.commit()
        except sqlite3.OperationalError as error:
            raise self._output_error(error) from None
        self._committed = time.monotonic()

    def get(self, key: str) -> Encoded:
        """The picture of a key."""
        query = "SELECT image, masks, record FROM encoded WHERE key = ?"
        return _encoded(*self._connection.execute(query, (key,)).fetchone())

    def close(self) -> None:
        """Keeps what was put and lets other conversions in."""
        try:
            self._connection.commit()
        except sqlite3.OperationalError:
            self._connection.rollback()  # the disk is full: the last seconds' pictures are encoded again next time
        self._connection.close()

    def _output_error(self, error: sqlite3.Error) -> OSError:
        return writer.output_error(self._data_dir, OSError(str(error)))


def _encoded(image: bytes, masks: bytes, record: str) -> Encoded:
    sizes, *shapes, fingerprint, header, steps, mask_problems = json.loads(record)
    height, width, source_height, source_width = shapes
    cut, start = [], 0
    for size in sizes:
        cut.append(None if size is None else masks[start : start + size])
        start += size or 0
    return Encoded(
        image,
        tuple(cut),
        height,
        width,
        source_height,
        source_width,
        fingerprint,
        header,
        tuple(steps),
        tuple(mask_problems),
    )
