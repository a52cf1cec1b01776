"""WebDataset shards and Hugging Face Parquet folders to plain pictures and one table, which `folder` then converts.

    unpack(Path("shards"), Path("plain"))     # plain/<shard>/<key>.png ... and plain/table.csv

A WebDataset shard is a tar file whose members of one sample share their name up to the first dot: 0001.png, 0001.json,
0001.txt, 0001.cls. A Parquet file of Hugging Face holds pictures as structs of bytes and path, or as bytes.
"""

import csv
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from cxrjax.datasets import files, writer
from cxrjax.datasets.table import cell_text

TABLE = "table.csv"
TARS = (".tar", ".tar.gz", ".tgz")
LARGEST_TEXT = 2**24  # bytes of a member that is no picture
_PICTURES = {".png": ".png", ".jpg": ".jpg", ".jpeg": ".jpg", ".dcm": ".dcm", ".dicom": ".dcm"}
_MARKS = ((b"\x89PNG", ".png"), (b"\xff\xd8\xff", ".jpg"))
_SPLITS = re.compile(r"(train|valid|validation|val|dev|test)(?=[-_.\d]|$)", re.IGNORECASE)


class ShardError(ValueError):
    """A folder or shard that cannot be unpacked."""


class Unpacked(NamedTuple):
    """What was written: the table, and how many rows and pictures are in it."""

    table: Path
    rows: int
    pictures: int
    columns: tuple[str, ...]


def unpack(raw: Path, target: Path, *, progress: bool = True, say: Callable[[str], None] = files.say) -> Unpacked:
    """Writes the pictures of all shards below raw to target, and target/table.csv with one row a sample.

    Columns are the fields of JSON members and of Parquet, "txt" and "cls" of members of these names, and the pictures
    as paths below target; "split" is the shard's, by its name, where the samples have no such field.
    Raises ShardError where there is no shard, or one is broken; OutputError where target cannot be written.
    """
    if not raw.is_dir():
        raise ShardError(f"The raw folder {raw} does not exist; give the folder that holds the shards.")
    shards = [path for path in files.below(raw) if path.lower().endswith((*TARS, ".parquet"))]
    if not shards:
        raise ShardError(f"{raw} has no .tar or .parquet file. Plain pictures need no unpacking: use folder.")
    rows: list[dict[str, str]] = []
    pictures = 0
    with writer.progress_bar(len(shards), f"unpacking {files.shown(raw)}", "shard", progress) as bar:
        for shard in shards:
            read = _parquet if shard.lower().endswith(".parquet") else _tar
            folder = files.printable(shard).rsplit(".tar", 1)[0].removesuffix(".tgz").removesuffix(".parquet")
            split = _SPLITS.search(PurePosixPath(shard).name)
            try:
                for number, sample in enumerate(read(raw / shard)):
                    row, written = _written(sample, target, folder, str(number))
                    row.setdefault("split", split[1].lower() if split else "")
                    rows.append(row)
                    pictures += written
            except (tarfile.TarError, pyarrow.ArrowException, EOFError, UnicodeError) as error:
                raise ShardError(f"The shard {raw / shard} is broken: {str(error).rstrip('.')}.") from None
            bar.update()
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    try:
        with open(target / TABLE, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            table = csv.DictWriter(file, columns, restval="")
            table.writeheader()
            table.writerows(rows)
    except OSError as error:
        raise writer.output_error(target, error) from None
    say(f"{len(rows)} samples with {pictures} pictures; columns: {', '.join(columns)}.")
    return Unpacked(target / TABLE, len(rows), pictures, columns)


class _Picture(NamedTuple):
    data: bytes
    name: str  # a path that ends in its suffix, or ""


def _tar(path: Path) -> Iterator[dict[str, Any]]:
    """Samples of a WebDataset shard: column -> text, or picture under the name of its suffix."""
    with tarfile.open(path, "r:*") as archive:
        key, sample = None, {}
        for member in archive:
            if not member.isfile():
                continue
            place = PurePosixPath(member.name)
            stem, _, suffix = place.name.partition(".")
            if not stem:  # hidden
                continue
            if key is not None and key != (place.parent, stem):
                yield sample
                sample = {}
            key = place.parent, stem
            sample["key"] = str(place.parent / stem)
            ending = "." + suffix.lower().rsplit(".", 1)[-1]
            if ending not in _PICTURES and member.size > LARGEST_TEXT:
                continue
            stream = archive.extractfile(member)
            data = stream.read() if stream else b""
            if ending in _PICTURES:
                sample[suffix.lower().rpartition(".")[0] or "image"] = _Picture(data, f"{stem}{ending}")
            elif ending == ".json":
                sample |= _fields(data, member.name)
            elif ending in (".txt", ".cls"):
                sample[suffix.lower()] = files.decoded(data)[0].strip()
        if key is not None:
            yield sample


def _fields(data: bytes, name: str) -> dict[str, str]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ShardError(f"The member {name} is no JSON object.")
    return {str(key): cell_text(value) for key, value in found.items()}


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file: column -> text or picture."""
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(64):
            for row in batch.to_pylist():
                yield {name: _picture(value) or cell_text(value) for name, value in row.items()}


def _picture(value: Any) -> _Picture | None:
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return _Picture(value["bytes"], value.get("path") or "")
    return _Picture(value, "") if isinstance(value, bytes) and _suffix(_Picture(value, "")) else None


def _suffix(picture: _Picture) -> str:
    """The suffix that the first bytes tell, "" for no picture."""
    if picture.data[128:132] == b"DICM":
        return ".dcm"
    return next((suffix for mark, suffix in _MARKS if picture.data.startswith(mark)), "")


def _written(sample: dict[str, Any], target: Path, folder: str, number: str) -> tuple[dict[str, str], int]:
    """The sample with its pictures as paths below target, where they are written, and how many."""
    row: dict[str, str] = {}
    count = 0
    for column, value in sample.items():
        if not isinstance(value, _Picture):
            row[column] = value
            continue
        suffix = _suffix(value) or PurePosixPath(value.name).suffix.lower()
        place = PurePosixPath(folder) / f"{number}{'' if column == 'image' else '-' + _plain(column)}{suffix}"
        try:
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            (target / place).write_bytes(value.data)
        except OSError as error:
            raise writer.output_error(target, error) from None
        row[column] = str(place)
        count += 1
    return row, count


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", name)
