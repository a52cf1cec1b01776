"""The sections of a results page on one question: each as parts of the page, and the same as numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas

from cxrjax.evals import metrics
from cxrjax.evals.base import MASKED, Interval
from cxrjax.evals.predictions import judged_labels
from cxrjax.input.converted_sets import ConvertedSet, open_set
from cxrjax.reporting import (
    calibration,
    charts,
    collect,
    compare,
    delong,
    efficiency,
    examples,
    operating,
    page,
    significance,
)

BAND_RESAMPLES = 200  # a band is drawn, not read off

Tables = Mapping[str, Sequence[pandas.DataFrame]]
"""Subject -> a table of predictions per run."""


class Options(NamedTuple):
    """See configs/report.py."""

    reference: str
    resamples: int
    seed: int
    examples: int
    attributes: str
    data_dir: str
    threshold: float


class Section(NamedTuple):
    """parts: of the page; facts: the same as numbers, for report.json."""

    parts: list[page.Part]
    facts: dict[str, Any]


class Judged(NamedTuple):
    """What one question has at one share of the labels.

    reference: the subject that the others are compared with. remark: what the text of a section says that looks at one
    run of each subject.
    """

    question: collect.Question
    tables: Tables
    comparison: compare.Comparison
    reference: str
    remark: str

    @property
    def first(self) -> dict[str, pandas.DataFrame]:
        """Subject -> the predictions of its first run."""
        return {name: tables[0] for name, tables in self.tables.items()}


class DeLong(NamedTuple):
    """AUROC with its interval, and p of its difference to the reference; None is not to be had."""

    area: Interval | None = None
    p: float | None = None


def comparisons(found: Mapping[float, compare.Comparison], tables_of: Mapping[float, Tables]) -> list[page.Part]:
    """The table of subjects with a row per share of the labels, their intervals, and the curve over the shares.

    found, tables_of: by share of the labels.
    """
    shown = [name for name in next(iter(next(iter(found.values())).metrics.values())) if "/" not in name]
    main, top = shown[0], found[max(found)]
    parts: list[page.Part] = [_comparison_table(found, tables_of, shown)]
    spans = [row[main][:3] for row in top.metrics.values()]
    parts.append(page.Drawing(charts.rows(list(top.metrics), spans, main, None), f"{main} of each subject."))
    if top.differences:
        spans = [row[main][:3] for row in top.differences.values()]
        drawn = charts.rows(list(top.differences), spans, f"{main}, difference", 0.0)
        parts.append(page.Drawing(drawn, "Paired differences."))
    if len(found) > 1:
        parts += _over_shares(found, main)
    return parts


def _comparison_table(
    found: Mapping[float, compare.Comparison], tables_of: Mapping[float, Tables], shown: Sequence[str]
) -> page.Table:
    several = len(found) > 1
    columns = ["subject", *(["labels"] if several else []), "runs"]
    gained = [row for one in found.values() for row in one.differences.values()]
    # What is the same for all of them, such as the grounding of a map that sees nothing, has no difference.
    differing = {
        name for name in shown if any((row[name].low, row[name].high) != (0, 0) for row in gained if name in row)
    }
    columns += [one for name in shown for one in (name, *([f"{name}, difference"] if name in differing else []))]
    main, seeded = shown[0], any(one.with_seeds for one in found.values())
    columns += [f"{main}, with seeds", f"{main}, difference with seeds"] if seeded else []
    columns += [f"{main}, p (Holm)"]
    rows = []
    pairs = [(share, subject) for share, one in found.items() for subject in one.p]
    corrected = dict(zip(pairs, significance.holm([found[a].p[b][main] for a, b in pairs]).tolist(), strict=True))
    for share, one in found.items():
        for subject, row in one.metrics.items():
            gains = one.differences.get(subject, {})
            cells: list[page.Cell] = [subject, *([share] if several else []), len(tables_of[share][subject])]
            for name in shown:
                cells.append(row.get(name))
                if name in differing:
                    cells.append(page.Gain(gains[name]) if name in gains else None)
            if seeded:
                gain = one.differences_with_seeds.get(subject, {}).get(main)
                cells += [one.with_seeds.get(subject, {}).get(main), gain and page.Gain(gain)]
            rows.append([*cells, corrected.get((share, subject))])
    text = ""
    if any(len(runs) > 1 for tables in tables_of.values() for runs in tables.values()):
        text = "Of several runs the mean is given; its interval covers the choice of patients, not of seeds. "
    if seeded:
        text += _of_seeds([one for one in found.values() if one.with_seeds][-1], main)
    if corrected:
        text += (
            f"p: two-sided, from the resamples, by Holm for {len(corrected)} difference{'s' * (len(corrected) > 1)} of "
            f"{main}. It does not cover seeds."
        )
    return page.Table("Comparison", columns, rows, text)


def _of_seeds(found: compare.Comparison, metric: str) -> str:
    """Sentences on what seeds add to each subject's mean."""
    said = []
    for name, of_metric in found.components.items():
        one = of_metric[metric]
        parts = [
            f"{value:.3f} over the seeds of {what}"
            for what, value in (("pre-training", one.pretraining), ("heads", one.head))
            if math.isfinite(value)
        ]
        alone = ", of one pre-training, which leaves its seed out" if one.pretrainings == 1 else ""
        said.append(f"{name} {' and '.join(parts)}{alone}")
    return f"With seeds: the interval covers them too. Standard deviations of single runs: {'; '.join(said)}. "


def _over_shares(found: Mapping[float, compare.Comparison], metric: str) -> list[page.Part]:
    """The curve over the shares of the labels, and where there are enough of them the law that fits it."""
    lines, fitted, rows = [], [], []
    for name in dict.fromkeys(name for one in found.values() for name in one.metrics):
        spans = {share: one.metrics[name][metric] for share, one in found.items() if name in one.metrics}
        values, lows, highs = zip(*(span[:3] for span in spans.values()), strict=True)
        lines.append(charts.Curve(name, list(spans), values, lows, highs))
        samples = {share: one.drawn[name] for share, one in found.items() if name in one.drawn}
        points = {share: span.value for share, span in spans.items() if share in samples}
        law = efficiency.law(points, samples, min(span.n for span in spans.values()))
        if law is not None:
            fitted.append(charts.Curve(name, law.shares, law.fitted))
            times = f"{law.to_halve:.3g} times" if law.to_halve < 1e6 else "no number of labels"
            rows.append([name, law.exponent, law.at_more, times, law.residual])
    ends = [value for line in lines for side in line[2:] for value in side if math.isfinite(value)]
    room = 0.05 * (max(ends) - min(ends) or 1)
    ranges = (min(found), max(found)), (min(ends) - room, max(ends) + room)
    drawn = charts.curves(lines, "share of the labels", metric, *ranges, points=True, log_x=True)
    parts: list[page.Part] = [page.Drawing(drawn, f"{metric} over the share of the labels that was trained on.")]
    if not rows:
        return parts
    tops = [value for line in fitted for value in line.y]
    ranges = (min(found), efficiency.MORE * max(found)), (min(tops) - room, max(tops) + room)
    drawn = charts.curves(fitted, "share of the labels", metric, *ranges, log_x=True)
    parts.append(page.Drawing(drawn, f"The fitted laws of {metric}, up to {efficiency.MORE} times the labels."))
    text = (
        f"Fitted: 1 − {metric} = a · share^−exponent. What is said of more labels than were tried extrapolates, and is "
        "too hopeful where the curve levels off. The intervals cover neither seeds nor that the law may not hold."
    )
    columns = ["subject", "exponent", f"{metric} at {efficiency.MORE} times the labels", "labels to halve the error"]
    return [*parts, page.Table("What more labels would buy", [*columns, "farthest from the law"], rows, text)]


def labels(judged: Judged) -> Section:
    """A row per label and subject, with DeLong's interval and p value beside the intervals of the bootstrap."""
    rows, facts = [], {}
    for subject, tables in judged.tables.items():
        names = judged_labels(tables[0])
        for name in names:
            areas = [area if len(names) == 1 else f"{area}/{name}" for area in ("auroc", "auprc")]
            row = judged.comparison.metrics[subject]
            if areas[0] not in row:
                continue  # left out of the comparison, which says so
            auroc, auprc = (row[area] for area in areas)
            gain = judged.comparison.differences.get(subject, {}).get(areas[0])
            check = _delong(name, tables, judged.tables[judged.reference] if gain else None)
            positive = judged.comparison.positives[areas[0]]
            rows.append([name, subject, auroc.n, positive, auroc, gain and page.Gain(gain), auprc, *check])
            numbers = {"auroc": auroc, "auprc": auprc, "delong": check.area, "delong_p": check.p}
            facts.setdefault(name, {})[subject] = numbers
    columns = ["label", "subject", "pictures", "positive", "auroc", "auroc, difference", "auprc"]
    text = (
        "DeLong's interval and the p value of the difference check the bootstrap's. They take a patient's pictures "
        "together (Obuchowski 1997), and are of single runs. The p values in the last column are corrected by Holm "
        "for the number of differences in this table."
    )
    corrected = significance.holm([math.nan if row[-1] is None else float(row[-1]) for row in rows])
    rows = [[*row, p] for row, p in zip(rows, corrected.tolist(), strict=True)]
    rows.sort(key=lambda row: list(facts).index(str(row[0])))  # subjects of one label stand together
    return Section([page.Table("Labels", [*columns, "auroc, DeLong", "p, DeLong", "p, Holm"], rows, text)], facts)


def parts_of_measures(judged: Judged) -> Section:
    """A row per finding and subject of what is measured per picture or box, such as "pointing/Mass"."""
    main = judged.comparison.metrics
    named = [name.partition("/") for row in main.values() for name in row if "/" in name]
    measures = list(dict.fromkeys(measure for measure, _, _ in named))
    rows = [
        [finding, subject, *(row.get(f"{measure}/{finding}") for measure in measures)]
        for finding in dict.fromkeys(finding for *_, finding in named)
        for subject, row in main.items()
    ]
    parts: list[page.Part] = [page.Table("By finding", ["finding", "subject", *measures], rows)] if rows else []
    return Section(parts, {})


def _delong(name: str, tables: Sequence[pandas.DataFrame], references: Sequence[pandas.DataFrame] | None) -> DeLong:
    """Of a label of one run, and of one run of the reference; nothing of several runs, or of too few patients."""
    if len(tables) > 1:
        return DeLong()
    ours = tables[0].sort_values("image_id")
    targets, scores = (ours[f"{side}/{name}"].to_numpy() for side in ("target", "score"))
    patients = ours["patient_id"].to_numpy(str)
    try:
        area = delong.interval(targets, scores, patients)
        if references is None or len(references) > 1:
            return DeLong(area)
        theirs = references[0].sort_values("image_id")[f"score/{name}"].to_numpy()
        return DeLong(area, delong.difference(targets, scores, theirs, patients).p)
    except ValueError:
        return DeLong()


def drawings(judged: Judged, options: Options) -> Section:
    """ROC and precision–recall curves with bands: means over labels, and over runs on the same pictures."""
    rocs, recalls, facts = [], [], {}
    for subject, tables in judged.tables.items():
        ordered = [table.sort_values("image_id", ignore_index=True) for table in tables]
        same = [table for table in ordered if table["image_id"].equals(ordered[0]["image_id"])]
        names = _both_values(ordered[0])
        sides = [
            [table[f"{side}/{name}"].to_numpy() for side in ("target", "score")] for table in same for name in names
        ]
        ranked = [metrics.rank(*pair) for pair in sides]
        if not ranked:
            continue
        bands = operating.bands(ranked, ordered[0]["patient_id"].to_numpy(str), BAND_RESAMPLES, options.seed)
        rocs.append(charts.Curve(subject, *bands.roc))
        recalls.append(charts.Curve(subject, *bands.precision_recall))
        facts[subject] = {name: band._asdict() for name, band in bands._asdict().items()}
    mean = "Mean over the labels, with" if len(judged_labels(next(iter(judged.first.values())))) > 1 else "With"
    text = f"{mean} the pointwise 95 % band over {BAND_RESAMPLES} resamples."
    frame = charts.curves(rocs, "1 − specificity", "sensitivity", diagonal=True)
    parts: list[page.Part] = [page.Drawing(frame, f"ROC. {text}")]
    parts.append(page.Drawing(charts.curves(recalls, "recall", "precision"), f"Precision and recall. {text}"))
    return Section(parts, facts)


def calibrations(judged: Judged, options: Options) -> Section:
    """ECE and Brier score of each subject and of each of its labels, and the reliability of all labels together."""
    rows, of_labels, lines, facts, uncalibrated = [], [], [], {}, []
    for subject, table in judged.first.items():
        names = judged_labels(table)
        targets, scores = (table[[f"{side}/{name}" for name in names]].to_numpy() for side in ("target", "score"))
        if not calibration.are_probabilities(scores[targets != MASKED]):
            uncalibrated.append(subject)
            facts[subject] = "scores are no probabilities"
            continue
        patients = table["patient_id"].to_numpy(str)
        drawn = (patients, options.resamples, options.seed)
        found = calibration.summarise(judged.question.kind, names, targets, scores, *drawn)
        everyone = np.repeat(patients, len(names))
        bins = calibration.reliability(targets.ravel(), scores.ravel(), everyone, resamples=BAND_RESAMPLES)
        lines.append(charts.Curve(subject, bins.score, bins.rate, bins.low, bins.high))
        rows.append([subject, found.metrics["ece"], found.floors["ece"], found.metrics["brier"]])
        facts[subject] = {**found._asdict(), "reliability": bins._asdict()}
        for name in names if len(names) > 1 else ():
            if (ece := found.metrics.get(f"ece/{name}")) is not None:
                cells = ece.n, ece, found.floors[f"ece/{name}"], found.metrics[f"brier/{name}"]
                of_labels.append([name, subject, *cells])
    if not rows:
        return Section([page.Text("No calibration: the scores are no probabilities.")], facts)
    text = (
        "ECE: expected calibration error over 15 bins. Floor: what a perfectly calibrated model with these scores has, "
        f"by chance, on as many pictures. {judged.remark}"
    )
    measured = ["ECE", "floor", "Brier score"]
    parts: list[page.Part] = [page.Table("Calibration", ["subject", *measured], rows, text)]
    if of_labels:
        of_labels.sort(key=lambda row: row[0])
        parts.append(page.Table("Calibration by label", ["label", "subject", "pictures", *measured], of_labels))
    if uncalibrated:
        parts.append(page.Text(f"Not of {', '.join(uncalibrated)}: their scores are no probabilities."))
    caption = "Reliability: of all pictures and labels with about this score, the share that is positive."
    parts.append(page.Drawing(charts.curves(lines, "score", "rate", diagonal=True, points=True), caption))
    return Section(parts, facts)


def points(judged: Judged, options: Options) -> Section:
    """Sensitivity, specificity and predictive values, by subject and label."""
    rows, facts, columns = [], {}, []
    for subject, table in judged.first.items():
        for name in _both_values(table):
            targets, scores = (table[f"{side}/{name}"].to_numpy() for side in ("target", "score"))
            at = {"threshold": options.threshold, "resamples": options.resamples, "seed": options.seed}
            found = operating.points(targets, scores, table["patient_id"].to_numpy(str), **at)
            columns = list(found)
            rows.append([subject, name, *found.values()])
            facts.setdefault(subject, {})[name] = found
    text = (
        f"Sensitivity to f1 call positive what scores at least {options.threshold:g}. The others are points of the ROC "
        f"curve, with the threshold found again in every resample. {judged.remark}"
    )
    return Section([page.Table("Operating points", ["subject", "label", *columns], rows, text)], facts)


def pictures(judged: Judged, options: Options) -> list[page.Part]:
    """Best, median and worst pictures of every subject that is no reference of a run; of all where there is none."""
    if not options.examples:
        return []
    parts: list[page.Part] = []
    runs = judged.question.runs
    own = dict.fromkeys(run.subject for run in runs if not collect.is_reference(run.results))
    try:
        place = set_of(judged, options)
    except ValueError as error:
        return [page.Notes([f"no pictures: {error}"])]
    for subject in [name for name in own if name in judged.tables] or list(judged.tables):
        found = examples.pictures(place, judged.first[subject], options.examples)
        if found.items:
            parts.append(page.Pictures(f"{subject}: pictures by {found.quality}", found.items))
    mapped = [run.results["details"]["map"] for run in runs if run.results.get("details", {}).get("map")]
    legend = "Green is what readers marked, orange what the model marked."
    legend += "".join(f" Colours: {what}." for what in dict.fromkeys(mapped))
    return [*parts, page.Text(legend)] if parts else []


def _both_values(table: pandas.DataFrame) -> list[str]:
    """The labels of which some picture is positive and some negative."""
    return [name for name in judged_labels(table) if set(table[f"target/{name}"]) >= {0, 1}]


def set_of(judged: Judged, options: Options) -> ConvertedSet:
    """The converted set that a question was judged on."""
    entry = judged.question.entry
    return open_set(entry["set"], options.data_dir or entry.get("data_dir") or None)
