"""A command that embeds 500 files is killed, and ends in the same bytes as one that was not."""

import sys

import pandas
import pytest

from tests import mixed, processes, runs

SMALL_PARTS = "from cxrjax.embedding import growing; growing.PART = 64; from cxrjax import embed; embed.main()"


@pytest.mark.slow
def test_killed_twice(tmp_path):
    runs.write(tmp_path / "run", runs.config())
    folder = mixed.write(tmp_path / "pictures", 500, 20)

    def start(name):
        flags = ["--checkpoint", tmp_path / "run", folder, "--output", tmp_path / f"{name}.parquet"]
        return processes.popen([sys.executable, "-c", SMALL_PARTS, *map(str, flags), "--patches", "float16"])

    assert processes.ended([start("whole")])[0] == [0]
    for parts in (1, 5):
        process = start("killed")
        processes.wait_until(lambda n=parts: len(list(tmp_path.glob("killed.parquet.parts/*.parquet"))) >= n, [process])
        process.kill()
        process.communicate()
    assert len(list(tmp_path.glob("killed.parquet.parts/*.parquet"))) >= 5
    assert processes.ended([start("killed")])[0] == [0]
    mixed.assert_same(tmp_path / "killed.parquet", tmp_path / "whole.parquet")
    reasons = pandas.read_csv(tmp_path / "killed.unreadable.csv")
    assert (len(pandas.read_parquet(tmp_path / "killed.parquet")), len(reasons)) == (480, 20)
    assert reasons["reason"].str.len().min() > 10
