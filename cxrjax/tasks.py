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
        own = {"solver": "logistic"} if judge == "probe" else {}  # there so that a flag can change it
        yield name, {"judge": judge, "set": converted_set, "task": task, **own}


def online_knn(converted_set: str, every_steps: int, projections: str = "PA,AP") -> dict:
    """Entry of a quick look along training: 20 neighbours among a random thousand pictures, all labels of the set.

    Nothing is fitted and no choice made, so it costs three thousand encoded pictures; a collapsed encoder is at 0.5 in
    the progress line ("knn"), metrics.jsonl and TensorBoard. Its few pictures and resamples make it no result to quote.
    """
    return {
        "judge": "knn",
        "set": converted_set,
        "task": {"kind": "multilabel"},
        "projections": projections,
        "limit": 1000,
        "neighbours": (20,),
        "bootstrap": 50,
        "every_steps": every_steps,
    }
