"""PadChest-GR: sentences of PadChest's reports with the boxes that show them, as an add-on to `padchest`.

The layout is taken from the public description and from loaders, not seen in a file.
Source: Castro et al., NEJM AI 2025 and arXiv 2411.05085; bimcv.cipf.es/bimcv-projects/padchest-gr, BIMCV research
use agreement. 4,555 frontal pictures of adults; 7,037 positive sentences in Spanish and English.
Layout: grounded_reports_20240819.json, laid into the folder of PadChest: a list of studies with ImageID and findings,
each with sentence_en, sentence_es, labels and, in relative x0 y0 x1 y1, boxes and extra_boxes. master_table.csv has the
split (train, validation, test) by PatientID.
Ours: boxes are those to judge by, extra_boxes those of the reader "second"; the label of a box is that of its sentence,
several joined by "|". Where master_table.csv is there, its patients have its split; all others that of `padchest`.
"""

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from cxrjax.datasets import release
from cxrjax.datasets.manifest import Box, Problem
from cxrjax.datasets.table import LIST_SEPARATOR, column

_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_READERS = {"boxes": "", "extra_boxes": "second"}


def boxes(
    download: release.Release, known: Collection[str], language: str, problems: list[Problem], remarks: list[str]
) -> dict[str, tuple[Box, ...]] | None:
    """The boxes of every ImageID, with their sentences; None where the reports do not lie in the folder.

    known: the ImageIDs of PadChest's table. language: of the sentences, "en" or "es".
    Raises LayoutError for a file of another form.
    """
    path = download.find("grounded_reports_*.json")
    if path is None:
        return None
    made: dict[str, tuple[Box, ...]] = {}
    sentences = 0
    try:
        for study in json.loads(path.read_text(encoding="utf-8")):
            image_id = str(study["ImageID"])
            found = []
            for finding in study["findings"]:
                of_finding = _of_finding(finding, language, image_id, problems)
                sentences += any(not box.reader for box in of_finding)
                found += of_finding
            if found and image_id not in known:
                problems.append(
                    Problem(image_id, "box", f"{path.name} has boxes for it, but PadChest's table has not.")
                )
            elif found:
                made[image_id] = tuple(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise release.LayoutError(
            f"{path} is no list of studies with ImageID and findings ({type(error).__name__}: {error}). Give the file "
            "as it is in PadChest-GR, or take it away to convert PadChest without its boxes."
        ) from None
    remarks.append(f"PadChest-GR: {sentences} sentences with boxes on {len(made)} pictures.")
    return made


def _of_finding(finding: Mapping[str, Any], language: str, image_id: str, problems: list[Problem]) -> list[Box]:
    """The boxes of one sentence; negative ones have none."""
    phrase, label = str(finding[f"sentence_{language}"] or ""), LIST_SEPARATOR.join(finding.get("labels") or [])
    made = []
    for key, reader in _READERS.items():
        for corners in finding.get(key) or []:
            try:
                left, top, right, bottom = map(float, corners)
            except (TypeError, ValueError):
                left = top = right = bottom = math.nan
            if 0 <= left < right <= 1 and 0 <= top < bottom <= 1:
                made.append(Box(label, left, top, right - left, bottom - top, reader, phrase, (1, 1)))
            else:
                reason = f"A box of {phrase!r} is not four relative corners x0 y0 x1 y1 in rising order: {corners}."
                problems.append(Problem(image_id, "box", reason))
    return made


def splits(download: release.Release, problems: list[Problem], remarks: list[str]) -> dict[str, str]:
    """Patient -> split, of the patients whom master_table.csv names; {} where it is not there."""
    found = download.optional_table("master_table.csv")
    if found is None:
        remarks.append("PadChest-GR's master_table.csv is not here, so its patients are split as all others are.")
        return {}
    frame, path = found
    made: dict[str, str] = {}
    for patient, given in sorted(
        set(zip(*(column(frame, name, path) for name in ("PatientID", "split")), strict=True))
    ):
        split = _SPLITS.get(given.lower())
        if split is None or made.setdefault(patient, split) != split:
            odd = f"the split {given!r}" if split is None else f"two splits, {made[patient]} and {split}"
            problems.append(Problem(patient, "row", f"{path.name} gives this patient {odd}."))
    return made
