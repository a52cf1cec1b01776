"""Random access into converted sets: select records of a split, read one by number."""

import itertools
import logging
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cxrjax.datasets import schema
from cxrjax.input import records
from cxrjax.input.converted_sets import JOINED, ConvertedSet, check_split, open_records, sizes
from cxrjax.input.record_index import index, labels_of_boxes


def select(
    converted_set: ConvertedSet,
    split: str,
    *,
    projections: Collection[str] | None = None,
    boxes: Collection[str] | None = None,
    or_labelled: str = "",
    image_ids: Collection[str] | None = None,
    exclude_image_ids: Collection[str] = (),
    exclude_patient_ids: Collection[str] = (),
    fraction: float = 1.0,
    fraction_seed: int = 0,
    folds: int = 0,
    fold: int = 0,
) -> "Source":
    """Selects records of a split; the filters apply in the order of the arguments, but for the folds, which come first.

    projections: those to keep, of UNKNOWN, PA, AP, LATERAL.
    boxes: keep only pictures with a box to judge by of one of these labels, of none given () of any. or_labelled: and
        those of which this label, such as "No Finding", is present. See `required`.
    image_ids: the only pictures to keep.
    fraction: share (0, 1] of the split's patients, as in the set's lists of fractions: a smaller share is contained in
        a larger one, and the choice depends on the set's name, the patient ids and fraction_seed only.
    folds, fold: where folds is not 0, the set's own splits are laid together and cut by patient into so many parts:
        "test" is part number `fold`, "val" the one after it, "train" the rest (see `schema.fold_of_patients`).
    Raises ValueError for an unknown split or projection, a fraction outside (0, 1], boxes of a set that has none, a
    label that it does not have, or a filter that leaves no picture.
    """
    unknown = sorted(set(projections or ()) - set(schema.PROJECTIONS))
    if isinstance(projections, str) or unknown:
        raise ValueError(f"projections must be a list of {', '.join(schema.PROJECTIONS)}, but it is {projections!r}.")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, but it is {fraction}.")
    place, part = f"split {split!r} of set {converted_set.name!r}", split
    if folds:
        place = f"{place} in fold {fold} of {folds}"
        split = JOINED.join(name for name, size in converted_set.split_sizes.items() if size)
    table = index(converted_set, split)
    kept = np.arange(len(table))
    if folds:
        kept = _part(converted_set.name, table["patient_id"], part, folds, fold)
    if len(kept) == 0:
        raise ValueError(f"There are no pictures in {place}; its splits have {sizes(converted_set)}.")

    def keep(mask: np.ndarray, filter_text: str) -> None:
        nonlocal kept
        if not mask.any():
            raise ValueError(
                f"No picture is left in {place}: the filter {filter_text} removes all of the {len(kept)} that reached "
                f"it (the split has {len(table)}). {_projections_present(table)}"
            )
        kept = kept[mask]

    if projections is not None:
        keep(table["view"].iloc[kept].isin(list(projections)).to_numpy(), f"projections={sorted(projections)}")
    if boxes is not None:
        found = labels_of_boxes(converted_set, split)
        there = np.array([any(not boxes or label in boxes for label in each) for each in found], bool)
        if or_labelled:
            there |= _present(converted_set, table, or_labelled)
        known = ", ".join(f"{name} {count}" for name, count in Counter(itertools.chain(*found)).most_common()) or "none"
        text = f"boxes of {', '.join(boxes) or 'any label'}" + (f" or {or_labelled!r}" if or_labelled else "")
        keep(there[kept], f"{text} (the split's boxes: {known})")
    if image_ids is not None:
        wanted = set(image_ids)
        absent = wanted.difference(table["image_id"])
        if absent:
            logging.warning("%d of %d image_ids are not in %s, e.g. %s", len(absent), len(wanted), place, min(absent))
        keep(table["image_id"].iloc[kept].isin(wanted).to_numpy(), f"image_ids ({len(wanted)} given)")
    for column, excluded in (("image_id", exclude_image_ids), ("patient_id", exclude_patient_ids)):
        if excluded:
            keep(~table[column].iloc[kept].isin(set(excluded)).to_numpy(), f"exclude_{column}s ({len(excluded)} given)")
    if fraction < 1:
        chosen = schema.share_of_patients(converted_set.name, table["patient_id"], fraction, fraction_seed)
        keep(table["patient_id"].iloc[kept].isin(chosen).to_numpy(), f"fraction={fraction}")
    return Source(converted_set, split, kept)


def required(words: str, labels: Collection[str] = ()) -> dict[str, Any]:
    """The arguments of `select` that keep what pictures are required to have, in the words of data.require.

    words: "", "boxes", or "boxes or <label>", such as "boxes or No Finding". labels: of boxes that count; () all.
    Readers draw boxes on some pictures only of those with a finding. One that has the finding and no box is no picture
    without it, as detection would take it for: it is left out, and what a set labels as normal can be kept.
    Raises ValueError for other words.
    """
    if not words:
        return {}
    match = re.fullmatch(r"boxes(?: or (.+))?", words.strip())
    if match is None:
        raise ValueError(
            f"a picture cannot be required to have {words!r}, but 'boxes' or 'boxes or <label>', such as 'boxes or No "
            "Finding'; with data.unit='study' a study can be required to have: frontal, lateral, report"
        )
    return {"boxes": tuple(labels), "or_labelled": (match[1] or "").strip()}


def _present(converted_set: ConvertedSet, table: pd.DataFrame, label: str) -> np.ndarray:
    """n bool."""
    known = converted_set.label_names
    if label not in known:
        raise ValueError(f"Set {converted_set.name!r} has no label {label!r}; its labels are {', '.join(known)}.")
    return np.stack(table["labels"].tolist())[:, known.index(label)] == schema.PRESENT


def _part(set_name: str, patient_ids: pd.Series, part: str, folds: int, fold: int) -> np.ndarray:
    if part not in schema.SPLITS or not 0 <= fold < folds:
        raise ValueError(
            f"split {part!r}, fold {fold} of {folds}: folds are counted from 0, and are cut into {schema.SPLITS}"
        )
    number = patient_ids.map(schema.fold_of_patients(set_name, patient_ids, folds)).to_numpy()
    of_val = (fold + 1) % folds
    mask = {"test": number == fold, "val": number == of_val, "train": (number != fold) & (number != of_val)}
    return np.flatnonzero(mask[part])


class Source:
    """Records of a split, or of several as "train+val", by number: `len(source)`, `source[i]` -> example. It can be
    pickled.

    An example maps the set's fields: text is str, view its name, labels int8 (c,), pictures encoded bytes (`image`,
    and `mask` where the set has one); and `set`, the set's name.
    """

    def __init__(self, converted_set: ConvertedSet, split: str, positions: Sequence[int]):
        """positions: record numbers within the split, in the order in which they are wanted."""
        check_split(converted_set, split)
        self.converted_set = converted_set
        self.split = split
        self.positions = np.asarray(positions, np.int64)
        self._stored, self._readers = open_records(converted_set, split)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, item: int) -> records.Example:
        return records.Example(self._stored[self.positions[item]], self._readers, self.converted_set.name)

    def __repr__(self) -> str:
        return f"Source({self.converted_set.name!r}, {self.split!r}, {len(self)} pictures)"

    @property
    def table(self) -> pd.DataFrame:
        """The rows of `index` of these records, in the same order: ids, view and labels without reading pictures."""
        return index(self.converted_set, self.split).iloc[self.positions].reset_index(drop=True)


def _projections_present(table: pd.DataFrame) -> str:
    counts = table["view"].value_counts()
    return f"Its projections: {', '.join(f'{name} {count}' for name, count in counts.items())}."
