"""How alike the reports of a set are: vectors of a frozen text encoder, centred over the corpus.

Cosines of a BERT's vectors crowd near 1, whatever the texts say. So the corpus' mean is taken off each vector before it
gets unit length: e ← (e − ē) / ‖e − ē‖, with ē over all reports of the split that is trained on. Texts that are equal
then have the similarity 1. Centring over the whole corpus is our choice; FaNe (arXiv 2511.12215) keeps a running mean
of batches. Of several sets each is centred by itself: how a hospital words its reports is no finding.

The encoder is a folder of a Hugging Face BERT (Bio_ClinicalBERT, CXR-BERT), or "words": rare words weigh more than
common ones and order counts for nothing, but it is there at once and needs no weights.
"""

import functools
import hashlib
import json
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from cxrjax.datasets import writer
from cxrjax.input import paired
from cxrjax.input.converted_sets import ConvertedSet
from cxrjax.input.source import select
from cxrjax.input.studies import Studies, studies
from cxrjax.report_encoders import report_encoder

FOLDER = "report_embeddings"
WORDS = "words"
_OF_AN_ENCODER = (".json", ".txt", ".safetensors", ".bin")


class Table(NamedTuple):
    """The vectors of a split's reports.

    vectors: float32 n e, of unit length, one for each different text. rows: (patient_id, study_id) → row; studies
    without a report are not in it.
    """

    vectors: np.ndarray
    rows: dict[tuple[str, str], int]

    def find(self, patient_id: str, study_id: str) -> np.ndarray:
        """The vector of a study, float32 e; zeros, which are similar to nothing, for one without a report."""
        row = self.rows.get((patient_id, study_id))
        return np.zeros(self.vectors.shape[1], np.float32) if row is None else np.array(self.vectors[row])


def centred(vectors: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Vectors less their mean, of unit length: n e → float32 n e.

    counts: n, how often each is in the corpus. Raises ValueError where all vectors are equal, so that none is left.
    """
    vectors = np.asarray(vectors, np.float64)
    found = vectors - np.average(vectors, axis=0, weights=counts)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    if not len(vectors) or lengths.max() < 1e-6 * np.abs(vectors).max():
        raise ValueError(f"the vectors of {len(vectors)} different reports are all the same, so none is left of them")
    return (found / np.maximum(lengths, 1e-12)).astype(np.float32)


def made(converted_set: ConvertedSet, reader: paired.StudyReader, encoder: str | Path, split: str = "train") -> Path:
    """Where the centred vectors of a split's reports lie, for `load`; they are made when first asked for.

    reader: which text of a report is read. encoder: a folder, or "words". They appear in <set>/report_embeddings whole
    or not at all. Of two processes that ask at a time the second waits for the first. The file's name is a digest of
    what made them: the encoder, the text that is read, and the set's records.
    Raises ValueError for a split without reports, and where the set's folder cannot be written.
    """
    # A folder of their own: what lies right beside the records tells whether a set was converted anew.
    folder = converted_set.directory / FOLDER
    path = folder / f"{_digest(converted_set, split, reader, str(encoder))}.npy"
    if not _is_whole(path):
        try:
            folder.mkdir(exist_ok=True)
            with writer.alone(folder / ".lock"):
                if not _is_whole(path):
                    _make(studies(select(converted_set, split)), reader, encoder, path)
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be written ({error.strerror or error}), so the reports of {converted_set.name!r} get "
                "no vectors; make it writable, or copy the set to where it is"
            ) from None
    return path


def _is_whole(path: Path) -> bool:
    """Whether the vectors are there and can be read; what a disk has damaged is made again."""
    if not path.exists():
        return False
    try:
        rows = pd.read_parquet(path.with_suffix(".parquet"))["row"]
        whole = len(np.load(path, mmap_mode="r")) == rows.max() + 1
    except (pa.ArrowException, OSError, ValueError, KeyError, EOFError) as error:
        whole = False
        logging.warning("%s is damaged (%s)", path, str(error).splitlines()[0])
    return whole


@functools.lru_cache(maxsize=16)
def load(path: Path) -> Table:
    """What `made` put there. The vectors stay on disk, so that worker processes share what is read of them."""
    found = pd.read_parquet(path.with_suffix(".parquet"))
    keys = zip(found["patient_id"], found["study_id"], strict=True)
    return Table(np.load(path, mmap_mode="r"), dict(zip(keys, found["row"], strict=True)))


def bag_of_words(texts: Sequence[str], counts: Sequence[int] | np.ndarray, width: int = 256) -> np.ndarray:
    """What words each text has, not how often or where: n e of e = width.

    counts: n, how often each text is in the corpus. Each word has a random direction of its own, the same in every
    corpus, and the weight log((1 + reports) / (1 + reports with it)). Source: TF–IDF without the TF; our choice.
    """
    of_text = [sorted(set(re.findall(r"\w+", text.lower()))) for text in texts]
    having = Counter()
    for words, count in zip(of_text, counts, strict=True):
        having.update(dict.fromkeys(words, int(count)))
    weight = {word: np.log((1 + sum(counts)) / (1 + count)) for word, count in having.items()}
    arrow = {word: np.random.default_rng(zlib.crc32(word.encode())).standard_normal(width) for word in having}
    return np.stack([sum((weight[word] * arrow[word] for word in words), np.zeros(width)) for words in of_text])


def _make(whole: Studies, reader: paired.StudyReader, encoder: str | Path, path: Path) -> None:
    kept, texts = [], []
    for item in range(len(whole)):
        study = whole[item]
        text = reader.text(study["report"])
        if text:
            kept.append((study["patient_id"], study["study_id"]))
            texts.append(text)
    if not texts:
        raise ValueError(f"{whole!r} has no report to compare; choose a set with reports")
    different, rows, counts = np.unique(texts, return_inverse=True, return_counts=True)
    different = different.tolist()
    raw = bag_of_words(different, counts) if str(encoder) == WORDS else report_encoder.embed(encoder, different)
    listed = pd.DataFrame(kept, columns=["patient_id", "study_id"]).assign(row=rows.reshape(-1))
    listed.to_parquet(path.with_suffix(".parquet"))
    unfinished = path.with_suffix(".unfinished")
    with open(unfinished, "wb") as file:
        np.save(file, centred(raw, counts))
    os.replace(unfinished, path)  # last, since it says that both are there


def _digest(converted_set: ConvertedSet, split: str, reader: paired.StudyReader, encoder: str) -> str:
    """Of the encoder's files, of the set's records by name, size and time, and of what is read of a report."""
    records = [path for path in converted_set.directory.iterdir() if "array_record" in path.name]
    stored = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in records)
    said = [split, reader.sections, reader.cleaning, stored]
    return hashlib.sha256(json.dumps([said, _encoder_digest(encoder)]).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=16)
def _encoder_digest(encoder: str) -> str:
    state = hashlib.sha256()
    if encoder == WORDS:
        return WORDS
    for file in sorted(path for path in Path(encoder).iterdir() if path.suffix in _OF_AN_ENCODER):
        state.update(file.name.encode())
        with open(file, "rb") as opened:
            state.update(hashlib.file_digest(opened, "sha256").digest())
    return state.hexdigest()
