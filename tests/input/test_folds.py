"""Cross-validation by patient: every patient is tested on once, and is never on two sides of a fold."""

import os
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrjax import train
from cxrjax.datasets import manifest, schema
from cxrjax.evals import encoders, run
from cxrjax.input import converted_sets, source
from tests import radiographs, runs

IDS = st.lists(st.text(min_size=1, max_size=4), min_size=3, max_size=60, unique=True)


@settings(max_examples=100, deadline=None)
@given(IDS, st.integers(3, 8), st.randoms())
def test_folds_are_even_and_depend_on_names_alone(patients, folds, random):
    folds = min(folds, len(patients))
    found = schema.fold_of_patients("montgomery/256", patients * 2, folds)
    sizes = np.bincount(list(found.values()), minlength=folds)
    assert set(found) == set(patients) and sizes.max() - sizes.min() <= 1
    random.shuffle(patients)
    assert schema.fold_of_patients("montgomery/512", patients, folds) == found


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(schema.SPLITS)), min_size=1, max_size=12))
def test_no_set_is_written_with_a_patient_in_two_splits(pictures):
    """Every set's reader makes a manifest, and every manifest is checked before a record is written."""
    rows = [
        manifest.Row(Path(f"{i}.png"), f"{i}", patient, f"{i}", split, view="PA", labels=(1,))
        for i, (patient, split) in enumerate(pictures)
    ]
    given_set = manifest.Manifest("clinic", ("Finding",), tuple(rows), "Made for a test.")
    if len({patient for patient, _ in pictures}) == len(set(pictures)):
        manifest.check(given_set)
    else:
        with pytest.raises(ValueError, match="in more than one split of set 'clinic'"):
            manifest.check(given_set)


FOLDER = os.environ.get("CXRJAX_REAL_DATA")


@pytest.mark.skipif(not FOLDER, reason="CXRJAX_REAL_DATA names no folder of real sets")
def test_no_patient_of_the_real_sets_is_in_two_splits_or_folds():
    found = 0
    for path in sorted(Path(FOLDER).glob("*/labels.csv")):
        table = pandas.read_csv(path, dtype=str)
        schema.assert_patients_disjoint({split: part["patient_id"] for split, part in table.groupby("split")}, path)
        fold = table["patient_id"].map(schema.fold_of_patients(path.parent.name, table["patient_id"], 5))
        schema.assert_patients_disjoint({f"{n}": part["patient_id"] for n, part in table.groupby(fold)})
        found += 1
    assert found


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Fourteen patients with two pictures each, over the set's own three splits."""
    rows = []
    for n in range(14):
        split = ("train", "train", "train", "val", "test")[n % 5]
        rows += [(f"{n}{side}", f"patient {n}", split, radiographs.radiograph(2 * n + side)) for side in (0, 1)]
    return radiographs.write(tmp_path_factory.mktemp("data"), "clinic", rows, short_side=32)


@pytest.mark.parametrize("folds", [3, 5])
def test_no_patient_is_in_two_parts_and_each_is_tested_on_once(converted, folds):
    tested = []
    for fold in range(folds):
        parts = {split: source.select(converted, split, folds=folds, fold=fold).table for split in schema.SPLITS}
        schema.assert_patients_disjoint({split: table["patient_id"] for split, table in parts.items()})
        assert sum(len(table) for table in parts.values()) == 28
        assert set(parts["train"]["patient_id"].value_counts()) == {2}
        tested += list(parts["test"]["image_id"])
    assert sorted(tested) == sorted(f"{n}{side}" for n in range(14) for side in (0, 1))


def test_a_fraction_is_of_the_folds_training_patients(converted):
    whole = source.select(converted, "train", folds=5, fold=2)
    part = source.select(converted, "train", folds=5, fold=2, fraction=0.5)
    assert set(part.table["patient_id"]) < set(whole.table["patient_id"])
    for i in (0, len(part) - 1):
        assert part[i]["image_id"] == part.table["image_id"][i]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 2}, r"folds = 2: choose 3 … 14, the number of patients"),
        ({"folds": 15}, r"folds = 15: choose 3 … 14"),
        ({"folds": 5, "fold": 5}, "fold 5 of 5: folds are counted from 0"),
    ],
)
def test_mistakes_are_explained(converted, options, message):
    with pytest.raises(ValueError, match=message):
        source.select(converted, "train", **options)


def test_training_and_judging_share_their_folds(converted, tmp_path, monkeypatch):
    """What is trained on with one fold and judged with another would be judged on patients it has seen."""
    place = str(converted.directory)
    config = runs.config("supervised", labels="Finding", data__sets=place, data__projections="")
    config.data.folds, config.data.fold = 5, 1
    config.evals = {"again": {"judge": "knn", "set": place, "task": {"kind": "multilabel"}, "folds": 5, "fold": 2}}
    with pytest.raises(ValueError, match="evals.again judges with .*'fold': 2.* what is trained on with .*'fold': 1"):
        train.build(config)
    config.evals.again.fold = 1
    (trained_on,) = train.build(config).sources
    left_out = source.select(converted, "test", folds=5, fold=1)
    assert not set(trained_on.table["patient_id"]) & set(left_out.table["patient_id"])
    config.data.sets = f"{place},phantom"
    with pytest.raises(ValueError, match="cuts one set by patient; data.sets names 2"):
        train.build(config)


def test_judges_take_the_fold(phantom_dir, tmp_path):
    entry = {"set": "phantom", "data_dir": str(phantom_dir), "task": {"kind": "multilabel"}, "judge": "knn"}
    entry |= {"neighbours": (3,), "bootstrap": 5, "folds": 4}
    converted = converted_sets.open_set("phantom", phantom_dir)
    for fold in (0, 3):
        found = run.evaluate(encoders.pixels(8), {**entry, "fold": fold}, tmp_path / f"{fold}").predictions
        expected = source.select(converted, "test", folds=4, fold=fold).table["image_id"]
        assert set(found["image_id"]) <= set(expected) and len(found) > 0.5 * len(expected)
