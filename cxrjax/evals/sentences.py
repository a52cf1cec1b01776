"""Does an encoder that was trained with reports read what a sentence says: "no", left or right, and any wording alike?

    negation_present, negation_absent   share of pairs of a statement and a denial of which the true one is nearer to
                                        the picture, of pictures with the finding and without it
    laterality_left, laterality_right   share of sentences that are nearer with the true side in them than with the
                                        other, of findings on the patient's left and right
    prompt_spread                       standard deviation of the AUROCs that single statements reach
    severity                            Spearman's rank correlation of how much nearer statements are than denials with
                                        the area of the finding's boxes, of pictures that have it

An encoder that does not look at the picture, or does not read "no", answers the same whatever there is: its two
shares add up to 1, and their mean is 0.5, which is chance. So the two belong together. The side of a finding is that of
its boxes' middles: the patient's right is on the left of a frontal picture. Findings with boxes on both sides are left
out. Severity is 0 where large findings are no nearer than small ones. Statements are the prompts of `zeroshot`; no
label chooses anything.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas

from cxrjax.evals import joint, labelled, metrics, zeroshot
from cxrjax.evals.base import Encoder, FeatureTable, Interval, Result, Task, make_task, targets
from cxrjax.evals.judge import Entry, Judge, Opened
from cxrjax.input import boxes
from cxrjax.input.source import Source

FEWEST_PATIENTS = 10
LEFT, RIGHT = "left", "right"


def sentences(
    test: FeatureTable,
    task: Task,
    label_names: Sequence[str],
    *,
    embed: Callable[[Sequence[str]], np.ndarray],
    sides: Mapping[str, np.ndarray],
    areas: Mapping[str, np.ndarray] | None = None,
    prompts: Mapping[str, Mapping[str, str | Sequence[str]]] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Result:
    """Judges what sentences say on test pictures, whose features are unit vectors of the shared space.

    embed: sentences -> their unit vectors. sides: label -> n texts, "left", "right" or "" for each test picture.
    areas: label -> n, of its boxes, as a share of the picture; 0 where there are none.
    prompts: see `zeroshot.sides`. What fewer than FEWEST_PATIENTS patients of a label have counts in
    the means over the labels alone, and is named.
    Raises ValueError for labels without prompts, and where no picture has a known label.
    """
    key = targets(task, joint.checked(test, "test").labels, label_names)
    columns: dict[str, np.ndarray] = {}
    rankings: dict[str, list[metrics.Ranking]] = {}
    graded: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    notes, about, few = [], {}, set()
    said = zip(key.names, zeroshot.sides(task, key.names, prompts or {}), key.values.T, strict=True)
    for name, (stated, denied), values in said:
        of_stated, of_denied = embed(stated).astype(np.float64), embed(denied).astype(np.float64)
        near, far = test.features @ of_stated.T, test.features @ of_denied.T  # n s, n t
        above = _share_above(near[:, :, None], far[:, None])
        found = {"negation_present": np.where(values == 1, above, np.nan)}
        found["negation_absent"] = np.where(values == 0, 1 - above, np.nan)
        paired, of_side = sided(stated), sides.get(name)
        if paired and of_side is not None:
            left, right = (test.features @ embed(part).astype(np.float64).T for part in zip(*paired, strict=True))
            leftwards = _share_above(left, right)
            found["laterality_left"] = np.where(of_side == LEFT, leftwards, np.nan)
            found["laterality_right"] = np.where(of_side == RIGHT, 1 - leftwards, np.nan)
        about[name] = {"cosine_of_statement_and_denial": float((of_stated @ of_denied.T).mean())}
        margin = test.features @ (zeroshot.ensemble(of_stated) - zeroshot.ensemble(of_denied))
        area = np.where(values == 1, (areas or {}).get(name, np.zeros(len(values))), 0)
        patients = len(set(test.patient_ids[area > 0]))
        if patients >= FEWEST_PATIENTS:
            graded[name] = margin, area
        elif patients:
            notes.append(f"severity/{name} has no number: {patients} patients have a box of it, fewer than ten")
        if set(values.tolist()) >= {0, 1}:
            rankings[name] = [metrics.rank(values, column) for column in near.T]
            reached = [float(metrics.ranked_areas(one, np.ones((len(values), 1)))[0, 0]) for one in rankings[name]]
            about[name]["auroc"] = dict(zip(stated, reached, strict=True))
        known = {f"{metric}/{name}": column for metric, column in found.items() if np.isfinite(column).any()}
        columns |= known
        for metric, column in known.items():
            patients = len(set(test.patient_ids[np.isfinite(column)]))
            if patients < FEWEST_PATIENTS:
                notes.append(f"{metric} has no number of its own: {patients} patients have it, fewer than ten")
                few.add(metric)
    if not columns:
        raise ValueError(f"no test picture is known to have, or not to have, any of {', '.join(key.names)}")
    columns = _of_pictures(columns) | {name: column for name, column in columns.items() if name not in few}
    intervals = metrics.mean_intervals(columns, test.patient_ids, resamples, seed)
    intervals |= _spreads(rankings, test, resamples, seed)
    intervals |= _severities(graded, test, resamples, seed)
    table = pandas.DataFrame({"image_id": test.image_ids, "patient_id": test.patient_ids})
    table = table.assign(**{f"value/{name}": column for name, column in columns.items()})
    return Result(intervals, table, notes, {"judge": "sentences", "labels": about})


def _share_above(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Share of the pairs n … of which the first is larger, a tie counting half: n."""
    won = (first > second) + 0.5 * (first == second)
    return won.reshape(len(won), -1).mean(axis=1)


def _of_pictures(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ "negation_present" from all "negation_present/<label>" n: of each picture the mean over its labels."""
    found = {}
    for kind in dict.fromkeys(name.partition("/")[0] for name in columns):
        every = np.stack([column for name, column in columns.items() if name.startswith(f"{kind}/")])  # c n
        found[kind] = metrics.known_means(every.T)(np.ones((len(every), 1)))[:, 0]
    return found


def _spreads(
    rankings: Mapping[str, Sequence[metrics.Ranking]], test: FeatureTable, resamples: int, seed: int
) -> dict[str, Interval]:
    """The deviation of the AUROCs of each label's statements, and its mean over the labels."""
    if not rankings:
        return {}

    def statistic(weights: np.ndarray) -> np.ndarray:
        each = [np.std([metrics.ranked_areas(one, weights)[0] for one in every], axis=0) for every in rankings.values()]
        return np.stack([np.mean(each, axis=0), *each])

    count = len(test.patient_ids)
    value = statistic(np.ones((count, 1)))[:, 0]
    samples = metrics.bootstrap(statistic, test.patient_ids, resamples, seed)
    names = ["prompt_spread", *(f"prompt_spread/{name}" for name in rankings)]
    return {name: metrics.interval(value[m], samples[:, m], count) for m, name in enumerate(names)}


def _severities(
    graded: Mapping[str, tuple[np.ndarray, np.ndarray]], test: FeatureTable, resamples: int, seed: int
) -> dict[str, Interval]:
    """The rank correlation of margin n and area n of each label, of pictures with an area, and its mean over labels."""
    if not graded:
        return {}

    def statistic(weights: np.ndarray) -> np.ndarray:
        each = [spearman(margin[area > 0], area[area > 0], weights[area > 0]) for margin, area in graded.values()]
        return np.stack([np.mean(each, axis=0), *each])

    whole = statistic(np.ones((len(test.patient_ids), 1)))[:, 0]
    samples = metrics.bootstrap(statistic, test.patient_ids, resamples, seed)
    counts = [sum((area > 0) for _, area in graded.values()), *(area > 0 for _, area in graded.values())]
    names = ["severity", *(f"severity/{name}" for name in graded)]
    rows = zip(names, whole, samples.T, counts, strict=True)
    return {name: metrics.interval(value, drawn, int((seen > 0).sum())) for name, value, drawn, seen in rows}


def spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's correlation of x n and y n where weights n r say how often each pair counts: r, NaN without spread."""
    a, b = (_ranks(one, weights) for one in (x, y))
    total = weights.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (one - (one * weights).sum(axis=0) / total for one in (a, b))
        return (a * b * weights).sum(axis=0) / np.sqrt((a * a * weights).sum(axis=0) * (b * b * weights).sum(axis=0))


def _ranks(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks n r of x n, those of equals their mean, up to a number that all share."""
    _, group = np.unique(x, return_inverse=True)
    of_group = np.zeros((group.max() + 1, weights.shape[1]))
    np.add.at(of_group, group, weights)
    return (of_group.cumsum(axis=0) - of_group / 2)[group]


def sided(every: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of a sentence about the left and the same about the right, of those that name one side; each pair once."""
    found = []
    for sentence in every:
        words = set(re.findall(r"[a-z]+", sentence.lower()))
        if len(words & {LEFT, RIGHT}) == 1:
            found.append((_said(sentence, LEFT), _said(sentence, RIGHT)))
    return list(dict.fromkeys(found))


def _said(sentence: str, side: str) -> str:
    return re.sub(
        r"\b(left|right)\b", lambda word: side.capitalize() if word[0][0].isupper() else side, sentence, flags=re.I
    )


def sides_of(source: Source) -> dict[str, np.ndarray]:
    """Label -> for each picture the side of the patient on which all boxes of that label lie, "" for none or both."""
    found: dict[str, list[set[str]]] = {}
    for row in range(len(source)):
        example = source[row]
        for label, (_, x0, _, x1) in zip(boxes.labels(example), boxes.of_example(example, ()).boxes, strict=True):
            rows = found.setdefault(label, [set() for _ in range(len(source))])
            rows[row].add(RIGHT if x0 + x1 < 1 else LEFT)

    def side(seen: set[str]) -> str:
        return next(iter(seen)) if len(seen) == 1 else ""

    return {label: np.array([side(seen) for seen in rows]) for label, rows in found.items()}


def areas_of(source: Source) -> dict[str, np.ndarray]:
    """Label -> for each picture the area of all boxes of that label, as a share of the picture."""
    found: dict[str, np.ndarray] = {}
    for row in range(len(source)):
        example = source[row]
        for label, (y0, x0, y1, x1) in zip(boxes.labels(example), boxes.of_example(example, ()).boxes, strict=True):
            found.setdefault(label, np.zeros(len(source)))[row] += (y1 - y0) * (x1 - x0)
    return found


def _judge(encoder: Encoder, entry: Entry, opened: Opened) -> Result:
    given = labelled.arguments(joint.pictures(encoder), entry, opened)
    test = opened.sources["test"]
    has_boxes = "boxes" in test[0]
    embed = partial(joint.texts, encoder, batch_size=entry["batch_size"])
    sides, areas = (sides_of(test), areas_of(test)) if has_boxes else ({}, {})
    result = sentences(**given, embed=embed, sides=sides, areas=areas, prompts=entry["prompts"])
    if has_boxes:
        return result
    said = f"sides and severity were not asked for: the set {test.converted_set.name!r} has no boxes to tell them by"
    return result._replace(notes=[*result.notes, said])


def _check(entry: Entry, sources: Mapping[str, Source]) -> None:
    task = make_task(entry["task"])
    if task.kind != "multilabel":
        raise ValueError(f"sentences are judged label by label, in a task of kind 'multilabel', not {task.kind!r}")
    names = targets(task, labelled.blank(sources["test"]).labels, sources["test"].converted_set.label_names).names
    zeroshot.sides(task, names, entry["prompts"])


JUDGE = Judge(
    "sentences",
    judge=_judge,
    check=_check,
    splits=("test",),
    keys={"prompts": {}},  # as of `zeroshot`
)
