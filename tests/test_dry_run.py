"""Before a run is judged: how small a difference its test patients could show."""

import re

import numpy as np
from ml_collections import ConfigDict

from cxrjax import dry_run
from cxrjax.datasets import schema
from cxrjax.input import converted_sets
from cxrjax.input import source as sources
from cxrjax.reporting import significance


def test_the_smallest_difference_is_of_patients_and_not_of_pictures(phantom_dir):
    task = {"kind": "multilabel"}
    (line,) = dry_run._shown_by(ConfigDict({"set": "phantom", "data_dir": str(phantom_dir), "task": task}))
    test = sources.select(converted_sets.open_set("phantom", phantom_dir), "test")
    table, names = test.table, test.converted_set.label_names
    codes, patients = np.stack(table["labels"].tolist()), table["patient_id"].to_numpy(str)
    assert len(set(patients)) < len(patients)
    found = {}
    for name, values in zip(names, codes.T, strict=True):
        present = set(patients[values == schema.PRESENT])
        absent = set(patients) - present
        if present and absent:
            found[name] = (significance.smallest_difference(len(present), len(absent)), len(present))
    best, worst = (pick(found, key=lambda name: found[name][0]) for pick in (min, max))
    assert re.search(f"from {found[best][0]:.3f} of .* to {found[worst][0]:.3f} of ", line)
    assert f"({found[worst][1]} of {len(set(patients))} patients)" in line


def test_judges_without_a_task_have_no_labels_to_count():
    assert list(dry_run._shown_by(ConfigDict({"judge": "retrieve", "set": "phantom"}))) == []
