"""What a table of predictions says: its labels, what it measures of each picture, and which pictures went well."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas

from cxrjax.evals.base import MASKED

LEAST_SCORE = 0.3
"""Boxes with a lower score are neither drawn nor counted when pictures are put in order."""


def judged_labels(table: pandas.DataFrame) -> list[str]:
    """The labels that a table of predictions has targets for; none, if it measures pictures otherwise."""
    return [column.removeprefix("target/") for column in table if column.startswith("target/")]


def picture_values(table: pandas.DataFrame) -> dict[str, np.ndarray]:
    """What a table measures of each picture: name -> n float64, NaN where a picture has no value.

    These are its columns "value/<name>" and, of a retrieval, "hit/<direction>@<k>", which are averaged to a recall, and
    "precision/<direction>@<k>".
    """
    found = {}
    for column in table:
        kind, _, rest = column.partition("/")
        if kind == "value":
            found[rest] = table[column].to_numpy(np.float64)
        elif kind in ("hit", "precision"):
            direction, _, k = rest.partition("@")
            found[f"{direction}_{'recall' if kind == 'hit' else kind}@{k}"] = table[column].to_numpy(np.float64)
    return found


class Quality(NamedTuple):
    """How well each picture was judged: values n, larger is better, NaN where there is nothing to judge.

    what: in words, what the values are.
    """

    values: np.ndarray
    what: str


def quality(table: pandas.DataFrame) -> Quality:
    """How well each picture of a table of predictions was judged."""
    names = judged_labels(table)
    if names:
        targets, scores = (table[[f"{side}/{name}" for name in names]].to_numpy(float) for side in ("target", "score"))
        judged = targets != MASKED
        if ((scores < 0) | (scores > 1)).any():
            ranks = pandas.DataFrame(scores).rank(pct=True).to_numpy()
            scores, what = ranks, "the rank of its scores"
        else:
            what = "the probability of its labels"
        right = np.where(targets == 1, scores, 1 - scores)
        likelihood = np.where(judged, np.log(np.clip(right, 1e-6, 1)), 0).sum(axis=1)
        count = judged.sum(axis=1)
        return Quality(np.divide(likelihood, count, out=np.full(len(table), np.nan), where=count > 0), what)
    if "true_boxes" in table:
        rows = zip(table["true_boxes"], table["boxes"], table["scores"], strict=True)
        values = np.array([_overlap(*row) for row in rows])
        return Quality(values, "the overlap of its true boxes with the best found ones")
    found = picture_values(table)
    if not found:
        return Quality(np.full(len(table), np.nan), "")
    name = next(iter(found))
    return Quality(found[name], name)


def choose(found: np.ndarray, count: int) -> dict[str, list[int]]:
    """Rows of the `count` best, middle and worst pictures, no row twice; fewer where there are not enough."""
    order = np.flatnonzero(np.isfinite(found))
    order = order[np.argsort(-found[order], kind="stable")].tolist()
    count = min(count, len(order) // 3 or 1)
    start = max(0, (len(order) - count) // 2)
    chosen = {"best": order[:count], "median": order[start : start + count], "worst": order[len(order) - count :]}
    seen: set[int] = set()
    return {name: [row for row in rows if not (row in seen or seen.add(row))] for name, rows in chosen.items()}


def _overlap(true: Iterable, found: Iterable, scores: Iterable[float]) -> float:
    """Mean over the true boxes of the best intersection over union with a found one; NaN without true boxes."""
    true = np.array([list(map(float, box)) for box in true])
    found = np.array([list(map(float, box)) for box, score in zip(found, scores, strict=True) if score >= LEAST_SCORE])
    if not len(true) or not len(found):
        return 0.0 if len(true) else float("nan")
    low, high = np.maximum(true[:, None, :2], found[None, :, :2]), np.minimum(true[:, None, 2:], found[None, :, 2:])
    both = np.prod(np.maximum(high - low, 0), axis=2)
    area_true, area_found = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (true, found))
    return float((both / (area_true[:, None] + area_found[None] - both)).max(axis=1).mean())
