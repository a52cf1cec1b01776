"""What can be embedded: lists, tables and converted sets name the pictures, and what is known of them is kept."""

import cv2
import numpy as np
import pandas
import pytest

from cxrjax.embedding import inputs
from cxrjax.imaging.fingerprint import fingerprint
from cxrjax.input import converted_sets
from tests import radiographs


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        cv2.imwrite(str(tmp_path / "in" / f"{name}.png"), rng.integers(0, 256, (16, 20), dtype=np.uint8))
    return tmp_path


def test_a_list_names_files_from_its_folder(folder):
    (folder / "list.txt").write_text("in/b.png\n\nin/a.png\nin/gone.png\nin/b.png\n")
    found = inputs.of_list(folder / "list.txt")
    assert found.names == ["in/b.png", "in/a.png", "in/gone.png"]
    assert [note.split(" of ")[0] for note in found.notes] == ["1 lines"]
    seen = found.read(0)
    assert (seen.height, seen.width, len(seen.fingerprint)) == (16, 20, 256)
    assert found.read(2) == "The file does not exist."
    (folder / "in" / "list.txt").write_text("a.png")
    assert inputs.of_list(folder / "list.txt", folder / "elsewhere").read(1) == "The file does not exist."
    (folder / "none.txt").write_text("\n")
    with pytest.raises(ValueError, match="names no file"):
        inputs.of_list(folder / "none.txt")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_keeps_its_columns(folder, suffix):
    rows = pandas.DataFrame({"ID": ["b", "a", "b", ""], "age": ["61", "", "7", "8"], "sex": list("FMFM")})
    write = rows.to_csv if suffix == "csv" else rows.to_parquet
    write(folder / f"table.{suffix}", index=False)
    found = inputs.of_table(folder / f"table.{suffix}", "in/{ID}.png", ["age", "sex"])
    assert found.names == ["in/b.png", "in/a.png"]
    blank, again = found.notes
    assert blank.startswith("1 of 4 rows of ") and again.startswith("1 rows of ")
    assert found.kept.to_pydict() == {"age": ["61", ""], "sex": ["F", "M"]}
    assert found.read(1).width == 20
    with pytest.raises(ValueError, match="no column 'height'; its columns are: ID, age, sex"):
        inputs.of_table(folder / f"table.{suffix}", "ID", ["height"])


def test_a_converted_set_keeps_ids_and_labels(tmp_path):
    pictures = [radiographs.radiograph(seed, 96, 100) for seed in range(3)]
    rows = [(f"p{i}", f"q{i}", ("train", "test", "train")[i], picture) for i, picture in enumerate(pictures)]
    radiographs.write(tmp_path, "tiny", rows)
    opened = converted_sets.open_set("tiny", tmp_path)
    found = inputs.of_set(opened.directory, "test+train")
    assert found.names == ["p1", "p0", "p2"]
    assert found.kept["patient_id"].to_pylist() == ["q1", "q0", "q2"]
    assert found.kept.to_pydict()["Finding"] == [1, 1, 1] and found.kept["view"][0].as_py() == "PA"
    for name, number in zip(found.names, range(3), strict=True):
        np.testing.assert_array_equal(found.read(number).pixels, pictures[int(name[1])])
        assert found.read(number).fingerprint == fingerprint(pictures[int(name[1])])
    with pytest.raises(ValueError, match="no split 'all'"):
        inputs.of_set(opened.directory, "all")
