"""The sections of a results page on groups of patients: how well each is judged, and where errors are more frequent."""

from cxrjax.evals.base import bounds
from cxrjax.evals.predictions import judged_labels, picture_values
from cxrjax.reporting import gaps, page, subgroups
from cxrjax.reporting.sections import Judged, Options, Section, set_of


def groups(judged: Judged, options: Options) -> Section:
    """Subgroups of every subject."""
    rows, facts, notes, metric, lowest = [], {}, [], "", []
    for subject, table in judged.first.items():
        try:
            known = subgroups.attributes(set_of(judged, options), table["image_id"].to_numpy(str), options.attributes)
        except ValueError as error:
            return Section([page.Notes([f"no subgroups: {error}"])], {})
        notes = known.notes
        if not (judged_labels(table) or picture_values(table)):
            return Section([], {})
        attributes = gaps.crossed(known.table)
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


def errors(judged: Judged, options: Options) -> Section:
    """Sensitivity and specificity of groups at thresholds that were fixed on validation patients."""
    rows, facts, texts = [], {}, []
    first = {run.subject: run for run in reversed(judged.question.runs)}
    for subject, table in judged.first.items():
        thresholds = first[subject].results.get("details", {}).get("score_thresholds", {})
        try:
            known = subgroups.attributes(set_of(judged, options), table["image_id"].to_numpy(str), options.attributes)
        except ValueError:
            return Section([], {})  # the section on groups says why
        shared = {name: level for name, level in thresholds.items() if name in judged_labels(table)}
        found = gaps.gaps(table, gaps.crossed(known.table), shared, options.resamples, options.seed)
        facts[subject] = [gap._asdict() for gap in found]
        said = gaps.widest(found)
        texts += [f"{subject}: {said}"] if said else []
        for gap in found:
            sides = [gap.sensitivity, gap.specificity, page.Gain(gap.fnr_gap), page.Gain(gap.fpr_gap)]
            rows.append([gap.attribute, gap.value, gap.label, subject, gap.n, *sides])
    if not rows:
        return Section([], facts)
    columns = ["attribute", "group", "label", "subject", "pictures", "sensitivity", "specificity"]
    text = (
        "At the threshold of each label with the best balanced accuracy on validation patients, one for all groups. A "
        f"gap is the group minus all others: above 0 its errors are more frequent. {' '.join(texts)} {judged.remark}"
    )
    table = page.Table("Errors by group", [*columns, "missed, gap", "false alarms, gap"], rows, text)
    return Section([table], facts)
