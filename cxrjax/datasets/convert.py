"""A manifest to a converted set: decode, resize and encode every picture on all cores, then write the set at once.

Encoded pictures are kept beside the unfinished set until it is written, so a conversion that was stopped, killed or
found bad files goes on where it was. A picture is encoded again only if its file, its mask file or the options
changed. About three times the size of the finished set has to be free.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds

from cxrjax.datasets import manifest as manifests
from cxrjax.datasets import schema, writer
from cxrjax.datasets.manifest import Manifest, Problem, Row
from cxrjax.datasets.store import Encoded, Store
from cxrjax.imaging import pixels

ENCODING = 1  # raised when the same file and options would give other bytes, so that older stored ones are not used
SMALLEST_SHORT_SIDE = 16


class Conversion(NamedTuple):
    """What a conversion did. directory is None where bad files kept the set from being written."""

    directory: Path | None
    problems: tuple[Problem, ...]
    counts: str  # table of what the set holds, or would hold without the bad files


def convert_manifest(
    manifest: Manifest,
    *,
    data_dir: str | Path | None = None,
    short_side: int = 256,
    image_format: str = "jpeg",
    workers: int | None = None,
    allow_bad: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Conversion:
    """Converts the pictures of a manifest and writes `<data_dir>/<name>/<version>/`.

    short_side: px of the short side, aspect kept. image_format: "jpeg" (quality 95) or "png". workers: threads, by
    default one per core. Bad files are listed in `<data_dir>/<name>/problems.csv`, and the set is then written only if
    allow_bad; steps that changed pictures (16 bits, colour, enlarged) are listed in `notes.csv` there.
    overwrite: replaces a set of that name that was made from other files or with other options.
    Raises ValueError for a set that is in the way, OutputError for a data folder that is full or read-only.
    """
    if short_side < SMALLEST_SHORT_SIDE:
        raise ValueError(f"A short side of {short_side} px is too small; give at least {SMALLEST_SHORT_SIDE}.")
    features = schema.features(
        manifest.label_names,
        image_format=image_format,
        mask=manifest.has_mask,
        boxes=manifest.has_boxes,
        report=manifest.has_report,
    )
    manifests.check(manifest)
    data_dir = Path(data_dir) if data_dir is not None else schema.data_dir()
    target = data_dir / manifest.name / writer.VERSION
    keys = [_key(row, (ENCODING, short_side, image_format, manifest.value_range)) for row in manifest.rows]
    digest = _digest(manifest, keys)
    for remark in manifest.remarks:
        say(remark)
    if target.exists() and not overwrite:
        there = _metadata(target)
        if there.get("source_digest") != digest:
            raise ValueError(
                f"{target} holds a set made from other files, another mapping or other options. Choose another "
                "--name, or replace it with --overwrite."
            )
        without = f", without {there['problems']} bad files" if there["problems"] else ""
        say(f"{target} holds exactly this set already{without}; nothing to do.")
        return Conversion(target, (), there["counts"])
    store = Store(writer.unfinished_directory(data_dir, manifest.name) / "encoded.sqlite", data_dir)
    try:
        bad = _encode_all(manifest, keys, store, short_side, image_format, workers or writer.cores(), progress, say)
        records = dict(store.records())
        rows, examples, problems = _usable(manifest, keys, records, bad)
        counts = manifests.count_table(rows, manifest.label_names)
        _write_lists(data_dir, manifest, keys, records, problems, say)
        if not rows or (problems and not allow_bad):
            return Conversion(None, tuple(problems), counts)
        writer.write(
            data_dir,
            manifest.name,
            features=features,
            examples={
                split: partial(_generate, part, store, set(features), f"{manifest.name}: writing {split}", progress)
                for split, part in examples.items()
            },
            metadata={
                "label_names": list(manifest.label_names),
                "short_side": short_side,
                "image_format": image_format,
                "description_of_source": manifest.description,
                "source_digest": digest,
                "counts": counts,
                "problems": len(problems),
            },
            description=manifest.description,
        )
    finally:
        store.close()
    writer.tidy(data_dir, manifest.name)
    return Conversion(target, tuple(problems), counts)


def encode(row: Row, short_side: int, image_format: str, value_range: tuple[int, int] | None) -> Encoded:
    """Reads, resizes and encodes one picture and its mask; raises UnreadablePicture if the picture cannot be used.

    A mask that cannot be used leaves the picture without one, and mask_problem says why.
    """
    picture = pixels.read(row.file, value_range)
    small = pixels.resize_short(picture.pixels, short_side)
    steps = picture.steps
    if min(picture.source_height, picture.source_width) < short_side:
        steps += (f"enlarged: the short side had {min(picture.source_height, picture.source_width)} px",)
    mask, mask_problem = None, ""
    if row.masks:
        try:
            united = _united_mask(row.masks, picture.pixels.shape)
            mask = pixels.encode(_binary(pixels.resize(united, *small.shape)), "png")
        except pixels.UnreadablePicture as error:
            mask_problem = str(error)
    image = pixels.encode(small, image_format)
    return Encoded(image, mask, *small.shape, picture.source_height, picture.source_width, steps, mask_problem)


def _united_mask(files: Iterable[Path], shape: tuple[int, int]) -> np.ndarray:
    united = np.zeros(shape, np.uint8)
    for file in files:
        part = pixels.read_mask(file)
        if abs(part.shape[0] / part.shape[1] / (shape[0] / shape[1]) - 1) > 0.02:
            raise pixels.UnreadablePicture(
                f"The mask {file.name} is {part.shape[1]} x {part.shape[0]} px, but its picture {shape[1]} x "
                f"{shape[0]}: their proportions differ, so they do not belong together."
            )
        united |= _binary(pixels.resize(part, *shape))
    return united


def _binary(mask: np.ndarray) -> np.ndarray:
    return np.where(mask > 127, 255, 0).astype(np.uint8)


def _encode_all(
    manifest: Manifest,
    keys: list[str],
    store: Store,
    short_side: int,
    image_format: str,
    workers: int,
    progress: bool,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Encodes what the store lacks; returns key -> reason of the pictures that cannot be used."""
    cv2.setNumThreads(0)  # the pool has a thread per core already
    there = {key for key, _ in store.records()}
    todo = {key: row for row, key in zip(manifest.rows, keys, strict=True) if key not in there}
    if there and todo:
        say(f"{len(keys) - len(todo)} of {len(keys)} pictures are encoded already; going on with {len(todo)}.")
    bad: dict[str, str] = {}
    pending: dict[Future, str] = {}
    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
    with writer.progress_bar(len(todo), f"{manifest.name}: encoding", "picture", progress) as bar:

        def collect() -> None:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                key = pending.pop(future)
                try:
                    store.put(key, future.result())
                except (pixels.UnreadablePicture, cv2.error) as error:
                    bad[key] = str(error)
                bar.update()

        try:
            for key, row in todo.items():
                pending[pool.submit(encode, row, short_side, image_format, manifest.value_range)] = key
                if len(pending) >= 4 * workers:
                    collect()
            while pending:
                collect()
        finally:
            pool.shutdown(cancel_futures=True)
    store.commit()
    return bad


def _usable(
    manifest: Manifest, keys: list[str], records: dict[str, Encoded], bad: dict[str, str]
) -> tuple[list[Row], dict[str, list], list[Problem]]:
    """Rows that can be written, the same by split as (row, key, relative boxes), and every problem found so far."""
    rows: list[Row] = []
    examples: dict[str, list] = {}
    problems = list(manifest.problems)
    for row, key in zip(manifest.rows, keys, strict=True):
        if key in bad:
            problems.append(Problem(str(row.file), "picture", bad[key]))
            continue
        record = records[key]
        if record.mask_problem:
            problems.append(Problem(", ".join(map(str, row.masks)), "mask", record.mask_problem))
            row = row._replace(masks=())
        boxes = []
        for box in row.boxes:
            left, right = (min(max(x / record.source_width, 0.0), 1.0) for x in (box.x, box.x + box.width))
            top, bottom = (min(max(y / record.source_height, 0.0), 1.0) for y in (box.y, box.y + box.height))
            if left < right and top < bottom:
                boxes.append({"bbox": tfds.features.BBox(top, left, bottom, right), "label": box.label})
            else:
                size = f"{record.source_width} x {record.source_height}"
                problems.append(
                    Problem(str(row.file), "box", f"{tuple(box)} has no area inside its {size} px picture.")
                )
        rows.append(row)
        examples.setdefault(row.split, []).append((row, key, boxes))
    return rows, examples, problems


def _generate(
    examples: list, store: Store, fields: set[str], said: str, progress: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    with writer.progress_bar(len(examples), said, "picture", progress) as bar:
        for row, key, boxes in examples:
            encoded = store.get(key)
            mask = encoded.mask or pixels.encode(np.zeros((encoded.height, encoded.width), np.uint8), "png")
            example = {
                "image": encoded.image,
                "image_id": row.image_id,
                "patient_id": row.patient_id,
                "study_id": row.study_id,
                "view": row.view,
                "labels": np.array(row.labels, np.int8),
                "mask": mask,
                "has_mask": encoded.mask is not None,
                "boxes": boxes,
                "report": {"findings": row.findings, "impression": row.impression, "text": row.text},
            }
            yield row.image_id, {field: value for field, value in example.items() if field in fields}
            bar.update()


def _write_lists(
    data_dir: Path,
    manifest: Manifest,
    keys: list[str],
    records: dict[str, Encoded],
    problems: list[Problem],
    say: Callable[[str], None],
) -> None:
    """Writes problems.csv and notes.csv beside the set, or takes old ones away, and says what is in them."""
    notes = [
        (str(row.file), step)
        for row, key in zip(manifest.rows, keys, strict=True)
        if key in records
        for step in records[key].steps
    ]
    folder = data_dir / manifest.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, head, lines in (("problems", Problem._fields, problems), ("notes", ("file", "note"), notes)):
            path = folder / f"{name}.csv"
            if not lines:
                path.unlink(missing_ok=True)
                continue
            with open(path, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([head, *lines])
    except OSError as error:
        raise writer.output_error(data_dir, error) from None
    for kind, count in Counter(step.split(":")[0] for _, step in notes).most_common():
        say(f"Pictures with the step {kind!r}: {count} (listed in {folder / 'notes.csv'}).")
    if problems:
        by_kind = ", ".join(
            f"{count} x {kind}" for kind, count in Counter(item.kind for item in problems).most_common()
        )
        say(f"Problems: {len(problems)} ({by_kind}), all listed in {folder / 'problems.csv'}. The first ones:")
        for problem in problems[:10]:
            say(f"  {problem.kind}: {problem.file}: {problem.reason}")


def _key(row: Row, options: tuple) -> str:
    """Identity of an encoded picture: its files as they are now, wherever the raw folder lies, and the options."""
    stats = []
    for file in (row.file, *row.masks):
        try:
            stat = file.stat()
            stats.append((file.name, stat.st_size, stat.st_mtime_ns))
        except OSError:
            stats.append((file.name, None, None))
    return hashlib.sha256(repr((row.image_id, stats, options)).encode()).hexdigest()


def _digest(manifest: Manifest, keys: list[str]) -> str:
    """Identity of a set: everything that its records and metadata are made from."""
    rows = [row._replace(file=None, masks=None) for row in manifest.rows]
    return hashlib.sha256(repr((manifest._replace(rows=rows, remarks=()), keys)).encode()).hexdigest()


def _metadata(directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / "metadata.json").read_text())
    except (OSError, ValueError):
        return {}
