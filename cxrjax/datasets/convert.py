"""A manifest to a converted set: decode, resize and encode every picture on all cores, then write the set at once.

Encoded pictures are kept beside the unfinished set until it is written, so a conversion that was stopped, killed or
found bad files goes on where it was. A picture is encoded again only if its file, its mask file or the options
changed. About three times the size of the finished set has to be free.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from cxrjax.datasets import beside, encode, files, record, schema, writer
from cxrjax.datasets import manifest as manifests
from cxrjax.datasets.encode import Encoded, Form, Reading
from cxrjax.datasets.manifest import Manifest, Problem, Row
from cxrjax.datasets.store import Store
from cxrjax.imaging import pixels
from cxrjax.imaging.masks import MaskSource
from cxrjax.text import tokenizer

ENCODING = 3  # raised when the same file and options would give other bytes, so that older stored ones are not used


class Conversion(NamedTuple):
    """What a conversion did. directory is None where bad files kept the set from being written."""

    directory: Path | None
    problems: tuple[Problem, ...]
    counts: str  # table of what the set holds, or would hold without the bad files


def convert_manifest(
    manifest: Manifest,
    *,
    data_dir: str | Path | None = None,
    short_side: int | str | None = 256,
    image_format: str = "jpeg",
    bits: int = 8,
    check_grey_range: bool = True,
    admit: Sequence[str] = (),
    vocabulary: str | Path | None = None,
    workers: int | None = None,
    beam: Sequence[str] | None = None,
    allow_bad: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = files.say,
) -> Conversion:
    """Converts the pictures of a manifest and writes `<data_dir>/<name>/<config>/<version>/`.

    short_side: px of the short side, aspect kept, or "original". image_format: "jpeg" (quality 95) or "png"; bits: 8,
    or 16 as png. The three make the config's name, such as "256" or "1024-png16". check_grey_range, admit: as
    `imaging.reader.read`'s. workers: threads, by default one per core. beam: options of an Apache Beam pipeline, such
    as "runner=DirectRunner", to convert by that instead.
    vocabulary: a BERT vocab.txt for the set's reports, by default trained on those of the train split.
    Bad files are listed in problems.csv beside the version, and the set is then written only if allow_bad; steps that
    changed pictures (16 bits, colour, enlarged) are listed in notes.csv there.
    overwrite: replaces a set of that name and config that was made from other files or with other options.
    Raises ValueError for a set that is in the way, OutputError for a data folder that is full or read-only.
    """
    form = encode.form(short_side, image_format, bits)
    manifests.check(manifest)
    if vocabulary is not None:
        tokenizer.load(vocabulary)  # hours before it is needed
    reading = Reading(manifest.value_range, check_grey_range, tuple(admit))
    keys = _keys(manifest, (ENCODING, form, reading), progress)
    job = _Job(
        manifest,
        form,
        reading,
        schema.data_dir(data_dir),
        keys,
        _digest(manifest, keys, vocabulary),
        vocabulary,
        allow_bad,
        progress,
        say,
    )
    for remark in manifest.remarks:
        say(remark)
    if job.target.exists() and not overwrite:
        return _already_there(job)
    if beam is not None:
        return _convert_by_beam(job, beam)
    return _convert_here(job, workers or writer.cores())


class _Job(NamedTuple):
    """What is to be converted, and how. keys: of each row, under which its encoded picture is kept; digest: of all."""

    manifest: Manifest
    form: Form
    reading: Reading
    data_dir: Path
    keys: list[str]
    digest: str
    vocabulary: str | Path | None
    allow_bad: bool
    progress: bool
    say: Callable[[str], None]

    @property
    def full_name(self) -> str:
        return f"{self.manifest.name}/{self.form.config}"

    @property
    def folder(self) -> Path:
        """Where problems.csv, notes.csv and the versions of the set lie."""
        return self.data_dir / self.full_name

    @property
    def target(self) -> Path:
        return self.folder / writer.VERSION

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "label_names": list(self.manifest.label_names),
            "short_side": self.form.short_side,
            "image_format": self.form.image_format,
            "bits": self.form.bits,
            "description_of_source": self.manifest.description,
            "source_digest": self.digest,
        }


def _already_there(job: _Job) -> Conversion:
    """The conversion that made the set that is there; raises ValueError where it was made from something else."""
    there = _metadata(job.target)
    if there.get("source_digest") != job.digest:
        raise ValueError(
            f"{job.target} holds a set made from other files, another mapping or other options. Choose another "
            "--name or --data-dir, or replace it with --overwrite."
        )
    writer.tidy(job.data_dir, job.full_name)  # its conversion may have been killed before it did
    without = f", without {there['problems']} bad files" if there.get("problems") else ""
    job.say(f"{job.target} holds exactly this set already{without}; nothing to do.")
    return Conversion(job.target, (), there["counts"])


def _convert_here(job: _Job, workers: int) -> Conversion:
    """Converts by threads of this process."""
    manifest = job.manifest
    store = Store(writer.unfinished_directory(job.data_dir, job.full_name) / "encoded.sqlite", job.data_dir)
    try:
        bad = _encode_all(job, store, workers)
        records = dict(store.records())
        rows, examples, problems = _usable(manifest, job.keys, records, bad)
        steps = [
            (row, step)
            for row, key in zip(manifest.rows, job.keys, strict=True)
            if key in records
            for step in records[key].steps
        ]
        counts = _counts(manifest, rows, [(row.image_id, step) for row, step in steps])
        notes = [(files.shown(row.file), step) for row, step in steps]
        _write_lists(job.folder, notes, problems, job.say)
        if not rows or (problems and not job.allow_bad):
            return Conversion(None, tuple(problems), counts)
        fields = record.features(manifest, job.form)
        writer.write(
            job.data_dir,
            job.full_name,
            features=fields,
            examples={split: partial(_generate, job, part, store, fields, split) for split, part in examples.items()},
            metadata=job.metadata | {"counts": counts, "problems": len(problems)},
            description=manifest.description,
            finish=partial(beside.write, name=manifest.name, rows=rows, vocabulary=job.vocabulary),
        )
    finally:
        store.close()
    writer.tidy(job.data_dir, job.full_name)
    return Conversion(job.target, tuple(problems), counts)


def _convert_by_beam(job: _Job, options: Sequence[str]) -> Conversion:
    """As `_convert_here`; what only DICOM headers say of projection, sex and age is not in the counts."""
    from cxrjax.datasets import beam

    manifest = job.manifest

    def count(rows: Sequence[Row], notes: beam.Notes) -> str:
        image_ids = {files.shown(row.file): row.image_id for row in rows}
        return _counts(manifest, rows, [(image_ids[file], step) for file, step in notes if file in image_ids])

    directory = None
    try:
        directory, notes, problems = beam.write(
            *(manifest, job.form, job.reading, job.data_dir, job.full_name),
            *(job.metadata, job.vocabulary, options, job.allow_bad, count),
        )
    except beam.BadFiles as error:
        notes, problems = error.notes, error.problems
    _write_lists(job.folder, notes, problems, job.say)
    writer.tidy(job.data_dir, job.full_name)
    return Conversion(directory, tuple(problems), count(beam.usable(manifest.rows, problems), notes))


def _encode_all(job: _Job, store: Store, workers: int) -> dict[str, str]:
    """Encodes what the store lacks; returns key -> reason of the pictures that cannot be used."""
    cv2.setNumThreads(0)  # the pool has a thread per core already
    manifest, count = job.manifest, len(job.keys)
    there = {key for key, _ in store.records()}
    todo = {key: row for row, key in zip(manifest.rows, job.keys, strict=True) if key not in there}
    if there and todo:
        job.say(f"{count - len(todo)} of {count} pictures are encoded already; going on with {len(todo)}.")
    bad: dict[str, str] = {}
    pending: dict[Future, str] = {}
    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
    with writer.progress_bar(len(todo), f"{manifest.name}: encoding", "picture", job.progress) as bar:

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
                pending[pool.submit(encode.encode, row, job.form, job.reading)] = key
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
            problems.append(Problem(files.shown(row.file), "picture", bad[key]))
            continue
        row, boxes, wrong = record.place(row, records[key])
        problems += wrong
        rows.append(row)
        examples.setdefault(row.split, []).append((row, key, boxes))
    return rows, examples, problems


def _counts(manifest: Manifest, rows: Sequence[Row], steps: Sequence[tuple[str, str]]) -> str:
    """The table of counts of rows. steps: (image id, what was done); the kinds that need a look are counted."""
    kinds: dict[str, set[str]] = {kind: set() for kind in (pixels.GREY_RANGE, pixels.LOW_CONTRAST)}
    for image_id, step in steps:
        kinds.get(step.split(":")[0], set()).add(image_id)
    return manifests.count_table(rows, manifest.label_names, manifest.published, kinds)


def _generate(
    job: _Job, examples: list, store: Store, fields: Collection[str], split: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    extra_mask_names = job.manifest.extra_mask_names
    with writer.progress_bar(len(examples), f"{job.full_name}: writing {split}", "picture", job.progress) as bar:
        for row, key, boxes in examples:
            yield row.image_id, record.example(row, store.get(key), boxes, extra_mask_names, fields)
            bar.update()


def _write_lists(
    folder: Path, notes: Sequence[tuple[str, str]], problems: Sequence[Problem], say: Callable[[str], None]
) -> None:
    """Writes problems.csv and notes.csv beside the set, or takes old ones away, and says what is in them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, head, lines in (("problems", Problem._fields, problems), ("notes", ("file", "note"), notes)):
            path = folder / f"{name}.csv"
            if not lines:
                path.unlink(missing_ok=True)
                continue
            with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                csv.writer(file).writerows([head, *lines])
    except OSError as error:
        raise writer.output_error(folder, error) from None
    for kind, count in Counter(step.split(":")[0] for _, step in notes).most_common():
        say(f"Pictures with the step {kind!r}: {count} (listed in {folder / 'notes.csv'}).")
    if problems:
        by_kind = ", ".join(
            f"{count} x {kind}" for kind, count in Counter(item.kind for item in problems).most_common()
        )
        say(f"Problems: {len(problems)} ({by_kind}), all listed in {folder / 'problems.csv'}. The first ones:")
        for problem in problems[:10]:
            say(f"  {problem.kind}: {problem.file}: {problem.reason}")


def _keys(manifest: Manifest, options: tuple, progress: bool) -> list[str]:
    keys = []
    with writer.progress_bar(
        len(manifest.rows), f"{manifest.name}: looking at files", "file", progress, files.BAR_AFTER
    ) as bar:
        for row in manifest.rows:
            keys.append(_key(row, options))
            bar.update()
    return keys


def _key(row: Row, options: tuple) -> str:
    """Identity of an encoded picture: its files as they are now, wherever the raw folder lies, and the options."""
    masks = [[_state(source) for source in sources] for sources in (row.masks, *row.extra_masks)]
    return hashlib.sha256(repr((row.image_id, _state(row.file), masks, options)).encode()).hexdigest()


def _state(source: MaskSource) -> tuple:
    if not isinstance(source, Path):
        return source
    try:
        stat = source.stat()
        return source.name, stat.st_size, stat.st_mtime_ns
    except OSError:
        return source.name, None, None


def _digest(manifest: Manifest, keys: list[str], vocabulary: str | Path | None) -> str:
    """Identity of a set: everything that its records and metadata are made from."""
    rows = [row._replace(file=None, masks=None, extra_masks=None) for row in manifest.rows]
    parts = (manifest._replace(rows=rows, remarks=(), published=None), keys, vocabulary and _state(Path(vocabulary)))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _metadata(directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / "metadata.json").read_text())
    except (OSError, ValueError):
        return {}
