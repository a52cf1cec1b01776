"""What killed processes left half-written in a work folder."""

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

_UNFINISHED = re.compile(r"\..+\.(\d+)")  # .<name>.<process>, which is renamed to <name> when it is whole
_QUIET_S = 60


def tidy(workdir: Path) -> list[Path]:
    """Removes them and returns which; to be called by the owner of the folder, before anything is written there.

    A file of a process that lives, or on another machine may live, stays: a checkpoint can be judged during training.
    """
    found = [path for path in Path(workdir).glob(".*") if _is_dead(path)]
    found += [path for path in (Path(workdir) / "evals").rglob(".*") if _is_dead(path)]
    found += [path for path in (Path(workdir) / "checkpoints").glob("*.incomplete") if path.is_dir()]
    found += [*Path(workdir).glob("*.partial"), *(Path(workdir) / "checkpoints").glob("*/*.json.partial")]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return found


def _is_dead(path: Path) -> bool:
    named = _UNFINISHED.fullmatch(path.name)
    try:
        if not named or time.time() - path.stat().st_mtime < _QUIET_S:
            return False
        os.kill(int(named[1]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False
