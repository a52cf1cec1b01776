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

from cxrjax.config import ConfigDict, flat, nearest, pretrain

CONFIGS = Path("configs")
QUOTES = "'" + '"'
UNEXPECTED = (AttributeError, KeyError, TypeError, IndexError, ZeroDivisionError)
"""Errors that a setting of the wrong kind ends in, if no check has found it before."""

UNITS = (
    ("duration.total_steps", "duration.total_epochs", "duration.total_examples"),
    ("optim.warmup_steps", "optim.warmup_epochs", "optim.warmup_examples"),
    ("optim.lr", "optim.base_lr"),
)
"""Settings that say one thing in several units: one that is given takes the place of what the config file gives."""
HELP = ("--help", "-h", "-help", "--helpfull", "--helpshort")


def run(main: Callable, doc: str | None, define: Callable[[], None] | None = None) -> None:
    """Parses --config (and what `define` adds) and calls main(config, name, flags); a mistake exits 2 with a sentence.

    name: the config file's stem with its words, "spcl-smoke"; of a config.json the method or the job. --debug shows the
    traceback as well. --config.any.key=None takes back what the config file gives for a key that may be left open.
    """
    sys.modules["__main__"].__doc__ = doc
    before = set(flags.FLAGS)
    config_flags.DEFINE_config_file(
        "config", None, "configs/NAME.py[:WORDS], or config.json of a run", lock_config=True
    )
    flags.DEFINE_bool("debug", False, "show the traceback of an error")
    if define:
        define()
    with contextlib.redirect_stdout(_Outlived(sys.stdout)), contextlib.redirect_stderr(_Outlived(sys.stderr)):
        if any(arg in HELP for arg in sys.argv[1:]):
            listing = (f"--{name}: {flags.FLAGS[name].help}" for name in sorted(set(flags.FLAGS) - before))
            print("\n".join([(doc or "").strip(), "", *listing]))
        else:
            _run(main)


def _run(main: Callable) -> None:
    debug = any(arg in ("--debug", "-debug", "--debug=true") for arg in sys.argv[1:])
    with _mistakes_as_sentences(debug, (ValueError, AttributeError, KeyError, TypeError, OSError, flags.Error)):
        _check_config_argument(sys.argv[1:])
        argv, opened = taken_back(sys.argv)
        stray = flags.FLAGS(json_as_python(argv))[1:]
        if stray:
            raise ValueError(f"unexpected arguments {stray}: everything is said as --flag=value")
        config = flags.FLAGS.config
        check_open(opened, config)
        config.update_from_flattened_dict(dict.fromkeys([*opened, *other_units(argv, config)]))
    given = Path(_given(sys.argv[1:]))
    stem = config.get("method") or config.job if given.suffix == ".json" else given.name.replace(".py", "")
    name = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")
    with _mistakes_as_sentences(debug, (ValueError, OSError, FloatingPointError, *UNEXPECTED)):
        main(config, name, flags.FLAGS)


def taken_back(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """argv without its "--config.key=None", and these keys."""
    found = {arg: re.fullmatch(r"--?config\.([\w.]+)=None", arg) for arg in argv}
    return [arg for arg in argv if not found[arg]], [match[1] for match in found.values() if match]


def check_open(keys: Sequence[str], config: ConfigDict) -> None:
    """Raises ValueError for keys that the config does not have, and for those that must have a value."""
    now, may_be_open = flat(config.to_dict()), flat(pretrain().to_dict())
    for key in keys:
        if key not in now:
            raise ValueError(f"there is no setting {key}{nearest(key, now)}")
        if may_be_open.get(key, now[key]) is not None:
            raise ValueError(f"{key} cannot be None: it needs a value, such as {may_be_open.get(key, now[key])!r}")


def other_units(argv: Sequence[str], config: ConfigDict) -> list[str]:
    """Keys of a config that say in another unit what argv gives."""
    given = {match[1] for arg in argv if (match := re.match(r"--?config\.([\w.]+)(=|$)", arg))}
    others = [key for unit in UNITS if given & set(unit) for key in unit if key not in given]
    known = flat(config.to_dict())
    return [key for key in others if key in known]


def json_as_python(argv: Sequence[str]) -> list[str]:
    """argv in which the config.json of a run is read by saved_config.py, since a config is a file of Python."""
    reader = Path(__file__).with_name("saved_config.py")
    return [re.sub(r"^(--?config=)(.*\.json)$", rf"\g<1>{reader}:\g<2>", arg) for arg in argv]


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
        text = f"{type(error).__name__}: {text}; --debug shows where. A setting of the wrong kind may have led to it"
    if "Traceback (most recent call last)" in text:  # the flag library wraps what a config file raised
        text = text.splitlines()[-1].removeprefix("ValueError: ")
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return text
