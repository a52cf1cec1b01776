"""The command `cxrjax`.

    cxrjax COMMAND --help                        what a command does, with examples
    cxrjax train spcl --keys                     every setting of a config, with its default
    cxrjax train spcl optim.lr=1e-3 --dry-run    what would happen; makes nothing
    source <(cxrjax completion bash)             completion in this shell; or zsh

A config is named (`spcl`, `spcl:chestxray14,lowflop`), or is a file of your own or the config.json of a run. What
follows changes its settings. `python -m cxrjax.main --config=NAME --config.optim.lr=1e-3` is the same.
"""

import contextlib
import io
import re
import runpy
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, TextIO, cast

from cxrjax import __version__


class Command(NamedTuple):
    """module: what is run. config: whether it takes one first, or the name of the one that it always takes."""

    module: str
    does: str
    example: str
    config: bool | str = False


COMMANDS = {
    "train": Command(
        "main", "pre-trains, or trains a head on labels", "train spcl:smoke loss.form=nt_xent --workdir runs/try", True
    ),
    "eval": Command("main", "judges a checkpoint", "eval probe checkpoint=runs/try", True),
    "report": Command("main", "one page on any number of runs", "report runs=runs/a,runs/b", "report"),
    "prepare": Command("prepare", "converts pictures to a set", "prepare folder --raw DIR --name clinic"),
    "embed": Command("embed", "features of files, as a table", "embed DIR --checkpoint runs/try --output f.parquet"),
    "export": Command("export", "a folder for PyTorch", "export --checkpoint runs/try --output encoder"),
    "figures": Command(
        "figures",
        "training curves, patches and heads, where words are seen",
        'figures --checkpoint runs/r --set phantom --sentence "..." --output DIR',
    ),
    "plan": Command("plan", "does it fit, and how long", "plan spcl:chestxray14 --on h100:8", True),
    "doctor": Command("doctor", "what this machine can do, and what is wrong", "doctor --fast"),
    "benchmark": Command("benchmark", "cost and speed here", "benchmark spcl --steps 5", True),
}
HELP = ("--help", "-h", "help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command by the module that does it; each is imported when it is asked for."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in HELP:
        print(overview())
    elif name == "--version":
        print(f"cxrjax {__version__}")
    elif name == "completion":
        print(completion(rest[0] if rest else ""))
    elif name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise SystemExit(f"error: there is no command {name!r}; there are {', '.join(COMMANDS)}, completion.{hint}")
    else:
        run(name, rest)


def run(name: str, arguments: Sequence[str]) -> None:
    """Runs a command as `python -m` would; its help and its errors are given in words of `cxrjax`."""
    command = COMMANDS[name]
    sys.argv = [f"cxrjax {name}", *as_python(name, arguments)]
    if not set(arguments) & set(HELP):
        with contextlib.redirect_stderr(cast(Any, Errors(sys.stderr))):
            runpy.run_module(f"cxrjax.{command.module}", run_name="__main__")
        return
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_module(f"cxrjax.{command.module}", run_name="__main__")
    finally:
        print(f"Example: cxrjax {command.example}\n\n{in_words_of_cxrjax(said.getvalue())}", end="")


def as_python(name: str, arguments: Sequence[str]) -> list[str]:
    """What the module of a command is given: "spcl", "optim.lr=1" → "--config=spcl", "--config.optim.lr=1"."""
    config = COMMANDS[name].config
    if not config:
        return list(arguments)
    found = [f"--config={config}"] if isinstance(config, str) else []
    for argument in arguments:
        if re.match(r"[a-z_][\w.]*=", argument):
            argument = f"--config.{argument}"
        elif not found and not argument.startswith("-"):
            argument = f"--config={argument}"
        found.append(argument)
    return found


class Errors:
    """Standard error, on which whole commands and settings are written in words of `cxrjax`."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._stream.write(in_words_of_cxrjax(text))


def in_words_of_cxrjax(text: str) -> str:
    """ "python -m cxrjax.main --config=configs/spcl.py:smoke --config.seed=1" → "cxrjax train spcl:smoke seed=1"."""
    text = text.replace("python -m cxrjax.main --config=configs/report.py", "cxrjax report")
    text = re.sub(r"python -m cxrjax\.main --config=configs/eval_(\w+)\.py", r"cxrjax eval \1", text)
    text = text.replace("python -m cxrjax.main --config=", "cxrjax train ")
    text = re.sub(r"python -m cxrjax\.(\w+)(?:( )--config=)?", r"cxrjax \1\2", text)
    text = re.sub(r"configs/(\w+)\.py", r"\1", text)
    return re.sub(r"--config\.(\w)", r"\1", text)


def overview() -> str:
    """What `cxrjax --help` prints."""
    width, wide = max(map(len, COMMANDS)), max(len(one.does) for one in COMMANDS.values())
    lines = (f"    {name:<{width}}  {one.does:<{wide}}  cxrjax {one.example}" for name, one in COMMANDS.items())
    return "\n".join([(__doc__ or "").strip(), "", "Commands:", "", *lines])


def completion(shell: str) -> str:
    """A script that a shell reads to complete commands and names of configs; files are completed as ever."""
    from cxrjax import named

    if shell not in ("bash", "zsh"):
        raise SystemExit(f"error: completion is for bash or zsh, not {shell!r}: source <(cxrjax completion bash)")
    known = named.available()
    evaluations = [name.removeprefix("eval_") for name in known if name.startswith("eval_")]
    others = [name for name in known if not name.startswith("eval_") and name != "report"]
    options = "--help --keys --dry-run --workdir"
    return "\n".join(
        [
            "autoload -U +X bashcompinit && bashcompinit" if shell == "zsh" else "# bash",
            "_cxrjax() {",
            '  local words=""',
            '  case "$COMP_CWORD:${COMP_WORDS[1]}" in',
            f'    1:*) words="{" ".join(COMMANDS)} completion --help --version" ;;',
            '    2:completion) words="bash zsh" ;;',
            f'    2:eval) words="{" ".join(evaluations)}" ;;',
            f'    2:train | 2:plan | 2:benchmark) words="{" ".join(others)}" ;;',
            f'    *:train | *:eval | *:report) words="{options}" ;;',
            "  esac",
            '  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))',
            "}",
            "complete -o default -F _cxrjax cxrjax",
        ]
    )


if __name__ == "__main__":
    main()
