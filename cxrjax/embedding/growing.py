"""A table of features on disk that grows by parts, so that it never lies in memory and a killed run goes on.

While a run embeds, every PART pictures become a file of `features.parquet.parts`: their rows, and in its metadata those
that could not be read. At the end the parts become row groups of `features.parquet`, which is put in place at once.
A part is either whole or not there and starts anew, so that a run that was killed ends in the same bytes as one that
was not. Arrays lie beside the table: patches of part 7 are `features.patches/00007.npy`, float n p q d. A row says its
part and its place in it.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet

PART = 1024  # pictures: small enough to lose, many enough that a million make a thousand files
COLUMNS = pyarrow.schema(
    [
        ("path", pyarrow.string()),
        ("embedding", pyarrow.list_(pyarrow.float32())),
        ("height", pyarrow.int32()),
        ("width", pyarrow.int32()),
        ("steps", pyarrow.list_(pyarrow.string())),
        ("fingerprint", pyarrow.string()),
    ]
)
OF_BESIDE = pyarrow.schema([("patch_part", pyarrow.int32()), ("patch_row", pyarrow.int32())])
DIGEST, BESIDE, UNREADABLE = b"cxrjax_checkpoint", b"cxrjax_beside", b"cxrjax_unreadable"


class Growing:
    """The table at `output`, and the parts that are not in it yet.

    done: names of pictures that have a row, or that this run has found unreadable. bad: the latter, with the reasons.
    """

    def __init__(self, output: Path, digest: str, kept: pyarrow.Schema, beside: Mapping[str, str] | None = None):
        """digest: of the checkpoint. kept: columns beside ours. beside: dtypes of arrays, {"patches": "float16"}.

        Raises ValueError where there is a file at `output` that is no such table, or one of another checkpoint or of
        other columns.
        """
        self.output, self.parts = output, output.with_name(f"{output.name}.parts")
        columns = [*COLUMNS, *(OF_BESIDE if beside else ()), *kept]
        names = [column.name for column in columns]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"The column {twice[0]!r} is one of this table's own or given twice; rename or omit it.")
        self.beside, self.next = dict(beside or {}), 0
        self.schema = pyarrow.schema(columns, {DIGEST: digest.encode(), BESIDE: json.dumps(self.beside).encode()})
        self.done: set[str] = set()
        self.bad: list[tuple[str, str]] = []
        if output.exists():
            self._take(output)
        of_table = set(self.done)
        self._new: list[Path] = []
        for part in sorted(self.parts.glob("*.parquet")):
            names = self._take(part)
            self.next = max(self.next, int(part.stem) + 1)
            if not of_table.issuperset(names):  # else the run was killed after the parts were joined
                self._new.append(part)
        self.parts.mkdir(parents=True, exist_ok=True)  # a disk that refuses does so before the work

    def add(
        self, rows: pyarrow.Table, bad: Sequence[tuple[str, str]], beside: Mapping[str, Sequence[np.ndarray]]
    ) -> None:
        """Writes the next part. rows: without the columns of places. beside: arrays of its batches, b … each."""
        if self.beside:
            places = [np.full(len(rows), self.next, np.int32), np.arange(len(rows), dtype=np.int32)]
            for column, place in zip(OF_BESIDE, places, strict=True):
                rows = rows.append_column(column, pyarrow.array(place))
            for name, arrays in beside.items():
                self._write_beside(name, arrays)
        metadata = {**(self.schema.metadata or {}), UNREADABLE: json.dumps(bad).encode()}
        part = self.parts / f"{self.next:05d}.parquet"
        write(part, self.schema.with_metadata(metadata), [rows.select(self.schema.names)])
        self._new.append(part)
        self.bad += bad
        self.next += 1

    def finish(self) -> list[tuple[str, str]]:
        """Puts the table in place with all its parts, and returns those that could not be read, with the reasons."""
        if self._new or not self.output.exists():
            earlier = [self.output] if self.output.exists() else []
            write(self.output, self.schema, groups([*earlier, *self._new]))
        shutil.rmtree(self.parts)
        return self.bad

    def _take(self, file: Path) -> list[str]:
        """Counts the rows of a file as done and returns their names; raises ValueError where it is of something else.

        The output or one of its parts.
        """
        try:
            opened = parquet.ParquetFile(file)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"{file} is there already and no Parquet table ({error}); give another --output."
            ) from None
        with opened:
            schema, metadata = opened.schema_arrow, opened.schema_arrow.metadata or {}
            digest, written_with = (
                found[DIGEST].decode() for found in (self.schema.metadata, {DIGEST: b""} | metadata)
            )
            if written_with != digest:
                raise ValueError(
                    f"{file} is there already and holds features of "
                    f"{f'another checkpoint ({written_with})' if written_with else 'something else'}; this one is "
                    f"{digest}. Give another --output, or remove it."
                )
            if metadata.get(BESIDE, b"") != self.schema.metadata[BESIDE] or schema.names != self.schema.names:
                said = " and ".join(f"{name} as {dtype}" for name, dtype in self.beside.items())
                raise ValueError(
                    f"{file} is there already with columns {', '.join(schema.names)}; these would be "
                    f"{', '.join(self.schema.names)}, with {said or 'nothing'} beside the table. "
                    "Give the same inputs and options, or another --output."
                )
            names = opened.read(["path"])["path"].to_pylist()
            if self.beside and names:
                self.next = max(self.next, int(max(opened.read(["patch_part"])["patch_part"].to_pylist())) + 1)
        bad = [(path, reason) for path, reason in json.loads(metadata.get(UNREADABLE, b"[]"))]
        self.done.update(names, (path for path, _ in bad))
        self.bad += bad
        return names

    def _write_beside(self, name: str, arrays: Sequence[np.ndarray]) -> None:
        folder = self.output.with_suffix(f".{name}")
        folder.mkdir(exist_ok=True)
        file = folder / f"{self.next:05d}.npy"
        partial = file.with_suffix(".partial")
        with open(partial, "wb") as stream:
            np.save(stream, np.concatenate(arrays).astype(self.beside[name]))
        partial.replace(file)


def groups(tables: Sequence[Path]) -> Iterator[pyarrow.Table]:
    """The row groups of several files, one in memory at a time."""
    for table in tables:
        with parquet.ParquetFile(table) as opened:
            for number in range(opened.num_row_groups):
                yield opened.read_row_group(number)


def write(file: Path, schema: pyarrow.Schema, tables: Sequence[pyarrow.Table] | Iterator[pyarrow.Table]) -> None:
    """Writes row groups as one file and puts it in place at once, so that a killed run leaves the earlier one."""
    partial = file.with_name(f"{file.name}.partial")
    with parquet.ParquetWriter(partial, schema) as writer:
        for table in tables:
            if len(table):
                writer.write_table(table.cast(schema), row_group_size=len(table))
    partial.replace(file)
