"""Conversion by Apache Beam's DirectRunner gives the set that conversion without it gives."""

import json

import cv2
import numpy as np
import pytest

from cxrjax.datasets.manifest import Box, Manifest, Row
from tests import official

pytest.importorskip("apache_beam")


@pytest.fixture
def manifest(tmp_path):
    rows = []
    for number, pixels in enumerate(official.pictures(12)):
        file = tmp_path / f"{number}.png"
        cv2.imwrite(str(file), pixels.astype(np.uint16) * 16 if number == 3 else pixels)
        cv2.imwrite(str(tmp_path / f"{number}-mask.png"), (pixels < 100).astype(np.uint8) * 255)
        rows.append(
            Row(
                file,
                f"picture-{number}",
                f"patient-{number // 2}",
                f"study-{number}",
                "train" if number < 8 else "test",
                "PA",
                (number % 2,),
                masks=(tmp_path / f"{number}-mask.png",),
                boxes=(Box("Mass", 8, 4, 16, 16),),
                text=f"Finding number {number} of this report.",
            )
        )
    return Manifest("few", ("Mass",), tuple(rows), "Drawn.", has_mask=True, has_boxes=True, has_report=True)


def test_the_records_are_those_of_the_usual_conversion(manifest, tmp_path):
    usual = official.convert(manifest, tmp_path / "usual")
    spread = official.convert(manifest, tmp_path / "beam", beam=["runner=DirectRunner"])
    assert "'more than 8 bits': 1" in spread.said
    assert set(spread.records) == set(usual.records) and len(usual.records) == 12
    for image_id, (split, example) in usual.records.items():
        other_split, other = spread.records[image_id]
        assert other_split == split and other["image"] == example["image"] and other["mask"] == example["mask"]
        np.testing.assert_array_equal(other["boxes"]["bbox"], example["boxes"]["bbox"])
        for name in ("labels", "report", "fingerprint", "patient_id", "view", "has_mask"):
            assert np.array_equal(other[name], example[name]), name
    for name in ("vocab.txt", "fractions/train-seed1-10percent.txt"):
        assert (spread.conversion.directory / name).read_text() == (usual.conversion.directory / name).read_text()
    assert sorted(path.name for path in (tmp_path / "beam" / "data").iterdir()) == ["few"]
    assert "holds exactly this set already" in official.convert(manifest, tmp_path / "beam").said


def test_bad_files_keep_the_set_unwritten_unless_allowed(manifest, tmp_path):
    manifest.rows[5].file.write_bytes(b"\x89PNG\r\n\x1a\n cut")
    made = official.convert(manifest, tmp_path, beam=["runner=DirectRunner"])
    assert made.conversion.directory is None and not made.records
    assert [(problem.file, problem.kind) for problem in made.conversion.problems] == [
        (str(manifest.rows[5].file), "picture")
    ]
    assert "truncated or corrupt" in (tmp_path / "data/few/32-png/problems.csv").read_text()
    made = official.convert(manifest, tmp_path, beam=["runner=DirectRunner"], allow_bad=True)
    assert set(made.records) == {row.image_id for row in manifest.rows} - {"picture-5"}
    row = next(line.split() for line in made.conversion.counts.splitlines() if line.startswith("pictures"))
    assert row == ["pictures", "7", "4", "11"]
    metadata = json.loads((made.conversion.directory / "metadata.json").read_text())
    assert metadata["counts"] == made.conversion.counts and metadata["problems"] == 1
