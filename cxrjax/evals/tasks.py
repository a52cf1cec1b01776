"""Evaluation entries that several configs share."""

from collections.abc import Iterator

_FIVE_SETS = {
    "tb": ("tb_lung_masks", ("Tuberculosis",), ("Normal",)),
    "nih_pneumonia": ("chestxray14_subset", ("Pneumonia",), ("No Finding",)),
    "paediatric_pneumonia": ("pediatric_pneumonia", ("Bacterial pneumonia", "Viral pneumonia"), ("Normal",)),
    "bacterial_or_viral": ("pediatric_pneumonia", ("Bacterial pneumonia",), ("Viral pneumonia",)),
}


def five_sets(judge: str = "probe") -> Iterator[tuple[str, dict]]:
    """(name, entry) of the binary tasks of the five small public sets of configs/sets."""
    for name, (converted_set, positive, negative) in _FIVE_SETS.items():
        task = {"kind": "binary", "positive": positive, "negative": negative, "name": name}
        yield name, {"judge": judge, "set": converted_set, "task": task, "solver": "logistic"}
