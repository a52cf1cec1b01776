"""Reading an official download: its tables and pictures found by name, and sentences for what is not there."""

import fnmatch
import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

import pandas

from cxrjax.datasets import catalogue, files
from cxrjax.datasets.files import decoded
from cxrjax.datasets.manifest import Box, Problem, listed
from cxrjax.datasets.schema import ABSENT, NOT_MENTIONED, PRESENT, UNCERTAIN
from cxrjax.datasets.table import read_table

VAL_SHARE = 0.1
OLDEST = 120  # years
_LABELS = {
    **dict.fromkeys(("1", "1.0"), PRESENT),
    **dict.fromkeys(("0", "0.0"), ABSENT),
    **dict.fromkeys(("-1", "-1.0"), UNCERTAIN),
    "": NOT_MENTIONED,
}


class LayoutError(ValueError):
    """A folder that is not the official download of the set."""


class Release:
    """The folder of an official download, searched once.

    paths: every file below it, relative. Raises LayoutError where raw is no folder.
    """

    def __init__(self, name: str, raw: str | Path):
        self.name, self.raw = name, Path(raw)
        if not self.raw.is_dir():
            what = "is a file, not a folder: unpack it, and" if self.raw.exists() else "does not exist;"
            raise LayoutError(f"The raw folder {raw} {what} give the folder of the download. {self.where()}")
        self.paths = files.scanned(self.raw)
        if not self.paths:
            raise LayoutError(f"The raw folder {raw} is empty. {self.where()}")

    def table(self, *names: str) -> tuple[pandas.DataFrame, Path]:
        """The first of the tables that is there, and its path; cells are stripped texts, "" where blank.

        names: file names, with * if they vary, as they lie in the download or in any folder below, plain or gzipped.
        Raises LayoutError with the tables that are there, TableError for one that cannot be read.
        """
        path = self._first(names)
        if path is None:
            raise LayoutError(self._missing(names, (".csv", ".csv.gz", ".txt", ".json", ".zip"), "tables"))
        return read_table(path), path

    def optional_table(self, *names: str) -> tuple[pandas.DataFrame, Path] | None:
        """As `table`, but None where there is none."""
        path = self._first(names)
        return None if path is None else (read_table(path), path)

    def lines(self, *names: str) -> tuple[list[str], Path]:
        """The lines of the first of the list files that is there, stripped, without blank ones, and its path."""
        path = self._first(names)
        if path is None:
            raise LayoutError(self._missing(names, (".txt",), "lists"))
        text = decoded(path.read_bytes())[0]
        return [line.strip() for line in text.splitlines() if line.strip()], path

    def find(self, *names: str) -> Path | None:
        """The first of the files that is there, by name or path below the folder; * may stand for a part."""
        return self._first(names)

    def files(self, *suffixes: str, under: str = "") -> dict[str, Path]:
        """Files with the suffixes by their bare name; a name that is there twice keeps its first place.

        under: only those with this folder in their path. Raises LayoutError where there is none.
        """
        found = self.optional_files(*suffixes, under=under)
        if not found:
            place = f"folder {under!r} below {self.raw}" if under else f"raw folder {self.raw}"
            raise LayoutError(f"The {place} has no {' or '.join(suffixes)} file; {self._there()}. {self.where()}")
        return found

    def optional_files(self, *suffixes: str, under: str = "") -> dict[str, Path]:
        """As `files`, but {} where there is none."""
        found: dict[str, Path] = {}
        for path in self.paths:
            pure = PurePosixPath(path)
            if path.lower().endswith(suffixes) and (not under or under in pure.parts[:-1]):
                found.setdefault(pure.name, self.raw / path)
        return found

    def _first(self, names: Collection[str]) -> Path | None:
        for name in names:
            wanted = re.compile(
                f"(.*/)?{fnmatch.translate(name)}|(.*/)?{fnmatch.translate(name + '.gz')}", re.IGNORECASE
            )
            hits = [path for path in self.paths if wanted.fullmatch(path)]
            if hits:
                return self.raw / min(hits, key=lambda path: (path.count("/"), path))
        return None

    def _missing(self, names: Collection[str], suffixes: tuple[str, ...], what: str) -> str:
        there = [path for path in self.paths if path.lower().endswith(suffixes)]
        near = f"{what} there: {listed(there)}" if there else self._there()
        return f"{self.raw} has no {' or '.join(names)} (plain or .gz); {near}. {self.where()}"

    def _there(self) -> str:
        suffixes = Counter(PurePosixPath(path).suffix.lower() or "no suffix" for path in self.paths)
        held = "it holds " + ", ".join(f"{count} x {suffix}" for suffix, count in suffixes.most_common(5))
        archives = [path for path in self.paths if path.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz"))]
        return f"{held}; unpack {listed(archives)} first" if archives else held

    def where(self) -> str:
        """Which folder to give, as a sentence."""
        return f"Give the folder of the official download of {self.name}: {catalogue.SETS[self.name].where}."


def is_validation(name: str, patient_id: str, share: float = VAL_SHARE) -> bool:
    """Whether a patient of an official train part goes to validation; a hash of the two names decides."""
    digest = hashlib.sha256(f"{name}|validation|{patient_id}".encode()).hexdigest()
    return int(digest[:8], 16) / 2**32 < share


def sex(text: str) -> str:
    """The sex in a cell such as "Female", "m" or "Unknown", as "F", "M" or ""."""
    return {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M"}.get(text.upper(), "")


def years(text: str) -> int:
    """Whole years of an age such as "57", "57.0", "057Y" or "018M" (months, W weeks, D days); -1 for anything else.

    Ages over 120, which several releases have by mistake, are unknown too.
    """
    match = re.fullmatch(r"(\d{1,4})(?:\.0*)?\s*([YMWD]?)", text.strip().upper())
    if match is None:
        return -1
    age = int(match[1]) // {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}[match[2]]
    return age if age <= OLDEST else -1


def labels(cells: Sequence[str]) -> tuple[int, ...] | None:
    """The labels in cells of the CheXpert labeller: 1.0, 0.0, -1.0 (uncertain) or blank; None if a cell is not one."""
    found = [_LABELS.get(cell) for cell in cells]
    known = tuple(label for label in found if label is not None)
    return known if len(known) == len(found) else None


def first_odd_label(cells: Sequence[str]) -> str:
    """The first of the cells that is no label, for a message."""
    return next(cell for cell in cells if cell not in _LABELS)


def box(label: str, cells: Sequence[str]) -> Box | None:
    """The box of four cells x, y, width, height; None where they are not four numbers."""
    try:
        x, y, width, height = (float(cell) for cell in cells)
    except ValueError:
        return None
    return Box(label, x, y, width, height) if all(map(math.isfinite, (x, y, width, height))) else None


def missing_picture(name: str) -> Problem:
    """The problem of a picture that a table names and the download lacks."""
    return Problem(name, "missing", "The table names it, but there is no such file.")


def completeness(found: int, wanted: int) -> tuple[str, ...]:
    """What to say of a download in which pictures are missing, as the manifest's remarks."""
    if found == wanted:
        return ()
    return (
        f"{wanted - found} of the {wanted} pictures that the tables name are missing: the download is not complete. "
        "Fetch the rest, or write what is there with --allow-bad.",
    )
