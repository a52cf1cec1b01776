"""How common and rare findings are judged apart: means over the head, the middle and the tail of the labels.

A label belongs to the head if at least a share bounds[0] of the training pictures that say something about it have it,
to the tail if fewer than bounds[1] have it, to the middle otherwise. "auprc" is the mean average precision over all
labels (macro mAP, as in the CXR-LT challenges); "auprc_head", "auprc_medium" and "auprc_tail" are those of the groups.
"""

from collections.abc import Sequence

import numpy as np

from cxrjax.evals import metrics
from cxrjax.evals.base import MASKED, Result, Targets

KEYS = {
    "long_tail": (),  # two shares of the training pictures, such as (0.1, 0.01): from the first on head, below it tail
}
GROUPS = ("head", "medium", "tail")


def check(bounds: Sequence[float], kind: str) -> None:
    """Raises ValueError for bounds that are none, and for a task with one label to a picture or one label at all."""
    if not bounds:
        return
    if len(bounds) != 2 or not 1 > bounds[0] >= bounds[1] > 0:
        raise ValueError(f"long_tail={tuple(bounds)} must be two shares below 1, the larger one first, or () for none")
    if kind != "multilabel":
        raise ValueError(f"long_tail puts the labels of a multilabel task into groups, and this task is {kind}")


def add(result: Result, train: Targets, bounds: Sequence[float], resamples: int, seed: int) -> Result:
    """The result with the mean AUROC and average precision of each group, and details and notes on who is in it.

    result: of a multilabel task, with its predictions. train: the key of the training pictures.
    """
    if not bounds:
        return result
    judged = (train.values != MASKED).sum(axis=0)
    shares = dict(zip(train.names, ((train.values == 1).sum(axis=0) / judged).tolist(), strict=True))
    members: dict[str, list[str]] = {group: [] for group in GROUPS}
    table = result.predictions
    for name, share in shares.items():
        if {0, 1} <= set(table[f"target/{name}"]):  # else the result says that it was skipped
            members["head" if share >= bounds[0] else "tail" if share < bounds[1] else "medium"].append(name)
    filled = {group: names for group, names in members.items() if names}
    ranked = {
        name: metrics.rank(table[f"target/{name}"].to_numpy(), table[f"score/{name}"].to_numpy())
        for names in filled.values()
        for name in names
    }

    def statistic(weights: np.ndarray) -> np.ndarray:
        areas = {name: metrics.ranked_areas(one, weights) for name, one in ranked.items()}
        return np.concatenate([np.mean([areas[name] for name in names], axis=0) for names in filled.values()])

    values = statistic(np.ones((len(table), 1)))[:, 0]
    samples = metrics.bootstrap(statistic, table["patient_id"].to_numpy(str), resamples, seed)
    rows = [f"{area}_{group}" for group in filled for area in ("auroc", "auprc")]
    found = {name: metrics.interval(values[row], samples[:, row], len(table)) for row, name in enumerate(rows)}
    said = [f"{group} {len(names)} ({', '.join(names) or 'none'})" for group, names in members.items()]
    notes = [*result.notes, f"labels by their share of the training pictures: {'; '.join(said)}"]
    details = {**result.details, "long_tail": {"labels": members, "shares": shares}}
    return result._replace(metrics={**result.metrics, **found}, notes=notes, details=details)
