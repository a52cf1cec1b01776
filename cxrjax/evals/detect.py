"""Detection judge: mean average precision of the boxes that an encoder's head finds, as pycocotools computes it.

"map" is the mean over the classes and over the IoUs 0.40, 0.45, … 0.75 (the eight of MGCA). "map50" is the mean over
the classes at an IoU of 0.5. All pictures count: a true box that is not found lowers the recall, and a box found in a
picture without true boxes is a false alarm. "map_mgca_compat" is what MGCA's released code computes. It takes only the
boxes with a score of at least 0.5, and only the pictures that have a true box and in which such a box was found. Misses
and false alarms in the other pictures cost nothing there.

Boxes are matched once, picture by picture. For a resample of the patients, the matches of its pictures are accumulated,
each as often as its patient was drawn. The metrics of the validation pictures are kept as well: the trainer can choose
its best step by them (`checkpoint.best_metric`). They have no influence on those of the test pictures.
"""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas

from cxrjax import parallel
from cxrjax.datasets import schema
from cxrjax.evals import metrics, pictures
from cxrjax.evals.base import Encoder, Interval, Result
from cxrjax.evals.features import fetch, share
from cxrjax.evals.judge import Entry, Judge, Opened
from cxrjax.input import boxes
from cxrjax.input.source import Source
from cxrjax.methods.base import Answers

THRESHOLDS = tuple(round(0.40 + 0.05 * step, 2) for step in range(8))
COMPAT_CONFIDENCE = 0.5
COMPAT = "map_mgca_compat"


class Matches(NamedTuple):
    """n pictures whose boxes are matched at each of THRESHOLDS.

    evaluator: a COCOeval. pictures: for each of k classes a list of n, COCOeval's record of each picture, or None for a
    picture without boxes.
    """

    evaluator: Any
    pictures: list[list[dict | None]]


def detect(
    encoder: Encoder,
    sources: Mapping[str, Source],
    *,
    batch_size: int = 64,
    confidence: float = 0.0,
    pictures_bytes: float = pictures.LIMIT_BYTES,
    resamples: int = 1000,
    seed: int = 0,
) -> Result:
    """Judges the boxes of an encoder's head on sources["test"], and on sources["val"] for the choice of a step.

    confidence: the least score of a box that counts, and that the predictions keep; MGCA's is 0.5. The run's
    config.answer has dropped boxes before that.
    Classes without a box in the test pictures are left out and named in the notes. Raises ValueError for an encoder
    without boxes, a patient in both splits, a set or split without boxes, and boxes that are NaN or infinite.
    """
    labels = _answers(encoder).names
    schema.assert_patients_disjoint({split: each.table["patient_id"].tolist() for split, each in sources.items()})
    read = partial(predict, encoder, batch_size=batch_size, limit_bytes=pictures_bytes, confidence=confidence)
    tables = {split: read(sources[split]) for split in ("val", "test")}
    found, counts, notes = summarise(tables["test"], labels, resamples, seed)
    validation = {}
    if with_boxes(tables["val"]).any():
        named, statistic = measures(tables["val"])
        values = statistic(np.ones((len(tables["val"]), 1)))[:, 0]
        validation = {name: float(value) for name, value in zip(named, values, strict=True) if "/" not in name}
        validation = {name: value for name, value in validation.items() if np.isfinite(value)}
    else:
        notes.append("val: no picture has a box of these labels, so no step can be chosen by this judge")
    details = {"judge": "detect", "ious": THRESHOLDS, "confidence": confidence, "validation": validation}
    return Result(found, tables["test"], notes, {**details, "labels": list(labels), "n_positive": counts})


def of_boxes(encoder: Encoder) -> tuple[str, ...]:
    """The labels of the boxes that the encoder is to find; () stands for all boxes.

    Raises ValueError for an encoder that finds no boxes.
    """
    names = _answers(encoder).names
    return () if names == (boxes.ANY,) else names


def _answers(encoder: Encoder) -> Answers:
    if encoder.answers is None or encoder.answers.kind != "boxes":
        raise ValueError(
            f"{encoder.name!r} finds no boxes; judge a run of the method 'detect' (configs/detect.py), and name no "
            "references but 'random'"
        )
    return encoder.answers


def predict(
    encoder: Encoder, source: Source, batch_size: int, limit_bytes: float, confidence: float = 0.0
) -> pandas.DataFrame:
    """A row per picture, in the order of the source, with the true boxes and those that the encoder finds.

    Its columns are image_id, patient_id, true_boxes, true_labels, boxes, scores, labels. true_boxes, boxes: lists of
    [y0, x0, y1, x1] relative to the picture. true_labels, labels: the name of each box. scores: of `boxes`, falling,
    and at least `confidence`. Raises ValueError for boxes that are NaN or infinite.
    """
    names = _answers(encoder).names
    own, size = share(source, batch_size, encoder.mesh)
    parts = []
    for images in pictures.batches(own, encoder.image_px, size, pictures.WHOLE, limit_bytes):
        answer = encoder.encode(images if encoder.mesh is None else parallel.to_global(images, encoder.mesh))
        parts.append([fetch(answer[name]) for name in ("boxes", "scores", "classes")])
    found, scores, classes = (np.concatenate(part)[: len(source)] for part in zip(*parts, strict=True))
    table = source.table
    broken = np.asarray(~(np.isfinite(found).all(axis=(1, 2)) & np.isfinite(scores).all(axis=1)))
    if broken.any():
        first = table["image_id"].iloc[int(broken.argmax())]
        raise ValueError(
            f"the boxes of {broken.sum()} of {len(broken)} pictures are NaN or infinite, {first!r} is the first; "
            "training has diverged"
        )
    truth = [boxes.of_example(source[i], of_boxes(encoder)) for i in range(len(source))]
    there = (classes >= 0) & (scores >= confidence)
    return pandas.DataFrame(
        {
            "image_id": table["image_id"].to_numpy(str),
            "patient_id": table["patient_id"].to_numpy(str),
            "true_boxes": [each.boxes.astype(float).tolist() for each in truth],
            "true_labels": [[names[c] for c in each.classes] for each in truth],
            "boxes": [row[kept].astype(float).tolist() for row, kept in zip(found, there, strict=True)],
            "scores": [row[kept].astype(float).tolist() for row, kept in zip(scores, there, strict=True)],
            "labels": [[names[c] for c in row[kept]] for row, kept in zip(classes, there, strict=True)],
        }
    )


def summarise(
    predictions: pandas.DataFrame, labels: Sequence[str], resamples: int, seed: int
) -> tuple[dict[str, Interval], dict[str, int], list[str]]:
    """(metrics with intervals over resampled patients, number of pictures with a box for each of them, notes).

    A resample in which a class has no box is left out of the intervals of the class and of the mean. Raises ValueError
    where no picture has a box.
    """
    truth = predictions["true_labels"].tolist()
    with_box = {name: sum(name in row for row in truth) for name in labels}
    some = int(with_boxes(predictions).sum())
    if not some:
        raise ValueError(f"no picture has a box of {list(labels)}, so nothing can be judged")
    notes = [f"{name!r} was skipped: no test picture has a box of it" for name, count in with_box.items() if not count]
    named, statistic = measures(predictions)
    values = statistic(np.ones((len(predictions), 1)))[:, 0]
    samples = metrics.bootstrap(statistic, predictions["patient_id"].to_numpy(str), resamples, seed)
    judged = {COMPAT: int(_answered(predictions).sum())}
    found = {}
    for column, name in enumerate(named):
        if np.isfinite(values[column]):
            n = judged.get(name, len(predictions))
            found[name] = metrics.interval(values[column], samples[:, column], n)
        elif name == COMPAT:
            notes.append(f"{COMPAT} has no value: no picture is left, see the note on what it leaves out")
    left = len(predictions) - judged[COMPAT]
    notes.append(
        f"{COMPAT} leaves out {left} of {len(predictions)} pictures: they have no true box, or no box with a score of "
        f"at least {COMPAT_CONFIDENCE} was found in them"
    )
    missing = {name: int(np.isnan(samples[:, column]).sum()) for column, name in enumerate(named) if name in found}
    counted = ", ".join(f"{name} {count}" for name, count in missing.items() if count)
    if counted:
        notes.append(
            f"some of the {resamples} resamples have no box of a class and are left out of its intervals; no interval "
            f"is given where they are more than {1 - metrics.FINITE:.0%}; their number: {counted}"
        )
    return found, {name: with_box.get(name.partition("/")[2], some) for name in found}, notes


def measures(predictions: pandas.DataFrame) -> tuple[list[str], Callable[[np.ndarray], np.ndarray]]:
    """The names of the m metrics, and the function weights n r -> values m r (see `metrics.bootstrap`).

    weights: whole numbers. The classes are those with a true box in some picture; if there is only one, its metrics are
    not given a second time under its name. A metric without a value is NaN.
    """
    present = sorted({name for row in predictions["true_labels"] for name in row})
    strict = match(predictions, present)
    answered = _answered(predictions)
    compat = match(predictions, present, COMPAT_CONFIDENCE)
    each = present if len(present) > 1 else []
    at_half = THRESHOLDS.index(0.5)

    def of_rows(rows: np.ndarray) -> list[float]:
        found, lenient = precisions(strict, rows), precisions(compat, rows[answered[rows]])  # k t
        means = [found.mean(), found[:, at_half].mean(), _mean_of_known(lenient)]
        return [*means, *(found[: len(each)].mean(axis=1)), *(found[: len(each), at_half])]

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.array([of_rows(np.repeat(np.arange(len(column)), column.astype(int))) for column in weights.T]).T

    return ["map", "map50", COMPAT, *(f"{metric}/{name}" for metric in ("map", "map50") for name in each)], statistic


def match(predictions: pandas.DataFrame, labels: Sequence[str], confidence: float = 0.0) -> Matches:
    """Matches the boxes with a score of at least `confidence` to the true ones, by COCOeval.evaluate."""
    coco, cocoeval = _pycocotools()

    def dataset(kind: str, scored: bool) -> Any:
        number, annotations = {name: k + 1 for k, name in enumerate(labels)}, []
        scores = predictions["scores"] if scored else predictions["true_labels"].map(lambda row: [1.0] * len(row))
        rows = zip(predictions[f"{kind}boxes"], predictions[f"{kind}labels"], scores, strict=True)
        for picture, row in enumerate(rows):
            for (y0, x0, y1, x1), name, score in zip(*row, strict=True):
                if name in number and (not scored or score >= confidence):
                    box = [x0, y0, x1 - x0, y1 - y0]
                    # Numbers start from 1: COCOeval reads 0 as "not matched".
                    described = {"id": len(annotations) + 1, "image_id": picture, "category_id": number[name]}
                    annotations.append(
                        {**described, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "score": score}
                    )
        made = coco.COCO()
        images = [{"id": picture} for picture in range(len(predictions))]
        categories = [{"id": k, "name": name} for name, k in number.items()]
        made.dataset = {"images": images, "annotations": annotations, "categories": categories}
        made.createIndex()
        return made

    with contextlib.redirect_stdout(io.StringIO()):  # each of its steps prints how long it took
        evaluator = cocoeval.COCOeval(dataset("true_", False), dataset("", True), "bbox")
        evaluator.params.iouThrs = np.array(THRESHOLDS)
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e5**2]], ["all"]
        evaluator.params.maxDets = [100]
        evaluator.evaluate()
    n = len(predictions)
    return Matches(evaluator, [evaluator.evalImgs[k * n : (k + 1) * n] for k in range(len(labels))])


def precisions(matches: Matches, rows: np.ndarray) -> np.ndarray:
    """Average precision k t of every class and IoU over the pictures of these rows, by COCOeval.accumulate.

    rows: numbers of pictures, which may repeat. NaN where a class has no box in them.
    """
    evaluator = matches.evaluator
    parts = [[pictures[row] for row in rows] for pictures in matches.pictures]
    for parameters in (evaluator.params, evaluator._paramsEval):
        parameters.imgIds = list(range(len(rows)))
    evaluator.evalImgs = [picture for part in parts for picture in part]
    if not evaluator.evalImgs:
        return np.full((len(parts), len(THRESHOLDS)), np.nan)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.accumulate()
    precision = evaluator.eval["precision"][..., 0, 0]  # t, recalls, k; −1 for an absent class
    return np.where((precision >= 0).all(axis=1), precision.mean(axis=1), np.nan).T


def _mean_of_known(values: np.ndarray) -> float:
    """The mean over the classes that have a value, as in MGCA; NaN where none has one."""
    known = np.isfinite(values)
    return values[known].mean() if known.any() else np.nan


def with_boxes(predictions: pandas.DataFrame) -> np.ndarray:
    """n bool: pictures that have a true box."""
    return np.array([len(row) > 0 for row in predictions["true_labels"]], bool)


def _answered(predictions: pandas.DataFrame) -> np.ndarray:
    """n bool: pictures that have a true box and in which a box with at least COMPAT_CONFIDENCE was found."""
    sure = [any(score >= COMPAT_CONFIDENCE for score in row) for row in predictions["scores"]]
    return np.array(sure, bool) & with_boxes(predictions)


def _pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools import coco, cocoeval
    except ImportError as error:
        raise ValueError(
            "detection is judged by pycocotools, which is not installed: pip install 'cxrjax[eval]'"
        ) from error
    return coco, cocoeval


def _judge(encoder: Encoder, entry: Entry, opened: Opened) -> Result:
    options = {"batch_size": entry["batch_size"], "resamples": entry["bootstrap"], "confidence": entry["confidence"]}
    return detect(encoder, opened.sources, **options, pictures_bytes=opened.pictures_bytes, seed=opened.seed)


JUDGE = Judge(
    "detect",
    judge=_judge,
    splits=("val", "test"),
    keys={"confidence": 0.0},  # least score of a box that counts
    task_name="boxes",
    instead_of_task="config.labels of the run names the boxes that are judged",
    box_labels=of_boxes,
    judges_head=True,
)
