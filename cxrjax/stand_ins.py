"""Sets of one black picture in place of those that are not converted, for a plan: shapes and label names are right."""

import contextlib
import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cxrjax.config import ConfigDict, names
from cxrjax.datasets import catalogue, schema, writer
from cxrjax.imaging import pixels
from cxrjax.input import converted_sets
from cxrjax.phantom import phantom_set
from cxrjax.text import tokenizer

FOLDER = "cxrjax-stand-ins-"


@contextlib.contextmanager
def of(config: ConfigDict) -> Iterator[ConfigDict]:
    """The config with stand-ins for the sets that are missing; they are gone afterwards. As it is where none is.

    A method with reports gets made-up words where the config names no tokenizer. Their number is config.text.vocab_size
    all the same, or what the vocabulary of a set has at most.
    """
    absent = [name for name in names(config.data.sets) if not converted_sets.is_converted(name)]
    if not absent:
        yield config
        return
    with tempfile.TemporaryDirectory(prefix=FOLDER) as folder:
        for name in absent:
            _write(Path(folder), name)
        standing = config.copy_and_resolve_references()
        if "text" in config and not config.text.tokenizer:
            special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
            tokenizer.save([*special, *(f"word{number}" for number in range(100))], Path(folder), lowercase=True)
            standing.text.tokenizer = folder
            standing.text.vocab_size = config.text.vocab_size or tokenizer.SIZE
        sets = (str(_place(Path(folder), name)) if name in absent else name for name in names(config.data.sets))
        standing.data.sets = ",".join(sets)
        yield standing


def stood_in_for(path: str) -> str | None:
    """The set that the stand-in at this path stands in for; None where the path is that of a set."""
    _, found, rest = path.partition(FOLDER)
    return str(Path(rest).parent).partition("/")[2] if found else None


def _place(data_dir: Path, name: str) -> Path:
    return data_dir / name / writer.VERSION


def _write(data_dir: Path, name: str) -> None:
    labels: tuple[str, ...] = ("finding",)
    if name in phantom_set.BUILT_ON_DEMAND:
        labels = phantom_set.LABELS
    elif name.split("/")[0] in catalogue.SETS:
        module = importlib.import_module(f"cxrjax.datasets.{name.split('/')[0]}")
        labels = tuple(getattr(module, "LABELS", labels))
    record = schema.complete(
        {
            "image": pixels.encode(np.zeros((32, 32), np.uint8), "png"),
            "image_id": "black",
            "patient_id": "nobody",
            "study_id": "none",
            "view": "PA",
            "labels": np.zeros(len(labels), np.int8),
            "report": {"findings": "", "impression": "", "text": ""},
        }
    )
    writer.write(
        data_dir,
        name,
        features=schema.features(labels, image_format="png", report=True),
        examples={split: lambda: iter([("black", record)]) for split in schema.SPLITS},
        metadata={"label_names": list(labels)},
        description="One black picture that stands in for a set that is not converted.",
    )
