"""Runs one evaluation of one encoder and writes it down, along training or on a finished checkpoint.

<workdir>/evals/<name>/<step>/results.json         metrics with intervals, choices, notes, what was judged with what
                              predictions.parquet  one row per test picture, for subgroups and paired differences
                                                   and, of judges of labels, attention on a few (`attention`)
<workdir>/evals/features/                          cached features (see `features`)
"""

import difflib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cxrjax.config import ConfigDict, folds, judged, names, sets_of
from cxrjax.evals import metrics, opening, pictures, registry
from cxrjax.evals.base import Encoder, Result, bounds, digest, make_task
from cxrjax.evals.features import features, source_digest
from cxrjax.evals.judge import RENAMED, Entry, Judge, Opened
from cxrjax.evals.registry import JUDGES
from cxrjax.input import overlap
from cxrjax.input.converted_sets import open_set
from cxrjax.input.source import Source
from cxrjax.older import translated
from cxrjax.runtime import hosts

COMMON = {
    "name": "",  # of its folder; an empty one is made from the set, the task and the judge
    "judge": "probe",  # see `registry`
    "set": "",  # a converted set
    # {"kind": "binary", "positive": labels, "negative": labels}, or "multilabel" or "multiclass" with "labels"; and a
    # "name" for the logs. Labels may be comma-separated. See `base.Task` for what unknown labels count as.
    "task": {},
    "data_dir": "",  # of the set; "" is $CXRJAX_DATA
    "projections": (),  # those to keep; () keeps all
    "require": "",  # what pictures must have: boxes, or boxes or <label>; see `source.required`
    "fraction": 1.0,  # of the train patients
    "fraction_seed": 0,  # which of the set's nested lists
    "folds": 0,  # of a cross-validation by patient, in place of the set's own splits; see `source.select`
    "fold": 0,  # which is the test
    "limit": 0,  # most pictures of each split, the same random ones every time, for a quick look; 0 takes all
    "batch_size": 64,
    "bootstrap": 1000,  # resamples of the test patients
    "cache_gib": 8.0,  # features kept in the workdir, at most
    "pictures_gib": pictures.LIMIT_BYTES / 2**30,  # fitted pictures of a split kept beside the set, at most
    "every_steps": 0,  # of training, for the trainer; 0 judges at the end only
}
"""The keys of every evaluation entry with their defaults; `set` must be given, and `task` where the judge takes one."""

LIBRARIES = ("cxrjax", "jax", "jaxlib", "flax", "numpy", "scipy", "pandas", "opencv-python-headless", "pycocotools")


class EvaluationError(ValueError):
    """An evaluation that failed; says which, of what and at which step."""


def evaluate(
    encoder: Encoder,
    entry: Mapping[str, Any],
    workdir: str | os.PathLike,
    seed: int = 0,
    trained_with: ConfigDict | None = None,
) -> Result:
    """Judges an encoder as the entry says, writes results.json and predictions.parquet, and returns what they hold.

    entry: some of the keys of COMMON and of the judge's own (see `complete`).
    trained_with: the config of the encoder's training, to note what it has seen there of the set's val and test.
    Raises EvaluationError with the entry's name, the encoder and its step, whatever went wrong.
    """
    try:
        entry = complete(entry)
        result = _judge(encoder, entry, Path(workdir), seed)
        if trained_with is not None:
            result = result._replace(notes=[*result.notes, *_leaks(trained_with, entry)])
        if hosts.is_first():
            _write(place(workdir, entry, encoder.step), encoder, entry, seed, result)
    except Exception as error:
        name = entry.get("name") or f"{entry.get('judge', COMMON['judge'])} on {entry.get('set', '?')}"
        judged = f"evaluation {name!r} of {encoder.name!r} at step {encoder.step}"
        raise EvaluationError(f"{judged} failed: {error}") from error
    return result


def place(workdir: str | os.PathLike, entry: Mapping[str, Any], step: int) -> Path:
    """The folder of an entry's results at a step: evals/<name>/<step>, or beside it where those of other settings lie.

    Results of one entry on another set are in <name>-on-<set>, and of still other settings in one with their digest.
    """
    settings = _settings(entry)
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    elsewhere = f"{entry['name']}-on-{_plain(entry['set'])}"
    folders = [Path(workdir) / "evals" / name / str(step) for name in (entry["name"], elsewhere)]
    return next(
        (folder for folder in folders if _holds_none_but(settings, folder / "results.json")),
        folders[1].parent.with_name(f"{elsewhere}-{mark}") / str(step),
    )


def saved(file: Path) -> dict[str, Any]:
    """What a results.json holds, its entry under today's keys."""
    found = json.loads(file.read_text())
    if "entry" in found:
        found["entry"], _ = translated(found["entry"], RENAMED, added={})
    return found


def _settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What determines an entry's results, as JSON gives it back."""
    given = entry.to_dict() if isinstance(entry, ConfigDict) else dict(entry)
    return json.loads(json.dumps({key: value for key, value in given.items() if key not in ("name", "every_steps")}))


def _holds_none_but(settings: Mapping[str, Any], file: Path) -> bool:
    """Whether there are no results of other settings; keys that only one of both knows are passed over."""
    try:
        there = saved(file)["entry"]
    except (OSError, ValueError, KeyError):  # absent, or damaged
        return True
    return all(there[key] == value for key, value in settings.items() if key in there)


def scalars(entry: Mapping[str, Any], result: Result) -> dict[str, float]:
    """What to log: eval/<set>/<task>/<metric> -> value; judges beside the probe put their name before the metric.

    What a judge found on the validation pictures is there as val_<metric>: a run can keep its best step by it.
    """
    found = {name: interval.value for name, interval in result.metrics.items()}
    found |= {f"val_{name}": value for name, value in result.details.get("validation", {}).items()}
    return {logged(entry, name): value for name, value in found.items()}


def logged(entry: Mapping[str, Any], metric: str) -> str:
    """What a metric of an entry is called in the logs; one of the validation pictures is given as val_<metric>."""
    entry = complete(entry)
    judge = registry.find(entry["judge"])
    prefix = f"{judge.name}_" if judge.prefixed else ""
    return f"eval/{entry['set']}/{entry['task']['name']}/{prefix}{metric}"


def complete(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Fills an entry up with the defaults of COMMON and of its judge's own keys, and with names.

    Raises ValueError for an unknown judge, a key that its judge does not have, a missing set, or a task that its judge
    does not take.
    """
    given = entry.to_dict() if isinstance(entry, ConfigDict) else dict(entry)
    judge = registry.find(given.get("judge", COMMON["judge"]))
    known = {**COMMON, **judge.keys}
    if unknown := sorted(set(given) - set(known)):
        raise ValueError("; ".join(_unknown(key, judge) for key in unknown))
    full = known | given
    if not full["set"]:
        raise ValueError("an evaluation needs 'set', the name of a converted set, such as set='phantom'")
    task = full["task"] = dict(full["task"])
    if judge.task_name:
        if set(task) - {"name"}:
            raise ValueError(f"judge {judge.name!r} takes no task, got {task}; {judge.instead_of_task}")
        task["name"] = task.get("name") or judge.task_name
    elif not task.get("name"):
        record = make_task(task)
        sides = ["+".join(names) for names in (record.positive, record.negative, record.labels) if names]
        task["name"] = _plain("-vs-".join(sides) or "all")
    full["name"] = full["name"] or _plain(f"{full['set']}-{task['name']}-{judge.name}")
    return full


def _unknown(key: str, judge: Judge) -> str:
    """What to say of a key that neither COMMON nor the judge has."""
    own = f"its own keys are {list(judge.keys)}"
    owners = [other.name for other in JUDGES.values() if key in other.keys]
    if owners:
        whose = " and ".join(map(repr, owners))
        return f"evaluation key {key!r} belongs to judge {whose}, and this entry is of judge {judge.name!r}; {own}"
    known = [*COMMON, *judge.keys]
    near = [RENAMED[key]] if key in RENAMED else difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"evaluation key {key!r} is not known.{hint} Judge {judge.name!r} knows {known}"


def check(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Opens the set of an entry and raises ValueError for what its judge would refuse there; returns it completed.

    No picture is read, and no encoder is needed.
    """
    entry = complete(entry)
    chosen, _ = sources(entry)
    registry.find(entry["judge"]).check(entry, chosen)
    return entry


def _judge(encoder: Encoder, entry: dict[str, Any], workdir: Path, seed: int) -> Result:
    judge = registry.find(entry["judge"])
    chosen, notes = sources(entry, judge.box_labels(encoder))
    pictures_bytes = entry["pictures_gib"] * 2**30
    table_of = partial(
        features,
        batch_size=entry["batch_size"],
        cache_dir=workdir / "evals" / "features",
        cache_bytes=entry["cache_gib"] * 2**30,
        pictures_bytes=pictures_bytes,
    )
    result = judge.judge(encoder, entry, Opened(chosen, table_of, pictures_bytes, seed))
    inputs = result.inputs or {split: source_digest(each) for split, each in chosen.items()}
    return result._replace(notes=notes + result.notes, inputs=inputs)


def sources(entry: Entry, box_labels: tuple[str, ...] = ()) -> tuple[dict[str, Source], list[str]]:
    """What `opening.sources` gives the entry's judge."""
    return opening.sources(registry.find(entry["judge"]), entry, box_labels)


def _leaks(config: Any, entry: dict[str, Any]) -> list[str]:
    """Sentences on what a trained encoder has seen of val and test of the entry's sets, unless they were left out."""
    if not names(config.data.sets):
        return ["What this encoder was trained on is not known here: it may have seen these patients."]
    cut, said = folds(config), []
    for name in sets_of(entry):
        converted = open_set(name, entry["data_dir"] or None)
        judged_in = {key: entry[key] for key in cut}
        if (cut["folds"] or judged_in["folds"]) and name in names(config.data.sets) and cut != judged_in:
            said.append(
                f"The encoder was trained on {converted.name} by {_parts(**cut)} and is judged by "
                f"{_parts(**judged_in)}. It has seen some of these patients: these numbers may be too good. Give both "
                "the same folds and fold."
            )
        elif not any(overlap.base(converted.name) in Path(one).parts for one in judged(config)):
            said += overlap.notes(names(config.data.sets), config.data.split, converted)
    return said


def _parts(folds: int, fold: int) -> str:
    return f"fold {fold} of {folds}" if folds else "the set's own parts"


def summary(result: Result) -> str:
    """ "auroc 0.812 (0.790 to 0.834), auprc …": the metrics over all labels, not those of single labels."""
    means = {name: found for name, found in result.metrics.items() if "/" not in name}
    return ", ".join(f"{name} {found.value:.3f}{bounds(found.low, found.high)}" for name, found in means.items())


def _write(directory: Path, encoder: Encoder, entry: Entry, seed: int, result: Result) -> None:
    positives = result.details.get("n_positive", {})
    report = {
        "name": entry["name"],
        "encoder": {"name": encoder.name, "step": encoder.step, "digest": encoder.digest, "image_px": encoder.image_px},
        "set": {"name": entry["set"], "digest": digest(dict(result.inputs))},
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
