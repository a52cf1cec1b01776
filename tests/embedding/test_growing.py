"""A table grows by whole parts, and is never mixed with what is something else."""

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from cxrjax.embedding import growing

KEPT = pyarrow.schema([("age", pyarrow.string())])


def rows(names):
    columns = {
        "path": names,
        "embedding": [np.ones(2, np.float32)] * len(names),
        "height": [9] * len(names),
        "width": [8] * len(names),
        "steps": [[]] * len(names),
        "fingerprint": [""] * len(names),
        "age": ["7"] * len(names),
    }
    return pyarrow.table(columns, schema=pyarrow.schema([*growing.COLUMNS, *KEPT]))


def test_rows_say_where_their_patches_are_also_after_a_second_run(tmp_path):
    for start in (0, 10):
        table = growing.Growing(tmp_path / "f.parquet", "digest", KEPT, {"patches": "float16"})
        for part in (start, start + 2):
            names = [f"p{part}", f"p{part + 1}"]
            table.add(rows(names), [], {"patches": [np.full((1, 3, 3, 2), part + i) for i in range(2)]})
        table.add(rows([]), [(f"bad{start}", "why")], {})
        assert table.finish() == [(f"bad{start}", "why")]
    found = parquet.read_table(tmp_path / "f.parquet")
    assert found["path"].to_pylist() == [f"p{i}" for i in (0, 1, 2, 3, 10, 11, 12, 13)]
    for row in found.to_pylist():
        patches = np.load(tmp_path / "f.patches" / f"{row['patch_part']:05d}.npy")[row["patch_row"]]
        assert (patches == int(row["path"][1:])).all() and patches.shape == (3, 3, 2)
    assert not (tmp_path / "f.parquet.parts").exists()


@pytest.mark.parametrize(
    ("digest", "kept", "beside", "said"),
    [
        ("other", KEPT, {}, r"another checkpoint \(digest\)"),
        ("digest", pyarrow.schema([]), {}, "is there already with columns path, .*, age"),
        ("digest", KEPT, {"patches": "float32"}, "with patches as float32 beside the table"),
        ("digest", pyarrow.schema([("width", pyarrow.string())]), {}, "'width' is one of this table's own"),
    ],
)
@pytest.mark.parametrize("joined", [True, False])
def test_what_is_there_is_not_mixed(digest, kept, beside, said, joined, tmp_path):
    """Neither with a table nor with parts of one."""
    table = growing.Growing(tmp_path / "f.parquet", "digest", KEPT)
    table.add(rows(["a"]), [], {})
    if joined:
        table.finish()
    with pytest.raises(ValueError, match=said):
        growing.Growing(tmp_path / "f.parquet", digest, kept, beside)


def test_a_write_that_fails_leaves_the_table_before(tmp_path):
    output, table = tmp_path / "f.parquet", pyarrow.table({"path": ["a"]})
    growing.write(output, table.schema, [table])

    def full():
        yield pyarrow.table({"path": ["b"]})
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        growing.write(output, table.schema, full())
    assert parquet.read_table(output).equals(table)
