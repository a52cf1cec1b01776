"""Judges masks: Dice and IoU of every picture, under both conventions for empty masks, beside the mean mask.

    Dice = 2 |P ∩ T| / (|P| + |T|),   IoU = |P ∩ T| / |P ∪ T|        P predicted, T true, pixels of one picture

"<metric>_present" is the mean over the pictures in which there is something, |T| > 0. "<metric>_all" is over all of
them, and a picture without anything counts 1 if nothing is predicted, else 0 (MGCA, MRM): where most pictures are
empty, that number says how often the model keeps silent, and is not comparable with the other. Both are means over
pictures; MGCA's mean of the means of its batches is in the details, as it was defined.

The reference that knows no picture is the mean of the training masks, cut where it fits the validation masks best:
"mean_mask" is its dice_present, "gain" what the encoder's is above it.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas

from cxrjax import parallel
from cxrjax.datasets import schema
from cxrjax.evals import metrics, pictures
from cxrjax.evals.base import Encoder, Interval, Result
from cxrjax.evals.features import fetch, share
from cxrjax.evals.judge import Entry, Judge, Opened
from cxrjax.imaging import pixels
from cxrjax.input.source import Source

METRICS = ("dice_present", "dice_all", "iou_present", "iou_all")
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
MGCA_BATCH = 16  # of its segmentation of RSNA


class Counts(NamedTuple):
    """Pixels of n pictures: truth n; predicted and both n t, at each threshold; known: n bool, whether it has one."""

    truth: np.ndarray
    predicted: np.ndarray
    both: np.ndarray
    known: np.ndarray


def segment(
    encoder: Encoder,
    sources: Mapping[str, Source],
    *,
    batch_size: int = 64,
    threshold: float = 0.5,
    pictures_bytes: float = pictures.LIMIT_BYTES,
    resamples: int = 1000,
    seed: int = 0,
) -> Result:
    """Judges the masks of an encoder's head on sources["test"].

    sources: "train" (its masks alone), "val", "test". threshold: probability from which on a pixel is inside; 0 takes
    that of THRESHOLDS with the best dice_present on val. Raises ValueError for an encoder without masks, a patient in
    two splits, logits that are not numbers, or a split without a mask.
    """
    if not encoder.target:
        raise ValueError(
            f"{encoder.name!r} makes no masks; judge a run of the method 'segment' (configs/segment.py), and name no "
            "references but 'random'"
        )
    tables = {split: source.table for split, source in sources.items()}
    schema.assert_patients_disjoint({split: table["patient_id"].tolist() for split, table in tables.items()})
    read = partial(pictures.batches, px=encoder.image_px, what=encoder.target, limit_bytes=pictures_bytes)
    tried = (threshold,) if threshold else THRESHOLDS
    found = {"val": count(encoder, sources["val"], tried, batch_size, pictures_bytes)[0]}
    chosen = tried[best_threshold(found["val"])]
    found["test"], drawn = count(encoder, sources["test"], (chosen,), batch_size, pictures_bytes, draw=True)
    mean = mean_mask(read(sources["train"], batch_size=batch_size), len(sources["train"]))
    mean_of = {
        split: count_fixed(mean, read(sources[split], batch_size=batch_size), len(sources[split]))
        for split in ("val", "test")
    }
    notes = []
    for split, counts in found.items():
        if not counts.known.any():
            raise ValueError(f"no picture of {sources[split]!r} has a {encoder.target!r}, so nothing can be judged")
        if not counts.known.all():
            lacking = f"{(~counts.known).sum()} of {len(counts.known)}"
            notes.append(f"{split}: {lacking} pictures have no mask and do not count")
    best_mean = best_threshold(mean_of["val"])
    scores, scores_mean = overlap(found["test"], 0), overlap(mean_of["test"], best_mean)
    kept = found["test"].known
    table = tables["test"].loc[kept]
    columns = {f"value/{name}": scores[name][kept] for name in METRICS}
    of_mean = scores_mean["dice_present"][kept]
    columns |= {"value/mean_mask": of_mean, "value/gain": scores["dice_present"][kept] - of_mean}
    predictions = pandas.DataFrame(
        {
            "image_id": table["image_id"].to_numpy(str),
            "patient_id": table["patient_id"].to_numpy(str),
            "truth_px": found["test"].truth[kept],
            "predicted_px": found["test"].predicted[kept, 0],
            "both_px": found["test"].both[kept, 0],
            **columns,
        }
    )
    if isinstance(encoder.image_px, int):  # results pages show the square middle of a picture
        predictions["overlay/mask"] = [png for png, known in zip(drawn, kept, strict=True) if known]
    empty = int((predictions["truth_px"].to_numpy() == 0).sum())
    notes.append(
        f"test: {empty} of {len(predictions)} masks are empty: they are left out of dice_present and iou_present, and "
        "count 1 (nothing predicted) or 0 in dice_all and iou_all"
    )
    of_val = overlap(found["val"], tried.index(chosen))
    details = {
        "judge": "segment",
        "target": encoder.target,
        "px": encoder.image_px,
        "threshold": chosen,
        "mean_mask_threshold": THRESHOLDS[best_mean],
        "validation": {name: value for name in METRICS if np.isfinite(value := _nanmean(of_val[name]))},
        "mean_of_batch_means": {"batch": MGCA_BATCH, "dice_all": batch_means(scores["dice_all"][kept], MGCA_BATCH)},
        "n_positive": {name: len(predictions) - empty for name in METRICS},
    }
    return Result(summarise(predictions, resamples, seed), predictions, notes, details)


def count(
    encoder: Encoder,
    source: Source,
    thresholds: Sequence[float],
    batch_size: int,
    limit_bytes: float,
    draw: bool = False,
) -> tuple[Counts, list[bytes]]:
    """Counts the pixels that the encoder's head calls inside at each threshold.

    draw: also gives what is inside at the first threshold, a PNG of 0 and 255 per picture.
    """
    cuts = np.log(thresholds) - np.log1p(-np.asarray(thresholds))
    own, size = share(source, batch_size, encoder.mesh)
    read = partial(pictures.batches, own, encoder.image_px, size, limit_bytes=limit_bytes)
    parts, drawn = [], []
    for images, inside in zip(read(), read(what=encoder.target), strict=True):
        if encoder.mesh is not None:
            images, inside = (parallel.to_global(each, encoder.mesh) for each in (images, inside))
        logits = encoder.encode(images)["mask_logits"]
        parts.append([fetch(part) for part in _count(logits, inside, cuts)])
        if draw:
            drawn += [pixels.encode(255 * mask, "png") for mask in fetch(_inside(logits, cuts[0]))]
    truth, predicted, both, known, finite = (np.concatenate(part)[: len(source)] for part in zip(*parts, strict=True))
    if not finite.all():
        first = source.table["image_id"].iloc[int((~finite).argmax())]
        raise ValueError(
            f"the masks of {(~finite).sum()} of {len(finite)} pictures are NaN or infinite, {first!r} is the first; "
            "training has diverged"
        )
    return Counts(truth, predicted, both, known), drawn[: len(source)]


@jax.jit
def _inside(logits: jax.Array, cut: jax.Array) -> jax.Array:
    """logits b h w 1 -> uint8 b h w, 1 inside."""
    return (logits[..., 0] >= cut).astype(jnp.uint8)


@jax.jit
def _count(logits: jax.Array, inside: jax.Array, cuts: jax.Array) -> tuple[jax.Array, ...]:
    """logits b h w 1, inside b h w 1 uint8, cuts t -> truth b, predicted b t, both b t, known b, finite b."""
    true = inside == 255
    predicted = logits >= cuts  # b h w t
    return (
        true.sum((1, 2, 3)),
        predicted.sum((1, 2)),
        (predicted & true).sum((1, 2)),
        (inside != pictures.UNKNOWN).all((1, 2, 3)),
        jnp.isfinite(logits).all((1, 2, 3)),
    )


def mean_mask(masks: Iterable[np.ndarray], total: int) -> np.ndarray:
    """Mean h w of the known ones of `total` masks, which come in batches b h w 1; raises ValueError for none."""
    summed, seen, known = 0.0, 0, 0
    for batch in masks:
        batch = batch[: total - seen, ..., 0]
        seen += len(batch)
        there = (batch != pictures.UNKNOWN).all((1, 2))
        summed, known = summed + (batch[there] == 255).sum(axis=0, dtype=np.float64), known + there.sum()
    if not known:
        raise ValueError("no training picture has a mask, so there is no mean mask to compare with")
    return summed / known


def count_fixed(mean: np.ndarray, masks: Iterable[np.ndarray], total: int) -> Counts:
    """Counts the pixels of one mask h w of probabilities, the same for every picture, at each of THRESHOLDS."""
    inside = (mean[None] >= np.asarray(THRESHOLDS)[:, None, None]).reshape(len(THRESHOLDS), -1)  # t (h w)
    truth, both, known = [], [], []
    for batch in masks:
        flat = batch.reshape(len(batch), -1)
        truth.append((flat == 255).sum(axis=1))
        both.append((flat == 255).astype(np.float32) @ inside.T.astype(np.float32))
        known.append((flat != pictures.UNKNOWN).all(axis=1))
    truth, both, known = (np.concatenate(part)[:total] for part in (truth, both, known))
    return Counts(truth, np.tile(inside.sum(axis=1), (total, 1)), both.astype(np.int64), known)


def overlap(counts: Counts, threshold: int) -> dict[str, np.ndarray]:
    """Every metric of every picture, n each, at the threshold of this number; NaN where it does not count."""
    truth, predicted, both = counts.truth, counts.predicted[:, threshold], counts.both[:, threshold]
    found = {}
    for name, above, below in (("dice", 2 * both, truth + predicted), ("iou", both, truth + predicted - both)):
        score = np.where(below > 0, above / np.maximum(below, 1), 1.0)
        found[f"{name}_present"] = np.where(counts.known & (truth > 0), score, np.nan)
        found[f"{name}_all"] = np.where(counts.known, score, np.nan)
    return found


def best_threshold(counts: Counts) -> int:
    """Number of the threshold with the best dice_present, or where every mask is empty the best dice_all."""
    found = [overlap(counts, number) for number in range(counts.predicted.shape[1])]
    name = "dice_present" if (counts.known & (counts.truth > 0)).any() else "dice_all"
    return int(np.argmax([_nanmean(each[name]) for each in found]))


def batch_means(scores: np.ndarray, batch: int) -> float:
    """Mean of the means of consecutive batches, in which the pictures of a short last one weigh more (MGCA)."""
    return float(np.mean([scores[start : start + batch].mean() for start in range(0, len(scores), batch)]))


def summarise(predictions: pandas.DataFrame, resamples: int, seed: int) -> dict[str, Interval]:
    """Mean of every column value/<metric> over its pictures, with its interval over resampled patients."""
    values = {
        name.removeprefix("value/"): predictions[name].to_numpy(float)
        for name in predictions
        if name.startswith("value/")
    }
    values = {name: column for name, column in values.items() if np.isfinite(column).any()}
    return metrics.mean_intervals(values, predictions["patient_id"].to_numpy(str), resamples, seed)


def _nanmean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _judge(encoder: Encoder, entry: Entry, opened: Opened) -> Result:
    options = {"batch_size": entry["batch_size"], "resamples": entry["bootstrap"], "threshold": entry["threshold"]}
    return segment(encoder, opened.sources, **options, pictures_bytes=opened.pictures_bytes, seed=opened.seed)


JUDGE = Judge(
    "segment",
    judge=_judge,
    splits=("train", "val", "test"),  # of train the masks alone, for their mean
    keys={"threshold": 0.5},  # of the probability that a pixel is inside; 0 chooses it on val
    task_name="mask",
    instead_of_task="config.target of the run names the mask that is judged",
    judges_head=True,
)
