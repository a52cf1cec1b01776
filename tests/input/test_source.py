import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cxrjax.datasets import schema
from cxrjax.input import converted_sets, record_index, source
from tests import radiographs


@pytest.fixture
def rich(written):
    return converted_sets.open_set("rich", written.data_dir)


def test_examples_are_what_was_written(written, rich):
    read = source.select(rich, "train")
    assert len(read) == 26
    seen = set()
    for item in range(len(read)):
        example = read[item]
        expected = written.records["rich"]["train"][example["image_id"]]
        seen.add(example["image_id"])
        for name in ("image", "mask", "patient_id", "study_id", "view", "has_mask", "report"):
            assert example[name] == expected[name], name
        assert example["labels"].dtype == np.int8
        np.testing.assert_array_equal(example["labels"], expected["labels"])
        boxes = np.array([box["bbox"] for box in expected["boxes"]], np.float32).reshape(-1, 4)
        np.testing.assert_array_equal(example["boxes"]["bbox"], boxes)
        assert example["boxes"]["label"] == [box["label"] for box in expected["boxes"]]
        assert example["set"] == "rich"
        assert set(example) == {*schema.complete(expected), "set"} and len(set(example)) == len(example)
        assert (example["sex"], example["age"], example["same_picture"]) == ("", -1, "")
    assert seen == set(written.records["rich"]["train"])


def test_a_field_that_the_set_does_not_have_is_named(written):
    example = source.select(converted_sets.open_set("plain", written.data_dir), "train")[0]
    assert "mask" not in example
    with pytest.raises(
        KeyError, match="'plain' has no field 'mask'; its records have age, fingerprint, image, image_id"
    ):
        example["mask"]


def test_opened_set_describes_itself(written, rich):
    assert rich.label_names == tuple(f"finding {number}" for number in range(5))
    assert rich.split_sizes == {"train": 26, "val": 7}
    assert rich.metadata["short_side"] == 48
    assert converted_sets.open_set(rich.directory) == rich == converted_sets.open_set(Path(written.data_dir) / "rich")
    assert converted_sets.converted(written.data_dir) == ["plain", "rich"]


def test_a_set_is_read_once_and_again_where_it_was_written_anew(written, tmp_path, monkeypatch):
    place, reads, read = tmp_path / "set", [], converted_sets.tfds.builder_from_directory
    monkeypatch.setattr(converted_sets.tfds, "builder_from_directory", lambda path: reads.append(path) or read(path))
    shutil.copytree(converted_sets.open_set("plain", written.data_dir).directory, place / "1.0.0")
    opened = [converted_sets.open_set(place / "1.0.0") for _ in range(2)]
    assert opened[0] == opened[1] and len(reads) == 1
    shutil.rmtree(place / "1.0.0")
    shutil.copytree(converted_sets.open_set("rich", written.data_dir).directory, place / "1.0.0")
    assert converted_sets.open_set(place / "1.0.0").split_sizes == {"train": 26, "val": 7}


def test_missing_set_lists_what_is_there_and_how_to_convert(written):
    with pytest.raises(
        converted_sets.SetNotFound, match=r"Converted there: plain, rich\..*cxrjax\.prepare chexpert --raw DIR"
    ):
        converted_sets.open_set("chexpert", written.data_dir)


def test_newest_version_and_the_only_configuration_are_found(written, tmp_path):
    original = Path(written.data_dir) / "plain" / "1.0.0"
    for place in ("plain/9.0.0", "plain/10.0.0", "sized/256/1.0.0", "many/a/1.0.0", "many/b/1.0.0"):
        shutil.copytree(original, tmp_path / place)
    (tmp_path / "plain" / "11.0.0.incompleteXY").mkdir()
    assert converted_sets.open_set("plain", tmp_path).directory.name == "10.0.0"
    assert converted_sets.open_set("sized", tmp_path).directory == tmp_path / "sized" / "256" / "1.0.0"
    assert converted_sets.open_set("many/b", tmp_path).directory == tmp_path / "many" / "b" / "1.0.0"
    with pytest.raises(ValueError, match="name one of many/a, many/b"):
        converted_sets.open_set("many", tmp_path)


def test_index_is_in_record_order_and_kept(written, rich, monkeypatch):
    first = record_index.index(rich, "val")
    read = source.select(rich, "val")
    assert list(first["image_id"]) == [read[item]["image_id"] for item in range(7)]
    monkeypatch.setattr(record_index, "_scan", lambda *_: pytest.fail("the index was not kept"))
    kept = record_index.index(rich, "val")
    assert kept.drop(columns="labels").equals(first.drop(columns="labels"))
    for one, two in zip(first["labels"], kept["labels"], strict=True):
        assert two.dtype == np.int8
        np.testing.assert_array_equal(one, two)


def test_index_is_made_again_when_the_set_changed(written, tmp_path):
    shutil.copytree(Path(written.data_dir) / "plain", tmp_path / "plain")
    plain = converted_sets.open_set("plain", tmp_path)
    record_index.index(plain, "train")
    file = plain.directory / "index-train.parquet"
    before = file.stat().st_mtime_ns
    (shard,) = plain.directory.glob("plain-train*")
    os.utime(shard, ns=(1, 1))
    record_index.index(plain, "train")
    assert file.stat().st_mtime_ns > before
    file.write_bytes(b"half a file")
    assert len(record_index.index(plain, "train")) == 17


def test_index_works_where_nothing_can_be_written(written, tmp_path, monkeypatch):
    shutil.copytree(Path(written.data_dir) / "plain", tmp_path / "plain")
    plain = converted_sets.open_set("plain", tmp_path)
    for file in plain.directory.glob("index-*"):
        file.unlink()

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(record_index.os, "replace", refuse)
    assert len(record_index.index(plain, "train")) == 17
    assert not [file for file in plain.directory.iterdir() if "index" in file.name]


def test_filters_select_what_they_say(rich):
    table = record_index.index(rich, "train")
    frontal = source.select(rich, "train", projections=["PA", "AP"])
    assert set(frontal.table["view"]) == {"PA", "AP"} and len(frontal) == table["view"].isin(["PA", "AP"]).sum()
    some = list(table["image_id"][3:9])
    assert list(source.select(rich, "train", image_ids=some).table["image_id"]) == some
    without = source.select(rich, "train", exclude_image_ids=some).table
    assert len(without) == 20 and not set(without["image_id"]) & set(some)
    patients = set(table["patient_id"][:4])
    assert not set(source.select(rich, "train", exclude_patient_ids=patients).table["patient_id"]) & patients


def test_pictures_with_boxes_are_kept_and_those_of_a_label(written, rich, monkeypatch):
    records = written.records["rich"]["train"]
    of = {name: [box["label"] for box in record["boxes"]] for name, record in records.items()}

    def kept(**filters):
        return set(source.select(rich, "train", **filters).table["image_id"])

    assert kept(boxes=()) == {name for name, labels in of.items() if labels} != set(records)
    assert kept(boxes=("box 1",)) == {name for name, labels in of.items() if "box 1" in labels} != kept(boxes=())
    normal = {name for name, record in records.items() if record["labels"][2] == schema.PRESENT}
    assert kept(boxes=("box 1",), or_labelled="finding 2") == kept(boxes=("box 1",)) | normal != kept(boxes=("box 1",))
    some = kept(boxes=(), projections=["PA"], fraction=0.5)
    assert some == kept(boxes=()) & kept(projections=["PA"]) & kept(fraction=0.5) and some
    joined = source.select(rich, "test", boxes=(), folds=3)
    assert all(joined[i]["boxes"]["label"] for i in range(len(joined)))
    monkeypatch.setattr(record_index, "_scan_boxes", lambda *_: pytest.fail("the labels of boxes were not kept"))
    assert record_index.labels_of_boxes(rich, "train") == [
        tuple(of[i]) for i in record_index.index(rich, "train")["image_id"]
    ]


def test_what_boxes_cannot_be_required_is_named(written, rich):
    known = r"boxes of Mass \(the split's boxes: box 0 17, box 1 8\)"
    with pytest.raises(ValueError, match=f"{known} removes all of the 26"):
        source.select(rich, "train", boxes=("Mass",))
    with pytest.raises(ValueError, match="no label 'Normal'; its labels are finding 0, finding 1"):
        source.select(rich, "train", boxes=(), or_labelled="Normal")
    with pytest.raises(ValueError, match="the set 'plain' has no boxes"):
        source.select(converted_sets.open_set("plain", written.data_dir), "train", boxes=())
    assert source.required("") == {}
    assert source.required("boxes or No Finding", ["Mass"]) == {"boxes": ("Mass",), "or_labelled": "No Finding"}
    for words in ("box", "boxes or", "report"):
        with pytest.raises(ValueError, match=f"cannot be required to have '{words}', but 'boxes' or"):
            source.required(words)


def test_fractions_are_nested_and_by_patient(rich):
    everyone = record_index.index(rich, "train").groupby("patient_id")["image_id"].count()
    smaller = set()
    for fraction in (0.01, 0.3, 0.6, 1.0):
        table = source.select(rich, "train", fraction=fraction).table
        chosen = set(table["patient_id"])
        assert smaller <= chosen and len(chosen) == max(1, round(fraction * len(everyone)))
        assert len(table) == everyone[list(chosen)].sum()
        smaller = chosen


def test_a_fraction_is_of_the_split_and_not_of_what_other_filters_leave(rich):
    """So a run without some patients still learns from the patients of the set's list, and from no others."""
    listed = set(source.select(rich, "train", fraction=0.5).table["patient_id"])
    gone = sorted(listed)[:2]
    left = source.select(rich, "train", fraction=0.5, exclude_patient_ids=gone)
    assert set(left.table["patient_id"]) == listed - set(gone)


@pytest.mark.parametrize(
    ("filters", "named"),
    [
        ({"projections": ["PA"], "image_ids": ["nobody"]}, r"image_ids \(1 given\) removes all of the \d+"),
        ({"exclude_patient_ids": [f"patient train {n}" for n in range(9)]}, r"exclude_patient_ids \(9 given\)"),
        (
            {"exclude_image_ids": [f"train-{n}" for n in range(26)]},
            r"exclude_image_ids \(26 given\) removes all of the 26",
        ),
    ],
)
def test_empty_selection_names_the_filter(rich, filters, named):
    with pytest.raises(ValueError, match=named):
        source.select(rich, "train", **filters)


def test_unknown_split_projection_and_fraction_are_refused(rich):
    with pytest.raises(ValueError, match=r"no split 'test'; it has train \(26\), val \(7\)"):
        source.select(rich, "test")
    for projections in (["FRONTAL"], "PA"):
        with pytest.raises(ValueError, match="UNKNOWN, PA, AP, LATERAL"):
            source.select(rich, "train", projections=projections)
    with pytest.raises(ValueError, match="fraction"):
        source.select(rich, "train", fraction=0)


def test_source_can_be_pickled(rich):
    read = source.select(rich, "train", projections=["AP"])
    again = pickle.loads(pickle.dumps(read))
    assert len(again) == len(read) and dict(again[1])["image"] == read[1]["image"]


READ = """
import sys
from cxrjax.input import converted_sets, source
chosen = source.select(converted_sets.open_set("rich", sys.argv[1]), "train", fraction=0.5)
print([chosen[i]["image_id"] for i in range(len(chosen))], "tensorflow" in sys.modules)
"""


def test_same_selection_in_every_process_and_without_tensorflow(written, rich):
    chosen = source.select(rich, "train", fraction=0.5)
    expected = [chosen[item]["image_id"] for item in range(len(chosen))]
    ran = subprocess.run(
        [sys.executable, "-c", READ, written.data_dir],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert ran.stdout.strip() == f"{expected} False"
    assert "TensorFlow" not in ran.stderr


def test_a_damaged_record_is_named_with_its_file(tmp_path):
    rows = [(f"{n}", f"patient {n}", "train", radiographs.radiograph(n)) for n in range(6)]
    converted = radiographs.write(tmp_path, "clinic", rows)
    train = source.select(converted, "train")
    (file,) = converted.directory.glob("*train*array_record*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    train = source.Source(converted, "train", [3])
    with pytest.raises(
        ValueError, match=rf"record 3 of split 'train' of set 'clinic.*cannot be read: .*{file.name} is dam"
    ):
        train[0]
