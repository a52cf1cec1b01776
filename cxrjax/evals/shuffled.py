"""A check of the judging itself: the linear probe, with labels that patients of a split have exchanged.

Nothing can be learned from such labels, so the AUROC is 0.5 within its interval. Where it is not, the labels reach the
features or the choices in another way than through the pictures of their patients: a leak.
"""

import math
from functools import partial

import numpy as np

from cxrjax.evals import labelled, probe
from cxrjax.evals.base import Encoder, FeatureTable, Result
from cxrjax.evals.judge import Entry, Judge, Opened


def exchanged(table: FeatureTable, seed: int) -> FeatureTable:
    """The table with the labels of another patient for each, who is drawn at random; of all labels together.

    A patient with more pictures than the other gets the other's labels again from the first picture on.
    """
    patients, owner = np.unique(table.patient_ids, return_inverse=True)
    rows_of = [np.flatnonzero(owner == patient) for patient in range(len(patients))]
    labels = table.labels.copy()
    for rows, other in zip(rows_of, np.random.default_rng(seed).permutation(len(patients)), strict=True):
        labels[rows] = table.labels[np.resize(rows_of[other], len(rows))]
    return table._replace(labels=labels)


def note(result: Result) -> str:
    """A sentence on whether 0.5 lies in the interval."""
    found = result.metrics["auroc"]
    if not math.isfinite(found.low):
        return "the test pictures are too few for an interval, so nothing is known of a leak"
    if found.low <= 0.5 <= found.high:
        return "with labels that patients have exchanged the AUROC is at chance, as it must be"
    return (
        f"with labels that patients have exchanged the AUROC is {found.value:.3f} and 0.5 lies outside of its "
        "interval: something leaks, or this is the one in twenty that does so by chance; another seed tells"
    )


def _judge(encoder: Encoder, entry: Entry, opened: Opened) -> Result:
    given = labelled.arguments(encoder, entry, opened)
    given.update({split: exchanged(given[split], opened.seed) for split in opened.sources})
    found = probe.probe(**given, strengths=entry["strengths"])
    details = {**found.details, "judge": "shuffled"}
    return found._replace(notes=[*found.notes, note(found)], details=details)


JUDGE = Judge(
    "shuffled",
    judge=_judge,
    check=partial(probe.check_strengths, "logistic"),
    splits=("train", "val", "test"),
    keys={"strengths": (0.1,)},  # as of the probe
)
