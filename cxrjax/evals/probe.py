"""Linear probe on frozen features: logistic or ridge regression, its strength chosen on the validation patients.

Features are standardised with the training pictures' mean and standard deviation. The penalty's strength is one number
for the whole task: the one that explains most of the validation loss, on average over the labels. (AUROC would not do:
it is blind to shrinkage, and the accuracy of a classifier that is shrunk to the labels' rates means nothing.) The test
pictures are scored once, with that strength; the classifier never sees a validation or test picture.

    logistic   min  mean_i loss(x_i w + c, y_i) + strength/2 |w|²     sigmoid per label, or softmax over the classes
    ridge      min  mean_i (x_i w + c - y_i)²/2 + strength/2 |w|²     on 0/1 targets, closed form

The intercept c carries no penalty; strength = 1 / (C n) in scikit-learn's terms. One eigendecomposition of the features
serves every label and strength: rotated to it, ridge is a division, and dividing each direction by the square root of
its approximate curvature leaves logistic regression so well conditioned that L-BFGS needs ten steps, not hundreds.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special

from cxrjax.evals import attention, certainty, labelled, layers, tail
from cxrjax.evals.base import MASKED, Encoder, FeatureTable, Result, Targets, Task
from cxrjax.evals.judge import Entry, Judge, Opened
from cxrjax.input.source import Source

STRENGTHS = tuple(float(f"1e{power}") for power in range(3, -7, -1))
SOLVERS = ("logistic", "ridge")
_CHUNK = 8192  # pictures standardised at once in double precision
_SMALL = 4_000_000  # features up to which double precision costs nothing; it matters where classes are separable


class Fit(NamedTuple):
    """A linear classifier on rotated features: weights r c, intercept c."""

    strength: float
    weights: np.ndarray
    intercept: np.ndarray
    converged: bool


class Rotation(NamedTuple):
    """Training features seen along their principal directions.

    mean, deviation: d, of the training features; directions: d r, orthonormal; variance: r, of the standardised
    features along each; rotated: n r float32.
    """

    mean: np.ndarray
    deviation: np.ndarray
    directions: np.ndarray
    variance: np.ndarray
    rotated: np.ndarray


class Head(NamedTuple):
    """A classifier as it is applied to features: how they are turned, the fit, its solver and the kind of its task."""

    rotation: Rotation
    fit: Fit
    solver: str
    kind: str


def probe(
    train: FeatureTable,
    val: FeatureTable,
    test: FeatureTable,
    task: Task,
    label_names: Sequence[str],
    *,
    solver: str = "logistic",
    strengths: Sequence[float] = STRENGTHS,
    scaled: bool = False,
    cover: float = 0.0,
    long_tail: Sequence[float] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> Result:
    """Fits on train, chooses the strength on val, judges on test.

    label_names: c, of the tables' labels. A single strength is used as it is and val is not looked at.
    scaled, cover: see `certainty.KEYS`; both look at val. long_tail: see `tail.KEYS`.
    Raises ValueError for a patient in two splits, an unknown label, or a split with nothing to fit, choose or judge.
    """
    strengths = checked(solver, strengths)
    certainty.check(scaled, cover, solver == "logistic")
    tail.check(long_tail, task.kind)
    tables, keys, notes = labelled.select({"train": train, "val": val, "test": test}, task, label_names)
    head, details, more = fitted(tables, keys, task.kind, solver, strengths)
    notes, details = notes + more, {"judge": "probe", **details}
    found = labelled.conclude(
        task.kind,
        tables,
        keys,
        lambda split: scores(head, tables[split].features),
        notes,
        details,
        resamples,
        seed,
        scaled=scaled,
        cover=cover,
    )
    return tail.add(found, keys["train"], long_tail, resamples, seed)


def fitted(
    tables: Mapping[str, FeatureTable], keys: Mapping[str, Targets], kind: str, solver: str, strengths: Sequence[float]
) -> tuple[Head, dict[str, Any], list[str]]:
    """Fits on "train" and chooses the strength on "val", of tables and keys as `labelled.select` gives them.

    strengths: as `checked` gives them. Returns the head, details (the strength and how it was chosen) and notes.
    """
    rotation = rotate(tables["train"].features)
    fit = logistic_path if solver == "logistic" else ridge_path
    path = list(fit(rotation.rotated, rotation.variance, keys["train"].values, strengths, kind))
    notes = [f"the fit at strength {one.strength:g} did not converge" for one in path if not one.converged]
    best, qualities = 0, []
    if len(path) > 1:
        seen = project(rotation, tables["val"].features)
        outputs = [seen @ one.weights + one.intercept for one in path]
        rate = label_rates(keys["train"].values)
        qualities = [explained(keys["val"], output, rate, solver, kind) for output in outputs]
        best, edge = labelled.choose(strengths, qualities, "strength")
        notes += edge
    curve = {f"{strength:g}": quality for strength, quality in zip(strengths, qualities, strict=False)}
    details = {"solver": solver, "strength": strengths[best], "validation_explained": curve}
    details["validation"] = {"explained": qualities[best]} if qualities else {}
    return Head(rotation._replace(rotated=np.empty(0)), path[best], solver, kind), details, notes


def scores(head: Head, features: np.ndarray) -> np.ndarray:
    """Scores n c of features n d: probabilities of a logistic regression, outputs of a ridge regression."""
    outputs = project(head.rotation, features) @ head.fit.weights + head.fit.intercept
    if head.solver == "ridge":
        return outputs
    return scipy.special.softmax(outputs, axis=1) if head.kind == "multiclass" else scipy.special.expit(outputs)


def checked(solver: str, strengths: Sequence[float]) -> list[float]:
    """The strengths, once each, from the strongest on; raises ValueError for an unknown solver or a strength <= 0."""
    if solver not in SOLVERS:
        raise ValueError(f"probe solver {solver!r} is not known; choose one of {list(SOLVERS)}")
    found = sorted({float(strength) for strength in strengths}, reverse=True)
    if not found or found[-1] <= 0:
        raise ValueError(f"probe strengths must be at least one number above 0, got {found}")
    return found


def explained(key: Targets, outputs: np.ndarray, rate: np.ndarray, solver: str, kind: str) -> float:
    """Share of the loss of always predicting the labels' train rates (c) that outputs n c explain; below 0 if worse."""
    if solver == "logistic" and kind == "multiclass":
        labelled.decidable(key)
        present = key.values == 1
        loss = -scipy.special.log_softmax(outputs, axis=1)[present].mean()
        return float(1 + loss / np.log(np.broadcast_to(rate, present.shape)[present]).mean())
    shares = []
    for c in labelled.decidable(key):
        judged = key.values[:, c] != MASKED
        output, target = outputs[judged, c], key.values[judged, c]
        if solver == "ridge":
            loss, plain = ((output - target) ** 2).mean(), ((rate[c] - target) ** 2).mean()
        else:
            side = 2.0 * target - 1
            loss = np.logaddexp(0, -side * output).mean()
            plain = np.logaddexp(0, -side * scipy.special.logit(rate[c])).mean()
        shares.append(1 - loss / plain)
    return float(np.mean(shares))


def label_rates(values: np.ndarray) -> np.ndarray:
    """Share of positives c among the judged pictures of values n c."""
    return (values == 1).sum(axis=0) / (values != MASKED).sum(axis=0)


def rotate(features: np.ndarray) -> Rotation:
    """Standardises training features n d and turns them to their principal directions, without those of no variance."""
    count, width = features.shape
    mean = features.mean(axis=0, dtype=np.float64)
    square = np.zeros(width)
    for part in _parts(features):
        square += ((part - mean) ** 2).sum(axis=0)
    deviation = np.sqrt(square / count)
    deviation[deviation <= 1e-6 * np.abs(mean)] = np.inf  # a constant feature says nothing: it becomes 0
    if count <= width:
        _, spread, transposed = scipy.linalg.svd((features - mean) / deviation, full_matrices=False)
        variance, directions = spread**2 / count, transposed.T
    else:
        covariance = np.zeros((width, width))
        for part in _parts(features):
            standard = (part - mean) / deviation
            covariance += standard.T @ standard
        variance, directions = scipy.linalg.eigh(covariance / count)
    alive = variance > 1e-9 * max(variance.max(), 1e-9)
    rotation = Rotation(mean, deviation, directions[:, alive], variance[alive], np.empty(0))
    return rotation._replace(rotated=project(rotation, features))


def project(rotation: Rotation, features: np.ndarray) -> np.ndarray:
    """Features n d as the training features are seen: n r float32."""
    directions = rotation.directions.astype(np.float32)
    parts = [((part - rotation.mean) / rotation.deviation).astype(np.float32) @ directions for part in _parts(features)]
    return np.concatenate(parts)


def logistic_path(
    rotated: np.ndarray, variance: np.ndarray, values: np.ndarray, strengths: Sequence[float], kind: str
) -> Iterator[Fit]:
    """Logistic regression at every strength, from the strongest on, each starting where the last one ended.

    rotated: n r; variance: r of its columns; values: n c (1, 0, MASKED; one-hot for kind "multiclass").
    """
    precision, tolerance = (np.float64, 1e-7) if rotated.size <= _SMALL else (np.float32, 3e-5)
    rotated = rotated.astype(precision, copy=False)
    judged = (values != MASKED).astype(np.float64)
    rate = label_rates(values)
    share = (judged / judged.sum(axis=0)).astype(precision)  # n c, sums to 1 per label
    present = (values == 1).astype(precision)
    side = 2 * present - 1

    def softmax_loss(logits):
        likelihood = scipy.special.log_softmax(logits, axis=1)
        loss = -(likelihood * present).sum(dtype=np.float64) / len(values)
        return loss, (np.exp(likelihood) - present) / len(values)

    def sigmoid_loss(logits):
        margin = side * logits
        loss = ((np.log1p(np.exp(-np.abs(margin))) + np.maximum(-margin, 0)) * share).sum(dtype=np.float64)
        return loss, -side * scipy.special.expit(-margin) * share

    data_loss = softmax_loss if kind == "multiclass" else sigmoid_loss
    curvature = rate * (1 - rate)  # of the loss in a logit, c, where nothing is known but the label's rate
    weights = np.zeros((rotated.shape[1], values.shape[1]))
    intercept = np.log(rate) if kind == "multiclass" else scipy.special.logit(rate)
    for strength in strengths:
        scale = 1 / np.sqrt(np.concatenate([variance[:, None] * curvature + strength, curvature[None]]))  # r+1 c

        def objective(flat, strength=strength, scale=scale):
            parameters = flat.reshape(scale.shape) * scale
            weights, intercept = parameters[:-1], parameters[-1]
            loss, slope = data_loss(rotated @ weights.astype(precision) + intercept.astype(precision))
            gradient = np.concatenate(
                [rotated.T @ slope + strength * weights, slope.sum(axis=0, dtype=np.float64)[None]]
            )
            return loss + strength / 2 * (weights**2).sum(), (gradient * scale).ravel()

        start = (np.concatenate([weights, intercept[None]]) / scale).ravel()
        options = {"maxiter": 1000, "maxfun": 1500, "gtol": tolerance, "ftol": tolerance**2}
        found = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
        parameters = found.x.reshape(scale.shape) * scale
        weights, intercept = parameters[:-1], parameters[-1]
        # Close to the optimum the line search can fail on rounding alone: then the slope tells that it is one.
        yield Fit(strength, weights, intercept, bool(found.success or np.abs(found.jac).max() < 1e-3))


def ridge_path(
    rotated: np.ndarray, variance: np.ndarray, values: np.ndarray, strengths: Sequence[float], kind: str
) -> Iterator[Fit]:
    """Ridge regression on 0/1 targets at every strength, in closed form; arguments as in `logistic_path`."""
    solved = []
    for column in values.T:
        judged = column != MASKED
        whole = judged.all()
        seen, target = (rotated if whole else rotated[judged]), (column[judged] == 1).astype(np.float64)
        centre, spread, axes = np.zeros(len(variance)), variance, np.eye(len(variance))
        if not whole:
            centre = seen.mean(axis=0, dtype=np.float64)
            spread, axes = scipy.linalg.eigh((seen.T @ seen).astype(np.float64) / len(seen) - np.outer(centre, centre))
        slope = seen.T @ (target - target.mean()).astype(np.float32) / len(seen)
        solved.append((centre, spread, axes, axes.T @ slope, target.mean()))
    for strength in strengths:
        weights = np.stack([axes @ (slope / (spread + strength)) for _, spread, axes, slope, _ in solved], axis=1)
        intercept = np.array([rate - centre @ w for (centre, *_, rate), w in zip(solved, weights.T, strict=True)])
        yield Fit(strength, weights, intercept, True)


def _parts(features: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(features), _CHUNK):
        yield features[start : start + _CHUNK].astype(np.float64)


def _judge(encoder: Encoder, entry: Entry, opened: Opened) -> Result:
    encoder = layers.of(encoder, entry)
    given = labelled.arguments(encoder, entry, opened)
    chosen = {key: entry[key] for key in ("solver", "strengths", "long_tail")}
    found = probe(**given, **chosen, **certainty.given(entry))
    return attention.add(encoder, opened.sources["test"], found, opened.pictures_bytes)


def check_strengths(solver: str, entry: Entry, sources: Mapping[str, Source]) -> None:
    """Raises ValueError for strengths that are none, and where there is nothing to fit, choose or judge."""
    strengths = checked(solver, entry["strengths"])
    _, keys = labelled.check_fit(entry, sources)
    if len(strengths) > 1:
        labelled.decidable(keys["val"])


def _check(entry: Entry, sources: Mapping[str, Source]) -> None:
    layers.check(entry)
    tail.check(entry["long_tail"], entry["task"]["kind"])
    check_strengths(entry["solver"], entry, sources)
    certainty.check(**certainty.given(entry), probabilities=entry["solver"] == "logistic")


JUDGE = Judge(
    "probe",
    judge=_judge,
    check=_check,
    splits=("train", "val", "test"),
    keys={
        "solver": "logistic",  # or ridge
        "strengths": STRENGTHS,  # of the penalty, to choose from on val; a single one is used as it is
        **layers.KEYS,
        **certainty.KEYS,
        **tail.KEYS,
    },
    asks=("solver", *layers.KEYS),
    prefixed=False,
)
