"""Runs one evaluation of one encoder and writes it down, along training or on a finished checkpoint.

<workdir>/evals/<name>/<step>/results.json         metrics with intervals, choices, notes, what was judged with what
                              predictions.parquet  one row per test picture, for subgroups and paired differences
                                                   and, of judges of labels, attention on a few (`attention`)
<workdir>/evals/features/                          cached features (see `features`)
"""

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cxrjax.config import folds, judged, names
from cxrjax.evals import attention, classify, detect, joint, metrics, pictures, retrieve, segment
from cxrjax.evals.base import Encoder, Interval, Result, digest, make_task
from cxrjax.evals.features import features, source_digest
from cxrjax.evals.knn import NEIGHBOURS, knn
from cxrjax.evals.probe import STRENGTHS, probe
from cxrjax.evals.zeroshot import zeroshot
from cxrjax.input import overlap
from cxrjax.input.converted_sets import ConvertedSet, open_set
from cxrjax.input.source import Source, required, select

# The splits that each looks at; retrieval at the one that its entry names.
JUDGES = {
    "probe": ("train", "val", "test"),
    "knn": ("train", "val", "test"),
    "zeroshot": ("val", "test"),
    "classify": ("val", "test"),
    "detect": ("val", "test"),
    "segment": ("train", "val", "test"),  # of train the masks alone, for their mean
    "retrieve": (),
}
LIBRARIES = ("cxrjax", "jax", "jaxlib", "flax", "numpy", "scipy", "pandas", "opencv-python-headless", "pycocotools")


class EvaluationError(ValueError):
    """An evaluation that failed; says which, of what and at which step."""


def defaults() -> ConfigDict:
    """An evaluation entry with every key that `evaluate` knows; `set` and `task` must be given.

    task: kind "binary" with `positive` and `negative` label names, "multilabel" or "multiclass" with `labels`, and a
    `name` for the logs; lists of names may be comma-separated. projections: those to keep (empty: all). fraction: share
    of the train patients to fit on, fraction_seed: which of the set's nested lists. folds, fold: a cross-validation by
    patient in place of the set's own splits (`source.select`). require: "boxes" or "boxes or <label>" (`required` of
    `source`), of the labels that a detecting head knows. limit: most pictures of each split, the same random ones every
    time (0: all), for a quick look along training. bootstrap: resamples of the test patients.
    cache_gib: features kept in the workdir; pictures_gib: fitted pictures of a split kept beside the set, at most.
    every_steps is for the trainer. An empty name is made from the others. Judge "segment" needs no task; threshold: of
    the probability that a pixel is inside, 0 to choose it on val. Nor does "detect"; confidence: least score of a box.

    Judge "zeroshot": prompts, label -> {"positive": prompts, "negative": prompts}, beside `zeroshot.PROMPTS`. Judge
    "retrieve" has no task: split, the studies to find each other; at, the k of recall; classes, labels of which just
    one is present in each of `per_class` studies per label, to be judged by precision as well ("": all studies).
    """
    return ConfigDict(
        {
            "name": "",
            "judge": "probe",
            "set": "",
            "task": {},
            "data_dir": "",
            "projections": (),
            "require": "",
            "fraction": 1.0,
            "fraction_seed": 0,
            "folds": 0,
            "fold": 0,
            "limit": 0,
            "batch_size": 64,
            "bootstrap": 1000,
            "cache_gib": 8.0,
            "pictures_gib": pictures.LIMIT_BYTES / 2**30,
            "every_steps": 0,
            "solver": "logistic",
            "strengths": STRENGTHS,
            "neighbours": NEIGHBOURS,
            "temperature": 0.07,
            "threshold": 0.5,
            "confidence": 0.0,
            "prompts": {},
            "split": "test",
            "at": retrieve.AT,
            "classes": (),
            "per_class": 200,
        }
    )


def evaluate(
    encoder: Encoder,
    entry: Mapping[str, Any],
    workdir: str | os.PathLike,
    seed: int = 0,
    trained_with: ConfigDict | None = None,
) -> Result:
    """Judges an encoder as the entry says (keys: `defaults`), writes results.json and predictions.parquet, returns all.

    trained_with: the config of the encoder's training, to note what it has seen there of the set's val and test.
    Raises EvaluationError with the entry's name, the encoder and its step, whatever went wrong.
    """
    try:
        entry = complete(entry)
        result, inputs = _judge(encoder, entry, Path(workdir), seed)
        if trained_with is not None:
            result = result._replace(notes=[*result.notes, *_leaks(trained_with, entry)])
        if jax.process_index() == 0:
            _write(Path(workdir) / "evals" / entry["name"] / str(encoder.step), encoder, entry, seed, result, inputs)
    except Exception as error:
        name = entry.get("name") or f"{entry.get('judge', 'probe')} on {entry.get('set', '?')}"
        place = f"evaluation {name!r} of {encoder.name!r} at step {encoder.step}"
        raise EvaluationError(f"{place} failed: {error}") from error
    return result


def scalars(entry: Mapping[str, Any], result: Result) -> dict[str, float]:
    """What to log: eval/<set>/<task>/<metric> -> value; judges beside the probe put their name before the metric.

    What a judge found on the validation pictures is there as val_<metric>: a run can keep its best step by it.
    """
    entry = complete(entry)
    prefix = "" if entry["judge"] == "probe" else f"{entry['judge']}_"
    place = f"eval/{entry['set']}/{entry['task']['name']}"
    found = {name: interval.value for name, interval in result.metrics.items()}
    found |= {f"val_{name}": value for name, value in result.details.get("validation", {}).items()}
    return {f"{place}/{prefix}{name}": value for name, value in found.items()}


def complete(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Fills an entry up with defaults and names; raises ValueError for an unknown key or judge, or a missing set."""
    known = defaults().to_dict()
    given = entry.to_dict() if isinstance(entry, ConfigDict) else dict(entry)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"evaluation keys {unknown} are not known; known are {sorted(known)}")
    full = known | given
    if full["judge"] not in JUDGES:
        raise ValueError(f"judge {full['judge']!r} is not known; choose one of {list(JUDGES)}")
    if not full["set"]:
        raise ValueError("an evaluation needs 'set', the name of a converted set, such as set='phantom'")
    task = dict(full["task"])
    if full["judge"] == "retrieve":
        if set(task) - {"name"}:
            raise ValueError(f"retrieval looks for reports and has no task, got {task}; name labels with 'classes'")
        task["name"] = task.get("name") or "reports"
    elif full["judge"] in ("segment", "detect"):
        what, where = ("mask", "target") if full["judge"] == "segment" else ("boxes", "labels")
        if set(task) - {"name"}:
            raise ValueError(f"judge {full['judge']!r} takes no task, got {task}; config.{where} of the run does")
        task["name"] = task.get("name") or what
    elif not task.get("name"):
        record = make_task(task)
        sides = ["+".join(names) for names in (record.positive, record.negative, record.labels) if names]
        task["name"] = _plain("-vs-".join(sides) or "all")
    full["task"] = task
    full["name"] = full["name"] or _plain(f"{full['set']}-{task['name']}-{full['judge']}")
    return full


def _judge(encoder: Encoder, entry: dict[str, Any], workdir: Path, seed: int) -> tuple[Result, dict[str, str]]:
    converted, cache = open_set(entry["set"], entry["data_dir"] or None), workdir / "evals" / "features"
    table_of = partial(
        features,
        batch_size=entry["batch_size"],
        cache_dir=cache,
        cache_bytes=entry["cache_gib"] * 2**30,
        pictures_bytes=entry["pictures_gib"] * 2**30,
    )
    shared = {"resamples": entry["bootstrap"], "seed": seed}
    if entry["judge"] == "retrieve":
        studies = select(
            converted, entry["split"], projections=names(entry["projections"]) or None, **required(entry["require"])
        )
        return _judge_retrieval(encoder, entry, studies, table_of, shared)
    chosen, notes = sources(converted, entry, detect.of_boxes(encoder) if entry["judge"] == "detect" else ())
    inputs = {split: source_digest(each) for split, each in chosen.items()}
    if entry["judge"] in ("segment", "detect"):
        options = {"batch_size": entry["batch_size"], "pictures_bytes": entry["pictures_gib"] * 2**30, **shared}
        if entry["judge"] == "segment":
            result = segment.segment(encoder, chosen, threshold=entry["threshold"], **options)
        else:
            result = detect.detect(encoder, chosen, confidence=entry["confidence"], **options)
        return result._replace(notes=notes + result.notes), inputs
    seen = {"zeroshot": joint.pictures, "classify": classify.logits}.get(entry["judge"], lambda given: given)(encoder)
    tables = {split: table_of(seen, each) for split, each in chosen.items()}
    given = {**tables, "task": make_task(entry["task"]), "label_names": converted.label_names, **shared}
    if entry["judge"] == "probe":
        result = probe(**given, solver=entry["solver"], strengths=entry["strengths"])
    elif entry["judge"] == "knn":
        result = knn(**given, neighbours=entry["neighbours"], temperature=entry["temperature"])
    elif entry["judge"] == "classify":
        result = classify.classify(**given, answers=classify.of(encoder))
    else:
        embed = partial(joint.texts, encoder, batch_size=entry["batch_size"])
        result = zeroshot(**given, embed=embed, prompts=entry["prompts"], temperature=entry["temperature"])
    result = attention.add(encoder, chosen["test"], result, entry["pictures_gib"] * 2**30)
    return result._replace(notes=notes + result.notes), inputs


def sources(
    converted: ConvertedSet, entry: dict[str, Any], labels: tuple[str, ...] = ()
) -> tuple[dict[str, Source], list[str]]:
    """The pictures of each split that the judge looks at, and a note where they are not all of them.

    labels: of the boxes that the entry may require; () all.
    """
    found, notes, filters = {}, [], {"projections": names(entry["projections"]) or None}
    filters |= {key: entry[key] for key in ("folds", "fold")}
    needed = required(entry["require"], labels)
    for split in JUDGES[entry["judge"]]:
        share = {key: entry[key] for key in ("fraction", "fraction_seed")} if split == "train" else {}
        found[split] = select(converted, split, **filters, **needed, **share)
        if needed:
            every = len(select(converted, split, **filters, **share))
            notes.append(f"{split}: {len(found[split]):,} of {every:,} pictures have {entry['require']}, as required")
        if 0 < entry["limit"] < len(found[split]):
            notes.append(f"{split}: a random {entry['limit']:,} of {len(found[split]):,} pictures, as the limit says")
            found[split] = _some(found[split], entry["limit"])
    return found, notes


def _judge_retrieval(encoder, entry, chosen: Source, table_of, shared) -> tuple[Result, dict[str, str]]:
    classes = names(entry["classes"])
    options = {"classes": classes, "per_class": entry["per_class"], "limit": entry["limit"], "seed": shared["seed"]}
    found = retrieve.gallery(chosen, joint.of(encoder).words, **options)
    result = retrieve.retrieve(
        table_of(joint.pictures(encoder), found.pictures),
        joint.texts(encoder, found.words, entry["batch_size"]),
        found.report,
        at=entry["at"],
        classes=found.classes,
        class_names=classes,
        **shared,
    )
    inputs = {entry["split"]: source_digest(found.pictures), "reports": digest(found.words, found.report)}
    notes = list(found.notes)
    if entry["split"] == "train":
        notes.append("the studies are of the train split: an encoder that was trained on this set has seen them")
    return result._replace(notes=notes + result.notes), inputs


def _some(chosen: Source, count: int) -> Source:
    drawn = np.random.default_rng(0).permutation(len(chosen))[:count]
    return Source(chosen.converted_set, chosen.split, chosen.positions[np.sort(drawn)])


def _leaks(config: ConfigDict, entry: dict[str, Any]) -> list[str]:
    """Sentences on what a trained encoder has seen of a set's val and test, unless it was left out of its training."""
    converted = open_set(entry["set"], entry["data_dir"] or None)
    cut = folds(config)
    if entry["folds"] and entry["set"] in names(config.data.sets) and cut != {key: entry[key] for key in cut}:
        return [
            f"The encoder was trained on {converted.name} without these folds, on patients of all of them: these "
            "numbers may be too good."
        ]
    if any(overlap.base(converted.name) in Path(name).parts for name in judged(config)):
        return []
    return overlap.notes(names(config.data.sets), config.data.split, converted)


def summary(result: Result) -> str:
    """ "auroc 0.812 (0.790 to 0.834), auprc …": the metrics over all labels, not those of single labels."""
    means = {name: found for name, found in result.metrics.items() if "/" not in name}
    return ", ".join(f"{name} {found.value:.3f}{bounds(found)}" for name, found in means.items())


def bounds(found: Interval, form: str = ".3f") -> str:
    """ " (low to high)"; empty where there is no interval."""
    return f" ({found.low:{form}} to {found.high:{form}})" if math.isfinite(found.low) else ""


def _write(directory: Path, encoder: Encoder, entry, seed: int, result: Result, inputs: dict[str, str]) -> None:
    positives = result.details.get("n_positive", {})
    report = {
        "name": entry["name"],
        "encoder": {"name": encoder.name, "step": encoder.step, "digest": encoder.digest, "image_px": encoder.image_px},
        "set": {"name": entry["set"], "digest": digest(inputs)},
        "entry": entry,
        "seed": seed,
        "interval": f"{metrics.LEVEL:.0%} percentile interval over {entry['bootstrap']} resamples of the test patients",
        "metrics": {
            name: {key: number_or_none(value) for key, value in interval._asdict().items()}
            | {"n_positive": positives.get(name)}
            for name, interval in result.metrics.items()
        },
        "details": {key: value for key, value in result.details.items() if key != "n_positive"},
        "notes": result.notes,
        "versions": _versions(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    predictions, results = directory / "predictions.parquet", directory / "results.json"
    unfinished = [path.with_name(f".{path.name}.{os.getpid()}") for path in (predictions, results)]
    result.predictions.to_parquet(unfinished[0], index=False)
    unfinished[1].write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    # The results come last: where they are, the predictions are whole and belong to them.
    os.replace(unfinished[0], predictions)
    os.replace(unfinished[1], results)


def number_or_none(value: float) -> float | None:
    """The value for JSON, which has no NaN: None stands for it."""
    return value if math.isfinite(value) else None


def _plain(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "+-_." else "_" for letter in text)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = "not installed as a package"
    return found
