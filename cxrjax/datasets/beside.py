"""What lies beside the records of a converted set: lists of label fractions, and the vocabulary of its reports."""

from collections.abc import Sequence
from pathlib import Path

from cxrjax.datasets import schema
from cxrjax.datasets.manifest import Row
from cxrjax.text import tokenizer

FRACTIONS = (0.01, 0.1, 1.0)
FRACTION_SEEDS = (0, 1, 2)


def write(directory: Path, *, name: str, rows: Sequence[Row], vocabulary: str | Path | None = None) -> None:
    """Writes fractions/*.txt and, for a set with reports, vocab.txt into the folder of a converted set.

    vocabulary: the user's own BERT vocab.txt; by default WordPiece is trained on the reports of the train split.
    """
    train = [row for row in rows if row.split == "train"]
    if train:
        (directory / "fractions").mkdir(exist_ok=True)
        for file, image_ids in fraction_lists(name, train).items():
            (directory / "fractions" / file).write_text("\n".join([*image_ids, ""]), encoding="utf-8")
    texts = [" ".join(filter(None, (row.findings, row.impression, row.text))) for row in train]
    if vocabulary is not None:
        own = tokenizer.load(vocabulary)
        tokenizer.save(own.vocabulary, directory, own.lowercase)
    elif any(texts):
        tokenizer.save(tokenizer.train(filter(None, texts)), directory)


def fraction_lists(name: str, train: Sequence[Row]) -> dict[str, list[str]]:
    """train-seed<S>-<P>percent.txt -> image ids: nested shares of the patients, for several seeds.

    They are what `source(..., fraction=P / 100, fraction_seed=S)` selects.
    """
    patients = {row.patient_id for row in train}
    lists = {}
    for seed in FRACTION_SEEDS:
        for fraction in FRACTIONS:
            chosen = schema.share_of_patients(name, patients, fraction, seed)
            ids = [row.image_id for row in train if row.patient_id in chosen]
            lists[f"train-seed{seed}-{round(100 * fraction)}percent.txt"] = ids
    return lists
