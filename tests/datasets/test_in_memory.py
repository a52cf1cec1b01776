"""Pictures in memory become a converted set like any other."""

import numpy as np
import pytest

from cxrjax.datasets import in_memory
from cxrjax.input import converted_sets, crops, source


def test_pictures_labels_and_patients_are_read_back(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (30, 20, 24), dtype=np.uint8)
    patients = [number // 3 for number in range(30)]
    labels = {"Effusion": [number % 2 for number in range(30)], "Mass": [-2] * 30}
    folder = in_memory.make_set("mine", pictures, patients=patients, labels=labels, short_side=20, data_dir=tmp_path)
    found = converted_sets.open_set("mine", tmp_path)
    assert found.directory == folder and found.label_names == ("Effusion", "Mass")
    seen, patients_of = {}, {}
    for split in found.split_sizes:
        for record in source.select(found, split, projections=("PA",)):
            seen[int(record["image_id"])] = record
            patients_of.setdefault(record["patient_id"], set()).add(split)
    assert seen.keys() == set(range(30)) and all(len(splits) == 1 for splits in patients_of.values())
    for number, record in seen.items():
        np.testing.assert_array_equal(crops.decode(record["image"]), pictures[number])
        assert record["labels"].tolist() == [number % 2, -2] and record["patient_id"] == str(number // 3)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"patients": ["a"]}, "patients has 1 entries, and there are 4 pictures"),
        ({"labels": {"Mass": [1, 2, 0, 0]}}, r"labels are 1, 0, -1 .* but \[2\] was given"),
        ({"labels": {"Mass": [1]}}, r"labels\['Mass'\] has 1 entries"),
        ({"projection": "front"}, "projection is 'front'; it must be one of"),
        ({"images": np.zeros((4, 20, 20))}, "picture .: pixels are float64"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, named, said):
    given = {"images": np.full((4, 20, 20), 7, np.uint8)} | named
    with pytest.raises(ValueError, match=said):
        in_memory.make_set("mine", given.pop("images"), data_dir=tmp_path, **given)
