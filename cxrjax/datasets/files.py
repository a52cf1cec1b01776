"""The files below a folder."""

import os
from pathlib import Path


def below(folder: Path) -> list[str]:
    """Paths of all files below the folder, relative and with "/", in order; hidden ones are left out.

    Links are followed, each folder once, so that links in a circle do no harm.
    """
    paths = []
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        identity = os.stat(place)
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        relative = os.path.relpath(place, folder).replace(os.sep, "/")
        prefix = "" if relative == "." else f"{relative}/"
        paths += [prefix + name for name in names if not name.startswith(".")]
    return sorted(paths)
