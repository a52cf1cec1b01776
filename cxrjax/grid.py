"""One run for every combination of some settings, and one table of what they came to.

    data.fraction=0.01,0.1,1; seed=0,1,2        nine runs, in <workdir>/data.fraction-0.01_seed-0/ and so on

Every run is one like any other: the same grid again resumes the one that was stopped and skips those that are finished.
The table has a line for every combination of what is not repeated (seeds and folds are), with the mean over its
repetitions, their standard deviation, and a 95 % interval of that mean: patients are resampled, and one draw of
patients serves all repetitions, so the interval is about other patients and not about other seeds.

Where settings are varied of which one wants the best (TUNED), the table of a choice comes first: each combination with
what it came to on the validation patients, and the best of them marked. The table of the test patients has the chosen
ones alone, since the best of several test numbers is too good.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas

from cxrjax import checkpoint, ranges
from cxrjax import config as shared
from cxrjax.config import ConfigDict
from cxrjax.evals.base import bounds
from cxrjax.evals.run import logged
from cxrjax.longer import FINISHED
from cxrjax.reporting import compare
from cxrjax.runtime import hosts

REPEATED = ("seed", "data.fold", "data.fraction_seed")
TUNED = ("optim", "duration", "batch_size", "augment", "views")
"""Sections of which the best values are wanted; what else is varied (an encoder, a share of the labels) is compared."""


class Line(NamedTuple):
    """A line of the table: what it is of, how many runs it is a mean of, their mean, deviation and its interval.

    chosen: whether it is the best on the validation patients among those that differ in what is tuned.
    """

    settings: dict[str, Any]
    evaluation: str
    set: str
    metric: str
    runs: int
    mean: float
    deviation: float
    low: float
    high: float
    chosen: bool = True


class Choice(NamedTuple):
    """The settings of some runs, how many, and the mean of what they came to on the validation patients.

    by: what that is, "classify auroc on phantom". chosen: whether it is the best of those that differ in what is tuned.
    """

    settings: dict[str, Any]
    by: str
    runs: int
    validation: float
    chosen: bool


def run(config: ConfigDict, workdir: Path, claim: Callable, fit: Callable, resamples: int = 1000) -> list[Line]:
    """Trains what is not finished and writes grid.json and grid.md into workdir.

    claim: (workdir, config) -> config, raises where the folder holds a run with other settings, finished or not. fit:
    (config, workdir), trains or resumes. With several hosts the first one writes, and alone gets the lines.
    """
    combinations = parse(config)
    for settings in combinations:
        ranges.check(cell_of(config, settings))
    for settings in combinations:
        cell, folder = cell_of(config, settings), folder_of(workdir, settings)
        cell = claim(folder, cell)
        if (folder / FINISHED).exists():
            print(f"finished already: {folder}", flush=True)
            continue
        print(f"run {combinations.index(settings) + 1} of {len(combinations)}: {folder}", flush=True)
        fit(cell, folder)
        best = "best" if config.checkpoint.best_metric else "latest"
        if hosts.is_first():
            (folder / FINISHED).write_text(json.dumps({"step": int(Path(checkpoint.find(folder, best)).name)}) + "\n")
        jax.clear_caches()  # what was compiled for one run serves no other
    if not hosts.is_first():
        return []
    choices = choose(config, workdir, combinations)
    lines = tabulate(config, workdir, combinations, choices, resamples)
    found = {"choices": [one._asdict() for one in choices], "lines": [line._asdict() for line in lines]}
    (workdir / "grid.json").write_text(json.dumps(found, indent=2) + "\n")
    (workdir / "grid.md").write_text(markdown(lines, choices))
    print(markdown(lines, choices), flush=True)
    return lines


def parse(config: ConfigDict) -> list[dict[str, Any]]:
    """The combinations of config.grid, "key=value,value; key=value", the last key changing fastest.

    Values take the type of the setting that they replace. Raises ValueError for a key that the config does not have, a
    value that is not of its type, a key or value given twice, or nothing to vary.
    """
    known = {
        key: value for key, value in shared.flat(config.to_dict()).items() if key.split(".")[0] not in ("grid", "evals")
    }
    choices: dict[str, list] = {}
    for part in filter(None, (part.strip() for part in config.grid.split(";"))):
        key, _, values = (piece.strip() for piece in part.partition("="))
        if key not in known:
            raise ValueError(f"grid: there is no setting {key!r} to vary{shared.nearest(key, known)}")
        found = [_typed(key, value.strip(), known[key]) for value in values.split(",") if value.strip()]
        if key in choices or not found or len(set(found)) < len(found):
            raise ValueError(f"grid: {part!r} gives {key!r} twice, a value twice, or none")
        choices[key] = found
    if not choices:
        raise ValueError(f"grid = {config.grid!r} varies nothing; say for example 'data.fraction=0.01,0.1,1; seed=0,1'")
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def cell_of(config: ConfigDict, settings: Mapping[str, Any]) -> ConfigDict:
    """The config of one run; its judges look at the fold that is left out."""
    cell = config.copy_and_resolve_references()
    cell.grid = ""
    cell.update_from_flattened_dict(dict(settings))
    for entry in cell.evals.values():
        if entry.get("folds"):
            entry.fold = cell.data.fold
    return cell


def folder_of(workdir: Path, settings: Mapping[str, Any]) -> Path:
    """The folder of one run."""
    return Path(workdir) / "_".join(f"{key}-{value}" for key, value in settings.items()).replace("/", "-")


def choose(config: ConfigDict, workdir: Path, combinations: Sequence[dict]) -> list[Choice]:
    """What the validation patients say of settings that are tuned; empty where none is, or no judge kept a number.

    The judge and the metric are those of checkpoint.best_metric, or else the first that looks at validation patients.
    """
    rows = _repetitions(combinations)
    evaluation, metric = _deciding(config, workdir, combinations[0])
    if not metric or not any(_is_tuned(key) for rest in rows for key, _ in rest):
        return []
    means = {}
    for rest, repeated in rows.items():
        every = [_validation(config, workdir, evaluation, settings) for settings in repeated]
        means[rest] = float(np.mean([one.get(metric, math.nan) for one in every]))
    best: dict[tuple, tuple] = {}  # by what is compared and not tuned
    for rest in sorted(filter(lambda rest: math.isfinite(means[rest]), means), key=means.__getitem__):
        best[tuple(pair for pair in rest if not _is_tuned(pair[0]))] = rest
    by = f"{evaluation} {metric} on {config.evals[evaluation].set}"
    return [Choice(dict(rest), by, len(rows[rest]), mean, rest in best.values()) for rest, mean in means.items()]


def _deciding(config: ConfigDict, workdir: Path, settings: Mapping[str, Any]) -> tuple[str, str]:
    """The evaluation and its validation metric by which settings are chosen; "" twice where there is none."""
    wanted = config.checkpoint.best_metric
    for name, entry in config.evals.items():
        for metric in _validation(config, workdir, name, settings):
            if wanted in ("", logged(entry, f"val_{metric}")):
                return name, metric
    return "", ""


def tabulate(
    config: ConfigDict, workdir: Path, combinations: Sequence[dict], choices: Sequence[Choice], resamples: int = 1000
) -> list[Line]:
    """The lines of the table, from the predictions of every run's step: its best one where the config keeps it."""
    lines = []
    for rest, repeated in _repetitions(combinations).items():
        chosen = all(choice.chosen for choice in choices if choice.settings == dict(rest))
        for name, entry in config.evals.items():
            places = [_place(config, workdir, name, settings) for settings in repeated]
            lines += [
                Line(dict(rest), name, entry.set, *found, chosen=chosen) for found in summarise(places, resamples)
            ]
    return lines


def _repetitions(combinations: Sequence[dict]) -> dict[tuple, list[dict]]:
    """The combinations by what is not repeated, as (key, value) pairs."""
    rows: dict[tuple, list[dict]] = {}
    for settings in combinations:
        rest = tuple((key, value) for key, value in settings.items() if key not in REPEATED)
        rows.setdefault(rest, []).append(settings)
    return rows


def _is_tuned(key: str) -> bool:
    return key.split(".")[0] in TUNED


def _place(config: ConfigDict, workdir: Path, evaluation: str, settings: Mapping[str, Any]) -> Path:
    """The folder of an evaluation's results, of the step of one run that counts."""
    folder = folder_of(workdir, settings)
    step = json.loads((folder / FINISHED).read_text())["step"]
    return folder / "evals" / (config.evals[evaluation].get("name") or evaluation) / str(step)


def _validation(config: ConfigDict, workdir: Path, evaluation: str, settings: Mapping[str, Any]) -> dict[str, float]:
    """What an evaluation of one run found on the validation patients."""
    results = json.loads((_place(config, workdir, evaluation, settings) / "results.json").read_text())
    return results["details"].get("validation", {})


def summarise(places: Sequence[Path], resamples: int = 1000, seed: int = 0) -> list[tuple]:
    """(metric, runs, mean, deviation, low, high) of the same evaluation of several runs.

    places: folders with predictions.parquet and results.json. The metrics are those over all labels; one that cannot be
    had of resampled predictions is given without an interval.
    """
    tables = [pandas.read_parquet(place / "predictions.parquet") for place in places]
    results = [json.loads((place / "results.json").read_text()) for place in places]
    kind = results[0]["entry"]["task"].get("kind", "")
    (drawn,) = compare.compare(kind, {"": tables}, resamples=resamples, seed=seed).metrics.values()
    found = []
    for name in results[0]["metrics"]:
        if "/" in name or not all(name in result["metrics"] for result in results):
            continue
        values = [math.nan if (one := result["metrics"][name]["value"]) is None else one for result in results]
        ends = drawn[name][1:3] if name in drawn else (math.nan, math.nan)
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        found.append((name, len(values), float(np.mean(values)), deviation, *ends))
    return found


def markdown(lines: Sequence[Line], choices: Sequence[Choice] = ()) -> str:
    """The tables as text: that of the choice where there is one, and that of the test patients."""
    parts = []
    if choices:
        keys = list(choices[0].settings)
        rows = [[*keys, f"validation: {choices[0].by}", "runs", "choice"]]
        for one in choices:
            settings = [f"{one.settings[key]}" for key in keys]
            rows.append([*settings, f"{one.validation:.3f}", f"{one.runs}", "chosen" if one.chosen else ""])
        parts += ["On the validation patients, by whom the settings are chosen:", _table(rows)]
        parts += ["On the test patients, the chosen settings alone:"]
    elif any(_is_tuned(key) for line in lines for key in line.settings):
        parts += ["No judge kept a number of the validation patients: the best of these test numbers is too good."]
    keys = list(dict.fromkeys(key for line in lines for key in line.settings))
    rows = [[*keys, "evaluation", "set", "metric", "runs", "mean (95 % interval)", "deviation"]]
    for line in (line for line in lines if line.chosen):
        deviation = "" if math.isnan(line.deviation) else f"{line.deviation:.3f}"
        settings = [f"{line.settings[key]}" for key in keys]
        found = f"{line.mean:.3f}{bounds(line.low, line.high)}"
        rows.append([*settings, line.evaluation, line.set, line.metric, f"{line.runs}", found, deviation])
    return "\n\n".join([*parts, _table(rows)]) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def _typed(key: str, text: str, current: Any) -> Any:
    kind = type(current) if current is not None else float
    if kind not in (int, float, str, bool):
        raise ValueError(f"grid: {key!r} is {current!r}; numbers, words and yes-or-no settings can be varied")
    if kind is bool:
        kind = {"True": lambda _: True, "False": lambda _: False}.get(text, int)
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"grid: {key!r} is {current!r}, which {text!r} cannot replace") from None
