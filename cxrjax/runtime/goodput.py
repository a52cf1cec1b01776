"""Where the time of a run goes: stepping, and all that is not stepping."""

import contextlib
import time
from collections.abc import Iterator, Mapping

KINDS: tuple[str, ...] = ("stepping", "opening", "compiling", "input", "judging", "saving", "restoring", "lost")
"""opening: sets, which may mean rendering a phantom, and tracing the model. input: the device had nothing to do until
the next batch came. lost: to restarts, what was computed and not kept."""
_WORDS = {"opening": "opening sets", "input": "waiting for input", "lost": "lost to restarts"}


class Goodput:
    """Seconds of a run by kind; all time that is not said to be of another kind counts as stepping."""

    def __init__(self) -> None:
        self._before = dict.fromkeys(KINDS, 0.0)
        self._spent = dict.fromkeys(KINDS, 0.0)
        self._began = time.monotonic()
        self._open: list[float] = []  # of spans around this one: seconds that were of spans inside of them
        self._window = (0.0, 0.0)

    @contextlib.contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """The time inside is of this kind, except for that of spans inside of it."""
        began = time.monotonic()
        self._open.append(0.0)
        try:
            yield
        finally:
            whole = time.monotonic() - began
            self._spent[kind] += whole - self._open.pop()
            if self._open:
                self._open[-1] += whole

    def add(self, kind: str, seconds: float) -> None:
        """Seconds that were measured elsewhere."""
        self._spent[kind] += seconds

    def resume(self, kept: Mapping[str, float], dropped: Mapping[str, float]) -> None:
        """Goes on from the seconds of earlier starts: of the newest record that is kept, and of one taken out after."""
        self._before |= {kind: kept.get(kind, 0.0) for kind in KINDS}
        self._before["lost"] += max(0.0, sum(dropped.values()) - sum(kept.values()))

    def seconds(self) -> dict[str, float]:
        """By kind, of all starts."""
        found = dict(self._spent)
        found["stepping"] += max(0.0, time.monotonic() - self._began - sum(self._spent.values()))
        return {kind: self._before[kind] + found[kind] for kind in KINDS}

    def waiting(self) -> float:
        """The share of the time since the last call that the device waited for input."""
        now = self.seconds()
        before, self._window = self._window, (now["input"], sum(now.values()))
        passed = self._window[1] - before[1]
        return min(1.0, (self._window[0] - before[0]) / passed) if passed > 0 else 0.0

    def sentence(self) -> str:
        """ "of 1:23:45: 91 % stepping, 5 % compiling, 4 % waiting for input"; those below 0.5 % are left out."""
        found = self.seconds()
        total = max(sum(found.values()), 1e-9)
        shares = [(seconds / total, _WORDS.get(kind, kind)) for kind, seconds in found.items()]
        said = ", ".join(f"{share:.0%} {word}".replace("%", " %") for share, word in shares if share >= 0.005)
        minutes, left = divmod(round(total), 60)
        return f"of {minutes // 60}:{minutes % 60:02}:{left:02}: {said}"
