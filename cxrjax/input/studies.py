"""Converted sets by study: all pictures of an examination with its report, for methods that use two projections.

    whole = studies(source(open_set("mimic_cxr"), "train"), require_frontal=True, require_report=True)
    batches = pipeline.dataset([whole], None, views, batch_size, seed)

where `views(study, rng)` may take `pick(study["frontals"], rng)` and `pick(study["laterals"], rng)`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cxrjax.input.converted_sets import ConvertedSet
from cxrjax.input.records import Example
from cxrjax.input.source import Source

PARTS = ("frontals", "laterals", "others")
_RANK = {"PA": 0, "AP": 1, "LATERAL": 2, "UNKNOWN": 3}
_NO_REPORT = {"findings": "", "impression": "", "text": ""}


def _all(report: Mapping[str, str]) -> str:
    return "".join(report.values())


def studies(
    source: Source,
    *,
    require_frontal: bool = False,
    require_lateral: bool = False,
    require_report: bool = False,
    report_copies: int | None = None,
    read: Callable[[Mapping[str, str]], str] = _all,
) -> "Studies":
    """Puts the pictures of a source together by patient and study, in the order in which the studies appear.

    require_frontal, require_lateral: keep only the studies with a PA or AP, or with a lateral picture in the source.
    require_report: keep only those with a report; each study's first pictures are read once for it. read: report ->
        what a method reads of it, by default all of it; a report of which that is "" counts as none.
    report_copies: keep so many of the studies whose reports have the same words, the first in the order; case,
        punctuation and numbers do not tell reports apart. Studies without a report stay.
    What they leave out is counted in `left_out` of the result. Raises ValueError if no study is left.
    """
    table = source.table
    study = table.groupby(["patient_id", "study_id"], sort=False).ngroup().to_numpy()
    rank = np.array([_RANK[name] for name in table["view"]])
    items = np.lexsort((table["image_id"], rank, study))
    part = np.maximum(rank - 1, 0)
    counts = np.bincount(3 * study + part, minlength=3 * (study.max() + 1)).reshape(-1, 3)
    made = Studies(source, items, counts, {})
    if require_frontal:
        made = _kept(made, made.counts[:, 0] > 0, "without a frontal picture")
    if require_lateral:
        made = _kept(made, made.counts[:, 1] > 0, "without a lateral picture")
    if require_report or report_copies is not None:
        texts = [read(_report(made.pictures(item))) for item in range(len(made))]
        if require_report:
            made = _kept(made, np.array([bool(text) for text in texts]), "without a report")
            texts = [text for text in texts if text]
        if report_copies is not None:
            made = _kept(made, _first_copies(texts, report_copies), f"beyond {report_copies} of the same words")
    return made


def _first_copies(texts: Sequence[str], most: int) -> np.ndarray:
    """Which texts are among the first `most` of their words, or have none: bool."""
    seen: Counter[str] = Counter()
    wanted = []
    for text in texts:
        words = " ".join(re.findall(r"[^\W\d_]+", text.lower()))
        wanted.append(not words or seen[words] < most)
        seen[words] += 1
    return np.array(wanted)


class Studies:
    """Studies by number: `len(studies)`, `studies[i]` -> mapping. It can be pickled and stands in for a Source.

    A study maps frontals (PA before AP), laterals and others (unknown projection) to lists of examples as the source
    has them. It also has has_frontal and has_lateral; report: the findings, impression and text of its first picture
    that has any; study_id, patient_id, set and labels int8 (c,) of the first picture; image_id: the ids of all its
    pictures.
    """

    def __init__(self, source: Source, items: np.ndarray, counts: np.ndarray, left_out: Mapping[str, int]):
        """items: record numbers, study by study in the order of PARTS. counts: pictures per study and part, s 3.

        left_out: studies that were filtered out, by what they lack.
        """
        self.source, self.items, self.counts, self.left_out = source, items, counts, dict(left_out)
        self._ends = np.cumsum(counts.sum(1))

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, item: int) -> dict[str, Any]:
        pictures = list(self.pictures(item))
        frontals, laterals, _ = self.counts[item]
        return {
            **{name: pictures[0][name] for name in ("study_id", "patient_id", "set", "labels")},
            "image_id": ", ".join(picture["image_id"] for picture in pictures),
            "frontals": pictures[:frontals],
            "laterals": pictures[frontals : frontals + laterals],
            "others": pictures[frontals + laterals :],
            "has_frontal": bool(frontals),
            "has_lateral": bool(laterals),
            "report": _report(pictures),
        }

    def __repr__(self) -> str:
        parts = [f"{(count > 0).sum()} with {part}" for part, count in zip(PARTS, self.counts.T, strict=True)]
        left_out = "".join(f"; left out: {count} {lacking}" for lacking, count in self.left_out.items())
        place = f"{self.source.converted_set.name!r}, {self.source.split!r}"
        return f"Studies({place}, {len(self)} studies, {', '.join(parts)}{left_out})"

    def pictures(self, item: int) -> Iterable[Example]:
        """The pictures of a study, each read when it is its turn; raises IndexError for a number that is too large."""
        end = self._ends[item]
        return map(self.source.__getitem__, self.items[end - self.counts[item].sum() : end])

    @property
    def converted_set(self) -> ConvertedSet:
        return self.source.converted_set

    @property
    def split(self) -> str:
        return self.source.split

    @property
    def table(self) -> pd.DataFrame:
        """One row per study, in order, without reading pictures.

        Columns: image_id (of all its pictures), patient_id, study_id, labels, and how many frontals, laterals, others.
        """
        pictures = self.source.table.iloc[self.items]
        starts = self._ends - self.counts.sum(1)
        names = pictures["image_id"].tolist()
        rows = pictures[["patient_id", "study_id", "labels"]].iloc[starts].reset_index(drop=True)
        rows.insert(0, "image_id", [", ".join(names[a:b]) for a, b in zip(starts, self._ends, strict=True)])
        rows[list(PARTS)] = self.counts
        return rows


def pick(pictures: Sequence[Example], rng: np.random.Generator) -> Example | None:
    """One of a study's pictures, all equally likely; None where there is none."""
    return pictures[int(rng.integers(len(pictures)))] if pictures else None


def _kept(made: Studies, wanted: np.ndarray, lacking: str) -> Studies:
    if not wanted.any():
        raise ValueError(
            f"No study is left: all {len(made)} that reached this filter are {lacking}. They are {made!r}. "
            "Leave the filter out, or give a source that is not filtered by projection or picture."
        )
    items = made.items[np.repeat(wanted, made.counts.sum(1))]
    return Studies(made.source, items, made.counts[wanted], made.left_out | {lacking: int((~wanted).sum())})


def _report(pictures: Iterable[Example]) -> dict[str, str]:
    reports = (picture.get("report", _NO_REPORT) for picture in pictures)
    return next((report for report in reports if any(report.values())), dict(_NO_REPORT))
