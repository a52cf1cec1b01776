"""One page on the saved evaluations of any number of runs: report.html, report.md and report.json.

Everything is computed from the saved predictions: no checkpoint is read and no picture judged again. What stands under
one heading was judged on the same pictures and resampled together (see `compare`), so that the differences are paired.
Curves, calibration, operating points and groups are of the largest share of the labels, and of each subject's first run
where one table of predictions is needed; the text beside them says so.

report.json      all numbers, by question: comparison, operating points, calibration, groups, curves
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax.config import ConfigDict
from cxrjax.evals.base import Interval
from cxrjax.evals.predictions import judged_labels
from cxrjax.reporting import by_group, by_head, by_part, collect, compare, explained, in_words, page, sections
from cxrjax.reporting.sections import Judged, Options, Section

ABOUT = (
    "Numbers in brackets are 95 % percentile intervals over {resamples} resamples of the test patients, the same ones "
    "for all that stands in one table. A difference is to {reference}; it is bold where its interval leaves out zero. "
    "Holm's p values take into account how many differences a table holds. A click on the head of a column sorts by it."
)


def write(config: ConfigDict, workdir: Path) -> Path:
    """Writes the results page of config.runs into workdir; returns the HTML file's path.

    Raises ValueError for a folder without evaluations and for a reference that no question has.
    """
    settings: Any = config
    options = Options(**{name: settings[name] for name in Options._fields})
    found = collect.collect(settings.runs)
    known = sorted({run.subject for question in found.questions for run in question.runs})
    if options.reference and options.reference not in known:
        raise ValueError(f"the reference {options.reference!r} is not among the subjects: {', '.join(known)}")
    parts: list[page.Part] = []
    facts = {}
    for question in found.questions:
        print(f"{question.name}: {len(question.runs)} evaluations", flush=True)
        more, facts[question.name] = section(question, options)
        parts += more
    for name, heads in by_head.sections(found.questions, options).items():
        parts += heads.parts
        facts[name] = heads.facts
    in_short = [page.Text(one["in_words"]) for one in facts.values() if "in_words" in one]
    first: list[page.Part] = [page.Heading("In short", 2, "In short"), *in_short] if in_short else []
    first += [page.Heading("Runs", 2, "Runs"), _runs(found.questions)]
    parts = [*first, *([page.Notes(found.notes)] if found.notes else []), *parts]
    about = ABOUT.format(resamples=f"{options.resamples:,}", reference=options.reference or "the first subject")
    workdir.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("report.json", json.dumps(plain(facts), indent=1, ensure_ascii=False, allow_nan=False) + "\n"),
        ("report.md", page.to_markdown(settings.title, about, parts)),
        ("report.html", page.to_html(settings.title, about, parts)),
    ):
        unfinished = workdir / f".{name}.{os.getpid()}"
        unfinished.write_text(text)
        os.replace(unfinished, workdir / name)
    return workdir / "report.html"


def section(question: collect.Question, options: Options) -> Section:
    """What there is to say on one question."""
    parts: list[page.Part] = [page.Heading(question.name, 2, question.name)]
    notes = sorted({f"{run.subject}: {note}" for run in question.runs for note in run.results.get("notes", ())})
    found: dict[float, compare.Comparison] = {}
    tables_of = {share: question.tables(share) for share in sorted({run.fraction for run in question.runs})}
    for share, tables in tables_of.items():
        reference = options.reference if options.reference in tables else ""
        try:
            starts = _pretrainings(question, share)
            found[share] = compare.compare(question.kind, tables, reference, options.resamples, options.seed, starts)
            notes += [f"{share:.0%} of the labels: {note}" for note in found[share].notes]
        except ValueError as error:
            notes.append(f"no paired differences at {share:.0%} of the labels: {error}")
    facts: dict[str, Any] = {
        "comparison": {f"{share:g}": one._replace(drawn={})._asdict() for share, one in found.items()},
        "saved": [_saved(run) for run in question.runs],
    }
    if not found:
        return Section([*parts, page.Notes(notes), _saved_table(question)], facts)
    judged = _judged(question, tables_of, found, options)
    main = judged.comparison
    explained_of = _explained(judged)
    own = explained_of.get(judged.reference, "")
    facts["in_words"] = " ".join(filter(None, (in_words.paragraph(question, main, judged.reference), own)))
    said = f"{main.pictures:,} pictures of {main.patients:,} patients. Differences to {judged.reference}."
    parts.append(page.Text(said))
    parts += [page.Text(one) for one in explained_of.values()]
    parts += [page.Notes(notes)] if notes else []
    parts += sections.comparisons(found, tables_of)
    for name, one in _sections(judged, options).items():
        parts += one.parts
        facts[name] = one.facts
    return Section([*parts, *sections.pictures(judged, options)], facts)


def _judged(
    question: collect.Question,
    tables_of: Mapping[float, sections.Tables],
    found: Mapping[float, compare.Comparison],
    options: Options,
) -> Judged:
    """The question at the largest share of the labels of those that could be compared."""
    top = max(found)
    tables = tables_of[top]
    reference = options.reference if options.reference in tables else next(iter(tables))
    several = len(tables_of) > 1 or any(len(runs) > 1 for runs in tables.values())
    remark = f"At {top:.0%} of the labels; of several runs the first." if several else ""
    return Judged(question, tables, found[top], reference, remark)


def _explained(judged: Judged) -> dict[str, str]:
    """What shortcuts explain of each subject that is no reference of a run; only references of its own folder count."""
    runs = judged.question.runs
    if judged.question.entry["judge"] == "shuffled":  # whose labels nothing explains
        return {}
    areas = {name: row.get("auroc") for name, row in judged.comparison.metrics.items()}
    references = {run.subject: run for run in runs if collect.is_reference(run.results)}
    found = {}
    for run in {run.subject: run for run in runs if run.subject not in references}.values():
        near = [name for name, one in references.items() if one.workdir == run.workdir or name == "metadata"]
        said = explained.sentence(run.subject, {name: areas.get(name) for name in (run.subject, *near)})
        found |= {run.subject: said} if said else {}
    return found


def _sections(judged: Judged, options: Options) -> dict[str, Section]:
    """The sections that the predictions allow, by their names in report.json."""
    found = {}
    if judged_labels(next(iter(judged.first.values()))):
        found["labels"] = sections.labels(judged)
        found["curves"] = sections.drawings(judged, options)
        found["calibration"] = sections.calibrations(judged, options)
        if judged.question.kind != "multiclass":
            found["operating_points"] = sections.points(judged, options)
    elif "part" in next(iter(judged.first.values())):
        found["parts"] = by_part.matrices(judged)
    else:
        found["parts"] = sections.parts_of_measures(judged)
    return found | by_group.sections(judged, options)


def plain(value: Any) -> Any:
    """Named tuples, arrays and numbers as what JSON has; what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, tuple) and (fields := getattr(value, "_fields", ())):
        return {name: plain(one) for name, one in zip(fields, value, strict=True)}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _pretrainings(question: collect.Question, share: float) -> dict[str, list[str]]:
    """Subject -> the pre-training that each of its runs starts from; a run that starts from none is one itself."""
    found: dict[str, list[str]] = {}
    for run in question.runs:
        if run.fraction == share:
            found.setdefault(run.subject, []).append(run.pretraining or str(run.folder))
    return found


def _runs(questions: Sequence[collect.Question]) -> page.Table:
    rows = dict.fromkeys(
        (run.subject, run.results["encoder"]["name"], run.results["encoder"]["step"], str(run.workdir))
        for question in questions
        for run in question.runs
    )
    return page.Table("What was judged", ["subject", "encoder", "step", "folder"], list(rows))


def _saved(run: collect.Run) -> dict[str, Any]:
    about = {"subject": run.subject, "folder": str(run.folder), "fraction": run.fraction, "seed": run.seed}
    return about | {"fold": run.fold, "metrics": run.results["metrics"], "versions": run.results.get("versions", {})}


def _saved_table(question: collect.Question) -> page.Table:
    """The metrics as they were saved, for evaluations that cannot be resampled together."""
    shown = list(dict.fromkeys(name for run in question.runs for name in run.results["metrics"] if "/" not in name))
    rows = [
        [run.subject, run.fraction, run.seed, *(_interval(run.results["metrics"].get(name)) for name in shown)]
        for run in question.runs
    ]
    return page.Table("As saved by each run", ["subject", "labels", "seed", *shown], rows)


def _interval(saved: Mapping[str, Any] | None) -> Interval | None:
    """An interval as results.json has it, with null for what is not known."""
    if saved is None:
        return None
    value, low, high = (math.nan if saved[key] is None else saved[key] for key in ("value", "low", "high"))
    return Interval(value, low, high, saved["n"])
