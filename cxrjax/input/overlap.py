"""Pictures and patients that sets share, so that nothing that a run is judged by is among what it learns from.

Two pictures are the same by id, where `same_picture` says so, directly or through other sets that are compared, or by
look, where their fingerprints are close. Two patients are the same where a picture or `same_patient` says so.
"""

import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cxrjax.datasets import writer
from cxrjax.imaging.fingerprint import fingerprint, pairs
from cxrjax.input import converted_sets, crops, record_index
from cxrjax.input.converted_sets import ConvertedSet
from cxrjax.input.source import Source

KNOWN = (
    {"chestxray14", "chestxray14_subset", "nih_google", "rsna_pneumonia", "siim_acr", "covidx"},
    {"covidx", "covid_chestxray", "hannover_covid"},
    {"tbx11k", "montgomery", "shenzhen", "tb_lung_masks"},
    {"pneumoniamnist", "pediatric_pneumonia"},
    {"iu_xray", "iu_reports"},
)
"""Public sets of which one holds pictures of another, or both of a third."""

HELD_OUT = ("val", "test")
LISTED = 20


class Overlap(NamedTuple):
    """What two tables a and b share, by row numbers.

    by_id: (row of a, row of b). by_fingerprint: (row of a, row of b, distance in bits), without those by id.
    persons_a, persons_b: a name per row, the same wherever it is the same patient.
    """

    by_id: list[tuple[int, int]]
    by_fingerprint: list[tuple[int, int, int]]
    persons_a: np.ndarray
    persons_b: np.ndarray


class Exclusions(NamedTuple):
    """What to leave out of training: patient ids for every source, and what to tell the user."""

    patient_ids: tuple[frozenset[str], ...]
    sentences: tuple[str, ...]


def base(name: str) -> str:
    """The set without its size: "chestxray14/512" is the chestxray14 of every other size."""
    return name.split("/")[0]


def known(a: str, b: str) -> bool:
    """Whether the sets of these names share pictures as published."""
    return any({base(a), base(b)} <= group for group in KNOWN)


def rows(converted_set: ConvertedSet) -> pd.DataFrame:
    """One row per picture of all splits: split, image_id, patient_id, fingerprint ("" in older sets), and the tuples
    `pictures` and `patients` of its "set:id" keys, its own first."""
    parts = [record_index.index(converted_set, split).assign(split=split) for split in _filled(converted_set)]
    table = pd.concat(parts, ignore_index=True)
    own = base(converted_set.name)
    for column, ids, elsewhere in (
        ("pictures", table["image_id"], table.get("same_picture")),
        ("patients", table["patient_id"], table.get("same_patient")),
    ):
        others = elsewhere if elsewhere is not None else [""] * len(table)
        table[column] = [(f"{own}:{one}", *_keys(more)) for one, more in zip(ids, others, strict=True)]
    if "fingerprint" not in table:
        table["fingerprint"] = ""
    return table.reindex(columns=["split", "image_id", "patient_id", "fingerprint", "pictures", "patients"])


def overlap(
    a: pd.DataFrame, b: pd.DataFrame, others: Sequence[pd.DataFrame] = (), fingerprints: bool = True
) -> Overlap:
    """Finds the pictures and patients of `a` in `b`, tables of `rows`.

    others: more rows, whose keys may join a picture of a to one of b. fingerprints: whether they count.
    """
    tables = (a, b, *others)
    picture = _joined(itertools.chain.from_iterable(table["pictures"] for table in tables))
    places = defaultdict(list)
    for j, keys in enumerate(b["pictures"]):
        places[picture(keys[0])].append(j)
    by_id = [(i, j) for i, keys in enumerate(a["pictures"]) for j in places.get(picture(keys[0]), ())]
    by_fingerprint = []
    if fingerprints:
        found = set(by_id)
        near = pairs(a["fingerprint"].tolist(), b["fingerprint"].tolist())
        by_fingerprint = [pair for pair in near if pair[:2] not in found]
    # Pictures and patients have keys of the same form, so a blank tells them apart.
    same = [(a["pictures"].iloc[i][0], b["pictures"].iloc[j][0]) for i, j, _ in by_fingerprint]
    people = (
        (*pictures, *(f" {key}" for key in patients))
        for table in tables
        for pictures, patients in zip(table["pictures"], table["patients"], strict=True)
    )
    person = _joined(itertools.chain(people, same))
    keys = (np.array([person(keys[0]) for keys in one["pictures"]], str) for one in (a, b))
    return Overlap(by_id, by_fingerprint, *keys)


def exclusions(
    sources: Sequence[Source], judged: Sequence[str], data_dir: str | os.PathLike | None = None
) -> Exclusions:
    """Patients to leave out of the sources, because val or test of a judged set has pictures of them.

    judged: names of converted sets. A set that is judged on its own splits needs nothing left out, and costs nothing.
    Raises SetNotFound for a judged set that is not converted, ValueError where nothing is left to train on.
    """
    judged_sets = [converted_sets.open_set(name, data_dir) for name in judged]
    training_sets = [chosen.converted_set for chosen in sources]
    everything = {one.directory: one for one in (*training_sets, *judged_sets)}
    if len(everything) == 1:
        return Exclusions((frozenset(),) * len(sources), ())
    tables = {directory: rows(one) for directory, one in everything.items()}
    patient_ids, sentences = [], []
    for chosen, training_set in zip(sources, training_sets, strict=True):
        excluded: set[str] = set()
        for judged_set in judged_sets:
            if judged_set.directory == training_set.directory:
                continue
            shared = _held_out(training_set, chosen.split, judged_set, tables)
            excluded |= set(shared["patient_id"][shared["excluded"]])
            used = shared.iloc[chosen.positions]
            if any(used["excluded"]):
                sentences.append(
                    f"{training_set.name}: left out of training, since they are in val or test of {judged_set.name}: "
                    f"{_told(used)}"
                )
        if set(chosen.table["patient_id"]) <= excluded:
            raise ValueError(
                f"Nothing of {training_set.name} is left to train on: all {len(chosen)} pictures are of patients in "
                f"val or test of what is judged, {' or '.join(one.name for one in judged_sets)}. Judge on other sets "
                "(config.evals, config.data.judged_on), leave this one out of config.data.sets, or train on it all the "
                "same with --config.data.exclude_overlap=False."
            )
        patient_ids.append(frozenset(excluded))
    return Exclusions(tuple(patient_ids), tuple(sentences))


def notes(trained_on: Sequence[str], split: str, judged: ConvertedSet) -> list[str]:
    """Sentences on what val and test of a set share with the split of the sets in trained_on.

    They hold where nothing was left out of the training. Of a set that is not converted here, only what is published is
    known.
    """
    said = []
    here = converted_sets.converted()
    for name in trained_on:
        if not Path(name).is_dir() and not any(f"{one}/".startswith(f"{name}/") for one in here):
            if known(name, judged.name):
                said.append(
                    f"The encoder was trained on {name}, which is known to share pictures with {judged.name} but is "
                    "not converted here: how many is not known, and these numbers may be too good."
                )
            continue
        trained = converted_sets.open_set(name)
        if trained.directory == judged.directory:
            if own := [part for part in HELD_OUT if part in split.split(converted_sets.JOINED)]:
                said.append(
                    f"The encoder was trained on {' and '.join(own)} of {judged.name} itself: these numbers may be too "
                    "good."
                )
            continue
        tables = {one.directory: rows(one) for one in (trained, judged)}
        shared = _held_out(trained, split, judged, tables)
        if any(shared["excluded"]):
            said.append(
                f"The encoder was trained on {trained.name} with what is in val or test of {judged.name}, "
                f"{_told(shared)}: these numbers may be too good."
            )
    return said


def audit(name_a: str, name_b: str, data_dir: str | os.PathLike | None = None) -> str:
    """What two converted sets share, split by split, and the first pairs; of one set, what it holds twice."""
    a, b = (converted_sets.open_set(name, data_dir) for name in (name_a, name_b))
    if a.directory == b.directory:
        return _audit_one(a)
    fingerprints = base(a.name) != base(b.name)
    table_a, table_b = (_part(one, rows(one), _filled(one), fingerprints) for one in (a, b))
    found = overlap(table_a, table_b, fingerprints=fingerprints)
    splits_a, splits_b = table_a["split"].tolist(), table_b["split"].tolist()
    by_id = Counter((splits_a[i], splits_b[j]) for i, j in found.by_id)
    by_fingerprint = Counter((splits_a[i], splits_b[j]) for i, j, _ in found.by_fingerprint)
    people_a, people_b = (
        {split: set(persons[(table["split"] == split).to_numpy()]) for split in _filled(one)}
        for one, table, persons in ((a, table_a, found.persons_a), (b, table_b, found.persons_b))
    )
    lines = [
        f"{a.name} ({len(table_a):,} pictures) and {b.name} ({len(table_b):,}): pairs of the same picture, and "
        "patients of both",
        f"  {'':>15}  {'by id':>9}  {'by fingerprint':>9}  {'patients':>9}",
    ]
    for pair in itertools.product(_filled(a), _filled(b)):
        patients = len(people_a[pair[0]] & people_b[pair[1]])
        lines.append(f"  {' - '.join(pair):>15}  {by_id[pair]:>9,}  {by_fingerprint[pair]:>9,}  {patients:>9,}")
    if known(a.name, b.name) and not found.by_id and not found.by_fingerprint:
        lines.append("These sets are known to share pictures, but none was found.")
    matches = [(i, j, "by id") for i, j in found.by_id[:LISTED]]
    matches += [(i, j, f"by fingerprint, distance {bits}") for i, j, bits in _nearest(found.by_fingerprint)]
    lines += [
        f"  {table_a['image_id'][i]} ({splits_a[i]}) = {table_b['image_id'][j]} ({splits_b[j]}), {how}"
        for i, j, how in matches
    ]
    return "\n".join(lines)


def fingerprints(converted_set: ConvertedSet, split: str) -> list[str]:
    """The fingerprint of every picture of the split, in record order.

    They are part of the set since fingerprints are made at conversion; of older sets they are made from the stored
    pictures, and kept beside the set where that folder can be written. Raises ValueError for a damaged picture.
    """
    table = record_index.index(converted_set, split)
    if "fingerprint" in table and all(table["fingerprint"]):
        return table["fingerprint"].tolist()
    path = converted_set.directory / f"fingerprints-{split}.parquet"
    kept = record_index.read_cache(path)
    if (
        kept is not None
        and {"image_id", "fingerprint"} <= {*kept}
        and kept["image_id"].tolist() == table["image_id"].tolist()
    ):
        return kept["fingerprint"].tolist()
    stored = Source(converted_set, split, range(len(table)))
    with (
        writer.progress_bar(len(stored), f"{converted_set.name}: fingerprints of {split}", "picture", True) as bar,
        ThreadPoolExecutor(writer.cores()) as pool,
    ):
        found = []
        for look in pool.map(lambda number: _fingerprint(stored, number), range(len(stored))):
            found.append(look)
            bar.update()
    kept = pd.DataFrame({"image_id": table["image_id"], "fingerprint": found})
    record_index.write_cache(path, kept)
    return found


def _audit_one(converted_set: ConvertedSet) -> str:
    """What a set holds twice. Under one patient that is common; under two it is likely the same person or picture."""
    table = _part(converted_set, rows(converted_set), _filled(converted_set), with_fingerprints=True)
    looks = table["fingerprint"].tolist()
    twice = [pair for pair in pairs(looks, looks) if pair[0] < pair[1]]
    patients, splits = table["patient_id"].tolist(), table["split"].tolist()
    strange = [pair for pair in twice if patients[pair[0]] != patients[pair[1]]]
    across = sum(splits[i] != splits[j] for i, j, _ in strange)
    lines = [
        f"{converted_set.name} ({len(table):,} pictures): {len(twice):,} pairs look the same, {len(strange):,} of them "
        f"under two patients, {across:,} of these in two splits"
    ]
    for i, j, bits in _nearest(strange):
        one, other = (f"{table['image_id'][k]} (patient {patients[k]}, {splits[k]})" for k in (i, j))
        lines.append(f"  {one} = {other}, distance {bits}")
    return "\n".join(lines)


def _held_out(
    trained: ConvertedSet, split: str, judged: ConvertedSet, tables: Mapping[Path, pd.DataFrame]
) -> pd.DataFrame:
    """The rows of a split, in record order, with bool columns.

    by_id, by_fingerprint: val or test of another set has the picture; excluded: it has the patient. tables: of all sets
    whose keys count.
    """
    fingerprints = base(trained.name) != base(judged.name)
    part = _part(trained, tables[trained.directory], [split], fingerprints)
    held_out = _part(judged, tables[judged.directory], HELD_OUT, fingerprints)
    found = overlap(part, held_out, list(tables.values()), fingerprints)
    part["by_id"] = part.index.isin([i for i, _ in found.by_id])
    part["by_fingerprint"] = part.index.isin([i for i, _, _ in found.by_fingerprint]) & ~part["by_id"]
    part["excluded"] = np.isin(found.persons_a, np.unique(found.persons_b))
    return part


def _told(shared: pd.DataFrame) -> str:
    """ "1,204 pictures of 873 patients (1,150 by id, 14 by fingerprint, 40 others of these patients)" """
    excluded = shared.loc[shared["excluded"].to_numpy()]
    by_id, by_fingerprint = (sum(excluded[how].tolist()) for how in ("by_id", "by_fingerprint"))
    return (
        f"{len(excluded):,} pictures of {len(set(excluded['patient_id'])):,} patients ({by_id:,} by id, "
        f"{by_fingerprint:,} by fingerprint, {len(excluded) - by_id - by_fingerprint:,} others of these patients)"
    )


def _part(
    converted_set: ConvertedSet, table: pd.DataFrame, splits: Sequence[str], with_fingerprints: bool
) -> pd.DataFrame:
    """The rows of some splits, with fingerprints if they are to count."""
    part = table.loc[table["split"].isin(list(splits)).to_numpy()].reset_index(drop=True)
    if with_fingerprints and not all(part["fingerprint"]):
        there = dict.fromkeys(part["split"])
        part["fingerprint"] = [look for split in there for look in fingerprints(converted_set, split)]
    return part


def _fingerprint(stored: Source, number: int) -> str:
    example = stored[number]
    try:
        return fingerprint(crops.decode(example["image"]))
    except crops.Undecodable as error:
        raise ValueError(
            f"Picture {example['image_id']!r} of set {example['set']!r} cannot be decoded: {error} "
            "The converted set is damaged; convert it again."
        ) from error


def _filled(converted_set: ConvertedSet) -> list[str]:
    return [split for split, size in converted_set.split_sizes.items() if size]


def _keys(text: str) -> list[str]:
    """ "set:id set:an id with blanks" as keys; ids that the table leaves blank ("set:") are none."""
    return [key for key in re.split(r"\s+(?=[\w.-]+:)", text.strip()) if key and not key.endswith(":")]


def _joined(rows_of_keys: Iterable[Sequence[str]]) -> Callable[[str], str]:
    """A function that gives the same name for all keys that are in one row, or in rows that share keys."""
    above: dict[str, str] = {}

    def top(key: str) -> str:
        while (higher := above.setdefault(key, key)) != key:
            above[key] = key = above[higher]
        return key

    for first, *rest in rows_of_keys:
        for other in rest:
            above[top(other)] = top(first)
    return top


def _nearest(found: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    return sorted(found, key=lambda pair: pair[2])[:LISTED]
