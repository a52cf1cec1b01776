"""Finds the saved evaluations of any number of runs, and puts those of one question together.

A question is a set, a task and a judge. Its subjects are the models that answer it. Runs whose configs differ in
nothing but their seed, fold and share of the labels are runs of one subject, and so are all runs of one given name.
The references that a run was compared with, such as "pixels-32", are subjects too, once each however many runs have
them.
"""

import glob
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas

from cxrjax.config import FREE, names, read
from cxrjax.evals import registry
from cxrjax.evals.judge import Judge
from cxrjax.evals.run import saved

_ASKED = ("set", "judge", "require", "limit", "folds")
_REPEATED = ("seed", *FREE)
_REPEATED_DATA = ("fraction", "fraction_seed", "fold")
_SKIPPED = ("checkpoints", "tensorboard", "features")


class Run(NamedTuple):
    """One saved evaluation: its subject, its folder (results.json, predictions.parquet), the run's workdir; the share
    of the labels, seed and fold that it was trained with; results as saved; the run it started from ("" if none)."""

    subject: str
    folder: Path
    workdir: Path
    fraction: float
    seed: int
    fold: int
    results: dict[str, Any]
    pretraining: str = ""

    def predictions(self) -> pandas.DataFrame:
        """The saved table."""
        return pandas.read_parquet(self.folder / "predictions.parquet")


class Question(NamedTuple):
    """name: for headings, of no other question; kind: of its task ("" if it has none); entry: of its first run."""

    name: str
    kind: str
    entry: dict[str, Any]
    runs: list[Run]

    def tables(self, share: float) -> dict[str, list[pandas.DataFrame]]:
        """Subject -> the predictions of each of its runs that learned from this share of the labels."""
        found: dict[str, list[pandas.DataFrame]] = {}
        for run in self.runs:
            if run.fraction == share:
                found.setdefault(run.subject, []).append(run.predictions())
        return found


class Collected(NamedTuple):
    """questions: in the order in which they are met; notes: on what could not be read."""

    questions: list[Question]
    notes: list[str]


class _Found(NamedTuple):
    """An evaluation before its subject has a name.

    given: the name that was given with the folder `place`, or "". like: what the runs of a subject have in common.
    """

    given: str
    place: Path
    folder: Path
    workdir: Path
    like: str
    config: dict[str, Any]
    results: dict[str, Any]


def collect(runs: str | Sequence[str]) -> Collected:
    """The questions that the runs answer.

    runs: folders that hold runs at any depth, comma-separated, "name=folder" to give it a name; a folder may have
    wildcards. Of each evaluation the step counts at which the run was finished, or else its last.
    Raises ValueError for a folder without evaluations.
    """
    found, notes = [], []
    for item in names(runs):
        given, _, pattern = item.rpartition("=")
        places = sorted(map(Path, glob.glob(str(Path(pattern).expanduser()))))
        here = [one for place in places for one in _evaluations(given.strip(), place, notes)]
        if not here:
            raise ValueError(
                f"runs: {pattern!r} has no evaluation (…/evals/<name>/<step>/results.json); judge the run first, such "
                "as with configs/eval_probe.py, or name its workdir"
            )
        found += here
    if not found:
        raise ValueError("a results page needs runs: --config.runs=name=runs/…,name=runs/…")
    return _questions(found, notes)


def in_folder(workdir: Path, name: str) -> Collected:
    """The questions that the evaluations in one folder answer, which has this name as a subject."""
    notes: list[str] = []
    return _questions(list(_evaluations(name, workdir, notes)), notes)


def _questions(found: Sequence[_Found], notes: list[str]) -> Collected:
    subjects = _subjects(found)
    questions: dict[str, Question] = {}
    for one, subject in zip(found, subjects, strict=True):
        entry, data = one.results["entry"], one.config.get("data", {})
        task = {key: value for key, value in entry.get("task", {}).items() if key != "name"}
        judge = _judge(entry["judge"])
        own = {key: judge.keys[key] for key in judge.asks} if judge else {}
        asked = _asked(entry, task, own)
        share = data if judge and judge.judges_head else entry
        run = Run(
            subject,
            one.folder,
            one.workdir,
            float(share.get("fraction", 1.0)),
            int(one.config.get("seed", one.results["seed"])),
            int(entry.get("fold") or 0),
            one.results,
            str(one.config.get("init_from") or ""),
        )
        title = f"{entry['set']} · {entry.get('task', {}).get('name') or 'all'} · {entry['judge']}"
        usual = json.loads(json.dumps(own))  # as results.json gives it back
        title += "".join(f" · {key}={_shown(entry[key])}" for key in own if entry.get(key, usual[key]) != usual[key])
        question = questions.setdefault(asked, Question(title, task.get("kind", ""), entry, []))
        if all(_what_was_judged(run) != _what_was_judged(other) for other in question.runs):
            question.runs.append(run)
    return Collected(_named_apart(questions), notes)


def _what_was_judged(run: Run) -> tuple:
    """Equal for evaluations that are one: references that every run judges again, and a run that was judged twice."""
    encoder = run.results["encoder"]["digest"]
    if is_reference(run.results):
        return run.subject, run.fraction, encoder
    return (
        run.subject,
        run.fraction,
        encoder,
        run.seed,
        run.fold,
        run.results["seed"],
        run.results["entry"].get("fraction_seed"),
    )


def _named_apart(questions: dict[str, Question]) -> list[Question]:
    """The questions, with the keys in which they differ added to names that are equal; of what `_asked` gives."""
    alike: dict[str, list[dict[str, Any]]] = {}
    asked = []
    for question, text in zip(questions.values(), questions, strict=True):
        plain, task = json.loads(text)
        asked.append(plain | {f"task.{key}": value for key, value in task.items()})
        alike.setdefault(question.name, []).append(asked[-1])
    named = []
    for question, own in zip(questions.values(), asked, strict=True):
        others = alike[question.name]
        keys = [key for key in dict.fromkeys(key for one in others for key in one) if not _same(key, others)]
        told = "".join(f" · {key}={_shown(own.get(key))}" for key in keys)
        named.append(question._replace(name=question.name + told))
    return named


def _same(key: str, asked: Sequence[dict[str, Any]]) -> bool:
    return all(one.get(key) == asked[0].get(key) for one in asked)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value or "none")


def but_for_the_head(entry: dict[str, Any]) -> str:
    """What evaluations of one encoder under several heads have in common."""
    task = {key: value for key, value in entry.get("task", {}).items() if key != "name"}
    return _asked({**entry, "judge": ""}, task, {})


def _asked(entry: dict[str, Any], task: dict[str, Any], own: Mapping[str, Any]) -> str:
    """What two evaluations must have in common to be compared; a key that older results lack has its usual value.

    own: the judge's own keys that are part of the question, with their usual values.
    """
    plain = {key: entry.get(key) or None for key in _ASKED} | {key: entry.get(key, own[key]) or None for key in own}
    plain["projections"] = sorted(names(entry.get("projections") or ()))
    sides = {key: list(names(value)) if key != "kind" else value for key, value in task.items() if value}
    return json.dumps([plain, sides], sort_keys=True)


def _evaluations(given: str, place: Path, notes: list[str]) -> Iterator[_Found]:
    for directory, folders, _ in os.walk(place):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        if Path(directory).name != "evals":
            continue
        workdir = Path(directory).parent
        try:
            config = _config(workdir)
        except ValueError as error:
            notes.append(f"the evaluations of {workdir} were left out: {error}")
            continue
        for evaluation in (Path(directory) / name for name in folders):
            steps = {int(path.parent.name): path for path in evaluation.glob("*/results.json") if _is_step(path)}
            if not steps:
                continue
            path = steps[_step(workdir, steps)]
            try:
                results = saved(path)
                lacking = sorted({"name", "encoder", "entry", "metrics", "seed"} - set(results))
                if lacking or not path.with_name("predictions.parquet").is_file():
                    raise ValueError(f"it lacks {', '.join(lacking) or 'predictions.parquet'}")
            except ValueError as error:
                notes.append(f"{path} was left out: {error}")
                continue
            yield _Found(given, place, path.parent, workdir, _likeness(config, workdir), config, results)


def _judge(name: str) -> Judge | None:
    """None for a judge that is not there any more: results that it left are shown all the same."""
    try:
        return registry.find(name)
    except ValueError:
        return None


def _subjects(found: Sequence[_Found]) -> list[str]:
    """A name for each: the one given, with the place below its folder where that holds several models."""
    models: dict[tuple[str, Path], list[str]] = {}
    first: dict[tuple[Path, str], Path] = {}
    for one in found:
        likenesses = models.setdefault((one.given, one.place), [])
        if one.like not in likenesses:
            likenesses.append(one.like)
        first.setdefault((one.place, one.like), one.workdir)
    plain = []
    for one in found:
        here = first[one.place, one.like]
        whole = len(models[one.given, one.place]) == 1 or here == one.place
        tail = "" if whole else here.relative_to(one.place).as_posix()
        plain.append("/".join(filter(None, (one.given or one.place.resolve().name, tail))))
    likes: dict[str, set] = {}
    digests: dict[str, set] = {}
    for one, name in zip(found, plain, strict=True):
        likes.setdefault("" if one.given else name, set()).add(one.like)
        if is_reference(one.results):
            digests.setdefault(one.results["encoder"]["name"], set()).add(one.results["encoder"]["digest"])
    subjects = []
    for one, name in zip(found, plain, strict=True):
        # Two models have one name only if it was given to both.
        name = name if one.given or len(likes[name]) == 1 else one.workdir.as_posix()
        if is_reference(one.results):
            encoder = one.results["encoder"]["name"]
            name = encoder if len(digests[encoder]) == 1 else f"{name} ({encoder})"
        subjects.append(name)
    return subjects


def is_reference(results: dict[str, Any]) -> bool:
    """Whether results.json is of an encoder that a run was compared with."""
    encoder = results["encoder"]
    return encoder["step"] == 0 and results["name"].endswith(f"-{encoder['name']}")


def _likeness(config: dict[str, Any], workdir: Path) -> str:
    if not config:
        return workdir.as_posix()
    rest = {key: value for key, value in config.items() if key not in _REPEATED}
    rest["data"] = {key: value for key, value in config.get("data", {}).items() if key not in _REPEATED_DATA}
    return json.dumps(rest, sort_keys=True)


def _config(workdir: Path) -> dict[str, Any]:
    """The run's config under today's keys; empty where there is none."""
    path = workdir / "config.json"
    return read(path).to_dict() if path.is_file() else {}


def _step(workdir: Path, steps: Collection[int]) -> int:
    """The step at which the run was finished, or else its last one that was judged."""
    path = workdir / "finished.json"
    finished = json.loads(path.read_text()).get("step") if path.is_file() else None
    return finished if isinstance(finished, int) and finished in steps else max(steps)


def _is_step(path: Path) -> bool:
    return path.parent.name.isdigit()
