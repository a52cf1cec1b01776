"""A work folder in a bucket: the run works in a folder of this machine, and a thread copies what changes to the bucket.

A run appends to files, renames folders and locks files, and objects of a bucket allow none of it. What is there can be
resumed at any moment: what tells of a step goes before the step, its digests go last, and only steps that have them are
fetched. The bucket says what the run is: what a machine has of an earlier start is replaced by what is there.

One machine has the run at a time. Its owner.json in the bucket is written anew every few seconds; one that does not
change for `lock.STALE_S` seconds is of a dead machine.
"""

import contextlib
import json
import logging
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from cxrjax.runtime import integrity, lock

_ADDRESS = re.compile(r"(gs|s3|az)://[^/]+/.+")
_STEP = re.compile(r"((?:.*/)?checkpoints/\d+)/")
_NOT_COPIED = re.compile(r"(.*/)?(\..*|.*\.partial|.*\.incomplete/.*|.*checkpoint-tmp.*)|evals/features/.*")
_PAUSE_S = 5


def is_address(folder: Any) -> bool:
    """Whether a work folder is in a bucket: gs://BUCKET/FOLDER, s3://… or az://…."""
    return bool(_ADDRESS.fullmatch(str(folder)))


def place(address: str, scratch: Path) -> Path:
    """The folder below `scratch` that a run in a bucket works in."""
    return scratch / re.sub(r"[^A-Za-z0-9._-]+", "-", address.rstrip("/"))


@contextlib.contextmanager
def mirrored(address: str, folder: Path) -> Iterator[None]:
    """Replaces what is in `folder` by what is in the bucket, and copies back what changes as long as the context lasts.

    To be called by the owner of `folder`. Raises lock.InUse where another machine has the run, OSError where the bucket
    cannot be read, and SystemExit(1) with a sentence, which starts a run again, where it lacks something at the end.
    """
    with _reported(f"{address} cannot be read"):
        mirror = _Mirror(address, Path(folder))
    try:
        yield
    finally:
        try:
            with _reported(f"what the run left in {folder} could not all be copied to {address}"):
                mirror.close()
        except OSError as error:
            raise SystemExit(f"error: {error}") from None


class _Mirror:
    def __init__(self, address: str, folder: Path):
        self.there, self.folder = epath.Path(address), folder
        self._nonce, self._beats, self._beaten, self._lost = uuid.uuid4().hex, 0, 0.0, False
        self._copied: dict[str, tuple[int, int]] = {}  # size and time of what the bucket has, by name
        _wait_for_death(self.there)
        self._beat()
        for name in _fetch(self.there, folder):
            (self.there / name).unlink()
        self._copied = _wanted(folder)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bucket", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        if not self._lost:
            self._push()
            (self.there / lock.FILE).unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._ended.wait(_PAUSE_S) and not self._lost:
            try:
                self._beat()
                self._push()
            except Exception as error:  # a network that is away for a while
                logging.warning("%s cannot be written to (%s): it is tried again", self.there, error)

    def _beat(self) -> None:
        """Says that this machine lives, or learns that another one took it for dead."""
        if self._lost or time.monotonic() - self._beaten < lock.BEAT_S:
            return
        if self._beats and (now := _owner(self.there)) and now.get("nonce") != self._nonce:
            self._lost = True
            lock.lose(self.folder, lock.sentence(self.there, now))
            return
        self._beats += 1
        self._beaten = time.monotonic()
        content = lock.identity() | {"nonce": self._nonce, "beats": self._beats}
        (self.there / lock.FILE).write_text(json.dumps(content, indent=1))

    def _push(self) -> None:
        here = _wanted(self.folder)
        changed = sorted((name for name in here if here[name] != self._copied.get(name)), key=_rank)
        gone = sorted(self._copied.keys() - here.keys(), key=_rank, reverse=True)
        again = [name for name in changed if _is_last(name) and name in self._copied]
        for name in again:  # of a step that was written once more: it is not whole until its files are copied
            (self.there / name).unlink(missing_ok=True)
        incomplete = set()
        for name in changed:
            self._beat()
            if self._lost:
                return
            if _is_last(name) and _step(name) in incomplete:
                continue
            try:
                _copy(self.folder / name, self.there / name)
            except FileNotFoundError:  # the run has removed it in the meantime
                incomplete.add(_step(name))
            else:
                self._copied[name] = here[name]
        for name in gone:
            (self.there / name).unlink(missing_ok=True)
            del self._copied[name]


def _fetch(there: epath.Path, folder: Path) -> list[str]:
    """Replaces what is in `folder`; returns names that were left in the bucket, of steps that are not whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name != lock.FILE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    names = [name for name in _files(there) if name != lock.FILE]
    whole = {_step(name) for name in names if _is_last(name)} | {""}
    for name in names:
        if _step(name) in whole:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _copy(there / name, folder / name)
    return [name for name in names if _step(name) not in whole]


def _wanted(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the files that belong into the bucket, of steps those that have digests."""
    found = {}
    for name in _files(epath.Path(folder)):
        if name != lock.FILE and not _NOT_COPIED.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                stat = (folder / name).stat()
                found[name] = (stat.st_size, stat.st_mtime_ns)
    whole = {_step(name) for name in found if _is_last(name)} | {""}
    return {name: stamp for name, stamp in found.items() if _step(name) in whole}


def _files(folder: epath.Path, above: str = "") -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                yield from _files(path, f"{above}{path.name}/")
            else:
                yield above + path.name


def _step(name: str) -> str:
    """ "checkpoints/7" of a file of that step; "" of one that is of none."""
    found = _STEP.match(name)
    return found[1] if found else ""


def _is_last(name: str) -> bool:
    return bool(_step(name)) and name == f"{_step(name)}/{integrity.DIGESTS}"


def _rank(name: str) -> tuple[bool, bool, str]:
    """What tells of steps, then their files, then their digests."""
    return bool(_step(name)), _is_last(name), name


def _copy(one: Any, other: Any) -> None:
    with one.open("rb") as source, other.open("wb") as target:
        shutil.copyfileobj(source, target, 2**22)


def _wait_for_death(there: epath.Path) -> None:
    """Returns when no machine has the run; raises lock.InUse when one that the bucket names shows a sign of life."""
    owner = _owner(there)
    if not owner:
        return
    print(f"{lock.sentence(there, owner)} If it gives no sign of life for {lock.STALE_S} s, it is dead.", flush=True)
    until = time.monotonic() + lock.STALE_S
    while time.monotonic() < until:
        time.sleep(min(1, lock.STALE_S))
        now = _owner(there)
        if not now:
            return
        if now != owner:
            raise lock.InUse(lock.sentence(there, now))


def _owner(there: epath.Path) -> dict:
    try:
        found = json.loads((there / lock.FILE).read_text())
        return found if isinstance(found, dict) else {}
    except (FileNotFoundError, ValueError):
        return {}


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turns what the client of the bucket raises into one sentence; clients raise whatever theirs do."""
    try:
        yield
    except lock.InUse:
        raise
    except ImportError as error:
        raise ValueError(f"{what}: {error}; pip install 'cxrjax[gcs]' has what gs:// needs") from None
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise OSError(f"{what}: {first}; see that the bucket exists and this machine may write to it") from error
