"""What the disk refuses, as one sentence, and what is no disk."""

import errno
import logging
import os
import re
from collections.abc import Callable
from typing import Any


class CheckpointNotWritten(OSError):
    """The disk refused a checkpoint: full, read-only, no permission."""


class Reporting:
    """Turns what the file system refused, in this thread or Orbax's, into one sentence: `with Reporting(said):`."""

    def __init__(self, said: Callable[[], str]):
        self.said = said

    def __enter__(self) -> "Reporting":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None and _error_number(error) is not None:
            raise not_written(self.said(), error) from None


def not_written(said: str, error: BaseException) -> CheckpointNotWritten:
    """`said`, then why in the words of the operating system, then what to do."""
    advice = {
        errno.ENOSPC: "free some space, or keep fewer checkpoints, and start again",
        errno.EDQUOT: "free some space, or keep fewer checkpoints, and start again",
    }
    number = _error_number(error) or errno.EIO
    what = advice.get(number, "give a work folder that can be written to")
    return CheckpointNotWritten(f"{said}: {os.strerror(number)}; {what}")


def _error_number(error: BaseException) -> int | None:
    """The errno of an OSError, or of a TensorStore error, which is a ValueError with the number in its text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None


def quieten_orbax() -> None:
    """Orbax logs an exception of its threads a dozen times with full tracebacks, and then raises it as well."""
    logger = logging.getLogger("absl")
    if not any(isinstance(one, _OrbaxTracebacks) for one in logger.filters):
        logger.addFilter(_OrbaxTracebacks())


class _OrbaxTracebacks(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)


def check_local(folder: str | os.PathLike) -> None:
    """Raises ValueError for the address of a bucket, such as gs://…, which would become a local folder of that name."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(folder)):
        raise ValueError(
            f"{folder} is an address, and only a run of one host can work in a bucket (gs://BUCKET/FOLDER): copy the "
            "folder to a disk, or mount the bucket (gcsfuse does for gs://) and give the folder that it is mounted at"
        )
