"""The phantom: its anatomy, the truth that goes with every picture, and the set that is written."""

import io
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import cxrjax
from cxrjax.datasets import schema, writer
from cxrjax.phantom import anatomy, phantom_set, projection
from cxrjax.phantom.dictation import dictate
from cxrjax.phantom.findings import FINDINGS, LABELS, Finding
from cxrjax.phantom.study import make_study, patient_of, records, split_of

PIXELS = 64
STUDIES = 24


@pytest.fixture(scope="module")
def studies():
    return [make_study(0, index, PIXELS) for index in range(40)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return phantom_set.build(tmp_path_factory.mktemp("phantom"), studies=STUDIES, short_side=PIXELS, progress=False)


def _records(directory):
    builder = tfds.builder_from_directory(str(directory))
    return {split: list(builder.as_data_source(split)) for split in schema.SPLITS}


def _straight_rays(frontal, height=90, width=80, pixel=0.5):
    across, along = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
    rows = (height / 2 - np.arange(height))[:, None] * pixel
    columns = (np.arange(width) - width / 2)[None] * pixel
    axes = (across, along) if frontal else (along, across)
    return projection.Rays(
        columns.astype(np.float32), rows.astype(np.float32), *axes, np.ones(3, np.float32), float(pixel)
    )


@pytest.mark.parametrize("frontal", [True, False])
def test_ellipsoid_chords_equal_a_sampled_integral(frontal):
    body = projection.ellipsoid((2.0, -3.0, 1.0), (9.0, 4.0, 6.0), (0.7, -0.3, -0.6))
    rays = _straight_rays(frontal)
    depth = np.arange(-20, 20, 0.02)
    for row, column in ((40, 44), (52, 35), (60, 50)):
        horizontal = rays.columns[0, column] * rays.across + depth[:, None] * rays.along
        points = np.concatenate([horizontal, np.full((len(depth), 1), rays.rows[row, 0])], 1)
        sampled = body.inside(points.T).sum() * 0.02
        assert body.span(rays).length()[row, column] == pytest.approx(sampled, abs=0.05)
        blurred = np.exp(-(((points - body.centre) @ body.matrix.T) ** 2).sum(-1)).sum() * 0.02
        assert body.gaussian_length(rays)[row, column] == pytest.approx(blurred, rel=1e-3)
    window = body.window(rays)
    outside = body.span(rays).length().copy()
    outside[window] = 0
    assert not outside.any()


@pytest.mark.parametrize("frontal", [True, False])
def test_stacks_of_slices_are_seen_where_they_are(frontal):
    body, rays = anatomy.lung(anatomy.LEFT), _straight_rays(frontal)
    window, span = projection.seen(body, rays)
    depth = np.arange(-20, 20, 0.02)
    for row, column in ((40, 52), (60, 48), (30, 44)):
        horizontal = rays.columns[0, column] * rays.across + depth[:, None] * rays.along
        points = np.concatenate([horizontal, np.full((len(depth), 1), rays.rows[row, 0])], 1)
        sampled = body.inside(points.T).sum() * 0.02
        assert sampled > 1
        assert body.span(rays).length()[row, column] == pytest.approx(sampled, abs=0.05)
    length = body.span(rays).length()
    np.testing.assert_allclose(span.length(), length[window], atol=1e-4)
    assert not length[: window[0].start].any(), "above the apex"
    both = projection.hull([body, projection.ellipsoid((8.0, 12.0, 0.0), (3.0, 3.0, 3.0))], rays)
    assert (both.length() >= length).all()
    length[window] = 0
    assert not length.any()


def test_what_remains_of_a_span_is_what_no_cut_covers():
    rng = np.random.default_rng(0)
    near = rng.uniform(0, 10, (4, 200))
    spans = [projection.Span(n, n + rng.uniform(-2, 8, 200)) for n in near]
    depth = np.linspace(-1, 20, 4201)
    inside = [(s.near[:, None] < depth) & (depth < s.far[:, None]) for s in spans]
    expected = (inside[0] & ~inside[1] & ~inside[2] & ~inside[3]).sum(1) * 0.005
    np.testing.assert_allclose(projection.remaining_length(spans[0], spans[1:]), expected, atol=0.03)


@pytest.mark.parametrize("frontal", [True, False])
def test_tubes_project_to_their_volume_and_place(frontal):
    line = np.array([[(-5.0, -4.0, -6.0), (4.0, 3.0, 5.0)]])
    rays = _straight_rays(frontal)
    picture = projection.deposit([projection.tubes(line, (1.2, 0.7), rays.pixel)], rays)
    length = np.linalg.norm(line[0, 1] - line[0, 0])
    assert picture.sum() * rays.pixel**2 == pytest.approx(length * np.pi * 1.2 * 0.7, rel=0.02)
    rows, columns = np.indices(picture.shape)
    centre = (picture * rays.rows).sum() / picture.sum(), (picture * rays.columns).sum() / picture.sum()
    assert centre == pytest.approx((-0.5, -0.5), abs=0.1)


def test_a_study_is_a_function_of_seed_and_index(studies):
    again = make_study(0, 7, PIXELS)
    for one, other in zip(studies[7].radiographs, again.radiographs, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.findings, other.findings)
    assert again.report == studies[7].report
    assert make_study(1, 7, PIXELS).report != again.report or not np.array_equal(
        make_study(1, 7, PIXELS).radiographs[0].image, again.radiographs[0].image
    )
    assert len({study.radiographs[0].image.tobytes() for study in studies}) == len(studies)


def test_resolution_changes_neither_findings_nor_report_nor_geometry(studies):
    index = next(i for i, study in enumerate(studies) if "Mass" in [f.label for f in study.findings])
    large = make_study(0, index, 2 * PIXELS)
    assert large.report == studies[index].report
    for fine, coarse in zip(large.radiographs, studies[index].radiographs, strict=True):
        assert [label for label, _ in fine.boxes] == [label for label, _ in coarse.boxes]
        shrunk = cv2.resize(fine.lungs, coarse.lungs.shape[::-1], interpolation=cv2.INTER_AREA) > 127
        assert (shrunk != (coarse.lungs > 0)).mean() < 0.04


def test_patient_keeps_the_body_between_studies(studies):
    index = next(i for i in range(39) if patient_of(0, i) == patient_of(0, i + 1))
    one, other = studies[index].body, studies[index + 1].body
    assert np.array_equal(one.scale, other.scale) and one.fat == other.fat and one.vessel_seed == other.vessel_seed
    assert one.dome != other.dome


def test_heart_lies_to_the_patients_left(studies):
    for study in studies:
        frontal = study.radiographs[0]
        columns = np.arange(frontal.heart.shape[1])
        lungs = np.flatnonzero(frontal.lungs.any(0))
        middle_of_heart = (frontal.heart.sum(0) * columns).sum() / frontal.heart.sum()
        assert middle_of_heart > (lungs[0] + lungs[-1]) / 2, "the patient's left is the picture's right"


def test_cardiothoracic_ratio_tells_cardiomegaly(studies):
    ratios = {True: [], False: []}
    for study in studies:
        frontal = study.radiographs[0]
        heart, lungs = (np.flatnonzero(mask.any(0)) for mask in (frontal.heart, frontal.lungs))
        enlarged = "Cardiomegaly" in [finding.label for finding in study.findings]
        ratios[enlarged].append(np.ptp(heart) / np.ptp(lungs))
    assert np.median(ratios[False]) < 0.48 and np.median(ratios[True]) > 0.52


def test_lungs_are_darker_than_the_abdomen_and_air_is_black(studies):
    for study in studies:
        for radiograph in study.radiographs:
            image, lungs = radiograph.image.astype(float), radiograph.lungs > 0
            below = image[-4:, image.shape[1] // 2 - 6 : image.shape[1] // 2 + 6]
            assert image[lungs].mean() < below.mean()
            assert 0.1 < lungs.mean() < 0.6


def test_frontal_and_lateral_show_a_finding_at_the_same_height(studies):
    compared = 0
    for study in studies:
        heights = []
        for radiograph in study.radiographs:
            labels = [label for label, _ in radiograph.boxes]
            if abs(radiograph.roll) > 1.0 or len(set(labels)) < len(labels):
                break
            at = {
                label: np.interp(
                    (box[0] + box[2]) / 2 * len(radiograph.rows), np.arange(len(radiograph.rows)), radiograph.rows
                )
                for label, box in radiograph.boxes
                if label in ("Nodule", "Mass") and box[0] > 0 and box[2] < 1
            }
            heights.append(at)
        for label in set.intersection(*map(set, heights)) if len(heights) == 2 else ():
            assert heights[0][label] == pytest.approx(heights[1][label], abs=1.3)
            compared += 1
    assert compared >= 4


def test_a_finding_is_on_its_side_of_the_frontal_picture(studies):
    compared = 0
    for study in studies:
        boxes = dict(study.radiographs[0].boxes)
        lungs = np.flatnonzero((study.radiographs[0].lungs > 0).any(0))
        middle = (lungs[0] + lungs[-1] + 1) / 2 / study.radiographs[0].lungs.shape[1]
        for finding in study.findings:
            if finding.side and finding.label in boxes and finding.label != "Pneumothorax":
                box = boxes[finding.label]
                assert np.sign((box[1] + box[3]) / 2 - middle) == finding.side, finding
                compared += 1
    assert compared >= 10


def test_masks_and_boxes_follow_the_findings(studies):
    for study in studies:
        present = {finding.label for finding in study.findings}
        for radiograph in study.radiographs:
            assert radiograph.image.shape == radiograph.lungs.shape == radiograph.findings.shape
            assert min(radiograph.image.shape) == PIXELS
            assert set(np.unique(radiograph.lungs)) == {0, 255}
            assert {label for label, _ in radiograph.boxes} <= present
            height, width = radiograph.findings.shape
            covered = np.zeros((height, width), bool)
            for label, (y0, x0, y1, x1) in radiograph.boxes:
                assert 0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1
                assert label != "Cardiomegaly" or (y1 - y0) * (x1 - x0) < 0.5  # the heart, and not what is around it
                inside = (slice(round(y0 * height), round(y1 * height)), slice(round(x0 * width), round(x1 * width)))
                covered[inside] = True
                edges = radiograph.findings[inside]
                assert edges[0].any() and edges[-1].any() and edges[:, 0].any() and edges[:, -1].any()
            assert not (radiograph.findings[~covered] > 0).any()
        assert bool(present) == any(radiograph.findings.any() for radiograph in study.radiographs)


def test_labels_are_the_findings(studies):
    for study in studies:
        positive = {name for name, value in zip(LABELS, study.labels, strict=True) if value == schema.PRESENT}
        assert positive == ({finding.label for finding in study.findings} or {"No Finding"})
        assert set(study.labels) <= {schema.PRESENT, schema.ABSENT}
    normal = np.mean([not study.findings for study in studies])
    assert 0.2 < normal < 0.5


_NAMED = {
    "Atelectasis": r"atelecta",
    "Cardiomegaly": r"cardiomegaly|heart|cardiac|cardiothoracic",
    "Consolidation": r"consolidation",
    "Edema": r"edema|vasculature",
    "Effusion": r"effusion|costophrenic|pleural fluid",
    "Mass": r"\bmass\b",
    "Nodule": r"nodul",
    "Pneumothorax": r"pneumothorax",
}
_DENIED = r"\bno\b|\bnot\b|without|normal|sharp|unremarkable"


def test_reports_say_what_is_there_and_deny_only_what_is_not():
    rng = np.random.default_rng(0)
    sides = {1: "left", -1: "right", 0: ""}
    for turn in range(300):
        chosen = rng.choice(FINDINGS, rng.integers(0, 4), replace=False)
        both = {"Cardiomegaly", "Edema"}
        findings = [
            Finding(str(c), 0 if c in both else int(rng.choice((-1, 1))), "lower", 2.3, turn % 3) for c in chosen
        ]
        report = dictate(findings, rng)
        assert report.text.index(report.findings) < report.text.index(report.impression)
        for part in report[:2]:
            assert "{" not in part
            sentences = re.split(r"(?<=[a-z])\. ?", part.lower())
            for label, pattern in _NAMED.items():
                about = [s for s in sentences if re.search(pattern, s)]
                denied = [bool(re.search(_DENIED, s)) for s in about]
                finding = next((f for f in findings if f.label == label), None)
                if finding is None:
                    assert all(denied), (label, about)
                else:
                    assert about and not any(denied), (label, part)
                    assert all(sides[finding.side] in s for s in about), (finding, about)
            assert set(re.findall(r"[\d.]+ [cm]m", part)) <= {"23 mm", "2.3 cm"}, part
    assert "No Finding" not in report.text


def test_report_wording_varies(studies):
    normal = {study.report.findings for study in studies if not study.findings}
    assert len(normal) >= 5


def test_patients_have_one_to_three_studies_in_one_split():
    patients, splits = {}, {}
    for index in range(400):
        patients.setdefault(patient_of(3, index), []).append(index)
        splits.setdefault(split_of(3, index), set()).add(patient_of(3, index))
    assert {len(indices) for indices in patients.values()} == {1, 2, 3}
    assert {split: len(ids) for split, ids in splits.items()} == {"train": 140, "val": 20, "test": 40}
    schema.assert_patients_disjoint({split: map(str, ids) for split, ids in splits.items()})


def test_the_smallest_set_has_three_splits():
    for seed in range(30):
        assert {split_of(seed, index) for index in range(phantom_set.FEWEST_STUDIES)} == set(schema.SPLITS)


def test_built_set_reads_back_as_rendered(directory):
    by_split = _records(directory)
    read = {r["image_id"].decode(): (split, r) for split, split_records in by_split.items() for r in split_records}
    assert len(read) == 2 * STUDIES
    for index in range(STUDIES):
        for record in records(0, index, PIXELS):
            split, there = read[record["image_id"]]
            assert split == split_of(0, index)
            np.testing.assert_array_equal(there["labels"], record["labels"])
            assert there["patient_id"].decode() == record["patient_id"]
            assert schema.PROJECTIONS[there["view"]] == record["view"]
            assert there["report"]["text"].decode() == record["report"]["text"]
            assert there["image"].shape == there["mask"].shape == there["finding_mask"].shape
            assert [label.decode() for label in there["boxes"]["label"]] == [box["label"] for box in record["boxes"]]
            np.testing.assert_array_equal(
                there["mask"][..., 0], cv2.imdecode(np.frombuffer(record["mask"], np.uint8), cv2.IMREAD_UNCHANGED)
            )
    schema.assert_patients_disjoint(
        {split: [r["patient_id"].decode() for r in split_records] for split, split_records in by_split.items()}
    )
    metadata = tfds.builder_from_directory(str(directory)).info.metadata
    assert metadata["label_names"] == list(LABELS) and metadata["short_side"] == PIXELS
    projections = [schema.PROJECTIONS[r["view"]] for r in by_split["train"]]
    assert projections.count("LATERAL") == len(projections) / 2


def test_building_twice_keeps_the_first_and_other_settings_are_refused(directory):
    data_dir = directory.parents[1]
    stamp = (directory / "dataset_info.json").stat().st_mtime_ns
    assert phantom_set.build(data_dir, studies=STUDIES, short_side=PIXELS, progress=False) == directory
    assert (directory / "dataset_info.json").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match='"short_side": 64.*"short_side": 32.*data_dir'):
        phantom_set.build(data_dir, studies=STUDIES, short_side=32, progress=False)
    with pytest.raises(ValueError, match=f"at least {phantom_set.FEWEST_STUDIES} studies.*got 3"):
        phantom_set.build(data_dir, studies=3)


def test_interrupted_build_leaves_no_set_and_can_be_run_again(tmp_path, monkeypatch):
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return records(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(phantom_set, "records", interrupted)
        with pytest.raises(KeyboardInterrupt):
            phantom_set.build(tmp_path, studies=9, short_side=32, progress=False)
    assert not (tmp_path / phantom_set.NAME).exists()
    directory = phantom_set.build(tmp_path, studies=9, short_side=32, progress=False)
    assert sum(map(len, _records(directory).values())) == 18
    assert [path.name for path in sorted(tmp_path.iterdir()) if not path.name.endswith(".lock")] == [phantom_set.NAME]
    assert [path.name for path in directory.parent.iterdir()] == [writer.VERSION]


def test_pictures_are_jpeg_of_quality_95():
    for record in records(0, 3, 32):
        steps = Image.open(io.BytesIO(record["image"])).quantization[0]
        assert (steps[0], max(steps)) == (2, 12), "16 and 121 at quality 50, and less the higher it is"


def test_processes_give_what_one_process_gives_from_an_unguarded_script(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        textwrap.dedent(f"""
        import json, os, sys
        os.sched_getaffinity = lambda pid: {{0, 1}}
        from cxrjax.phantom import phantom_set
        phantom_set.FEW_STUDIES = 0
        phantom_set.build({str(tmp_path / "data")!r}, studies=9, short_side=32, progress=False)
        print(json.dumps(["tensorflow" in sys.modules, "jax" in sys.modules]))
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cxrjax.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True, env=environment
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [False, False]
    assert not re.search("bootstrapping|TensorFlow", done.stderr)
    read = _records(tmp_path / "data" / phantom_set.NAME / writer.VERSION)
    for record in [record for split_records in read.values() for record in split_records]:
        index = int(record["study_id"].decode().rsplit("-", 1)[1])
        same = next(r for r in records(0, index, 32) if r["image_id"] == record["image_id"].decode())
        image = cv2.imdecode(np.frombuffer(same["image"], np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(record["image"][..., 0], image)
