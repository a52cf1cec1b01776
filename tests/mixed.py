"""Folders of small pictures of all kinds, some of them broken, and tables made of them that must be the same."""

import cv2
import numpy as np

from tests import dicom_files

SUFFIXES = ("png", "jpg", "dcm", "")
BROKEN = {
    "png": lambda data: data[: len(data) // 2],
    "jpg": lambda data: b"",
    "dcm": lambda data: data[:200],
    "": lambda data: data[:-100],
}


def names(count):
    return [f"{i:04d}.{SUFFIXES[i % 4]}".rstrip(".") for i in range(count)]


def write(folder, count, broken, side=24):
    """Writes so many PNG, JPEG and DICOM files, every count/broken-th of them broken, and returns the folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, name in enumerate(names(count)):
        file, suffix = folder / name, SUFFIXES[i % 4]
        picture = rng.integers(0, 256, (side, side + i % 3), dtype=np.uint8)
        if suffix in ("png", "jpg"):
            file.write_bytes(cv2.imencode(f".{suffix}", picture)[1].tobytes())
        else:
            dicom_files.write(file, picture)
        if (i + 1) * broken // count > i * broken // count:
            file.write_bytes(BROKEN[suffix](file.read_bytes()))
    return folder


def assert_same(output, expected):
    """The same bytes of the table, of what was unreadable and of patches."""
    for suffix in (".parquet", ".unreadable.csv"):
        assert output.with_suffix(suffix).read_bytes() == expected.with_suffix(suffix).read_bytes()
    ours, theirs = (
        {file.name: file.read_bytes() for file in found.with_suffix(".patches").glob("*")}
        for found in (output, expected)
    )
    assert ours == theirs
