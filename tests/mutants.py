"""Slips that an engineer could make, and the tests that must notice them: a test that cannot fail is worse than none.

    python tests/mutants.py [--only NAME …] [--jobs N] [--first] [--list]

A slip is one small change of one file; mutants.txt lists them. The repository is copied into a temporary folder, each
slip is made there by itself, and the tests named beside it are run on the copy: "killed" when one of them fails,
"SURVIVED" when all pass. A slip whose text is not in its file exactly once is an error, and so is one whose tests
cannot be run, or with --first fail without it too. Ends with 1 after an error, or where fewer than 96 % are killed.
"""

import argparse
import compileall
import contextlib
import json
import os
import py_compile
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_suffix(".txt")
LEAST_RATE = 0.96
LONGEST_S = 900  # of one run: a slip that makes a test hang is noticed as well


class Slip(NamedTuple):
    """file: below cxrjax; old: text that is in it once; new: what takes its place; tests: files or node ids."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read(text: str) -> list[Slip]:
    """The slips of a list; its form stands at the top of mutants.txt. Raises ValueError for a line of another form."""
    slips, file, tests_file = [], "", ""
    for block in re.split(r"\n{2,}", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip()):
        if block.startswith("@ "):
            file, tests_file = block.removeprefix("@ ").split()
            continue
        head, *lines = block.splitlines()
        name, colon, tests = head.partition(":")
        if not (colon and file and lines and all(re.match(r"[-+]( |$)", line) for line in lines)):
            raise ValueError(f"{LIST.name} has a slip of another form than the one at its top:\n{block}")
        old, new = ("\n".join(line[2:] for line in lines if line[0] == sign) for sign in "-+")
        nodes = (test if "/" in test or ".py" in test else f"{tests_file}::{test}" for test in tests.split())
        slips.append(Slip(name, file, old, new, tuple(f"tests/{node}" for node in nodes) or (f"tests/{tests_file}",)))
    return slips


def faults(slips: list[Slip]) -> dict[str, str]:
    """Name → why a slip cannot be made, for those that cannot."""
    found = {}
    for slip in slips:
        file = ROOT / "cxrjax" / slip.file
        count = file.read_text().count(slip.old) if file.is_file() else 0
        missing = [test for test in slip.tests if not (ROOT / test.partition("::")[0]).is_file()]
        if not file.is_file():
            found[slip.name] = f"there is no cxrjax/{slip.file}"
        elif count != 1:
            found[slip.name] = f"its text is {count} times in cxrjax/{slip.file}: {slip.old!r}"
        elif slip.old == slip.new:
            found[slip.name] = "it changes nothing"
        elif missing:
            found[slip.name] = f"there is no {missing[0]}"
    return found


# What the tests import of others, once per job: every run is a fork of a process that has it.
IMPORTED = """
cv2 einops flax.linen grain jax jax.numpy jax.experimental.multihost_utils ml_collections optax orbax.checkpoint.v1
pandas PIL.Image pyarrow.parquet pydicom pytest safetensors.numpy scipy.optimize scipy.stats sklearn.linear_model
sklearn.metrics tensorboard.summary.writer.event_file_writer tensorflow_datasets tokenizers torch transformers
"""
SERVER = f"""
import contextlib, importlib, json, os, signal, sys

for name in {IMPORTED!r}.split():
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
import pytest

for line in sys.stdin:
    log, *arguments = json.loads(line)
    child = os.fork()
    if not child:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        signal.alarm({LONGEST_S})
        status = pytest.main(arguments)
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Copy:
    """The files of the repository in a folder of their own, and a process that runs pytest on them."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder.with_suffix(".log")
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        # By their contents: a slip of equal length within the second would else run the old code.
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(folder / "cxrjax", quiet=2, invalidation_mode=mode)
        added = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "CXRJAX_DATA": str(folder / "data")}
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=folder,
            env=os.environ | added | {"JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()

    def run(self, tests: Sequence[str], *options: str) -> tuple[int, str]:
        """Exit status of pytest (0: all pass, 1: one fails; below 0: it crashed or took too long) and what it wrote."""
        arguments = ["-q", "-p", "no:cacheprovider", *options, *tests]
        self._server.stdin.write(json.dumps([str(self.log), *arguments]) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline()), self.log.read_text(errors="replace")

    def judge(self, slip: Slip) -> tuple[str, str]:
        """ "killed", "SURVIVED" or "error", and what pytest wrote."""
        file = self.folder / "cxrjax" / slip.file
        whole = file.read_text()
        file.write_text(whole.replace(slip.old, slip.new))
        try:
            status, said = self.run(slip.tests, "-x")
        finally:
            file.write_text(whole)
        return "SURVIVED" if status == 0 else "killed" if status in (1, -signal.SIGALRM) else "error", said

    def failing(self, tests: Sequence[str]) -> set[str]:
        """Those that do not pass on the code as it is, or are not there: what they would kill says nothing."""
        status, said = self.run(tests, "-rfE")
        if status == 0:
            return set()
        if status != 1:  # one that is not there stops all
            return {test for test in tests if self.run([test], "--collect-only")[0]} or set(tests)
        lines = [line.split(" ")[1] for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        return {test for test in tests if any(re.match(rf"{re.escape(test)}($|\[|::)", line) for line in lines)}


def in_turn(copies: Sequence[Copy], items: Sequence[Any], work: Callable[[Copy, Any], None]) -> None:
    """work(copy, item) for every item; every copy takes the next one when it is free."""
    waiting = queue.SimpleQueue()
    for item in items:
        waiting.put(item)

    def one(copy: Copy) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                work(copy, waiting.get_nowait())

    with ThreadPoolExecutor(len(copies)) as pool:
        list(pool.map(one, copies))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="slips by name, or by file: train.py")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="slips at a time (1)")
    parser.add_argument("--list", action="store_true", help="check the texts of all slips, run nothing")
    parser.add_argument("--first", action="store_true", help="run the tests on the code as it is first, which all pass")
    arguments = parser.parse_args()
    slips = read(LIST.read_text())
    names = [slip.name for slip in slips]
    if len(set(names)) < len(names):
        raise SystemExit(f"names of slips come twice: {sorted({name for name in names if names.count(name) > 1})}")
    strangers = set(arguments.only) - {word for slip in slips for word in (slip.name, slip.file)}
    if strangers:
        raise SystemExit(f"no slip and no file of one is called {', '.join(sorted(strangers))}; --list gives all")
    slips = [slip for slip in slips if not arguments.only or {slip.name, slip.file} & set(arguments.only)]
    broken = faults(slips)
    if arguments.list:
        for slip in slips:
            print(f"{slip.name:45} {slip.file:36} {' '.join(slip.tests)}")
    for name, why in broken.items():
        print(f"error     {name}: {why}", flush=True)
    if arguments.list:
        print(f"{len(slips)} slips, {len(broken)} errors")
        return 1 if broken else 0

    began, found, failed = time.monotonic(), dict.fromkeys(broken, "error"), set()
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        copies = [Copy(Path(place) / str(number)) for number in range(arguments.jobs)]

        def check(copy: Copy, tests: list[str]) -> None:
            failed.update(copy.failing(tests))

        def judge(copy: Copy, slip: Slip) -> None:
            if here := failed.intersection(slip.tests):
                found[slip.name] = "error"
                print(f"error     {slip.name}: {', '.join(sorted(here))} fails without it", flush=True)
                return
            start = time.monotonic()
            found[slip.name], said = copy.judge(slip)
            seconds = time.monotonic() - start
            print(f"{found[slip.name]:9} {slip.name} ({slip.file}, {seconds:.0f} s)", flush=True)
            if found[slip.name] == "error":
                print("\n".join(said.splitlines()[-15:]), flush=True)

        left = [slip for slip in slips if slip.name not in broken]
        of_file: dict[str, set[str]] = {}
        for test in (test for slip in left for test in slip.tests):
            of_file.setdefault(test.partition("::")[0], set()).add(test)
        try:
            if arguments.first:
                in_turn(copies, [sorted(tests) for tests in of_file.values()], check)
            in_turn(copies, left, judge)
        finally:
            for copy in copies:
                copy.close()

    counts = {kind: sum(value == kind for value in found.values()) for kind in ("killed", "SURVIVED", "error")}
    rate = counts["killed"] / len(slips)
    print(
        f"{len(slips)} slips: {counts['killed']} killed ({rate:.1%}), {counts['SURVIVED']} survived, "
        f"{counts['error']} errors, in {(time.monotonic() - began) / 60:.0f} minutes"
    )
    for kind in ("SURVIVED", "error"):
        for name in sorted(name for name, value in found.items() if value == kind):
            print(f"{kind:9} {name}")
    return 1 if counts["error"] or rate < LEAST_RATE else 0


if __name__ == "__main__":
    raise SystemExit(main())
