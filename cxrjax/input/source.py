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
    """Selects records of a split. The folds come first; then the filters apply in the order of the arguments.

    projections: those to keep, of UNKNOWN, PA, AP, LATERAL.
    boxes: keeps the pictures with a box to judge by of one of these labels, or of any label if none is given: ().
    or_labelled: a label, such as "No Finding"; keeps the pictures that have it as well, with or without boxes.
    image_ids: the only pictures to keep.
    exclude_image_ids, exclude_patient_ids: pictures, and patients with all of their pictures, to leave out.
    fraction: share (0, 1] of the split's patients, as in the set's lists of fractions. A smaller share is contained in
        a larger one. The choice depends on the set's name, the patient ids and fraction_seed only.
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
    records = _Records(converted_set, split, folds, fold)
    if projections is not None:
        records.keep("view", set(projections), f"projections={sorted(projections)}")
    if boxes is not None:
        _keep_boxes(records, boxes, or_labelled)
    if image_ids is not None:
        _keep_image_ids(records, set(image_ids))
    if exclude_image_ids:
        records.leave_out("image_id", set(exclude_image_ids), "exclude_image_ids")
    if exclude_patient_ids:
        records.leave_out("patient_id", set(exclude_patient_ids), "exclude_patient_ids")
    if fraction < 1:
        patients = records.table["patient_id"].tolist()
        chosen = schema.share_of_patients(converted_set.name, patients, fraction, fraction_seed)
        records.keep("patient_id", chosen, f"fraction={fraction}")
    return Source(converted_set, records.split, records.kept)


class _Records:
    """The records of a split that are left after each filter.

    split: the split, or the splits laid together that folds are cut from. place: the same for a message. table: the
    index of all its records. kept: numbers of those that are left, in record order.
    """

    def __init__(self, converted_set: ConvertedSet, part: str, folds: int, fold: int):
        self.converted_set, self.split = converted_set, part
        self.place = f"split {part!r} of set {converted_set.name!r}"
        if folds:
            self.place += f" in fold {fold} of {folds}"
            self.split = JOINED.join(name for name, size in converted_set.split_sizes.items() if size)
        self.table = index(converted_set, self.split)
        self.kept = np.arange(len(self.table))
        if folds:
            self.kept = _part_of_folds(converted_set.name, self.table["patient_id"].tolist(), part, folds, fold)
        if len(self.kept) == 0:
            raise ValueError(f"There are no pictures in {self.place}; its splits have {sizes(converted_set)}.")

    def keep(self, column: str, values: Collection[str], said: str) -> None:
        """Keeps the records with one of these values in a column of the table."""
        self.keep_where(self.table[column].isin(list(values)).to_numpy(), said)

    def leave_out(self, column: str, values: Collection[str], said: str) -> None:
        """Leaves out the records with one of these values in a column of the table."""
        self.keep_where(~self.table[column].isin(list(values)).to_numpy(), f"{said} ({len(values)} given)")

    def keep_where(self, mask: np.ndarray, said: str) -> None:
        """mask: bool, for every record of the split. said: the filter, for the ValueError if no record is left."""
        left = self.kept[mask[self.kept]]
        if len(left) == 0:
            counts = ", ".join(f"{name} {count}" for name, count in self.table["view"].value_counts().items())
            raise ValueError(
                f"No picture is left in {self.place}: the filter {said} removes all of the {len(self.kept)} that "
                f"reached it (the split has {len(self.table)}). Its projections: {counts}."
            )
        self.kept = left


def _keep_boxes(records: _Records, labels: Collection[str], or_labelled: str) -> None:
    found = labels_of_boxes(records.converted_set, records.split)
    wanted = np.array([any(not labels or label in labels for label in each) for each in found], bool)
    if or_labelled:
        wanted |= _present(records.converted_set, records.table, or_labelled)
    known = ", ".join(f"{name} {count}" for name, count in Counter(itertools.chain(*found)).most_common()) or "none"
    said = f"boxes of {', '.join(labels) or 'any label'}" + (f" or {or_labelled!r}" if or_labelled else "")
    records.keep_where(wanted, f"{said} (the split's boxes: {known})")


def _keep_image_ids(records: _Records, wanted: set[str]) -> None:
    absent = wanted.difference(records.table["image_id"])
    if absent:
        counts = (len(absent), len(wanted), records.place, min(absent))
        logging.warning("%d of %d image_ids are not in %s, e.g. %s", *counts)
    records.keep("image_id", wanted, f"image_ids ({len(wanted)} given)")


def required(words: str, labels: Collection[str] = ()) -> dict[str, Any]:
    """The arguments of `select` that keep what pictures are required to have, in the words of data.require.

    words: "", "boxes", or "boxes or <label>", such as "boxes or No Finding".
    labels: of the boxes that count; () for all.
    In some sets readers drew boxes on only a part of the pictures with a finding. Detection takes a picture without a
    box for one without the finding, which is wrong for the other pictures. So pictures without a box are left out.
    Those that the set itself labels as normal can be kept.
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
    """Whether each of the n records has the label: n bool."""
    known = converted_set.label_names
    if label not in known:
        raise ValueError(f"Set {converted_set.name!r} has no label {label!r}; its labels are {', '.join(known)}.")
    return np.stack(table["labels"].tolist())[:, known.index(label)] == schema.PRESENT


def _part_of_folds(set_name: str, patient_ids: Sequence[str], part: str, folds: int, fold: int) -> np.ndarray:
    """The numbers of the records of a part. patient_ids: of every record."""
    if part not in schema.SPLITS or not 0 <= fold < folds:
        raise ValueError(
            f"split {part!r}, fold {fold} of {folds}: folds are counted from 0, and are cut into {schema.SPLITS}"
        )
    fold_of = schema.fold_of_patients(set_name, patient_ids, folds)
    number = np.array([fold_of[patient] for patient in patient_ids])
    of_val = (fold + 1) % folds
    mask = {"test": number == fold, "val": number == of_val, "train": (number != fold) & (number != of_val)}
    return np.flatnonzero(mask[part])


class Source:
    """Records of a split, or of several as "train+val", by number: `len(source)`, `source[i]` -> example.

    An example maps the set's fields to their values. Text is str, the projection (`view`) its name, labels int8 (c,),
    pictures (`image`, and `mask` where the set has one) encoded bytes. `set` is the set's name. A source can be
    pickled.
    """

    def __init__(self, converted_set: ConvertedSet, split: str, positions: Sequence[int] | np.ndarray):
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
        """The rows of `index` for these records, in the same order, read without their pictures."""
        return index(self.converted_set, self.split).iloc[self.positions].reset_index(drop=True)
