"""A conversion spread over processes or machines by Apache Beam, for sets too large for one computer.

Nothing is kept of a run that fails: Beam itself repeats what a worker lost. Every worker must see the raw folder and
the data folder under the same paths (a shared file system).
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from cxrjax.datasets import beside, encode, record, writer
from cxrjax.datasets.encode import Form, Reading
from cxrjax.datasets.files import shown
from cxrjax.datasets.manifest import Manifest, Problem, Row
from cxrjax.imaging.pixels import UnreadablePicture

NOTE = "note"
Notes = list[tuple[str, str]]


class BadFiles(ValueError):
    """Bad files keep a set from being written."""

    def __init__(self, notes: Notes, problems: list[Problem]):
        super().__init__(f"{len(problems)} bad files")
        self.notes, self.problems = notes, problems


def write(
    manifest: Manifest,
    form: Form,
    reading: Reading,
    data_dir: Path,
    full_name: str,
    metadata: dict[str, Any],
    vocabulary: str | Path | None,
    pipeline_options: Sequence[str],
    allow_bad: bool,
    count: Callable[[Sequence[Row], Notes], str],
) -> tuple[Path, Notes, list[Problem]]:
    """Writes the set of a manifest through Beam; returns its folder, (file, step) notes and the bad files.

    count: the table of counts of the rows that could be used and the notes, which goes into the metadata.
    pipeline_options: Beam's, such as "runner=DirectRunner". Raises BadFiles if there are some and they are not allowed,
    ValueError where Beam is not installed, OutputError for the data folder.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ValueError("Apache Beam is not installed: pip install 'cxrjax[beam]'.") from None
    said = writer.unfinished_directory(data_dir, full_name) / "said"
    shutil.rmtree(said, ignore_errors=True)  # by a run that failed
    said.mkdir()
    fields = record.features(manifest, form)
    convert = partial(
        _convert, form=form, reading=reading, manifest=manifest._replace(rows=(), problems=()), fields=tuple(fields)
    )
    rows_of = defaultdict(list)
    for row in manifest.rows:
        rows_of[row.split].append(row)
    notes: Notes = []
    problems = list(manifest.problems)

    def finish(directory: Path) -> None:
        _read_said(said, notes, problems)
        if problems and not allow_bad:
            raise BadFiles(notes, problems)
        rows = usable(manifest.rows, problems)
        writer.add_metadata(directory, {"counts": count(rows, notes), "problems": len(problems)})
        beside.write(directory, name=manifest.name, rows=rows, vocabulary=vocabulary)

    directory = writer.write(
        data_dir,
        full_name,
        features=fields,
        examples={split: _transform(rows, convert, said / split) for split, rows in rows_of.items()},
        metadata=metadata,
        description=manifest.description,
        finish=finish,
        download_config=tfds.download.DownloadConfig(
            beam_options=PipelineOptions([f"--{option.lstrip('-')}" for option in pipeline_options])
        ),
    )
    return directory, notes, problems


def usable(rows: Sequence[Row], problems: Sequence[Problem]) -> list[Row]:
    """The rows without pictures and masks that the problems name."""
    bad, unmasked = ({item.file for item in problems if item.kind == kind} for kind in ("picture", "mask"))
    kept = ((shown(row.file), row) for row in rows)
    return [row._replace(masks=()) if file in unmasked else row for file, row in kept if file not in bad]


def _transform(rows: Sequence[Row], convert: Callable[[Row], Iterator], said: Path) -> Any:
    """The Beam transform that makes the examples of rows; what there is to say of them goes to files <said>-….jsonl."""
    import apache_beam
    from apache_beam.io import WriteToText

    def expand(pipeline: Any) -> Any:
        parts = (
            pipeline
            | apache_beam.Create(rows)
            | apache_beam.Reshuffle()
            | apache_beam.FlatMap(convert).with_outputs("said", main="example")
        )
        lines = parts.said | apache_beam.Map(json.dumps)
        _ = lines | WriteToText(str(said), file_name_suffix=".jsonl")
        return parts.example

    return apache_beam.ptransform_fn(expand)()


def _read_said(folder: Path, notes: Notes, problems: list[Problem]) -> None:
    """Adds what the workers wrote of their files to the notes and the problems."""
    for path in sorted(folder.iterdir()):
        for file, kind, text in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            if kind == NOTE:
                notes.append((file, text))
            else:
                problems.append(Problem(file, kind, text))


def _convert(row: Row, form: Form, reading: Reading, manifest: Manifest, fields: Sequence[str]) -> Iterator:
    """The (key, example) of a row, and as tagged outputs what there is to say of it as (file, kind, text)."""
    from apache_beam.pvalue import TaggedOutput

    file = shown(row.file)
    try:
        encoded = encode.encode(row, form, reading)
    except UnreadablePicture as error:
        yield TaggedOutput("said", (file, "picture", str(error)))
        return
    row, boxes, problems = record.place(row, encoded)
    for line in [*problems, *((file, NOTE, step) for step in encoded.steps)]:
        yield TaggedOutput("said", tuple(line))
    yield row.image_id, record.example(row, encoded, boxes, manifest.extra_mask_names, fields)
