"""SIGTERM and Ctrl-C: a run saves its state first, and leaves then."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Interruption:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def asked(self) -> bool:
        return self.signal is not None

    @property
    def name(self) -> str:
        """Of the signal; where only another host got one, it is said so."""
        return _NAMES[signal.Signals(self.signal)] if self.signal is not None else "a signal on another host"

    @property
    def code(self) -> int:
        """What a shell expects as the exit code: 143 after SIGTERM, 130 after Ctrl-C."""
        return 128 + (self.signal or signal.SIGTERM)

    def _note(self, number: int, _) -> None:
        if number == signal.SIGINT:
            if self.signal == signal.SIGINT:
                for child in multiprocessing.active_children():  # they ignore Ctrl-C, see `ignore`
                    child.kill()
                os._exit(130)  # what is on disk is whole at any moment
            _say("Ctrl-C: the run saves its state and stops; once more stops it at once, without")
        self.signal = number


@contextlib.contextmanager
def caught() -> Iterator[Interruption]:
    """Notes SIGTERM and Ctrl-C for as long as the context lasts; a second Ctrl-C ends the process at once.

    Only the main thread may catch signals; in another one nothing is noted.
    """
    found = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {number: signal.signal(number, found._note) for number in _NAMES}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore(*_: object) -> None:
    """For worker processes: a terminal sends Ctrl-C to all processes, and the first one decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"\n{text}\n".encode())
