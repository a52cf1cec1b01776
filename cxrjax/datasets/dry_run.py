"""What a conversion would read, refuse and write, found out from a sample of its pictures without writing anything."""

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2

from cxrjax.datasets import encode, files, record, schema, writer
from cxrjax.datasets import manifest as manifests
from cxrjax.datasets.encode import Encoded, Form, Reading
from cxrjax.datasets.manifest import Manifest, Problem, Row
from cxrjax.imaging.pixels import UnreadablePicture

SAMPLE = 200
ROOM = 3  # times the size of the finished set that has to be free
MOST_PROBLEMS = 20


def look(
    manifest: Manifest,
    *,
    data_dir: str | Path | None = None,
    short_side: int | str | None = 256,
    image_format: str = "jpeg",
    bits: int = 8,
    check_grey_range: bool = True,
    admit: Sequence[str] = (),
    sample: int | None = SAMPLE,
    workers: int | None = None,
    progress: bool = True,
    say: Callable[[str], None] = files.say,
) -> tuple[Problem, ...]:
    """Says which pictures would be refused and why, what the set would hold, its size and how long it would take.

    sample: how many pictures are read, drawn by a hash of their ids; None: all. Others as `convert_manifest`'s.
    Returns the problems of the tables and of the pictures that were read.
    """
    form = encode.form(short_side, image_format, bits)
    manifests.check(manifest)
    reading = Reading(manifest.value_range, check_grey_range, tuple(admit))
    workers = workers or writer.cores()
    for remark in manifest.remarks:
        say(remark)
    drawn = _drawn(manifest.rows, sample)
    began = time.monotonic()
    found = _read(manifest.name, drawn, form, reading, workers, progress)
    seconds = time.monotonic() - began
    rows, steps, problems = _judged(manifest, found)
    say(f"Read: {len(found)} of {len(manifest.rows)} pictures that the tables or the folder name.")
    for kind, count in Counter(kind for kinds in steps for kind in kinds).most_common():
        say(f"Pictures with the step {kind!r}: {count} of the {len(found)}.")
    _say_problems(problems, say)
    say(manifests.count_table(rows, manifest.label_names, manifest.published))
    _say_size(found, len(rows), seconds, schema.data_dir(data_dir), say)
    say("Nothing was written. The counts are those of the tables, less what could not be read of the sample.")
    return tuple(problems)


def _drawn(rows: Sequence[Row], sample: int | None) -> list[Row]:
    ordered = sorted(rows, key=lambda row: hashlib.sha256(row.image_id.encode()).digest())
    return ordered if sample is None else ordered[:sample]


def _read(
    name: str, rows: Sequence[Row], form: Form, reading: Reading, workers: int, progress: bool
) -> list[tuple[Row, Encoded | str]]:
    """Each row with its encoded picture, or the reason why there is none."""
    cv2.setNumThreads(0)  # the pool has a thread per core already
    with (
        writer.progress_bar(len(rows), f"{name}: reading", "picture", progress) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        found = []
        for row, result in zip(rows, pool.map(partial(_encoded, form=form, reading=reading), rows), strict=True):
            found.append((row, result))
            bar.update()
        return found


def _encoded(row: Row, form: Form, reading: Reading) -> Encoded | str:
    try:
        return encode.encode(row, form, reading)
    except (UnreadablePicture, cv2.error) as error:
        return str(error)


def _judged(
    manifest: Manifest, found: Sequence[tuple[Row, Encoded | str]]
) -> tuple[list[Row], list[set[str]], list[Problem]]:
    """The rows that would be written as far as is known, the kinds of steps of each that was read, and the problems."""
    problems = list(manifest.problems)
    judged: dict[str, Row | None] = {}
    steps = []
    for row, result in found:
        if isinstance(result, str):
            problems.append(Problem(files.shown(row.file), "picture", result))
            judged[row.image_id] = None
            continue
        judged[row.image_id], _, wrong = record.place(row, result)
        problems += wrong
        steps.append({step.split(":")[0] for step in result.steps})
    rows = [judged.get(row.image_id, row) for row in manifest.rows]
    return [row for row in rows if row is not None], steps, problems


def _say_problems(problems: Sequence[Problem], say: Callable[[str], None]) -> None:
    by_kind = ", ".join(f"{count} x {kind}" for kind, count in Counter(item.kind for item in problems).most_common())
    if problems:
        say(f"Problems: {len(problems)} ({by_kind}). The first ones of each kind:")
    seen: Counter = Counter()
    for problem in problems:
        seen[problem.kind] += 1
        if seen[problem.kind] <= MOST_PROBLEMS:
            say(f"  {problem.kind}: {problem.file}: {problem.reason}")


def _say_size(
    found: Sequence[tuple[Row, Encoded | str]], count: int, seconds: float, data_dir: Path, say: Callable[[str], None]
) -> None:
    sizes = [
        len(result.image) + sum(len(mask) for mask in result.masks if mask is not None)
        for _, result in found
        if not isinstance(result, str)
    ]
    if not sizes:
        say("No picture that was read can be used, so the size of the set is not known.")
        return
    size = sum(sizes) / len(sizes) * count
    there = next(folder for folder in (data_dir, *data_dir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    short = ": too little" if free < ROOM * size else ""
    minutes = seconds / len(found) * count / 60
    say(
        f"Estimated size: {size / 1e9:.3g} GB, and {ROOM} times that while it is made ({free / 1e9:.3g} GB are free in "
        f"{there}{short}). Estimated time here: {minutes:.2g} minutes for encoding."
    )
