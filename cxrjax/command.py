"""What the commands that take a config share: the flags, and mistakes answered with a sentence."""

import ast
import contextlib
import itertools
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from cxrjax import keys, named
from cxrjax.config import ConfigDict, flat, names, nearest, other_units, pretrain

QUOTES = "'" + '"'
UNEXPECTED = (AttributeError, KeyError, TypeError, IndexError, ZeroDivisionError)
"""Errors that a setting of the wrong kind ends in, if no check has found it before."""

HELP = ("--help", "-h", "-help", "--helpfull", "--helpshort")


def run(main: Callable, doc: str | None, define: Callable[[], None] | None = None) -> None:
    """Parses --config (and what `define` adds) and calls main(config, name, flags); a mistake exits 2 with a sentence.

    name: the config file's stem with its words, "spcl-smoke"; of a config.json the method or the job. --debug shows the
    traceback as well. --config.any.key=None takes back what the config file gives for a key that may be left open.
    """
    sys.modules["__main__"].__doc__ = doc
    before = set(flags.FLAGS)
    config_flags.DEFINE_config_file(
        "config", None, "NAME[:WORDS] of a config, a file of your own, or config.json of a run", lock_config=True
    )
    flags.DEFINE_bool("debug", False, "show the traceback of an error")
    flags.DEFINE_enum("log", "warning", ("debug", "info", "warning", "error"), "the least that libraries may say")
    flags.DEFINE_bool("keys", False, "print every setting of the config with what is said of it, and do nothing")
    if define:
        define()
    with contextlib.redirect_stdout(_Outlived(sys.stdout)), contextlib.redirect_stderr(_Outlived(sys.stderr)):
        if any(arg in HELP for arg in sys.argv[1:]):
            listing = (f"--{name}: {flags.FLAGS[name].help}" for name in sorted(set(flags.FLAGS) - before))
            print("\n".join([(doc or "").strip(), "", *listing, "", _about_configs()]))
        else:
            _run(main)


def _about_configs() -> str:
    """What the config that is named says of itself; without one, the names of all."""
    with contextlib.suppress(ValueError):
        file, _ = named.find(_given(sys.argv[1:]))
        return ast.get_docstring(ast.parse(file.read_text())) or ""
    return f"Configs: {', '.join(named.available())}"


def _run(main: Callable) -> None:
    debug = any(arg in ("--debug", "-debug", "--debug=true") for arg in sys.argv[1:])
    with _mistakes_as_sentences(debug, (ValueError, AttributeError, KeyError, TypeError, OSError, flags.Error)):
        if not _given(sys.argv[1:]):
            raise ValueError(f"no config given; say --config=NAME, one of {', '.join(named.available())}, or a file")
        argv, opened = taken_back(sys.argv)
        argv, of_judges = judges_settings(argv)
        with _read_by_flags(argv):
            stray = flags.FLAGS(as_flags(argv))[1:]
        if stray:
            raise ValueError(f"unexpected arguments {stray}: everything is said as --flag=value")
        _set_log_level(flags.FLAGS.log)
        config = flags.FLAGS.config
        check_open(opened, config)
        with config.unlocked():
            for (name, key), value in of_judges.items():
                config.evals[name][key] = value
        config.update_from_flattened_dict(dict.fromkeys([*opened, *other_units(changed(argv), config)]))
    if flags.FLAGS["keys"].value:
        print(keys.listing(completed(config), named.find(_given(sys.argv[1:]))[0]))
        return
    name = title(_given(sys.argv[1:]), config)
    with _mistakes_as_sentences(debug, (ValueError, OSError, FloatingPointError, *UNEXPECTED)):
        main(config, name, flags.FLAGS)


def _set_log_level(name: str) -> None:
    """Of Python's logging and of absl's, which the libraries below us use; what a run prints itself is no log."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger().setLevel(name.upper())
    absl_logging.set_verbosity(name)


def title(given: str, config: ConfigDict) -> str:
    """ "configs/spcl.py:smoke" → "spcl-smoke"; of a config.json the method or the job."""
    path = Path(given)
    stem = (
        Path(str(config.get("method") or config.job)).stem if path.suffix == ".json" else path.name.replace(".py", "")
    )
    return re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")


def taken_back(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """argv without its "--config.key=None", and these keys."""
    found = {arg: re.fullmatch(r"--?config\.([\w.]+)=None", arg) for arg in argv}
    return [arg for arg in argv if not found[arg]], [match[1] for match in found.values() if match]


def judges_settings(argv: Sequence[str]) -> tuple[list[str], dict[tuple[str, str], Any]]:
    """argv without settings of evaluations that the config leaves to their judge, and (evaluation, setting) -> value.

    Such as `--config.evals.phantom_probe.bootstrap=100`. Raises ValueError for what its judge does not know, and for a
    value of another kind than the judge's own.
    """
    found = {arg: match for arg in argv if (match := re.match(r"--?config\.evals\.(\w+)\.(\w+)=(.*)", arg, re.DOTALL))}
    if not found:
        return list(argv), {}
    file, words = named.find(_given(argv))
    entries, taken = named.load(file).get_config(words).get("evals", {}), {}
    judges = {match[1]: match[3] for match in found.values() if match[2] == "judge"}
    for arg, (name, key, text) in ((arg, match.groups()) for arg, match in found.items()):
        if name not in entries or key in entries[name]:
            continue  # the config knows it, or says what is wrong
        defaults = _defaults(judges.get(name, entries[name].get("judge")))
        if key not in defaults:
            known = {**defaults, **entries[name]}
            raise ValueError(f"evals.{name} has no setting {key!r}{nearest(key, known)}; it has {', '.join(known)}")
        taken[arg] = (name, key), _of_same_kind(arg.partition("=")[0], text, defaults[key])
    return [arg for arg in argv if arg not in taken], dict(taken.values())


def completed(config: ConfigDict) -> ConfigDict:
    """The config with all settings of its evaluations."""
    whole, entries = ConfigDict(config.to_dict()), config.to_dict().get("evals", {})
    for name, entry in entries.items():
        whole.evals[name] = {**_defaults(entry.get("judge")), **entry}
    return whole


@contextlib.contextmanager
def _read_by_flags(argv: list[str]) -> Iterator[None]:
    """The library of config flags looks into sys.argv for the settings that are given."""
    whole, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = whole


def _defaults(judge: str | None) -> dict[str, Any]:
    """The settings of an evaluation by this judge; none names the judge of an evaluation that names none."""
    from cxrjax.evals import registry, run  # judges import much that most commands do without

    return {**run.COMMON, **registry.find(judge or run.COMMON["judge"]).keys}


def _of_same_kind(flag: str, text: str, default: Any) -> Any:
    """A flag's text as a value of the kind of the default; of more than a word, as Python writes it."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(default, tuple) and isinstance(value, int | float | str):
        value = (value,) if not isinstance(value, str) else tuple(names(value))
    kinds = (int, float) if isinstance(default, float) else (type(default), *([list] if default == () else []))
    if default is not None and (not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool)):
        raise ValueError(f"{flag}={text}: this is no value like {default!r}")
    return value


def check_open(opened: Sequence[str], config: ConfigDict) -> None:
    """Raises ValueError for keys that the config does not have, and for those that must have a value."""
    now, may_be_open = flat(config.to_dict()), flat(pretrain().to_dict())
    for key in opened:
        if key not in now:
            raise ValueError(f"there is no setting {key}{nearest(key, now)}")
        if may_be_open.get(key, now[key]) is not None:
            raise ValueError(f"{key} cannot be None: it needs a value, such as {may_be_open.get(key, now[key])!r}")


def changed(argv: Sequence[str]) -> list[str]:
    """The keys of the config that argv gives."""
    return [match[1] for arg in argv if (match := re.match(r"--?config\.([\w.]+)(=|$)", arg))]


def as_flags(argv: Sequence[str]) -> list[str]:
    """argv with the file of the config that is named, and with underscores in the names of flags."""
    file, words = named.find(_given(argv))
    place, found = f"{file}:{words}" if words else str(file), []
    for before, arg in itertools.pairwise(["", *argv]):
        if re.match(r"--?config=", arg):
            arg = f"--config={place}"
        elif before in ("--config", "-config"):
            arg = place
        else:
            arg = re.sub(r"^--[a-z]+(-[a-z]+)+", lambda flag: "--" + flag[0][2:].replace("-", "_"), arg)
        found.append(arg)
    return found


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


def _of_kind(match: re.Match) -> str:
    return f"{match[1]}: the value must be {'a whole number' if match[2].endswith('int') else 'a number'}"


def _sentence(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, AttributeError | KeyError) and error.args:
        # ml_collections puts the name in quotes, twice at times, and its hint on a line of its own.
        missing, _, hint = str(error.args[0]).replace("\\n", "\n").replace("\\", "").partition("\n")
        text = f"there is no setting or value {missing.strip(QUOTES)!r}" + (f". {hint.strip(QUOTES)}" if hint else "")
    elif isinstance(error, UNEXPECTED):
        text = f"{type(error).__name__}: {text}; --debug shows where. A setting of the wrong kind may have led to it"
    elif isinstance(error, flags.IllegalFlagValueError):
        text = re.sub(r"^flag ([^:]*): (invalid literal for int|could not convert string to float).*", _of_kind, text)
        text = re.sub(r"^flag ([^:]*): \('Non-boolean argument.*", r"\1: the value must be True or False", text)
        text = re.sub(r"^flag ([^:]*): Failed to parse .* ConfigDict.*", r"\1: give a dictionary, {} for none", text)
    if "Traceback (most recent call last)" in text:  # the flag library wraps what a config file raised
        text = text.splitlines()[-1].removeprefix("ValueError: ")
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return text
