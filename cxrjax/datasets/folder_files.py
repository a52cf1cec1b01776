"""The files of a user's folder: which are pictures, and which one a table means."""

import os
import unicodedata
from pathlib import Path

from cxrjax.datasets import files
from cxrjax.datasets.manifest import listed
from cxrjax.datasets.mapping import MappingError
from cxrjax.imaging import reader


class Files:
    """The files below a folder, found by path, or by the end of it where one picture alone has that.

    paths: every file. pictures: those that a name or, for DICOM, the first bytes tell. elsewhere: the pictures that
    were not found where they were looked for. Names that look the same are the same, however Unicode spells them.
    Raises MappingError where raw is no folder.
    """

    def __init__(self, raw: Path):
        if not raw.is_dir():
            what = "is not a folder" if raw.exists() else "does not exist"
            raise MappingError(f"The raw folder {raw} {what}; give the folder that holds the pictures.")
        self.raw = raw
        self.paths = files.scanned(raw)
        # A raw .img is JSRT's, of which a folder needs a table: many other things end in .img.
        self.pictures = [path for path in self.paths if reader.is_picture(raw / path) and path[-4:].lower() != ".img"]
        self.elsewhere: set[str] = set()
        self._by_look: dict[str, list[str]] = {}
        for path in self.paths:
            self._by_look.setdefault(_look(path), []).append(path)
        self._by_name: dict[str, list[str]] = {}
        for path in self.pictures:
            self._by_name.setdefault(_look(path).split("/")[-1], []).append(path)

    def there(self, given: str) -> tuple[str | None, str]:
        """(the path below the raw folder that is given, or None; why there is none)."""
        path = os.path.normpath(given.replace("\\", "/"))
        if os.path.isabs(path) and Path(path).is_relative_to(self.raw.absolute()):
            path = Path(path).relative_to(self.raw.absolute()).as_posix()
        same = self._by_look.get(_look(path), [])
        if path in same or len(same) == 1:
            return (path if path in same else same[0]), ""
        if same:
            return None, f"The table names it, and {len(same)} files have that name in other spellings of its letters."
        return None, "The table names it, but there is no such file."

    def find(self, given: str) -> tuple[str | None, str]:
        """As `there`, and for pictures also by what is given of the path, its first folders left out if need be.

        The name of its last folder has to be right, so that "train/1.png" never finds "test/1.png".
        """
        found, reason = self.there(given)
        if found is not None:
            return found, ""
        parts = _look(os.path.normpath(given.replace("\\", "/"))).strip("/").split("/")
        candidates = self._by_name.get(parts[-1], [])
        for first in range(max(len(parts) - 1, 1)):
            tail = "/" + "/".join(parts[first:])
            same = [path for path in candidates if f"/{_look(path)}".endswith(tail)]
            if len(same) == 1:
                self.elsewhere.add(same[0])
                return same[0], ""
            if same:
                return None, f"The table names it, and {len(same)} files have that name: {listed(same)}."
        return None, reason


def _look(path: str) -> str:
    """The same text for all spellings of a path that look the same."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)
