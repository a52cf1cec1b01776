"""The section of a results page on heads that were fitted on one part and tested on others: a matrix per measure."""

from collections.abc import Mapping

from cxrjax.evals.base import Interval
from cxrjax.reporting import page
from cxrjax.reporting.sections import Judged, Section

TABLES = {
    "AUROC from one part to another": ("auroc_across", "auroc_own", "A part's own head stands on the diagonal."),
    "Drops": ("drop", "", "AUROC of the part's own head minus that of another part's, on the same resampled patients."),
    "Sensitivity at thresholds from home": ("sensitivity", "sensitivity", "Thresholds of the head's own validation."),
    "Specificity at thresholds from home": ("specificity", "specificity", "Thresholds of the head's own validation."),
    "What thresholds lose in sensitivity": ("sensitivity_gap", "", "At home minus on the part; above 0 it is lower."),
    "What thresholds lose in specificity": ("specificity_gap", "", "At home minus on the part; above 0 it is lower."),
}
"""Title -> metric off the diagonal, metric on it ("" for none), explanation."""


def matrices(judged: Judged) -> Section:
    """A table per measure: a row per subject and head, a column per part that it was tested on."""
    metrics = judged.comparison.metrics
    parts = [name.partition("/")[2] for name in next(iter(metrics.values())) if name.startswith("auroc_own/")]
    tables: list[page.Part] = []
    for title, (across, own, text) in TABLES.items():
        rows = [
            [subject, head, *(_cell(row, across, own, head, part) for part in parts)]
            for subject, row in metrics.items()
            for head in parts
        ]
        tables.append(page.Table(title, ["subject", "head of", *(f"on {part}" for part in parts)], rows, text))
    return Section(tables, {})


def _cell(row: Mapping[str, Interval], across: str, own: str, head: str, part: str) -> page.Cell:
    if head != part:
        found = row.get(f"{across}/{head} on {part}")
        return found if own else found and page.Gain(found)
    return row.get(f"{own}/{head}", row.get(f"{own}/{head} on {part}"))
