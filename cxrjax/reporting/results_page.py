"""One report of any number of saved evaluations: report.html, report.md and report.json.

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
from typing import Any, NamedTuple

import numpy as np
import pandas
from ml_collections import ConfigDict

from cxrjax.evals import metrics
from cxrjax.evals.base import MASKED, Interval
from cxrjax.evals.predictions import judged_labels, picture_values
from cxrjax.input.converted_sets import open_set
from cxrjax.reporting import calibration, charts, collect, compare, delong, examples, operating, page, subgroups

BAND_RESAMPLES = 200  # a band is drawn, not read off
ABOUT = (
    "Numbers in brackets are 95 % percentile intervals over {resamples} resamples of the test patients, the same ones "
    "for all that stands in one table. A difference is to {baseline}; it is bold where its interval leaves out zero. "
    "With many rows one in twenty does so by chance. A click on the head of a column sorts by it."
)


class Options(NamedTuple):
    """See configs/report.py."""

    baseline: str
    resamples: int
    seed: int
    examples: int
    attributes: str
    data_dir: str
    threshold: float


def write(config: ConfigDict, workdir: Path) -> Path:
    """Writes the report of config.runs into workdir; returns the page's path.

    Raises ValueError for a folder without evaluations and for a baseline that no question has.
    """
    keys = ("baseline", "resamples", "seed", "examples", "attributes", "data_dir", "threshold")
    options = Options(*(config[key] for key in keys))
    questions, notes = collect.collect(config.runs)
    known = sorted({run.subject for question in questions for run in question.runs})
    if options.baseline and options.baseline not in known:
        raise ValueError(f"the baseline {options.baseline!r} is not among the subjects: {', '.join(known)}")
    parts: list[Any] = [page.Heading("Runs", 2, "Runs"), _runs(questions)]
    parts += [page.Notes(notes)] if notes else []
    facts = {}
    for question in questions:
        print(f"{question.name}: {len(question.runs)} evaluations", flush=True)
        found, facts[question.name] = section(question, options)
        parts += found
    about = ABOUT.format(resamples=f"{options.resamples:,}", baseline=options.baseline or "the first subject")
    workdir.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("report.json", json.dumps(plain(facts), indent=1, ensure_ascii=False, allow_nan=False) + "\n"),
        ("report.md", page.to_markdown(config.title, about, parts)),
        ("report.html", page.to_html(config.title, about, parts)),
    ):
        unfinished = workdir / f".{name}.{os.getpid()}"
        unfinished.write_text(text)
        os.replace(unfinished, workdir / name)
    return workdir / "report.html"


def section(question: collect.Question, options: Options) -> tuple[list[Any], dict[str, Any]]:
    """What there is to say on one question: parts of a page, and the same as numbers."""
    shares = sorted({run.fraction for run in question.runs})
    parts: list[Any] = [page.Heading(question.name, 2, question.name)]
    notes = sorted({f"{run.subject}: {note}" for run in question.runs for note in run.results.get("notes", ())})
    found: dict[float, compare.Comparison] = {}
    of_share = {share: _tables(question, share) for share in shares}
    for share, subjects in of_share.items():
        baseline = options.baseline if options.baseline in subjects else ""
        try:
            found[share] = compare.compare(question.kind, subjects, baseline, options.resamples, options.seed)
            notes += [f"{share:.0%} of the labels: {note}" for note in found[share].notes]
        except ValueError as error:
            notes.append(f"no paired differences at {share:.0%} of the labels: {error}")
    facts: dict[str, Any] = {
        "comparison": {f"{share:g}": one._asdict() for share, one in found.items()},
        "saved": [_saved(run) for run in question.runs],
    }
    if not found:
        return [*parts, page.Notes(notes), _saved_table(question)], facts
    top = max(found)
    subjects, main = of_share[top], found[top]
    baseline = options.baseline if options.baseline in subjects else next(iter(subjects))
    parts.append(page.Text(f"{main.pictures:,} pictures of {main.patients:,} patients. Differences to {baseline}."))
    parts += [page.Notes(notes)] if notes else []
    parts += comparisons(found, of_share)
    first = {name: tables[0] for name, tables in subjects.items()}
    share_text = f"At {top:.0%} of the labels; of several runs the first." if _several(subjects, shares) else ""
    if judged_labels(next(iter(first.values()))):
        more, facts["labels"] = labels(main, subjects, baseline)
        parts += more
        more, facts["curves"] = drawings(subjects, options)
        parts += more
        more, facts["calibration"] = calibrations(question.kind, first, options, share_text)
        parts += more
        if question.kind != "multiclass":
            more, facts["operating_points"] = points(first, options, share_text)
            parts += more
    more, facts["groups"] = groups(question, first, options, share_text)
    parts += more
    parts += pictures(question, first, options)
    return parts, facts


def comparisons(
    found: Mapping[float, compare.Comparison], of_share: Mapping[float, Mapping[str, Sequence[pandas.DataFrame]]]
) -> list[Any]:
    """The table of subjects, a row per share of the labels; a row of intervals; and the curve over the shares."""
    every = [name for name in next(iter(found.values())).metrics.values()][0]
    shown = [name for name in every if "/" not in name]
    several = len(found) > 1
    columns = ["subject", *(["labels"] if several else []), "runs"]
    columns += [column for name in shown for column in (name, f"{name}, difference")]
    table = []
    for share, one in found.items():
        for subject, row in one.metrics.items():
            gains = one.differences.get(subject, {})
            cells = [subject, *([share] if several else []), len(of_share[share][subject])]
            for name in shown:
                cells += [row.get(name), page.Gain(gains[name]) if name in gains else None]
            table.append(cells)
    spread = max((len(tables) for of in of_share.values() for tables in of.values()), default=1) > 1
    text = (
        "Of several runs the mean is given; its interval covers the choice of patients, not of seeds." if spread else ""
    )
    parts: list[Any] = [page.Table("Comparison", columns, table, text)]
    main, top = shown[0], max(found)
    subjects = list(found[top].metrics)
    spans = [found[top].metrics[name][main][:3] for name in subjects]
    parts.append(page.Drawing(charts.rows(subjects, spans, main, None), f"{main} of each subject."))
    if found[top].differences:
        compared = list(found[top].differences)
        spans = [found[top].differences[name][main][:3] for name in compared]
        parts.append(page.Drawing(charts.rows(compared, spans, f"{main}, difference", 0.0), "Paired differences."))
    if several:
        lines = []
        for name in dict.fromkeys(name for one in found.values() for name in one.metrics):
            spans = [(share, *one.metrics[name][main][:3]) for share, one in found.items() if name in one.metrics]
            lines.append(charts.Curve(name, *zip(*spans, strict=True)))
        values = [value for line in lines for side in line[2:] for value in side if math.isfinite(value)]
        room = 0.05 * (max(values) - min(values) or 1)
        span = (min(found), max(found)), (min(values) - room, max(values) + room)
        drawn = charts.curves(lines, "share of the labels", main, *span, points=True, log_x=True)
        parts.append(page.Drawing(drawn, f"{main} over the share of the labels that was trained on."))
    return parts


def labels(main: compare.Comparison, subjects, baseline: str) -> tuple[list[Any], dict[str, Any]]:
    """A row per label and subject, with DeLong's interval and p value beside the intervals of the bootstrap."""
    table, facts = [], {}
    for subject, tables in subjects.items():
        for name in judged_labels(tables[0]):
            alone = len(judged_labels(tables[0])) == 1
            areas = [area if alone else f"{area}/{name}" for area in ("auroc", "auprc")]
            if areas[0] not in main.metrics[subject]:
                continue  # left out of the comparison, which says so
            found, auprc = (main.metrics[subject][area] for area in areas)
            gain = main.differences.get(subject, {}).get(areas[0])
            check, p = _delong(name, tables, subjects[baseline] if gain else None)
            cells = [name, subject, found.n, main.positives[areas[0]], found, gain and page.Gain(gain), auprc, check, p]
            table.append(cells)
            facts.setdefault(name, {})[subject] = {"auroc": found, "auprc": auprc, "delong": check, "delong_p": p}
    columns = ["label", "subject", "pictures", "positive", "auroc", "auroc, difference", "auprc"]
    text = (
        "DeLong's interval and p value of the difference, with a patient's pictures taken together (Obuchowski 1997), "
        "check the bootstrap's; they are of single runs. No correction is made for the number of tests."
    )
    return [page.Table("Labels", [*columns, "auroc, DeLong", "p, DeLong"], table, text)], facts


def _delong(name: str, tables, references) -> tuple[Interval | None, float | None]:
    """DeLong's interval of one run's AUROC, and p of its difference to one run of the baseline; None where there is
    more than one run, or too few patients of one side."""
    if len(tables) > 1:
        return None, None
    ours = tables[0].sort_values("image_id")
    targets, scores = (ours[f"{side}/{name}"].to_numpy() for side in ("target", "score"))
    patients = ours["patient_id"].to_numpy(str)
    try:
        found = delong.interval(targets, scores, patients)
        if references is None or len(references) > 1:
            return found, None
        theirs = references[0].sort_values("image_id")[f"score/{name}"].to_numpy()
        return found, delong.difference(targets, scores, theirs, patients)[1]
    except ValueError:
        return None, None


def drawings(subjects, options: Options) -> tuple[list[Any], dict[str, Any]]:
    """ROC and precision–recall curves with bands: means over labels, and over runs on the same pictures."""
    rocs, recalls, facts = [], [], {}
    for subject, tables in subjects.items():
        ordered = [table.sort_values("image_id", ignore_index=True) for table in tables]
        same = [table for table in ordered if table["image_id"].equals(ordered[0]["image_id"])]
        judged = [name for name in judged_labels(ordered[0]) if set(ordered[0][f"target/{name}"]) >= {0, 1}]
        ranked = [metrics.rank(table[f"target/{name}"], table[f"score/{name}"]) for table in same for name in judged]
        if not ranked:
            continue
        roc, recall = operating.bands(ranked, ordered[0]["patient_id"], BAND_RESAMPLES, options.seed)
        rocs.append(charts.Curve(subject, *roc))
        recalls.append(charts.Curve(subject, *recall))
        facts[subject] = {"roc": roc._asdict(), "precision_recall": recall._asdict()}
    many = len(judged_labels(next(iter(subjects.values()))[0])) > 1
    text = (
        f"{'Mean over the labels, with' if many else 'With'} the pointwise 95 % band over {BAND_RESAMPLES} resamples."
    )
    frame = charts.curves(rocs, "1 − specificity", "sensitivity", diagonal=True)
    return [
        page.Drawing(frame, f"ROC. {text}"),
        page.Drawing(charts.curves(recalls, "recall", "precision"), f"Precision and recall. {text}"),
    ], facts


def calibrations(kind: str, first, options: Options, text: str) -> tuple[list[Any], dict[str, Any]]:
    """ECE and Brier score of each subject, and the reliability of all its labels together."""
    table, lines, facts = [], [], {}
    for subject, one in first.items():
        names_of = judged_labels(one)
        targets, scores = (one[[f"{side}/{name}" for name in names_of]].to_numpy() for side in ("target", "score"))
        if not calibration.are_probabilities(scores[targets != MASKED]):
            facts[subject] = "scores are no probabilities"
            continue
        patients = one["patient_id"].to_numpy(str)
        drawn = (patients, options.resamples, options.seed)
        found, floors = calibration.summarise(kind, names_of, targets, scores, *drawn)
        everyone = np.repeat(patients, len(names_of))
        bins = calibration.reliability(targets.ravel(), scores.ravel(), everyone, resamples=BAND_RESAMPLES)
        lines.append(charts.Curve(subject, bins.score, bins.rate, bins.low, bins.high))
        table.append([subject, found["ece"], floors["ece"], found["brier"]])
        facts[subject] = {"metrics": found, "floors": floors, "reliability": bins._asdict()}
    if not table:
        return [page.Text("No calibration: the scores are no probabilities.")], facts
    explained = (
        "ECE: expected calibration error over 15 bins. Floor: what a perfectly calibrated model with these scores has, "
        f"by chance, on as many pictures. {text}"
    )
    left = [name for name in first if not isinstance(facts[name], dict)]
    caption = "Reliability: of all pictures and labels with about this score, the share that is positive."
    parts: list[Any] = [page.Table("Calibration", ["subject", "ECE", "floor", "Brier score"], table, explained)]
    if left:
        parts.append(page.Text(f"Not of {', '.join(left)}: their scores are no probabilities."))
    return [*parts, page.Drawing(charts.curves(lines, "score", "rate", diagonal=True, points=True), caption)], facts


def points(first, options: Options, text: str) -> tuple[list[Any], dict[str, Any]]:
    """Sensitivity, specificity and predictive values, by subject and label."""
    table, facts, columns = [], {}, []
    for subject, one in first.items():
        for name in judged_labels(one):
            if not set(one[f"target/{name}"]) >= {0, 1}:
                continue
            given = (one[f"{side}/{name}"].to_numpy() for side in ("target", "score"))
            at = {"threshold": options.threshold, "resamples": options.resamples, "seed": options.seed}
            found = operating.points(*given, one["patient_id"], **at)
            columns = list(found)
            table.append([subject, name, *found.values()])
            facts.setdefault(subject, {})[name] = found
    explained = (
        f"Sensitivity to f1 call positive what scores at least {options.threshold:g}. The others are points of the ROC "
        f"curve, with the threshold found again in every resample. {text}"
    )
    return [page.Table("Operating points", ["subject", "label", *columns], table, explained)], facts


def groups(question, first, options: Options, text: str) -> tuple[list[Any], dict[str, Any]]:
    """Subgroups of every subject."""
    table, facts, notes, metric = [], {}, [], ""
    for subject, one in first.items():
        try:
            place = open_set(question.entry["set"], options.data_dir or question.entry.get("data_dir") or None)
            known, more = subgroups.attributes(place, one["image_id"], options.attributes)
        except ValueError as error:
            return [page.Notes([f"no subgroups: {error}"])], {}
        notes = more
        if not (judged_labels(one) or picture_values(one)):
            return [], {}
        facts[subject] = subgroups.groups(one, known, options.resamples, options.seed)
        for group in facts[subject]:
            metric = metric or next(iter(group.metrics), "")
            value, gap = group.metrics.get(metric), group.gap and page.Gain(group.gap)
            sizes = [group.n, group.patients, group.positives, len(group.labels)]
            table.append([group.attribute, group.value, subject, *sizes, value, gap])
    columns = [
        "attribute",
        "group",
        "subject",
        "pictures",
        "patients",
        "positive",
        "labels that count",
        metric or "value",
    ]
    explained = (
        "The gap is to all others whose group is known. Labels with fewer than ten positive or ten negative patients "
        f"in a group do not count in it. {text}"
    )
    parts: list[Any] = [page.Table("Subgroups", [*columns, "gap"], table, explained)] if table else []
    return parts + ([page.Notes(notes)] if notes else []), {
        name: [g._asdict() for g in each] for name, each in facts.items()
    }


def pictures(question, first, options: Options) -> list[Any]:
    """Best, median and worst pictures of every subject that is no reference."""
    parts: list[Any] = []
    if not options.examples:
        return parts
    own = dict.fromkeys(run.subject for run in question.runs if not collect.is_reference(run.results))
    for subject in [name for name in own if name in first] or list(first):
        try:
            place = open_set(question.entry["set"], options.data_dir or question.entry.get("data_dir") or None)
        except ValueError as error:
            return [page.Notes([f"no pictures: {error}"])]
        what, items = examples.pictures(place, first[subject], options.examples)
        if items:
            parts.append(page.Pictures(f"{subject}: pictures by {what}", items))
    mapped = [run.results["details"]["map"] for run in question.runs if run.results.get("details", {}).get("map")]
    legend = "Green is what readers marked, orange what the model marked."
    legend += "".join(f" Colours: {what}." for what in dict.fromkeys(mapped))
    return [*parts, page.Text(legend)] if parts else []


def plain(value: Any) -> Any:
    """Named tuples, arrays and numbers as what JSON has; what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _tables(question, share: float) -> dict[str, list[pandas.DataFrame]]:
    found: dict[str, list[pandas.DataFrame]] = {}
    for run in question.runs:
        if run.fraction == share:
            found.setdefault(run.subject, []).append(run.predictions())
    return found


def _several(subjects, shares) -> bool:
    return len(shares) > 1 or any(len(tables) > 1 for tables in subjects.values())


def _runs(questions) -> page.Table:
    rows = dict.fromkeys(
        (run.subject, run.results["encoder"]["name"], run.results["encoder"]["step"], str(run.workdir))
        for question in questions
        for run in question.runs
    )
    return page.Table("What was judged", ["subject", "encoder", "step", "folder"], list(rows))


def _saved(run: collect.Run) -> dict[str, Any]:
    about = {"subject": run.subject, "folder": str(run.folder), "fraction": run.fraction, "seed": run.seed}
    return about | {"fold": run.fold, "metrics": run.results["metrics"], "versions": run.results.get("versions", {})}


def _saved_table(question) -> page.Table:
    """The metrics as they were saved, for evaluations that cannot be resampled together."""
    shown = list(dict.fromkeys(name for run in question.runs for name in run.results["metrics"] if "/" not in name))
    rows = []
    for run in question.runs:
        cells = []
        for name in shown:
            saved = run.results["metrics"].get(name)
            numbers = saved and [
                math.nan if saved[key] is None else saved[key] for key in ("value", "low", "high", "n")
            ]
            cells.append(numbers and Interval(*numbers))
        rows.append([run.subject, run.fraction, run.seed, *cells])
    return page.Table("As saved by each run", ["subject", "labels", "seed", *shown], rows)
