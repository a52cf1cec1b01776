"""The documents: links lead somewhere, commands and settings exist, names of the code are its names, and blocks run.

A block whose info string is `sh run` is run, and `python file=NAME` is written to that file before. The blocks of the
README come first and those of the pages follow in one folder, so that a page can judge or export the run which the
README starts.
"""

import ast
import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from cxrjax import __main__, named
from cxrjax import config as shared
from cxrjax.datasets import catalogue
from cxrjax.datasets.mapping import Mapping
from tests import runs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HISTORY = ROOT / "CHANGELOG.md"  # it also names what is gone
CODE = ("cxrjax", "configs", "tests", "launch", "notebooks", "docs")


def blocks(text: str) -> list[tuple[str, str]]:
    """(info string, body) of the fenced blocks."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def files(text: str) -> dict[str, str]:
    """{name: body} of the blocks that are written to files."""
    return {info.removeprefix("python file="): body for info, body in blocks(text) if info.startswith("python file=")}


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def inline(text: str) -> list[str]:
    """What stands between backticks in prose and tables."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def anchors(text: str) -> set[str]:
    """What headings are linked by, as GitHub makes it: lower case, blanks to hyphens, other signs left out."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text: str) -> list[list[str]]:
    """The words of every command in the sh blocks, with loops unrolled and braces expanded."""
    found = []
    for info, body in blocks(text):
        if info.split()[:1] != ["sh"]:
            continue
        body = re.sub(r"for (\w+) in ([^;]+); do\n(.*?)^done$", unrolled, body, flags=re.MULTILINE | re.DOTALL)
        lines = (shlex.split(line, comments=True) for line in body.replace("\\\n", " ").splitlines())
        found += [in_full(list(itertools.chain(*map(braces, words)))) for words in lines if words]
    return found


def in_full(words: list[str]) -> list[str]:
    """ "cxrjax train spcl seed=1" → "python -m cxrjax.main --config=configs/spcl.py --config.seed=1", word by word."""
    if words[0] != "cxrjax" or words[1] not in __main__.COMMANDS:
        return words
    module, given = __main__.COMMANDS[words[1]].module, __main__.as_python(words[1], words[2:])
    return [
        "python",
        "-m",
        f"cxrjax.{module}",
        *(re.sub(r"^--config=(\w+)(?!\w|\.py)", config_file, word) for word in given),
    ]


def config_file(flag: re.Match) -> str:
    """ "--config=probe" → "--config=configs/eval_probe.py"."""
    return f"--config=configs/{named.find(flag[1])[0].name}"


def unrolled(loop: re.Match) -> str:
    name, values, body = loop.groups()
    return "".join(re.sub(rf"\${name}\b", value, body) for value in values.split())


def braces(word: str) -> list[str]:
    """ "a{b,c}d" → "abd", "acd"."""
    found = re.fullmatch(r"(.*)\{([\w,]+)\}(.*)", word)
    return [found[1] + middle + found[3] for middle in found[2].split(",")] if found else [word]


def module(words: list[str]) -> str:
    """The module of ours that a command runs, or nothing."""
    ours = [name for flag, name in itertools.pairwise(words) if flag == "-m" and name.startswith("cxrjax.")]
    return ours[0] if ours else ""


@cache
def keys(name: str, words: str) -> set[str]:
    """The settings of configs/<name>.py:<words>, by dotted key; raises for a file or word that is not there."""
    return set(shared.flat(runs.config(name, words).to_dict()))


def settings(words: list[str]) -> set[str]:
    """The keys that the flags of a command change."""
    flags = (re.match(r"--config\.([\w.]+)", word) for word in words)
    return {flag[1] for flag in flags if flag}


@cache
def defined(path: str) -> set[str]:
    """Functions and classes of a file, at any depth."""
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_the_readme_is_short_and_says_how_to_test():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    (body,) = (body for info, body in blocks(text) if info == "sh tests")
    assert "pip install" in body and "pytest" in body


@pytest.mark.parametrize("page", [*PAGES, HISTORY], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"https?://", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{page.name} links to {link}"
        assert target.is_relative_to(ROOT), f"{page.name} links to {link}, outside of the repository"
        assert not anchor or anchor in anchors(target.read_text()), f"{page.name} links to {link}: no such heading"


def test_every_page_is_linked_from_the_index():
    index = ROOT / "docs" / "index.md"
    for folder in (index.parent, index.parent / "records"):
        linked = re.findall(r"\]\(([^)\s#]+)\)", (folder / "index.md").read_text())
        unlinked = {page.name for page in folder.glob("*.md")} - set(linked) - {"index.md"}
        assert not unlinked, f"{folder.name}/index.md does not link {unlinked}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_their_settings_exist(page):
    text = page.read_text()
    for name in re.findall(r"python -m (cxrjax\.[\w.]*\w)", text):
        assert importlib.util.find_spec(name), f"there is no {name}"
    for name, words in re.findall(r"configs/(\w+)\.py(?::([\w,]+))?", text):
        keys(name, words)
    own = {f"--config={name}" for each in PAGES for name in files(each.read_text())}
    for words in commands(text):
        if not module(words) or any(word.partition(":")[0] in own for word in words):  # those that are of the page run
            continue
        check(words)


def check(words: list[str]) -> None:
    """Fails for a command with a setting or an option that is not there."""
    given = re.search(r"--config=configs/(\w+)\.py(?::([\w,]+))?", " ".join(words))
    if given:
        unknown = settings(words) - keys(given[1], given[2] or "")
    else:
        options = {f"--{option}" for entry in catalogue.SETS.values() for option in entry.options}
        source = Path(importlib.util.find_spec(module(words)).origin).read_text()
        unknown = {word for word in words if word.startswith("--") and f'"{word}"' not in source} - options
        mapped = itertools.takewhile(
            lambda word: "=" in word, words[words.index("--map") + 1 :] if "--map" in words else ()
        )
        unknown |= {word.partition("=")[0] for word in mapped} - {*Mapping._fields}
    assert not unknown, f"{shlex.join(words)}: there is no {unknown}"


@pytest.mark.parametrize("config", sorted(runs.CONFIGS.glob("*.py")), ids=lambda config: config.stem)
def test_commands_of_a_config_exist(config):
    said = ast.get_docstring(ast.parse(config.read_text()))
    said = re.sub(r"\\\n +", "", said)  # one command on two lines
    lines = re.findall(r"^    (python -m cxrjax\.(?:\S+ )+\S+)", said, re.MULTILINE)
    assert lines, f"{config.name} says no command"
    for line in lines:
        check(shlex.split(line))


def test_settings_in_prose_exist():
    known = set().union(*(keys(path.stem, "") for path in runs.CONFIGS.glob("*.py")))
    for page in PAGES:
        unknown = settings(re.findall(r"--config\.[\w.]+", prose(page.read_text()))) - known
        assert not unknown, f"{page.name}: no config has {unknown}"


def test_settings_between_backticks_exist():
    """`optim.lr=1e-3` and `accumulate=4`, of a config or of a mapping; `evals.x.judge=…` of any entry."""
    known = set().union(*(keys(path.stem, "") for path in runs.CONFIGS.glob("*.py")))
    of_entries = {key.rpartition(".")[2] for key in known if key.startswith("evals.")}
    single = known | {key.rpartition(".")[2] for key in known} | {*Mapping._fields, "value_range"}
    for page in PAGES:
        for text in inline(page.read_text()):
            name = text.partition("=")[0]
            if "=" in text and re.fullmatch(r"[a-z_]\w*(\.\w+)*", name):
                entry = name.startswith("evals.") and name.rpartition(".")[2] in of_entries
                assert name in (known if "." in name else single) or entry, f"{page.name}: {name!r} is no setting"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_of_the_code_are_its_names(page):
    text = prose(page.read_text())
    for path in re.findall(rf"`((?:{'|'.join(CODE)})/[\w/.-]*)", text):
        assert (ROOT / path).exists(), f"{page.name} speaks of {path}"
    for name, path in re.findall(r"`(\w+)` in\s+`([\w/]+\.py)`", text):
        assert name in defined(path), f"{page.name} speaks of {name} in {path}"


def test_blocks_that_are_marked_run(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    command = python.with_name("cxrjax")
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cxrjax "$@"\n')
    for script in (python, command):
        script.chmod(0o755)
    # As the tests compile, but on one device.
    xla = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
    environment = {**os.environ, "XLA_FLAGS": xla, "PATH": f"{python.parent}:{os.environ['PATH']}"}
    environment |= {"PYTHONPATH": str(ROOT), "CXRJAX_DATA": str(tmp_path / "data")}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
    for page in PAGES:
        for name, body in files(page.read_text()).items():
            (tmp_path / name).write_text(body)
        for body in (body for info, body in blocks(page.read_text()) if info == "sh run"):
            done = subprocess.run(
                ["bash", "-euc", body], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, f"{page.name}:\n{body}\n{done.stdout}\n{done.stderr}"
    for written in ("evals/phantom_probe/6/results.json", "evals/phantom_probe/6/versus-pixels-32.json"):
        assert (tmp_path / "runs" / "try" / written).is_file()
    assert (tmp_path / "encoder" / "model.safetensors").is_file() and (tmp_path / "features.parquet").is_file()
