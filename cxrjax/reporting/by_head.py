"""The section of a results page on one encoder under several heads, such as a linear probe, k-NN and attention.

The main tables hold the head fixed and compare encoders. Here the encoder is fixed: how much of what it knows does each
head find? All heads of an encoder are judged on the same pictures and the same resamples of patients.
"""

from collections.abc import Sequence
from typing import Any

import pandas

from cxrjax.reporting import collect, compare, page, significance
from cxrjax.reporting.sections import Options, Section

SHOWN = ("auroc", "auprc")
HEADS = ("probe", "attentive", "knn", "zeroshot", "classify")
"""The judges that answer for labels; the others are compared with the first of them that is there."""


def sections(questions: Sequence[collect.Question], options: Options) -> dict[str, Section]:
    """Heading -> section, for each set and task of labels that an encoder answers under two heads or more."""
    together: dict[str, list[collect.Question]] = {}
    for question in questions:
        if question.kind and question.entry["judge"] in HEADS:
            together.setdefault(collect.but_for_the_head(question.entry), []).append(question)
    found: dict[str, Section] = {}
    for several in together.values():
        several.sort(key=lambda question: HEADS.index(question.entry["judge"]))
        encoders = _encoders(several)
        if encoders:
            heading = " · ".join([*several[0].name.split(" · ")[:2], "heads"])
            number = sum(name == heading or name.startswith(f"{heading} ") for name in found)
            name = f"{heading} {number + 1}" if number else heading
            found[name] = _section(name, several[0].kind, encoders, options)
    return found


def _encoders(questions: Sequence[collect.Question]) -> dict[str, dict[str, list[pandas.DataFrame]]]:
    """Subject -> head -> a table of predictions per run, at the largest share of the labels that its heads have."""
    shares: dict[str, dict[int, set[float]]] = {}
    for number, question in enumerate(questions):
        for run in question.runs:
            if not collect.is_reference(run.results):
                shares.setdefault(run.subject, {}).setdefault(number, set()).add(run.fraction)
    found = {}
    for subject, of_heads in shares.items():
        common = set.intersection(*of_heads.values())
        if len(of_heads) > 1 and common:
            found[subject] = {
                " · ".join(questions[number].name.split(" · ")[2:]): questions[number].tables(max(common))[subject]
                for number in of_heads
            }
    return found


def _section(name: str, kind: str, encoders: dict[str, dict[str, list[pandas.DataFrame]]], options: Options) -> Section:
    facts: dict[str, Any] = {}
    notes: list[str] = []
    for subject, heads in encoders.items():
        try:
            facts[subject] = compare.compare(kind, heads, "", options.resamples, options.seed)
        except ValueError as error:
            notes.append(f"{subject}: its heads cannot be compared: {error}")
    pairs = [(subject, head) for subject, one in facts.items() for head in one.p]
    corrected = significance.holm([facts[subject].p[head][SHOWN[0]] for subject, head in pairs]).tolist()
    p = dict(zip(pairs, corrected, strict=True))
    rows = []
    for subject, one in facts.items():
        for head, row in one.metrics.items():
            gains = one.differences.get(head, {})
            cells = [cell for metric in SHOWN for cell in (row[metric], gains and page.Gain(gains[metric]))]
            rows.append(
                [subject, head, len(encoders[subject][head]), *(cell or None for cell in cells), p.get((subject, head))]
            )
    columns = ["subject", "head", "runs", *(text for metric in SHOWN for text in (metric, f"{metric}, difference"))]
    text = "One encoder, and what each head finds in it. Differences are to its first row."
    parts: list[page.Part] = [page.Heading(name, 2, name)]
    parts += [page.Notes(notes)] if notes else []
    parts += [page.Table("Heads on one encoder", [*columns, f"{SHOWN[0]}, p (Holm)"], rows, text)] if rows else []
    return Section(parts, {"comparison": {subject: one._replace(drawn={})._asdict() for subject, one in facts.items()}})
