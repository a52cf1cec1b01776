"""Who is missed and who is called ill for nothing: sensitivity and specificity of groups at one fixed threshold.

The threshold of each label was fixed on validation patients, for all groups alike. A group whose sensitivity is lower
than that of the others is under-diagnosed (Seyyed-Kalantari et al., Nature Medicine 2021; of "No Finding" it is the
specificity). An AUROC within each group does not show this: it is blind to a shift of all scores of a group, such as
those of AP pictures.

A label counts in a group as in `subgroups`: with at least ten positive and ten negative patients in the group and among
the others whose group is known.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas

from cxrjax.evals import metrics
from cxrjax.evals.base import Interval
from cxrjax.reporting import operating, subgroups
from cxrjax.reporting.subgroups import UNKNOWN


class Gap(NamedTuple):
    """One label in one group at its threshold; gaps are the group minus all others whose group is known.

    fnr_gap: of the false negative rate, 1 − sensitivity; above 0 the group is missed more often. fpr_gap: of the false
    positive rate, 1 − specificity.
    """

    attribute: str
    value: str
    label: str
    n: int
    sensitivity: Interval
    specificity: Interval
    fnr_gap: Interval
    fpr_gap: Interval


def crossed(known: pandas.DataFrame) -> pandas.DataFrame:
    """The table of attributes (see `subgroups.Attributes`) with a column for each pair: "F · 60–79"."""
    attributes = [name for name in known if name != "image_id"]
    table = known.copy()
    for place, first in enumerate(attributes):
        for second in attributes[place + 1 :]:
            unknown = (known[first] == UNKNOWN) | (known[second] == UNKNOWN)
            table[f"{first} × {second}"] = np.where(unknown, UNKNOWN, known[first] + " · " + known[second])
    return table


def gaps(
    predictions: pandas.DataFrame,
    known: pandas.DataFrame,
    thresholds: Mapping[str, float],
    resamples: int = 1000,
    seed: int = 0,
) -> list[Gap]:
    """The gaps of every group and label that counts.

    predictions: as `metrics.prediction_table` makes them. known: as `subgroups.attributes` makes it, in any order.
    thresholds: label -> threshold; labels without one are left out.
    """
    found: list[tuple[str, str, str, int]] = []
    measures: list[tuple[tuple[np.ndarray, np.ndarray, float], np.ndarray, np.ndarray]] = []
    for attribute, value, inside, outside in _groups(predictions, known):
        labels = subgroups.countable(predictions.loc[inside], list(thresholds))
        for label in subgroups.countable(predictions.loc[outside], labels):
            found.append((attribute, value, label, int(inside.sum())))
            measures.append((_called(predictions, label, thresholds[label]), inside, outside))

    def statistic(weights: np.ndarray) -> np.ndarray:
        parts = [np.empty((0, weights.shape[1]))]
        for called, inside, outside in measures:
            own, others = (operating.at_threshold(*called, weights * side[:, None])[:2] for side in (inside, outside))
            parts += [own, others - own]  # a rate of errors is 1 minus the share that is right
        return np.concatenate(parts)

    values = statistic(np.ones((len(predictions), 1)))[:, 0].reshape(-1, 4)
    samples = metrics.bootstrap(statistic, predictions["patient_id"].to_numpy(str), resamples, seed)
    spans = samples.reshape(len(samples), -1, 4)

    def rate(group: int, number: int) -> Interval:
        return metrics.interval(values[group, number], spans[:, group, number], found[group][3])

    return [Gap(*about, rate(g, 0), rate(g, 1), rate(g, 2), rate(g, 3)) for g, about in enumerate(found)]


def left_out(predictions: pandas.DataFrame, known: pandas.DataFrame, thresholds: Mapping[str, float]) -> list[str]:
    """What `gaps` does not count, with the patients it has: "Mass in sex F (3 with it, 41 without)"."""
    said = []
    for attribute, value, inside, outside in _groups(predictions, known):
        tables = [predictions.loc[side] for side in (inside, outside)]
        for label in thresholds:
            sides = [subgroups.patients(table, label) for table in tables]
            few = [min(pair) < subgroups.FEWEST_PATIENTS for pair in sides]
            present, absent = sides[0] if few[0] else sides[1]
            whose = "" if few[0] else " among the others"
            if any(few):
                said.append(f"{label} in {attribute} {value} ({present} with it, {absent} without{whose})")
    return said


def widest(found: Sequence[Gap]) -> str:
    """Sentences on the widest gaps in missed findings and in false alarms, of those whose interval leaves out zero."""
    said = []
    for verb, gaps_of in (
        ("Missed", [(gap, gap.fnr_gap) for gap in found]),
        ("Called ill for nothing", [(gap, gap.fpr_gap) for gap in found]),
    ):
        clear = [(gap, one) for gap, one in gaps_of if one.low > 0]
        if clear:
            gap, worst = max(clear, key=lambda pair: pair[1].value)
            value, low, high = (100 * share for share in worst[:3])
            where = f"{gap.label} in {gap.attribute} {gap.value}"
            said.append(
                f"{verb} more often than others most: {where}, by {value:.0f} points ({low:.0f} to {high:.0f})."
            )
    if said:
        said.append(f"These are the widest of {len(found)} gaps, so by chance they look wider than they are.")
    return " ".join(said)


def _groups(
    predictions: pandas.DataFrame, known: pandas.DataFrame
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """(attribute, value, pictures inside, all others whose group is known) of each group that has others; n bool."""
    rows = known.set_index("image_id").loc[predictions["image_id"]].reset_index(drop=True)
    for attribute in rows:
        every = rows[attribute].to_numpy(str)
        values = sorted(set(every) - {UNKNOWN})
        for value in values if len(values) > 1 else ():
            yield str(attribute), value, every == value, (every != value) & (every != UNKNOWN)


def _called(predictions: pandas.DataFrame, label: str, threshold: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Targets and scores of a label, and its threshold, as `operating.at_threshold` takes them."""
    return predictions[f"target/{label}"].to_numpy(), predictions[f"score/{label}"].to_numpy(), threshold
