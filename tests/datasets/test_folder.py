"""Folder sets: every field comes back as it went in, and every bad input gets its sentence."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cxrjax.datasets import convert, encode, folder, manifest, schema, table, writer
from cxrjax.datasets.mapping import MappingError, load
from cxrjax.imaging import pixels
from cxrjax.input import converted_sets, source

HEAD = ["File", "Dx", "View", "Patient ID", "Study", "Set", "Mask", "Note", "icu"]
ROWS = [
    ["p/a.png", "Effusion|Mass", "PA", "1", "1a", "training", "m/a.png", "Effusion and a mass.", "1"],
    ["p/b.png", "Normal", "L", "1", "1a", "training", "", "", "0"],
    ["p/c.png", "", "AP Supine", "2", "2a", "valid", "", "", ""],
    ["p/d.png", "Mass", "", "3", "3a", "Test", "m/d.png", "A mass.", "-1"],
]
MAPPING = {
    "name": "clinic",
    "table": "list.csv",
    "file": "file",
    "patient": "Patient ID",
    "study": "study",
    "view": "view",
    "split": "set",
    "labels": "dx",
    "label_columns": {"icu": "Intensive care"},
    "mask": "mask",
    "text": "note",
    "boxes": ["boxes.csv"],
}


def picture(seed, height=60, width=80):
    noise = np.random.default_rng(seed).integers(0, 255, (height // 10, width // 10), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)


def write_table(path, rows, head=HEAD, **options):
    with open(path, "w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        csv.writer(file, **options).writerows([head, *rows])


@pytest.fixture
def raw(tmp_path):
    """Four pictures of three patients with masks, a report, boxes and a table."""
    raw = tmp_path / "raw"
    for name in ("p", "m"):
        (raw / name).mkdir(parents=True)
    for seed, row in enumerate(ROWS):
        cv2.imwrite(str(raw / row[0]), picture(seed))
        if row[6]:
            mask = np.zeros((60, 80), np.uint8)
            mask[:, :40] = 1
            cv2.imwrite(str(raw / row[6]), mask)
    write_table(raw / "list.csv", ROWS)
    boxes = [["p/a.png", "Mass", 8, 6, 40, 30], ["p/a.png", "Effusion", 60, 30, 40, 60]]
    write_table(raw / "boxes.csv", boxes, ["file", "label", "x", "y", "width", "height"])
    return raw


@pytest.fixture
def run(raw, tmp_path):
    """Converts at 32 px; returns (Conversion, what was said)."""

    def run(mapping=MAPPING, **options):
        said = []
        options = {"data_dir": tmp_path / "data", "short_side": 32, "image_format": "png", "progress": False} | options
        return folder.convert(raw, mapping, say=said.append, **options), "\n".join(said)

    return run


def read(directory):
    """image_id -> (split, record) of a converted set, read as training reads it."""
    builder = tfds.builder_from_directory(str(directory))
    return {
        record["image_id"].decode(): (split, record)
        for split in builder.info.splits
        for record in builder.as_data_source(split)
    }


def test_every_field_comes_back(run, raw):
    made, _ = run()
    assert made.problems == ()
    info = tfds.builder_from_directory(str(made.directory)).info
    assert info.metadata["label_names"] == ["Effusion", "Mass", "Normal", "Intensive care"]
    assert info.metadata["short_side"] == 32
    records = read(made.directory)
    assert {name: split for name, (split, _) in records.items()} == {
        "p/a.png": "train",
        "p/b.png": "train",
        "p/c.png": "val",
        "p/d.png": "test",
    }
    projections = [info.features["view"].names[records[row[0]][1]["view"]] for row in ROWS]
    assert projections == ["PA", "LATERAL", "AP", "UNKNOWN"]
    labels = {name: record["labels"].tolist() for name, (_, record) in records.items()}
    assert labels == {
        "p/a.png": [1, 1, 0, 1],
        "p/b.png": [0, 0, 1, 0],
        "p/c.png": [-2, -2, -2, -2],
        "p/d.png": [0, 1, 0, -1],
    }
    record = records["p/a.png"][1]
    assert (record["patient_id"], record["study_id"]) == (b"1", b"1a")
    assert record["report"] == {"findings": b"", "impression": b"", "text": b"Effusion and a mass."}
    expected = cv2.resize(picture(0), (43, 32), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(record["image"][..., 0], expected)
    assert record["has_mask"] and record["mask"].shape == record["image"].shape
    assert set(np.unique(record["mask"])) == {0, 255} and record["mask"][:, :20].min() == 255
    assert record["mask"][:, 23:].max() == 0
    assert record["boxes"]["label"] == [b"Mass", b"Effusion"]
    np.testing.assert_allclose(record["boxes"]["bbox"][0], [6 / 60, 8 / 80, 36 / 60, 48 / 80], atol=1e-6)
    np.testing.assert_allclose(record["boxes"]["bbox"][1], [30 / 60, 60 / 80, 1, 1], atol=1e-6)
    unmasked = records["p/b.png"][1]
    assert not unmasked["has_mask"] and unmasked["mask"].shape == (32, 43, 1) and unmasked["mask"].max() == 0


def test_reports_come_from_text_files_and_else_from_their_column(raw):
    (raw / "1.txt").write_text("  As the file says.\n")
    (raw / "2.txt").write_text("\n")
    made = folder.manifest(raw, load(MAPPING, text_file="{Patient ID}.txt"))
    assert [row.text for row in made.rows] == ["As the file says.", "As the file says.", "", "A mass."]
    assert made.problems == (manifest.Problem("3.txt", "report", "The report of p/d.png does not exist."),)


def test_the_count_table_counts_per_split(run):
    made, _ = run()
    lines = {line[:22].strip(): line[22:].split() for line in made.counts.splitlines()}
    assert lines[""] == ["train", "val", "test", "all"]
    assert lines["pictures"] == ["2", "1", "1", "4"]
    assert lines["patients"] == ["1", "1", "1", "3"]
    assert lines["with a mask"] == ["1", "0", "1", "2"]
    assert lines["label Mass"] == ["1", "0", "1", "2"]


def test_jpeg_and_parquet_and_numeric_patients(run, raw):
    frame = pandas.read_csv(raw / "list.csv")
    frame.to_parquet(raw / "list.parquet")
    made, _ = run(MAPPING | {"table": "list.parquet"}, image_format="jpeg")
    records = read(made.directory)
    assert records["p/a.png"][1]["patient_id"] == b"1"
    assert records["p/d.png"][1]["labels"].tolist() == [0, 1, 0, -1]
    builder = tfds.builder_from_directory(str(made.directory))
    data = builder.as_data_source("test", decoders={"image": tfds.decode.SkipDecoding()})[0]["image"]
    assert data.startswith(b"\xff\xd8\xff")


def test_a_folder_without_a_table(run):
    made, said = run({"name": "plain"})
    records = read(made.directory)
    assert len(records) == 6  # the two masks are pictures too when nothing says what they are
    assert all(record["patient_id"].decode() == name for name, (_, record) in records.items())
    assert records["p/a.png"][1]["labels"].shape == (0,)
    assert records["p/a.png"][0] == schema.assign_split("plain", "p/a.png")
    assert "Every picture is its own patient" in said and "list.csv" in said


def test_a_split_by_patient_is_made_when_none_is_given(run, raw):
    rows = [[f"p/x{i}.png", "Normal", "PA", str(i // 2), "", "", "", "", ""] for i in range(40)]
    for i, row in enumerate(rows):
        cv2.imwrite(str(raw / row[0]), picture(i, 20, 20))
    write_table(raw / "list.csv", rows)
    mapping = {"name": "clinic", "table": "list.csv", "patient": "patient id"}
    made, said = run(mapping)
    splits = {}
    for split, record in read(made.directory).values():
        splits.setdefault(record["patient_id"], set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == set(schema.SPLITS)
    assert "split was made by patient" in said


def test_odd_tables_are_read(run, raw):
    """Semicolons, an encoding that is not UTF-8, blanks and other capitals in the header, a trailing separator."""
    rows = [[*row, ""] for row in ROWS]
    rows[0][7] = "Erguß beidseits"
    write_table(raw / "list.csv", rows, [f" {name.upper()} " for name in HEAD] + [""], delimiter=";", encoding="cp1252")
    made, _ = run()
    assert read(made.directory)["p/a.png"][1]["report"]["text"].decode() == "Erguß beidseits"
    write_table(raw / "list.csv", rows, HEAD + [""], encoding="utf-8-sig")
    made, _ = run(overwrite=True)
    assert len(read(made.directory)) == 4


def test_files_are_found_by_pattern_and_by_unique_name(run, raw):
    for row in ROWS:
        if row[6]:
            (raw / row[6]).rename(raw / "m" / f"{Path(row[6]).stem}_mask.png")
    write_table(raw / "list.csv", [[Path(row[0]).stem, *row[1:]] for row in ROWS])
    made, _ = run(MAPPING | {"file": "p/{File}.png", "mask": "m/{File}_mask.png"})
    records = read(made.directory)
    assert [records[name][1]["has_mask"] for name in sorted(records)] == [True, False, False, True]
    made, said = run(MAPPING | {"file": "{File}.png", "mask": None}, overwrite=True)
    assert set(read(made.directory)) == {"p/a.png", "p/b.png", "p/c.png", "p/d.png"}
    assert "files were found by name in folders below: p/a.png" in said


def test_a_mask_never_stands_in_for_a_missing_picture(run, raw):
    """With the picture gone, its mask has the same bare name."""
    (raw / "p/a.png").unlink()
    made, _ = run()
    assert ("p/a.png", "missing") in [problem[:2] for problem in made.problems]
    (raw / "m/d.png").rename(raw / "m/e.png")
    rows = [[Path(row[0]).name, *row[1:6], row[6].replace("d", "e"), *row[7:]] for row in ROWS]
    write_table(raw / "list.csv", rows)
    with pytest.raises(MappingError, match="1 files would be a picture and a mask at once: m/a.png"):
        run()


def test_values_can_be_renamed_and_dropped(run):
    changes = {"label_values": {"Mass": "Tumour", "Normal": None}, "blank_labels": "absent", "label_columns": {}}
    made, _ = run(MAPPING | changes | {"view_values": {"AP Supine": "UNKNOWN"}})
    assert tfds.builder_from_directory(str(made.directory)).info.metadata["label_names"] == ["Effusion", "Tumour"]
    records = read(made.directory)
    assert records["p/c.png"][1]["labels"].tolist() == [0, 0] and records["p/c.png"][1]["view"] == 0
    assert records["p/b.png"][1]["labels"].tolist() == [0, 0]


def spoil(raw, change):
    rows = [list(row) for row in ROWS]
    change(rows)
    write_table(raw / "list.csv", rows)


def test_a_patient_in_two_splits_is_named(run, raw):
    spoil(raw, lambda rows: rows[1].__setitem__(5, "test"))
    with pytest.raises(ValueError, match=r"1 patient is in more than one split of set 'clinic': 1 \(test and train\)"):
        run()


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (
            {"view": "Projection"},
            table.TableError,
            "no column 'Projection'; its columns are: File, Dx, View, Patient ID",
        ),
        ({"table": "lists.csv"}, table.TableError, "lists.csv does not exist; tables in .*: boxes.csv, list.csv"),
        ({"boxes": ["box.csv"]}, table.TableError, "box.csv does not exist"),
        ({"split": "dx"}, MappingError, r"'\(blank\)' \(1 rows\).*no known split. Say what it means with split_values"),
        ({"view": "dx"}, MappingError, "'normal' .*is no known projection. Say what it means with view_values"),
        ({"view_values": {"L": "SIDE"}}, MappingError, "L -> SIDE; the right side must be UNKNOWN, PA, AP, LATERAL"),
        ({"label_names": ["Mass"]}, MappingError, "label_names does not list: Effusion, Intensive care, Normal"),
        ({"label_columns": {"note": "Note"}}, MappingError, "hold 'Effusion and a mass.' .*expected 1 .present."),
        ({"file": "study"}, MappingError, "several different rows in list.csv: 1a"),
        ({"file": "q/{file}x"}, MappingError, "None of the 4 rows .* leads to a picture .* has for example m/a.png"),
        ({"patients": "x"}, MappingError, "Unknown mapping key 'patients'. Did you mean 'patient'"),
        ({"name": "My Set"}, MappingError, "'My Set' cannot be used: it must begin with a lower-case letter"),
        ({"blank_labels": "zero"}, MappingError, "choose 'not_mentioned' or 'absent'"),
        ({"label_values": ["a"]}, MappingError, "'label_values' must be an object of text to text"),
        ({"value_range": [9, 3]}, MappingError, "two whole numbers, the lower one first"),
        ({"table": None}, MappingError, "but no table: give --table"),
    ],
)
def test_mistakes_in_the_mapping_get_a_sentence(run, changes, error, sentence):
    with pytest.raises(error, match=sentence):
        run(MAPPING | changes)


def test_pictures_that_a_table_names_need_no_suffix(tmp_path):
    """As DICOM files have none where they leave an archive of pictures."""
    (tmp_path / "raw").mkdir()
    for name in ("IM1", "IM2"):
        (tmp_path / "raw" / name).write_bytes(cv2.imencode(".png", picture(len(name)))[1].tobytes())
    write_table(tmp_path / "raw" / "list.csv", [["IM1", "1"], ["IM2", "2"]], ["file", "patient"])
    found = folder.manifest(
        tmp_path / "raw", load({"name": "x", "table": "list.csv", "file": "file", "patient": "patient"})
    )
    assert [row.image_id for row in found.rows] == ["IM1", "IM2"] and not found.problems


def test_mistakes_in_the_raw_folder_get_a_sentence(run, raw, tmp_path):
    with pytest.raises(MappingError, match="raw folder .*nowhere does not exist"):
        folder.manifest(tmp_path / "nowhere", load(MAPPING))
    with pytest.raises(MappingError, match="is not a folder"):
        folder.manifest(raw / "list.csv", load(MAPPING))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MappingError, match="has no PNG, JPEG or DICOM picture; it is empty"):
        folder.manifest(tmp_path / "empty", load({"name": "empty"}))
    (tmp_path / "empty" / "one.tif").write_bytes(b"")
    with pytest.raises(MappingError, match="it holds 1 x .tif"):
        folder.manifest(tmp_path / "empty", load({"name": "empty"}))


def test_empty_and_ragged_tables_get_a_sentence(run, raw):
    (raw / "list.csv").write_text("")
    with pytest.raises(table.TableError, match="first line, which should name the columns, is empty"):
        run()
    write_table(raw / "list.csv", [])
    with pytest.raises(table.TableError, match="has no rows"):
        run()
    for ragged in ("p/a.png,1\np/b.png,2,3\n", "p/a.png,1,3\np/b.png,2\n"):
        (raw / "list.csv").write_text("file,patient\n" + ragged)
        with pytest.raises(table.TableError, match="line [23] has 3 cells, but the header 2; put quotes"):
            run({"name": "clinic", "table": "list.csv"})
    (raw / "list.csv").write_text("file,file,patient\np/a.png,x,1\n")
    with pytest.raises(table.TableError, match="has 2 columns named 'file'"):
        run({"name": "clinic", "table": "list.csv"})


def test_repeated_rows_are_read_once_and_contradictions_refused(run, raw):
    spoil(raw, lambda rows: rows.append(rows[0]))
    made, said = run()
    assert len(read(made.directory)) == 4 and "1 rows of list.csv repeat another row" in said
    spoil(raw, lambda rows: rows.append([*rows[0][:1], "Normal", *rows[0][2:]]))
    with pytest.raises(MappingError, match="1 files have several different rows in list.csv: p/a.png"):
        run()


def spoiled_files(raw):
    data = (raw / "p/a.png").read_bytes()
    (raw / "p/a.png").write_bytes(data[: len(data) // 2])
    cv2.imwrite(str(raw / "m/d.png"), np.zeros((60, 60), np.uint8))
    spoil(raw, lambda rows: rows.append(["p/gone.png", "Mass", "PA", "9", "9a", "test", "", "", "0"]))
    cv2.imwrite(str(raw / "p/extra.png"), picture(9))


def test_bad_files_are_named_counted_and_keep_the_set_unwritten(run, raw, tmp_path):
    spoiled_files(raw)
    made, said = run()
    assert made.directory is None and not list((tmp_path / "data").glob("clinic/*/1*"))
    listing = pandas.read_csv(tmp_path / "data" / "clinic" / "32-png" / "problems.csv")
    assert list(listing.columns) == ["file", "kind", "reason"]
    reasons = {(Path(file).name, kind): reason for file, kind, reason in listing.itertuples(index=False)}
    assert set(reasons) == {("gone.png", "missing"), ("a.png", "picture"), ("d.png", "mask")}
    assert "truncated or corrupt" in reasons["a.png", "picture"]
    assert "60 x 60 px, but its picture 80 x 60" in reasons["d.png", "mask"]
    assert "Problems: 3 (" in said and "p/gone.png: The table names it, but there is no such file." in said
    assert "1 pictures on disk are not in the table and were left out: p/extra.png" in said


def test_bad_files_can_be_left_out(run, raw, tmp_path):
    spoiled_files(raw)
    made, _ = run(allow_bad=True)
    assert len(made.problems) == 3
    records = read(made.directory)
    assert set(records) == {"p/b.png", "p/c.png", "p/d.png"}
    assert not records["p/d.png"][1]["has_mask"]
    assert (tmp_path / "data" / "clinic" / "32-png" / "problems.csv").exists()
    _, said = run()
    assert "holds exactly this set already, without 3 bad files" in said


def test_a_corrected_folder_goes_on_where_it_was(run, raw, monkeypatch, tmp_path):
    data = (raw / "p/a.png").read_bytes()
    (raw / "p/a.png").write_bytes(b"")
    assert run()[0].directory is None
    (raw / "p/a.png").write_bytes(data)
    encoded = []
    whole = encode.encode
    monkeypatch.setattr(encode, "encode", lambda row, *rest: encoded.append(row.image_id) or whole(row, *rest))
    made, said = run()
    assert encoded == ["p/a.png"]
    assert "3 of 4 pictures are encoded already" in said
    assert set(read(made.directory)) == {"p/a.png", "p/b.png", "p/c.png", "p/d.png"}
    assert not (tmp_path / "data" / "clinic" / "32-png" / "problems.csv").exists()
    assert not (tmp_path / "data" / writer.UNFINISHED).exists()


DIES = """
import os, sys
from cxrjax.datasets import convert, folder, store

store.COMMIT_SECONDS = -1
put, generate = store.Store.put, convert._generate
if sys.argv[1] == "encoding":
    store.Store.put = lambda self, *rest: os._exit(9) if len(dict(self.records())) == 2 else put(self, *rest)
else:
    convert._generate = lambda *all: (os._exit(9) if i else pair for i, pair in enumerate(generate(*all)))
folder.convert(sys.argv[2], eval(sys.argv[3]), data_dir=sys.argv[4], short_side=32, image_format="png")
"""


def test_a_killed_conversion_leaves_no_set_and_goes_on(run, raw, tmp_path, monkeypatch):
    """The process dies without any clean-up: first while it encodes, then while it writes the set."""
    data_dir = tmp_path / "data"
    for moment, kept in (("encoding", 2), ("writing", 4)):
        command = [sys.executable, "-c", DIES, moment, str(raw), repr(MAPPING), str(data_dir)]
        assert subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True).returncode == 9
        assert not list(data_dir.glob("clinic/*/1*"))
        store = convert.Store(data_dir / writer.UNFINISHED / "clinic/32-png" / "encoded.sqlite", data_dir)
        assert len(dict(store.records())) == kept
        store.close()
    monkeypatch.setattr(encode, "encode", None)  # nothing is left to encode
    made, _ = run()
    assert len(read(made.directory)) == 4
    assert sorted(path.name for path in data_dir.iterdir()) == ["clinic"]


def test_a_converted_set_is_kept_unless_it_may_be_replaced(run, raw, tmp_path):
    made, _ = run()
    before = (made.directory / "metadata.json").stat().st_mtime_ns
    again, said = run()
    assert again.directory == made.directory and again.counts == made.counts and "nothing to do" in said
    assert (made.directory / "metadata.json").stat().st_mtime_ns == before
    other = MAPPING | {"label_values": {"Mass": "Nodule or mass"}}
    with pytest.raises(ValueError, match="made from other files, another mapping or other options.*--overwrite"):
        run(other)
    made, _ = run(other, overwrite=True)
    assert "Nodule or mass" in tfds.builder_from_directory(str(made.directory)).info.metadata["label_names"]


def test_each_form_of_a_set_lies_beside_the_others(run, raw, tmp_path):
    deep = (np.arange(60 * 80).reshape(60, 80) * 10).astype(np.uint16)
    cv2.imwrite(str(raw / "p/a.png"), deep)
    forms = {
        "32-png": {},
        "24": {"short_side": 24, "image_format": "jpeg"},
        "original-png16": {"short_side": "original", "bits": 16},
    }
    for config, options in forms.items():
        made, _ = run(**options)
        assert made.directory == tmp_path / "data" / "clinic" / config / "1.0.0"
    assert converted_sets.converted(tmp_path / "data") == [f"clinic/{config}" for config in sorted(forms)]
    with pytest.raises(ValueError, match="name one of clinic/24, clinic/32-png, clinic/original-png16"):
        converted_sets.open_set("clinic", tmp_path / "data")
    assert read(tmp_path / "data/clinic/24/1.0.0")["p/b.png"][1]["image"].shape == (24, 32, 1)
    records = read(made.directory)
    assert records["p/a.png"][1]["image"].dtype == np.uint16 and records["p/a.png"][1]["image"].shape == (60, 80, 1)
    low, high = np.percentile(deep, (0.1, 99.9))
    expected = np.clip((deep - low) / (high - low), 0, 1) * 65535
    np.testing.assert_allclose(records["p/a.png"][1]["image"][..., 0], expected, atol=30)
    np.testing.assert_array_equal(records["p/b.png"][1]["image"][..., 0], picture(1) * np.uint16(257))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"image_format": "jpeg", "bits": 16}, "16 bits as jpeg cannot be stored"),
        ({"short_side": 4}, "short side of 4 px is too small"),
    ],
)
def test_forms_that_cannot_be_stored(run, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(**options)


def test_lists_of_fractions_are_nested_and_what_reading_selects(tmp_path):
    raw = tmp_path / "many"
    raw.mkdir()
    rows = []
    for number in range(60):
        cv2.imwrite(str(raw / f"{number}.png"), picture(number, 20, 20))
        rows.append([f"{number}.png", str(number // 2), "train" if number < 50 else "test"])
    write_table(raw / "list.csv", rows, ["File", "Who", "Part"])
    keys = {"name": "many", "table": "list.csv", "file": "File", "patient": "Who", "split": "Part"}
    made = folder.convert(raw, keys, data_dir=tmp_path / "data", short_side=16, progress=False, say=lambda _: None)
    converted = converted_sets.open_set(made.directory)
    lists = {path.name: path.read_text().split() for path in (made.directory / "fractions").iterdir()}
    assert len(lists) == 9
    for seed in range(3):
        one, ten, all_ids = (set(lists[f"train-seed{seed}-{percent}percent.txt"]) for percent in (1, 10, 100))
        assert one < ten < all_ids and len(one) == 2 and len(ten) == 4 and len(all_ids) == 50  # 25 patients, 2 each
        for fraction, ids in ((0.01, one), (0.1, ten)):
            table = source.select(converted, "train", fraction=fraction, fraction_seed=seed).table
            assert set(table["image_id"]) == ids
    assert lists["train-seed0-10percent.txt"] != lists["train-seed1-10percent.txt"]


def test_a_moved_raw_folder_is_the_same_set(run, raw, tmp_path):
    run()
    moved = raw.rename(tmp_path / "moved")
    said = []
    options = {"data_dir": tmp_path / "data", "short_side": 32, "image_format": "png"}
    folder.convert(moved, MAPPING, say=said.append, **options)
    assert "nothing to do" in said[-1]


def test_a_data_folder_that_cannot_be_written_gets_a_sentence(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(writer.OutputError, match="data folder .*file cannot be written: Not a directory"):
        run(data_dir=tmp_path / "file")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_builder", full)
    with pytest.raises(writer.OutputError, match="cannot be written: No space left on device.*is kept"):
        run()
    monkeypatch.undo()
    assert run()[0].directory


def test_two_conversions_of_a_set_do_not_meet(run, raw, tmp_path):
    unfinished = writer.unfinished_directory(tmp_path / "data", "clinic/32-png")
    store = convert.Store(unfinished / "encoded.sqlite", tmp_path / "data")
    with pytest.raises(ValueError, match="Another conversion of this set is running"):
        run()
    store.close()
    assert run()[0].directory


def test_steps_that_changed_pictures_are_listed(run, raw, tmp_path):
    cv2.imwrite(str(raw / "p/a.png"), picture(0).astype(np.uint16) * 16)
    cv2.imwrite(str(raw / "p/b.png"), picture(1, 20, 26))
    _, said = run()
    notes = pandas.read_csv(tmp_path / "data" / "clinic" / "32-png" / "notes.csv")
    assert [Path(file).name for file in notes["file"]] == ["a.png", "b.png"]
    assert notes["note"].str.split(":").str[0].tolist() == ["more than 8 bits", "enlarged"]
    assert "'enlarged': 1" in said


def test_bad_boxes_are_problems(run, raw):
    write_table(
        raw / "boxes.csv",
        [["p/a.png", "Mass", 200, 6, 40, 30], ["p/b.png", "Mass", "x", 1, 2, 3], ["p/zzz.png", "Mass", 1, 1, 2, 3]],
        ["file", "label", "x", "y", "width", "height"],
    )
    made, said = run(allow_bad=True)
    assert [problem.kind for problem in made.problems] == ["box", "box"]
    assert "1 boxes of boxes.csv are of pictures that the set does not have" in said
    assert read(made.directory)["p/a.png"][1]["boxes"]["label"] == []


REAL = {
    "chestxray14_subset": {"train": 519, "val": 94, "test": 189},
    "tb_lung_masks": {"train": 447, "val": 66, "test": 125},
    "pediatric_pneumonia": {"train": 579, "val": 87, "test": 136},
    "covid_chestxray": {"train": 111, "val": 12, "test": 29},
    "hannover_covid": {"train": 148, "val": 15, "test": 53},
}


@pytest.mark.slow
@pytest.mark.skipif("CXRJAX_REAL_DATA" not in os.environ, reason="CXRJAX_REAL_DATA names no folder of real pictures")
@pytest.mark.parametrize("name", REAL)
def test_real_sets_convert_with_their_mappings(name, tmp_path):
    mapping = Path(__file__).parents[2] / "configs" / "sets" / f"{name}.json"
    raw = Path(os.environ["CXRJAX_REAL_DATA"]) / name
    made = folder.convert(raw, mapping, data_dir=tmp_path, short_side=64, progress=False, say=lambda _: None)
    info = tfds.builder_from_directory(str(made.directory)).info
    assert {split: info.splits[split].num_examples for split in info.splits} == REAL[name]
    if name == "tb_lung_masks":
        records = [record for _, record in read(made.directory).values()]
        assert sum(record["has_mask"] for record in records) == 559
        # The boxes were computed from the masks, so they must enclose them on the same grid.
        for record in [record for record in records if record["has_mask"] and len(record["boxes"]["label"]) == 2][:50]:
            rows, columns = np.nonzero(record["mask"][..., 0])
            top, left, bottom, right = np.array(record["boxes"]["bbox"]).T
            size = np.array(record["mask"].shape[:2])
            found = np.array([rows.min(), columns.min()]) / size, np.array([rows.max() + 1, columns.max() + 1]) / size
            np.testing.assert_allclose(found[0], [top.min(), left.min()], atol=0.05)
            np.testing.assert_allclose(found[1], [bottom.max(), right.max()], atol=0.05)


def test_a_shared_name_is_told_apart_by_its_folder(tmp_path):
    """The folder in the table was ignored where the raw folder had one more around it."""
    for part, seed in (("train", 0), ("test", 1)):
        (tmp_path / "images" / part).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "images" / part / "1.png"), picture(seed))
    rows = [["release/train/1.png", "a"], ["test/1.png", "b"], ["val/1.png", "c"], ["1.png", "d"]]
    write_table(tmp_path / "t.csv", rows, ["file", "patient"])
    found = folder.manifest(tmp_path, load({"name": "x", "table": "t.csv", "patient": "patient"}))
    assert {row.image_id: row.patient_id for row in found.rows} == {"images/train/1.png": "a", "images/test/1.png": "b"}
    reasons = {problem.file: problem.reason for problem in found.problems}
    assert reasons["val/1.png"].endswith("there is no such file.")
    assert "2 files have that name: images/test/1.png, images/train/1.png" in reasons["1.png"]


def test_names_that_look_the_same_are_one_file(tmp_path):
    composed, apart = "M\u00fcller.png", "Mu\u0308ller.png"
    cv2.imwrite(str(tmp_path / apart), picture(0))
    (tmp_path / composed.replace(".png", ".txt")).write_bytes("Kein Ergu\u00df.".encode("cp1252"))
    write_table(tmp_path / "t.csv", [[composed, "1", apart.replace(".png", ".txt")]], ["file", "patient", "txt"])
    made = folder.manifest(tmp_path, load({"name": "x", "table": "t.csv", "patient": "patient", "text_file": "txt"}))
    assert not made.problems
    assert [(row.image_id, row.text) for row in made.rows] == [(composed, "Kein Ergu\u00df.")]
    assert made.rows[0].file.name == apart


def test_a_name_that_is_no_utf_8_is_converted_and_shown_with_escapes(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, seed in ((b"a.png", 0), (b"radio\xe9.png", 1)):
        with open(os.path.join(os.fsencode(raw), name), "wb") as file:
            file.write(cv2.imencode(".png", picture(seed))[1].tobytes())
    with open(os.path.join(os.fsencode(raw), b"bad\xe9.png"), "wb") as file:
        file.write(b"no picture")
    made = folder.convert(
        raw,
        {"name": "x"},
        data_dir=tmp_path / "data",
        short_side=80,
        allow_bad=True,
        progress=False,
        say=lambda line: None,
    )
    assert set(read(made.directory)) == {"a.png", r"radio\xe9.png"}
    assert [problem.file for problem in made.problems] == [str(raw / r"bad\xe9.png")]
    assert r"radio\xe9.png" in (tmp_path / "data/x/80/notes.csv").read_text("utf-8")


def test_what_a_terminal_cannot_show_does_not_end_a_conversion(raw, tmp_path):
    spoil(raw, lambda rows: rows[0].__setitem__(1, "Ergu\u00df"))
    command = [
        sys.executable,
        "-m",
        "cxrjax.prepare",
        "folder",
        "--raw",
        str(raw),
        "--name",
        "x",
        "--table",
        "list.csv",
    ]
    command += ["--map", "patient=Patient ID", "labels=Dx", "--data-dir", str(tmp_path / "data"), "--short-side", "32"]
    made = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert r"label Ergu\xdf" in made.stdout


def test_counts_leave_out_boxes_that_were_dropped(run, raw):
    rows = [["p/a.png", "Mass", 8, 6, 40, 30], ["p/a.png", "Effusion", 600, 30, 40, 60]]
    write_table(raw / "boxes.csv", rows, ["file", "label", "x", "y", "width", "height"])
    made, _ = run(allow_bad=True)
    lines = {line[:22].strip(): line[22:].split() for line in made.counts.splitlines()}
    assert lines["boxes"] == ["1", "0", "0", "1"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_and_boxes_are_turned_with_their_picture(tmp_path, orientation):
    """The brightest corner of the picture, its mask and its box stay together."""
    raw = tmp_path / "raw"
    raw.mkdir()
    grey = np.full((40, 64), 60, np.uint8)
    grey[4:14, 8:28] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(grey).save(raw / "a.jpg", exif=exif, quality=95)
    cv2.imwrite(str(raw / "m.png"), (grey > 200).astype(np.uint8) * 255)
    write_table(raw / "t.csv", [["a.jpg", "1", "m.png"]], ["file", "patient", "mask"])
    write_table(raw / "b.csv", [["a.jpg", "Mass", 8, 4, 20, 10]], ["file", "label", "x", "y", "width", "height"])
    keys = {"name": "x", "table": "t.csv", "patient": "patient", "mask": "mask", "boxes": ["b.csv"]}
    options = {"data_dir": tmp_path / "data", "short_side": "original", "image_format": "png", "progress": False}
    made = folder.convert(raw, keys, say=lambda line: None, **options)
    record = read(made.directory)["a.jpg"][1]
    bright = record["image"][..., 0] > 150
    assert bright.shape == ((64, 40) if orientation > 4 else (40, 64))
    assert (bright == (record["mask"][..., 0] > 0)).mean() > 0.98
    y, x = np.nonzero(record["mask"][..., 0])
    expected = [y.min() / bright.shape[0], x.min() / bright.shape[1]]
    expected += [(y.max() + 1) / bright.shape[0], (x.max() + 1) / bright.shape[1]]
    np.testing.assert_allclose(record["boxes"]["bbox"][0], expected, atol=1e-6)


def test_a_mask_that_was_drawn_on_the_turned_picture_is_not_turned_again(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = np.zeros((64, 40), np.uint8)
    mask[:10] = 255
    path = tmp_path / "m.png"
    cv2.imwrite(str(path), mask)
    np.testing.assert_array_equal(pixels.read_mask(path, 6, (64, 40)), mask)
    np.testing.assert_array_equal(pixels.read_mask(path, 6, (40, 64)), np.rot90(mask, -1))
    Image.fromarray(mask).save(path, exif=exif)
    np.testing.assert_array_equal(pixels.read_mask(path, 6, (40, 64)), np.rot90(mask, -1))
