"""How well a model does on women and men, on the ages, on each view, and in each hospital, with intervals of their own.

Sex, age and view come from the converted set, whatever else is known (a hospital, a scanner, a skin tone) from a table
of the user's. A group is compared with everybody else whose group is known, on the same resamples of patients.

A label counts in a group that has at least ten positive and ten negative patients: then only one resample in 22,000
lacks a side. With fewer, the interval would rest on the resamples that happen to have both. So there is none, and the
group is listed with its size. This is our choice. Where labels are left out of a group's mean, the gap is over the same
labels in the group and in the others. The mean itself is not comparable with that of a group with more labels, so the
number of labels stands beside it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas

from cxrjax.datasets.table import column, read_table
from cxrjax.evals import metrics
from cxrjax.evals.base import Ids, Interval
from cxrjax.evals.predictions import judged_labels
from cxrjax.input.converted_sets import ConvertedSet
from cxrjax.input.record_index import index
from cxrjax.reporting import compare

AGE_BANDS = (18, 40, 60, 80)
UNKNOWN = "unknown"
FEWEST_PATIENTS = 10


class Group(NamedTuple):
    """One group of the judged pictures.

    n pictures, of `patients`; positives: with some positive label; labels: those that count. metrics: name -> Interval;
    gap: the first metric minus that of all others whose group is known. Both are empty or None where there are too few.
    """

    attribute: str
    value: str
    n: int
    patients: int
    positives: int
    labels: tuple[str, ...]
    metrics: dict[str, Interval]
    gap: Interval | None


class Attributes(NamedTuple):
    """table: image_id and a column per attribute, a row per picture; notes: on attributes that are not there."""

    table: pandas.DataFrame
    notes: list[str]


class _Measured(NamedTuple):
    """The metrics of a group.

    names: of them; labels: those that count. statistic: weights n r of all pictures -> rows r: the metrics, and then
    the gap of the first one where `has_gap`.
    """

    names: tuple[str, ...]
    has_gap: bool
    labels: tuple[str, ...]
    statistic: Callable[[np.ndarray], np.ndarray]


def age_band(age: float) -> str:
    """ "0–17", "18–39", "40–59", "60–79", "80+"; "unknown" for a negative age."""
    if age < 0 or not np.isfinite(age):
        return UNKNOWN
    place = int(np.searchsorted(AGE_BANDS, age, side="right"))
    low = (0, *AGE_BANDS)[place]
    return f"{low}–{AGE_BANDS[place] - 1}" if place < len(AGE_BANDS) else f"{low}+"


def attributes(converted_set: ConvertedSet, image_ids: Ids, more: str | Path = "") -> Attributes:
    """What is known of pictures, in the order of their image ids.

    more: a table (CSV, TSV, Parquet) with a column image_id, every other column of which is an attribute too.
    An attribute that is known of no picture is left out; a picture whose value is not known has "unknown".
    Raises ValueError for pictures that the set does not have, TableError for a table that cannot be read.
    """
    splits = [index(converted_set, split) for split, size in converted_set.split_sizes.items() if size]
    known = pandas.concat(splits, ignore_index=True).drop_duplicates("image_id").set_index("image_id")
    wanted = pandas.Index(np.asarray(image_ids, dtype=str))
    absent = wanted[~wanted.isin(known.index)]
    if len(absent):
        raise ValueError(
            f"{len(absent)} of {len(wanted)} judged pictures are not in set {converted_set.name!r}, {absent[0]!r} is "
            "the first; was the set converted again, or is it another one?"
        )
    rows = known.loc[wanted]
    found = {
        "sex": rows["sex"].replace("", UNKNOWN).tolist() if "sex" in rows else [],
        "age": [age_band(age) for age in rows["age"]] if "age" in rows else [],
        "view": rows["view"].replace("UNKNOWN", UNKNOWN).tolist(),
    }
    notes = []
    if more:
        path = Path(more)
        table = read_table(path)
        ids = column(table, "image_id", path)
        for name in table:
            if name.lower() != "image_id":
                of = {image_id: value for image_id, value in zip(ids, table[name], strict=True) if value}
                found[name] = [of.get(image_id, UNKNOWN) for image_id in wanted]
    for name in [name for name, values in found.items() if set(values) <= {UNKNOWN}]:
        notes.append(f"subgroups by {name} cannot be formed: the set records it for none of these pictures")
        del found[name]
    return Attributes(pandas.DataFrame({"image_id": wanted, **found}), notes)


def groups(predictions: pandas.DataFrame, known: pandas.DataFrame, resamples: int = 1000, seed: int = 0) -> list[Group]:
    """The metrics of each group: "auroc" and "auprc" over the labels, or the means of what else was measured.

    predictions: as `metrics.prediction_table` makes them, or with measures per picture (see `picture_values`).
    known: as `attributes` makes it, in any order. An attribute with one known value gives no group.
    """
    rows = known.set_index("image_id").loc[predictions["image_id"]].reset_index(drop=True)
    sets = []
    for attribute in rows:
        every = rows[attribute].to_numpy(str)
        named = sorted(set(every) - {UNKNOWN}, key=_order)
        for value in named if len(named) > 1 else ():
            sets.append((attribute, value, every == value, (every != value) & (every != UNKNOWN)))
        if len(named) > 1 and (every == UNKNOWN).any():
            sets.append((attribute, UNKNOWN, every == UNKNOWN, np.zeros(len(every), bool)))
    measured = [_measure(predictions, inside, outside) for _, _, inside, outside in sets]
    sizes = [len(one.names) + one.has_gap for one in measured]

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.concatenate([np.empty((0, weights.shape[1])), *(one.statistic(weights) for one in measured)])

    value = statistic(np.ones((len(predictions), 1)))[:, 0]
    samples = metrics.bootstrap(statistic, predictions["patient_id"].to_numpy(str), resamples, seed)
    stops = np.cumsum([0, *sizes])
    found = []
    for (attribute, name, inside, _), one, start, stop in zip(sets, measured, stops[:-1], stops[1:], strict=True):
        own = predictions.loc[inside]
        spans = [metrics.interval(value[m], samples[:, m], len(own)) for m in range(start, stop)]
        positive = own.filter(regex="^target/").to_numpy() == 1
        found.append(
            Group(
                attribute,
                name,
                len(own),
                len(set(own["patient_id"])),
                int(positive.any(axis=1).sum()),
                one.labels,
                dict(zip(one.names, spans, strict=False)),
                spans[-1] if one.has_gap else None,
            )
        )
    return found


def _measure(predictions: pandas.DataFrame, inside: np.ndarray, outside: np.ndarray) -> _Measured:
    """The metrics of the pictures inside, and the gap of the first to those outside; none where there are too few.

    inside, outside: n bool.
    """
    own, others = predictions.loc[inside], predictions.loc[outside]
    labels = judged_labels(predictions)
    if labels:
        counted, of_others = countable(own, labels), countable(others, labels)
        if not counted:
            return _NOTHING
        both = [name for name in counted if name in of_others]
        in_group = _areas(own, counted)
        if not both:
            return _Measured(("auroc", "auprc"), False, tuple(counted), lambda weights: in_group(weights[inside]))
        in_both, in_rest = _areas(own, both), _areas(others, both)

        def areas(weights: np.ndarray) -> np.ndarray:
            gap = in_both(weights[inside])[:1] - in_rest(weights[outside])[:1]
            return np.concatenate([in_group(weights[inside]), gap])

        return _Measured(("auroc", "auprc"), True, tuple(counted), areas)
    if len(set(own["patient_id"])) < FEWEST_PATIENTS:
        return _NOTHING
    here = compare.measured("", own)
    names = tuple(here.parts)
    if len(set(others["patient_id"])) < FEWEST_PATIENTS:
        return _Measured(names, False, (), lambda weights: here.statistic(weights[inside]))
    rest = compare.measured("", others)

    def means(weights: np.ndarray) -> np.ndarray:
        rows = here.statistic(weights[inside])
        return np.concatenate([rows, rows[:1] - rest.statistic(weights[outside])[:1]])

    return _Measured(names, True, (), means)


_NOTHING = _Measured((), False, (), lambda weights: np.empty((0, weights.shape[1])))


def countable(table: pandas.DataFrame, labels: Sequence[str]) -> list[str]:
    """The labels of which at least FEWEST_PATIENTS patients of a table are positive, and as many negative."""
    return [name for name in labels if min(patients(table, name)) >= FEWEST_PATIENTS]


def patients(table: pandas.DataFrame, label: str) -> tuple[int, int]:
    """How many patients of a table have a picture with the label, and how many one without it."""
    ids, targets = table["patient_id"].to_numpy(str), table[f"target/{label}"].to_numpy()
    return len(set(ids[targets == 1])), len(set(ids[targets == 0]))


def _areas(table: pandas.DataFrame, names: Sequence[str]) -> Callable[[np.ndarray], np.ndarray]:
    ranked = [metrics.rank(table[f"target/{name}"].to_numpy(), table[f"score/{name}"].to_numpy()) for name in names]
    return lambda weights: np.mean([metrics.ranked_areas(one, weights) for one in ranked], axis=0)


def worst(found: Sequence[Group]) -> dict[str, Group]:
    """Attribute -> its group with the lowest first metric, of those that have one. Of several it looks too low."""
    lowest: dict[str, Group] = {}
    for group in found:
        if group.metrics and group.value != UNKNOWN:
            kept = lowest.get(group.attribute, group)
            lowest[group.attribute] = min(kept, group, key=lambda one: next(iter(one.metrics.values())).value)
    return lowest


def _order(value: str) -> tuple:
    """Numbers by size ("5" before "18–39"), and then words."""
    number = value.replace("+", "–").split("–")[0]
    return (0, int(number), value) if number.isdigit() else (1, 0, value)
