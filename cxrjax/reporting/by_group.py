"""The sections of a results page on groups of patients: how well each is judged, and where errors are more frequent."""

import pandas

from cxrjax.datasets.manifest import listed
from cxrjax.evals.base import bounds
from cxrjax.evals.predictions import judged_labels, picture_values
from cxrjax.reporting import gaps, page, subgroups
from cxrjax.reporting.sections import Judged, Options, Section, set_of

LISTED = 20


def sections(judged: Judged, options: Options) -> dict[str, Section]:
    """The sections "groups" and, of labels with thresholds, "errors"; none where nothing is known of each picture."""
    tables = list(judged.first.values())
    if not all(judged_labels(table) or picture_values(table) for table in tables):
        return {}
    pictures = list(dict.fromkeys(image_id for table in tables for image_id in table["image_id"]))
    try:
        known = subgroups.attributes(set_of(judged, options), pictures, options.attributes)
    except ValueError as error:
        return {"groups": Section([page.Notes([f"no subgroups: {error}"])], {})}
    crossed = gaps.crossed(known.table)
    found = {"groups": groups(judged, options, crossed, known.notes)}
    if judged_labels(tables[0]) and judged.question.kind != "multiclass":
        found["errors"] = errors(judged, options, crossed)
    return found


def groups(judged: Judged, options: Options, attributes: pandas.DataFrame, notes: list[str]) -> Section:
    """Subgroups of every subject. attributes: as `gaps.crossed` makes them. notes: on those that are not there."""
    rows, facts, metric, lowest = [], {}, "", []
    for subject, table in judged.first.items():
        found = subgroups.groups(table, attributes, options.resamples, options.seed)
        facts[subject] = [group._asdict() for group in found]
        for one in subgroups.worst(found).values():
            value = next(iter(one.metrics.values()))
            lowest.append(f"{subject} in {one.attribute} {one.value} {value.value:.3f}{bounds(value.low, value.high)}")
        for group in found:
            metric = metric or next(iter(group.metrics), "")
            sizes = [group.n, group.patients, group.positives, len(group.labels)]
            gap = group.gap and page.Gain(group.gap)
            rows.append([group.attribute, group.value, subject, *sizes, group.metrics.get(metric), gap])
    columns = ["attribute", "group", "subject", "pictures", "patients", "positive", "labels that count"]
    text = (
        "The gap is to all others whose group is known. Labels with fewer than ten positive or ten negative patients "
        f"in a group do not count in it. {judged.remark}"
    )
    if lowest:
        text += f" Worst groups, which look worse than they are because they were picked: {'; '.join(lowest)}."
    parts: list[page.Part] = []
    if rows:
        parts.append(page.Table("Subgroups", [*columns, metric or "value", "gap"], rows, text))
    return Section([*parts, page.Notes(notes)] if notes else parts, facts)


def errors(judged: Judged, options: Options, attributes: pandas.DataFrame) -> Section:
    """Sensitivity and specificity of groups at thresholds that were fixed on validation patients."""
    rows, facts, texts, small = [], {}, [], []
    first = {run.subject: run for run in reversed(judged.question.runs)}
    for subject, table in judged.first.items():
        thresholds = first[subject].results.get("details", {}).get("score_thresholds", {})
        shared = {name: level for name, level in thresholds.items() if name in judged_labels(table)}
        found = gaps.gaps(table, attributes, shared, options.resamples, options.seed)
        small += gaps.left_out(table, attributes, shared)
        facts[subject] = [gap._asdict() for gap in found]
        said = gaps.widest(found)
        texts += [f"{subject}: {said}"] if said else []
        for gap in found:
            sides = [gap.sensitivity, gap.specificity, page.Gain(gap.fnr_gap), page.Gain(gap.fpr_gap)]
            rows.append([gap.attribute, gap.value, gap.label, subject, gap.n, *sides])
    notes: list[page.Part] = []
    if small := list(dict.fromkeys(small)):
        why = f"fewer than {subgroups.FEWEST_PATIENTS} patients with or without the label"
        notes = [page.Notes([f"left out of the errors by group, with {why}: {listed(small, LISTED)}"])]
    if not rows:
        return Section(notes, facts)
    columns = ["attribute", "group", "label", "subject", "pictures", "sensitivity", "specificity"]
    text = (
        "At the threshold of each label with the best balanced accuracy on validation patients, one for all groups. A "
        f"gap is the group minus all others: above 0 its errors are more frequent. {' '.join(texts)} {judged.remark}"
    )
    table = page.Table("Errors by group", [*columns, "missed, gap", "false alarms, gap"], rows, text)
    return Section([table, *notes], facts)
