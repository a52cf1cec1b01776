"""Slips that an engineer could make, and the tests that must notice them: a test that cannot fail is worse than none.

    python tests/mutants.py [--only NAME …] [--jobs N] [--list]

A slip is one small change of one file; mutants.txt lists them. The repository is copied into a temporary folder, each
slip is made there by itself, and the tests named beside it are run on the copy: "killed" when one of them fails,
"SURVIVED" when all pass. A slip whose text is not in its file exactly once is an error, and so is one whose tests
cannot be run or do not pass without it. Ends with 1 after an error, or where fewer than 96 % of the slips are killed.
"""

import argparse
import compileall
import os
import py_compile
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

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
        elif slip.old == slip.new or not slip.tests:
            found[slip.name] = "it changes nothing, or names no test"
        elif missing:
            found[slip.name] = f"there is no {missing[0]}"
    return found


def copy(folder: Path) -> Path:
    """The files of the repository, with compiled modules that a change of their text makes void."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    # By their contents: a slip of equal length within the second would else run the old code.
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(folder / "cxrjax", quiet=2, invalidation_mode=mode)
    return folder


def run(folder: Path, tests: tuple[str, ...], *options: str) -> tuple[int, str]:
    """Exit status of pytest on the copy (1: a test failed; 0: none did) and what it wrote; 1 if it took too long."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CXRJAX_DATA": str(folder / "data"),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *tests]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=LONGEST_S,
        )
    except subprocess.TimeoutExpired:
        return 1, f"longer than {LONGEST_S} s"
    return done.returncode, done.stdout


def judge(folder: Path, slip: Slip) -> tuple[str, str]:
    """ "killed", "SURVIVED" or "error", and what pytest wrote."""
    file = folder / "cxrjax" / slip.file
    whole = file.read_text()
    file.write_text(whole.replace(slip.old, slip.new))
    try:
        status, said = run(folder, slip.tests, "-x")
    finally:
        file.write_text(whole)
    return {0: "SURVIVED", 1: "killed"}.get(status, "error"), said


def failing(folder: Path, slips: list[Slip]) -> set[str]:
    """Tests that do not pass on the code as it is, or are not there; what they would kill says nothing."""
    wanted = sorted({test for slip in slips for test in slip.tests})
    status, said = run(folder, tuple(wanted), "-rfE")
    if status == 0:
        return set()
    if status != 1:  # a test that is not there stops the others
        return {test for test in wanted if run(folder, (test,), "--collect-only")[0]} or set(wanted)
    lines = [line.split(" ")[1] for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return {test for test in wanted if any(re.match(rf"{re.escape(test)}($|\[|::)", line) for line in lines)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="slips by name, or all of a file: train.py"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="slips at a time (1)")
    parser.add_argument("--list", action="store_true", help="check the texts of all slips, run nothing")
    arguments = parser.parse_args()
    slips = read(LIST.read_text())
    names = [slip.name for slip in slips]
    if len(set(names)) < len(names):
        raise SystemExit(f"names of slips come twice: {sorted({name for name in names if names.count(name) > 1})}")
    chosen = [slip for slip in slips if not arguments.only or {slip.name, slip.file} & set(arguments.only)]
    if not chosen:
        raise SystemExit(f"no slip has one of the names {arguments.only}; --list gives all")
    broken = faults(chosen)
    if arguments.list:
        for slip in chosen:
            print(f"{slip.name:45} {slip.file:36} {' '.join(slip.tests)}")
    found = dict.fromkeys(broken, "error")
    for name, why in broken.items():
        print(f"error     {name}: {why}", flush=True)
    if arguments.list:
        print(f"{len(chosen)} slips, {len(broken)} errors")
        return 1 if broken else 0

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        folders = [copy(Path(place) / str(number)) for number in range(arguments.jobs)]
        left = [slip for slip in chosen if slip.name not in broken]
        failed = failing(folders[0], left)
        for slip in left:
            if here := failed.intersection(slip.tests):
                found[slip.name] = "error"
                print(f"error     {slip.name}: {', '.join(sorted(here))} fails without it", flush=True)
        waiting: queue.Queue[Slip] = queue.Queue()
        for slip in left:
            if slip.name not in found:
                waiting.put(slip)

        def work(folder: Path) -> None:
            while True:
                try:
                    slip = waiting.get_nowait()
                except queue.Empty:
                    return
                start = time.monotonic()
                found[slip.name], said = judge(folder, slip)
                seconds = time.monotonic() - start
                print(f"{found[slip.name]:9} {slip.name} ({slip.file}, {seconds:.0f} s)", flush=True)
                if found[slip.name] == "error":
                    print("\n".join(said.splitlines()[-15:]), flush=True)

        threads = [threading.Thread(target=work, args=(folder,)) for folder in folders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    counts = {kind: sum(value == kind for value in found.values()) for kind in ("killed", "SURVIVED", "error")}
    rate = counts["killed"] / len(chosen)
    print(
        f"{len(chosen)} slips: {counts['killed']} killed ({rate:.1%}), {counts['SURVIVED']} survived, "
        f"{counts['error']} errors, in {(time.monotonic() - began) / 60:.0f} minutes"
    )
    for kind in ("SURVIVED", "error"):
        for name in sorted(name for name, value in found.items() if value == kind):
            print(f"{kind:9} {name}")
    return 1 if counts["error"] or rate < LEAST_RATE else 0


if __name__ == "__main__":
    raise SystemExit(main())
