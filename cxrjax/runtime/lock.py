"""One owner of a work folder: a second start of the same command would destroy what the first one is writing.

The owner holds a lock of the operating system on <workdir>/owner.json, which ends with the process however it ends,
and touches the file every few seconds. On the same machine the process tells whether the owner lives. From another
machine the file does: disks of networks do not always pass locks on, so an owner elsewhere is taken for dead when its
file was not touched for `STALE_S` seconds. A job that was put on another machine after a crash waits for that long.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cxrjax import parallel
from cxrjax.runtime import hosts

FILE = "owner.json"
BEAT_S = 10
STALE_S = 90
"""Seconds without a sign of life after which an owner on another machine is taken for dead."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: dict[Path, "_Owner"] = {}


class InUse(ValueError):
    """Another process owns the work folder; the message says which, and since when."""


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Owns `workdir` (made if missing) for as long as the context lasts; with several hosts the first one does it.

    Raises InUse on all hosts where another process has it.
    """
    workdir = Path(workdir).absolute()
    owner, refused = None, None
    if hosts.is_first():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            owner = _take(workdir)
        except (InUse, OSError) as error:
            refused = error
    if parallel.any_process(refused is not None):
        raise refused or InUse(f"{workdir} is in use, or cannot be written to, as the first host says")
    try:
        hosts.check_shared(lambda: _nonce(workdir), workdir)
        yield
    finally:
        if owner is not None:
            owner.release()


def check(folder: Path) -> None:
    """Raises InUse where this process had the folder, or one above it, and lost it: it was stopped for too long."""
    folder = Path(folder).absolute()
    for place in (folder, *folder.parents):
        if place in _held and _held[place].lost:
            raise InUse(f"{_held[place].lost}. This process was stopped for so long that it counted as dead: it ends")


def lose(workdir: Path, said: str) -> None:
    """Makes `check` raise, because of what `said` tells, for a folder that this process holds."""
    if (owner := _held.get(Path(workdir).absolute())) is not None:
        owner.lost = said


class _Owner:
    def __init__(self, workdir: Path, descriptor: int, nonce: str):
        self.workdir, self.descriptor, self.nonce, self.lost = workdir, descriptor, nonce, ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="owner", daemon=True)
        self._thread.start()
        _held[workdir] = self

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a disk that is away for a while
                now = _read(self.descriptor)
                if now and now.get("nonce") != self.nonce:
                    self.lost = sentence(self.workdir, now)
                    return
                os.utime(self.descriptor)

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        del _held[self.workdir]
        with contextlib.suppress(OSError):
            if not self.lost:
                os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)


def _take(workdir: Path) -> _Owner:
    if workdir in _held:
        raise InUse(f"{workdir} is in use by this process")
    descriptor = os.open(workdir / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        locks = _lock(workdir, descriptor)
        _wait_for_death(workdir, descriptor, locks)
        nonce = uuid.uuid4().hex
        _write(descriptor, identity() | {"nonce": nonce})
        if not locks:  # another start may have seen the same dead owner
            time.sleep(1)
            if (now := _read(descriptor)).get("nonce") != nonce:
                raise InUse(sentence(workdir, now))
    except BaseException:
        os.close(descriptor)
        raise
    return _Owner(workdir, descriptor, nonce)


def _lock(workdir: Path, descriptor: int) -> bool:
    """Locks the file; False where the disk has no locks. Raises InUse where another process has locked it."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise InUse(sentence(workdir, _read(descriptor))) from None
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _wait_for_death(workdir: Path, descriptor: int, locks: bool) -> None:
    """Returns when the owner that the file names is dead; raises InUse when it shows a sign of life."""
    owner, me = _read(descriptor), identity()
    if not owner or not owner.get("pid"):
        return
    here = owner.get("boot") == me["boot"] and bool(me["boot"])
    if here and locks and owner["pid"] != os.getpid():
        return  # who has locked a file of this machine, in whatever container, has it as long as he lives
    if all(owner.get(key) == me[key] for key in ("host", "boot", "namespace")):
        if owner["pid"] != os.getpid() and (locks or not _alive(owner)):
            return
        raise InUse(sentence(workdir, owner))
    seen, waited = os.fstat(descriptor).st_mtime_ns, False
    while (left := STALE_S - _age_s(workdir, descriptor)) > 0:
        if not waited:
            print(f"{sentence(workdir, owner)} If it gives no sign of life for {left:.0f} s, it is dead.", flush=True)
            waited = True
        time.sleep(min(1, left))
        if os.fstat(descriptor).st_mtime_ns != seen:
            raise InUse(sentence(workdir, _read(descriptor) or owner))


def _age_s(workdir: Path, descriptor: int) -> float:
    """Seconds since the file was touched, by the clock of the disk: those of two machines differ."""
    probe = workdir / f".{FILE}.{os.getpid()}"
    probe.write_text("")
    try:
        return probe.stat().st_mtime - os.fstat(descriptor).st_mtime
    finally:
        probe.unlink()


def identity() -> dict[str, Any]:
    """What an owner says of itself."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "namespace": _namespace(),
        "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
        "command": " ".join(sys.argv),
    }


def _alive(owner: dict) -> bool:
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return owner.get("started") == _started(owner["pid"])


def _started(pid: int) -> str:
    """When a process began, in ticks since the machine did; "" where the system does not say."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _namespace() -> str:
    """Of process numbers: two containers on one machine may have the same ones."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _read(descriptor: int) -> dict:
    try:
        found = json.loads(os.pread(descriptor, 65536, 0))
        return found if isinstance(found, dict) else {}
    except ValueError:
        return {}


def _nonce(workdir: Path) -> str:
    owner = _held.get(workdir)  # whoever opens and closes a file loses his locks on it
    if owner is not None:
        return owner.nonce
    try:
        return json.loads((workdir / FILE).read_text()).get("nonce", "")
    except (OSError, ValueError):
        return ""


def _write(descriptor: int, content: dict) -> None:
    text = json.dumps(content, indent=1).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))
    os.fsync(descriptor)


def sentence(workdir: Any, owner: dict) -> str:
    """Who has a work folder, and what to do."""
    who = f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown machine')}"
    return (
        f"{workdir} is in use by {who} since {owner.get('since', 'an unknown time')} ({owner.get('command', '?')}): "
        "wait until it is done or stop it, or choose another --workdir."
    )
