"""What the commands that take a config share: the flags, and mistakes answered with a sentence."""

import contextlib
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

CONFIGS = Path("configs")
QUOTES = "'" + '"'
UNEXPECTED = (AttributeError, KeyError, TypeError, IndexError, ZeroDivisionError)
"""Errors that a setting of the wrong kind ends in, if no check has found it before."""


def run(main: Callable, doc: str | None, define: Callable[[], None] | None = None) -> None:
    """Parses --config (and what `define` adds) and calls main(config, name, flags); a mistake exits 2 with a sentence.

    name: the config file's stem with its words, "spcl-smoke". --debug shows the traceback as well.
    """
    sys.modules["__main__"].__doc__ = doc
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_bool("debug", False, "show the traceback of an error")
    if define:
        define()
    with contextlib.redirect_stdout(_Outlived(sys.stdout)), contextlib.redirect_stderr(_Outlived(sys.stderr)):
        _run(main)


def _run(main: Callable) -> None:
    debug = any(arg in ("--debug", "-debug", "--debug=true") for arg in sys.argv[1:])
    with _mistakes_as_sentences(debug, (ValueError, AttributeError, KeyError, TypeError, OSError, flags.Error)):
        _check_config_argument(sys.argv[1:])
        stray = flags.FLAGS(sys.argv)[1:]
        if stray:
            raise ValueError(f"unexpected arguments {stray}: everything is said as --flag=value")
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(_given(sys.argv[1:]).replace(".py", "")).name).strip("-")
    with _mistakes_as_sentences(debug, (ValueError, OSError, FloatingPointError, *UNEXPECTED)):
        main(flags.FLAGS.config, name, flags.FLAGS)


class _Outlived:
    """An output whose reader may go (`| head`): the command prints no more, and goes on."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._silent_when_closed():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._silent_when_closed():
            self._stream.flush()

    @contextlib.contextmanager
    def _silent_when_closed(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _mistakes_as_sentences(debug: bool, kinds: tuple) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("Ctrl-C: stopped", file=sys.stderr)
        raise SystemExit(130) from None
    except kinds as error:
        if debug:
            traceback.print_exc()
        print(f"error: {_sentence(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def _given(argv: Sequence[str]) -> str:
    for i, arg in enumerate(argv):
        if arg.lstrip("-").startswith("config=") and arg.startswith("-"):
            return arg.split("=", 1)[1]
        if arg in ("--config", "-config") and i + 1 < len(argv):
            return argv[i + 1]
    return ""


def _check_config_argument(argv: Sequence[str]) -> None:
    if any(arg in ("--help", "-h", "--helpfull", "--helpshort") for arg in argv):
        return
    found = sorted(str(path) for path in CONFIGS.glob("*.py"))
    listing = f"available: {', '.join(found)}" if found else f"no {CONFIGS}/*.py here: run from the repository"
    given = _given(argv)
    if not given:
        raise ValueError(f"no config given; say --config=FILE, {listing}")
    file = given.split(":", 1)[0]
    if not Path(file).is_file():
        near = difflib.get_close_matches(file, found, n=1)
        raise ValueError(f"there is no config {file!r}; {listing}." + (f" Did you mean {near[0]}?" if near else ""))


def _sentence(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, AttributeError | KeyError) and error.args:
        # ml_collections puts the name in quotes, twice at times, and its hint on a line of its own.
        missing, _, hint = str(error.args[0]).replace("\\n", "\n").replace("\\", "").partition("\n")
        text = f"there is no setting or value {missing.strip(QUOTES)!r}" + (f". {hint.strip(QUOTES)}" if hint else "")
    elif isinstance(error, UNEXPECTED):
        text = f"{type(error).__name__}: {text}; most likely a setting of the wrong kind (--debug shows where)"
    if "Traceback (most recent call last)" in text:  # the flag library wraps what a config file raised
        text = text.splitlines()[-1].removeprefix("ValueError: ")
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return text
