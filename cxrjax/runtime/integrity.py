"""Whether a checkpoint is what was written: a digest of each file of a step, of its run's config, and whose run it is.

The digests are written right after a step was committed. A process that is killed in between leaves a step without
them: it is read all the same, with a remark, and gets its digests when its own run has read it.
"""

import hashlib
import json
import logging
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

DIGESTS = "digests.json"
SCORES = "scores.json"
RUN = "run.json"
_CHUNK = 2**22


def run_of(root: epath.Path) -> str | None:
    """The name of the run whose checkpoints are in `root`; None where they are of an older version, or elsewhere."""
    try:
        return json.loads((root / RUN).read_text())["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def name_run(root: epath.Path) -> None:
    """Gives the checkpoints in `root` a name that no other run has, unless they have one."""
    if run_of(root) is None:
        replace(root / RUN, {"run": uuid.uuid4().hex})


def write(step: epath.Path) -> None:
    """Writes the digests of a committed step into its folder."""
    content = {"run": run_of(step.parent), "config": _config(step), "files": _digests(step, _files(step))}
    replace(step / DIGESTS, content)


def bind(step: epath.Path, *, to_config: bool) -> None:
    """Lets a step that has digests be of the config.json that is there now, or of whichever is."""
    if known := _read(step):
        replace(step / DIGESTS, known | {"config": _config(step) if to_config else None})


def is_known(step: epath.Path) -> bool:
    """Whether a step has digests."""
    return (step / DIGESTS).exists()


def foreign(step: epath.Path) -> list[str]:
    """What tells that a step is not of the run that it lies in, as sentences; [] where it is, or nothing is known."""
    try:
        known, said = _read(step), []
    except ValueError:
        return []  # a fault, which `faults` tells of
    if not known:
        return said
    here = run_of(step.parent)
    if here and known["run"] and here != known["run"]:
        said.append(f"{step.name} was written by another run, {known['run'][:8]}, than that of this folder, {here[:8]}")
    config = _config(step)
    if config and known["config"] and config != known["config"]:
        said.append(
            f"{step.parent.parent / 'config.json'} is not the one that it was written with: put that back, or delete "
            f"{step / DIGESTS} to take it as it is"
        )
    return said


def faults(step: epath.Path) -> list[str]:
    """What is wrong with the files of a step, as sentences that name them; [] where nothing is, or nothing is known."""
    try:
        known = _read(step)
    except ValueError:
        return [f"{DIGESTS} cannot be read; delete it to take the step as it is"]
    if not known:
        return []
    there = list(_files(step))
    found = _digests(step, [name for name in there if name in known["files"]])
    lost = [f"{name} is missing" for name in known["files"] if name not in found]
    return lost + [f"{name} is not what was written" for name in found if found[name] != known["files"][name]]


def scores(step: epath.Path) -> dict[str, float]:
    """The metrics that a step was given after it was saved."""
    try:
        return json.loads((step / SCORES).read_text())
    except (OSError, ValueError):
        return {}


def remark(step: epath.Path) -> None:
    """Says that a step has no digests, so that its files are taken as they are."""
    logging.warning(
        "%s has no %s, since it is of an older version or its run was killed: its files are not checked", step, DIGESTS
    )


def replace(file: Any, content: Any) -> None:
    """Writes JSON so that a reader finds the old file or the new one, never a part."""
    partial = file.parent / f"{file.name}.partial"
    partial.write_text(json.dumps(content, indent=1))
    partial.replace(file)


def _read(step: epath.Path) -> dict:
    """What `write` wrote, or {} where there is nothing. Raises ValueError where it is damaged."""
    try:
        known = json.loads((step / DIGESTS).read_text())
        return {"run": known["run"], "config": known["config"], "files": dict(known["files"])}
    except FileNotFoundError:
        return {}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{step / DIGESTS} is damaged") from error


def _config(step: epath.Path) -> str | None:
    """The digest of the config.json two folders above a step, whatever its blanks; None where there is none."""
    try:
        text = (step.parent.parent / "config.json").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    try:
        text = json.dumps(json.loads(text), sort_keys=True)
    except ValueError:
        pass
    return hashlib.sha256(text.encode()).hexdigest()


def _files(folder: epath.Path, above: str = "") -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path, f"{above}{path.name}/")
        elif above or path.name.removesuffix(".partial") not in (DIGESTS, SCORES):
            yield above + path.name


def _digests(step: epath.Path, names) -> dict[str, str]:
    names = list(names)
    with ThreadPoolExecutor(4) as threads:
        return dict(zip(names, threads.map(lambda name: _digest(step / name), names), strict=True))


def _digest(path: epath.Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
