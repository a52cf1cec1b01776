"""One run for every combination of some settings, and one table of what they came to.

    data.fraction=0.01,0.1,1; seed=0,1,2        nine runs, in <workdir>/data.fraction-0.01_seed-0/ and so on

Every run is one like any other: the same grid again resumes the one that was stopped and skips those that are finished.
The table has a line for every combination of what is not repeated (seeds and folds are), with the mean over its
repetitions, their standard deviation, and a 95 % interval of that mean: patients are resampled, and one draw of
patients serves all repetitions, so the interval is about other patients and not about other seeds.
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

from cxrjax import checkpoint
from cxrjax import config as shared
from cxrjax.config import ConfigDict
from cxrjax.evals.base import bounds
from cxrjax.reporting import compare
from cxrjax.runtime import hosts

REPEATED = ("seed", "data.fold", "data.fraction_seed")
FINISHED = "finished.json"


class Line(NamedTuple):
    """A line of the table: what it is of, how many runs it is a mean of, their mean, deviation and its interval."""

    settings: dict[str, Any]
    evaluation: str
    metric: str
    runs: int
    mean: float
    deviation: float
    low: float
    high: float


def run(config: ConfigDict, workdir: Path, claim: Callable, fit: Callable, resamples: int = 1000) -> list[Line]:
    """Trains what is not finished and writes grid.json and grid.md into workdir.

    claim: (workdir, config), raises where the folder holds a run with other settings, finished or not. fit: (config,
    workdir), trains or resumes. With several hosts the first one writes, and alone gets the lines.
    """
    combinations = parse(config)
    for settings in combinations:
        shared.check(cell_of(config, settings))
    for settings in combinations:
        cell, folder = cell_of(config, settings), folder_of(workdir, settings)
        claim(folder, cell)
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
    lines = tabulate(config, workdir, combinations, resamples)
    (workdir / "grid.json").write_text(json.dumps([line._asdict() for line in lines], indent=2) + "\n")
    (workdir / "grid.md").write_text(markdown(lines))
    print(markdown(lines), flush=True)
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


def tabulate(config: ConfigDict, workdir: Path, combinations: Sequence[dict], resamples: int = 1000) -> list[Line]:
    """The lines of the table, from the predictions of every run's step: its best one where the config keeps it."""
    rows: dict[tuple, list[Path]] = {}
    for settings in combinations:
        rest = tuple((key, value) for key, value in settings.items() if key not in REPEATED)
        rows.setdefault(rest, []).append(folder_of(workdir, settings))
    lines = []
    for rest, folders in rows.items():
        steps = [json.loads((folder / FINISHED).read_text())["step"] for folder in folders]
        for name, entry in config.evals.items():
            kept = entry.get("name") or name
            places = [folder / "evals" / kept / str(step) for folder, step in zip(folders, steps, strict=True)]
            lines += [Line(dict(rest), name, *found) for found in summarise(places, resamples)]
    return lines


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


def markdown(lines: Sequence[Line]) -> str:
    """The table as text."""
    keys = list(dict.fromkeys(key for line in lines for key in line.settings))
    head = [*keys, "evaluation", "metric", "runs", "mean (95 % interval)", "deviation"]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        deviation = "" if math.isnan(line.deviation) else f"{line.deviation:.3f}"
        settings = [f"{line.settings[key]}" for key in keys]
        found = f"{line.mean:.3f}{bounds(line.low, line.high)}"
        rows.append([*settings, line.evaluation, line.metric, f"{line.runs}", found, deviation])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


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
