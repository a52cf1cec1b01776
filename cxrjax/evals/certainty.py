"""How sure a judge of labels may be: a temperature, and sets of answers that hold the truth as often as promised.

    temperature   σ(logit(score) / T), or softmax(log score / T), with the T of the least loss on validation pictures
    sets          every answer that is no stranger than ⌈(n + 1) cover⌉ of the n validation pictures of that answer

A temperature (Guo et al., ICML 2017) changes no order among the pictures of a label. Scores that are no probabilities
yet, as zero-shot's, get a slope and an offset (`slopes`). Split conformal sets (Vovk et al., 2005; one threshold per
answer, as Sadinle et al., JASA 2019) hold the truth of a new picture with the probability `cover` if it is exchangeable
with the validation pictures. Pictures of one patient are alike, the strength of a probe
was chosen on the same pictures, and another hospital's are not exchangeable with these: so the share that the sets hold
of the test pictures is measured. Where an answer has too few validation pictures, every set holds it.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

from cxrjax.evals import metrics
from cxrjax.evals.base import MASKED, Ids, Result, Targets

KEYS = {
    "scaled": False,  # whether scores are divided by a temperature that is chosen on the validation pictures
    "cover": 0.0,  # of conformal sets: how many of the answers they shall hold, such as 0.9; 0 for no sets
}
_TINY = 1e-12


def check(scaled: bool, cover: float, probabilities: bool = True) -> None:
    """Raises ValueError for a cover outside [0, 1), and for scores to be scaled that are no probabilities."""
    if not 0 <= cover < 1:
        raise ValueError(f"cover={cover} must be at least 0 (no sets) and below 1, such as 0.9")
    if scaled and not probabilities:
        raise ValueError("ridge regression gives no probabilities, so there is no temperature; give scaled=False")


def given(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry says of KEYS."""
    return {name: entry[name] for name in KEYS}


def temperature(kind: str, values: np.ndarray, scores: np.ndarray) -> float:
    """The temperature between 1/20 and 20 with the least cross-entropy of probabilities n c on values n c."""

    def loss(log_t: float) -> float:
        found = tempered(kind, scores, math.exp(log_t))
        right = (
            found[values == 1] if kind == "multiclass" else np.where(values == 1, found, 1 - found)[values != MASKED]
        )
        return -float(np.log(np.maximum(right, _TINY)).mean())

    return math.exp(scipy.optimize.minimize_scalar(loss, bounds=(-math.log(20), math.log(20)), method="bounded").x)


def slopes(values: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """The (a, b) whose σ(a·score + b) explains the answers of one label best, of scores n that are no probabilities.

    values: n; 1, 0 or MASKED. The answers are drawn in as Platt has it (1999), to (n₊ + 1)/(n₊ + 2) and 1/(n₋ + 2), so
    that a is finite where no score is on the wrong side.
    """
    judged = values != MASKED
    present, x = values[judged] == 1, np.asarray(scores, np.float64)[judged]
    target = np.where(present, (present.sum() + 1) / (present.sum() + 2), 1 / ((~present).sum() + 2))
    middle, spread = x.mean(), max(x.std(), _TINY)
    z = (x - middle) / spread

    def loss(pair: np.ndarray) -> tuple[float, np.ndarray]:
        s = pair[0] * z + pair[1]
        slope = scipy.special.expit(s) - target
        return float((np.logaddexp(0, s) - target * s).mean()), np.array([(slope * z).mean(), slope.mean()])

    start = np.array([0.0, scipy.special.logit(target.mean())])
    a, b = scipy.optimize.minimize(loss, start, jac=True, method="BFGS").x
    return float(a / spread), float(b - a * middle / spread)


def tempered(kind: str, scores: np.ndarray, t: float) -> np.ndarray:
    """Probabilities n c at a temperature."""
    scores = np.clip(np.asarray(scores, np.float64), _TINY, 1 - _TINY)
    if kind == "multiclass":
        return scipy.special.softmax(np.log(scores) / t, axis=1)
    return scipy.special.expit(scipy.special.logit(scores) / t)


def sets(kind: str, values: np.ndarray, val: np.ndarray, test: np.ndarray, cover: float) -> np.ndarray:
    """Conformal sets of test scores n c: bool n c 2, [..., 1] whether "present" is in the set, [..., 0] "absent".

    values: answers of the validation pictures, m c, with scores val m c; any number where more means more likely. Of a
    multiclass task [..., 1] says which classes are in the set, and [..., 0] which are not.
    """
    found = np.ones((*test.shape, 2), bool)
    for c in range(test.shape[1]):
        for answer, sign in ((1, -1.0), (0, 1.0)):
            strange = np.sort(sign * val[values[:, c] == answer, c])
            place = math.ceil((len(strange) + 1) * cover - 1e-9)
            if place <= len(strange):
                found[:, c, answer] = sign * test[:, c] <= strange[place - 1]
    if kind == "multiclass":
        found[..., 0] = ~found[..., 1]
    return found


def add(
    result: Result,
    kind: str,
    keys: Mapping[str, Targets],
    val: np.ndarray,
    test: np.ndarray,
    patient_ids: Ids,
    cover: float,
    resamples: int,
    seed: int,
) -> Result:
    """The result with sets per picture and label, and how many of the answers they hold.

    val, test: scores m c and n c of `keys`. "coverage" and "set_size" are means over pictures, of the means over a
    picture's labels; "coverage/<label>" and "set_size/<label>" are of one label; set/<label> of the predictions is
    "present", "absent", "both" or "neither". A multiclass task has the two means alone, and the classes of each set.
    """
    key = keys["test"]
    found = sets(kind, keys["val"].values, val, test, cover)
    names, table = list(key.names), result.predictions
    if kind == "multiclass":
        columns = {"coverage": found[key.values == 1][:, 1].astype(float), "set_size": found[..., 1].sum(axis=1)}
        table = table.assign(set=[", ".join(np.array(names)[row]) for row in found[..., 1]])
    else:
        judged = key.values != MASKED
        held = np.take_along_axis(found, np.maximum(key.values, 0)[..., None].astype(int), axis=2)[..., 0]
        each = {
            "coverage": np.where(judged, held, np.nan),
            "set_size": np.where(judged, found.sum(axis=2), np.nan),
        }
        columns = {name: np.nanmean(one, axis=1) for name, one in each.items()}
        if len(names) > 1:
            columns |= {f"{name}/{label}": one[:, c] for name, one in each.items() for c, label in enumerate(names)}
        said = np.array([["neither", "present"], ["absent", "both"]])
        table = table.assign(
            **{
                f"set/{name}": said[found[:, c, 0].astype(int), found[:, c, 1].astype(int)]
                for c, name in enumerate(names)
            }
        )
    intervals = metrics.mean_intervals(columns, patient_ids, resamples, seed)
    details = {**result.details, "cover": cover}
    return result._replace(metrics={**result.metrics, **intervals}, predictions=table, details=details)
