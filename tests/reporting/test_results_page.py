import base64
import html
import json
import re
import shutil
import subprocess
import types
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pandas
import pytest

from cxrjax import main
from cxrjax.evals import metrics
from cxrjax.evals.base import Interval
from cxrjax.evals.predictions import LEAST_SCORE, choose, quality
from cxrjax.input import converted_sets
from cxrjax.input import source as sources
from cxrjax.reporting import by_head, charts, collect, compare, examples, page, results_page, sections
from tests import runs

LABELS = ("Mass", "<b>Edema|</b>")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def save(folder, table, *, judge="probe", encoder="spcl", reference=False, step=6, config=None, **entry):
    """What `run.evaluate` leaves of one evaluation."""
    name = f"findings-{encoder}" if reference else "findings"
    place = folder / "evals" / name / str(step)
    place.mkdir(parents=True, exist_ok=True)
    table.to_parquet(place / "predictions.parquet")
    task = {"kind": "multilabel", "name": "all", "labels": list(LABELS)}
    full = {"set": "phantom", "judge": judge, "task": task, "projections": "PA,AP", "fraction": 1.0, **entry}
    results = {
        "name": name,
        "encoder": {"name": encoder, "step": step, "digest": f"{encoder}-{0 if reference else folder}"},
        "entry": full,
        "seed": 0,
        "metrics": {"auroc": {"value": 0.5, "low": None, "high": None, "n": len(table)}},
        "notes": ["a note & more"],
    }
    (place / "results.json").write_text(json.dumps(results))
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"method": "spcl", "data": {"sets": "phantom"}, **config}))


def predictions(seed=0, ids=None, skill=1.0):
    ids = np.array([f"i{k}" for k in range(40)] if ids is None else ids)
    generator = np.random.default_rng(99)
    targets = (generator.random((len(ids), 2)) < 0.5).astype(np.int8)
    logits = np.random.default_rng(seed).normal(size=targets.shape) + skill * targets
    patients = np.array([f"p{k // 2}" for k in range(len(ids))])
    return metrics.prediction_table(LABELS, targets, 1 / (1 + np.exp(-logits)), patients, ids)


def test_runs_that_differ_in_seed_and_share_are_one_subject_and_references_count_once(tmp_path):
    for seed in (0, 1):
        for share in (0.1, 1.0):
            config = {"seed": seed, "data": {"sets": "phantom", "fraction": share}}
            save(tmp_path / "grid" / f"{seed}-{share}", predictions(seed), judge="classify", config=config)
    for name in ("other", "third"):
        save(tmp_path / name, predictions(), judge="classify", config={"model": name})
        save(tmp_path / name, predictions(), judge="classify", encoder="pixels-32", reference=True, step=0)
    (question,), notes = collect.collect(f"ours={tmp_path / 'grid'},{tmp_path / 'other'},{tmp_path}/thi*")
    assert notes == [] and question.kind == "multilabel"
    assert [run.subject for run in question.runs] == ["ours"] * 4 + ["other", "pixels-32", "third"]
    assert [(run.seed, run.fraction) for run in question.runs[:4]] == [(0, 0.1), (0, 1.0), (1, 0.1), (1, 1.0)]
    (together,), _ = collect.collect(f"same={tmp_path / 'other'},same={tmp_path / 'third'}")
    assert [run.subject for run in together.runs] == ["same", "pixels-32", "same"]
    (apart,), _ = collect.collect(f"all={tmp_path}")
    assert {run.subject for run in apart.runs} == {"all/grid/0-0.1", "all/other", "all/third", "pixels-32"}


def test_the_page_says_what_shortcuts_explain(tmp_path):
    save(tmp_path / "a", predictions(skill=3.0), set="clinic")
    save(tmp_path / "a", predictions(1, skill=0.7), encoder="metadata", reference=True, step=0, set="clinic")
    save(tmp_path / "b", predictions(2, skill=3.0), set="clinic")
    (question,), _ = collect.collect(f"ours={tmp_path / 'a'},theirs={tmp_path / 'b'}")
    options = sections.Options("", 50, 0, 0, "", str(tmp_path), 0.5)
    said = [part.text for part in results_page.section(question, options).parts if isinstance(part, page.Text)]
    for name in ("ours", "theirs"):
        assert any(f"the AUROC of {name} lies above chance" in text and "border" in text for text in said)


def test_other_questions_stand_apart_and_the_finished_step_counts(tmp_path):
    for step in (6, 12, 100):
        save(tmp_path / "a", predictions(), step=step)
    assert collect.collect(str(tmp_path)).questions[0].runs[0].folder.name == "100"
    (tmp_path / "a" / "finished.json").write_text('{"step": 12}')
    save(tmp_path / "b", predictions(), judge="knn")
    save(tmp_path / "c", predictions(), layers=0, projections=["AP", "PA"], limit=0)
    save(tmp_path / "e", predictions(), layers=4)
    (tmp_path / "d" / "evals" / "findings" / "3").mkdir(parents=True)
    (tmp_path / "d" / "evals" / "findings" / "3" / "results.json").write_text("{}")
    found, notes = collect.collect(str(tmp_path))
    subjects = {question.name: [run.subject.rpartition("/")[2] for run in question.runs] for question in found}
    of_probes = {"phantom · all · probe": ["a", "c"], "phantom · all · probe · layers=4": ["e"]}
    assert subjects == of_probes | {"phantom · all · knn": ["b"]}
    assert {run.folder.name for question in found for run in question.runs} == {"12", "6"}
    (note,) = notes
    assert "d/evals/findings/3/results.json was left out: it lacks encoder, entry" in note
    with pytest.raises(ValueError, match="'.*nowhere' has no evaluation"):
        collect.collect(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="a results page needs runs"):
        collect.collect("")


def test_questions_of_one_set_task_and_judge_are_named_by_what_they_differ_in(tmp_path):
    save(tmp_path / "a", predictions())
    save(tmp_path / "b", predictions(), limit=500)
    save(tmp_path / "c", predictions(), projections="PA")
    save(tmp_path / "d", predictions(), judge="knn", task={"kind": "multilabel", "name": "all", "labels": ["Mass"]})
    save(tmp_path / "e", predictions(), judge="knn", task={"kind": "multiclass", "name": "all", "labels": ["Mass"]})
    save(tmp_path / "f", predictions(), judge="retrieve")
    assert [question.name for question in collect.collect(str(tmp_path)).questions] == [
        "phantom · all · probe · limit=none · projections=AP,PA",
        "phantom · all · probe · limit=500 · projections=AP,PA",
        "phantom · all · probe · limit=none · projections=PA",
        "phantom · all · knn · task.kind=multilabel",
        "phantom · all · knn · task.kind=multiclass",
        "phantom · all · retrieve",
    ]


def test_evaluations_of_older_versions_are_those_of_today(tmp_path):
    """Keys that have other names now, and the keys of all judges in the entry of one."""
    save(tmp_path / "new", predictions(), judge="knn", temperature=0.07, config={"data": {"projections": "PA"}})
    others = {"split": "test", "at": [1, 5], "classes": [], "per_class": 200, "solver": "ridge", "confidence": 0.0}
    save(tmp_path / "old", predictions(1), judge="knn", temperature=0.07, config={"data": {"views": "PA"}}, **others)
    path = tmp_path / "old" / "evals" / "findings" / "6" / "results.json"
    results = json.loads(path.read_text())
    results["entry"]["views"] = results["entry"].pop("projections")
    path.write_text(json.dumps(results))
    (question,), notes = collect.collect(f"ours={tmp_path}")
    assert notes == [] and [run.subject for run in question.runs] == ["ours", "ours"]
    assert all(run.results["entry"]["projections"] == "PA,AP" for run in question.runs)
    (tmp_path / "old" / "config.json").write_text("{")
    (question,), notes = collect.collect(f"ours={tmp_path}")
    assert len(question.runs) == 1 and "old were left out: " in notes[0] and "config.json is damaged" in notes[0]


def test_what_a_judge_says_is_part_of_the_question_tells_questions_apart(tmp_path):
    """Retrieval at another k or on another split; the share of a trained head is its run's, else the judge's."""
    asked = {"judge": "retrieve", "split": "test", "at": [1, 5], "classes": [], "per_class": 200}
    save(tmp_path / "a", predictions(), **asked)
    save(tmp_path / "b", predictions(), **asked)
    save(tmp_path / "c", predictions(), **asked | {"at": [1, 10]})
    save(tmp_path / "d", predictions(), **asked | {"split": "val"})
    found = collect.collect(str(tmp_path)).questions
    assert sorted(len(question.runs) for question in found) == [1, 1, 2]
    for judge, share in (("classify", 0.1), ("segment", 0.1), ("detect", 0.1), ("probe", 0.5), ("gone", 0.5)):
        folder = tmp_path / "heads" / judge
        save(folder, predictions(), judge=judge, fraction=0.5, config={"data": {"fraction": 0.1}})
        ((run,),) = [question.runs for question in collect.collect(str(folder)).questions]
        assert run.fraction == share


def test_what_was_judged_twice_counts_once(tmp_path):
    """A run that was judged along its training and afterwards, but not another seed of its head or share of labels."""
    for name, more in (("a", {}), ("b", {"bootstrap": 50}), ("c", {"fraction_seed": 1}), ("d", {})):
        save(tmp_path / name, predictions(), **more)
        file = tmp_path / name / "evals" / "findings" / "6" / "results.json"
        results = json.loads(file.read_text())
        results["encoder"]["digest"], results["seed"] = "one", int(name == "d")
        file.write_text(json.dumps(results))
    given = ",".join(f"ours={tmp_path / name}" for name in "abcd")
    (question,) = collect.collect(given).questions
    assert [run.workdir.name for run in question.runs] == ["a", "c", "d"]


def test_long_tables_are_folded_and_the_rest_is_open():
    rows = [[f"row {k}", k] for k in range(page.LONG + 1)]
    text = page.to_html("t", "a", [page.Table("Long", ["a", "b"], rows), page.Table("Short", ["a", "b"], rows[:-1])])
    assert text.count("<details>") == 1 and "<summary><h3>Long</h3> 41 rows</summary>" in text
    assert text.index("</details>") < text.index("<h3>Short</h3>")


def test_what_is_the_same_for_all_has_no_column_of_differences(tmp_path):
    ids, patients = (np.array([f"{letter}{k}" for k in range(12)]) for letter in "ip")
    for name, own in (("a", 0.2), ("b", 0.6)):
        values = {"value/pointing": own + np.arange(12) / 100, "value/pointing_centre": np.arange(12) / 12}
        table = pandas.DataFrame({"image_id": ids, "patient_id": patients, **values})
        save(tmp_path / name, table, judge="ground", task={"name": "maps"})
    (question,) = collect.collect(f"a={tmp_path / 'a'},b={tmp_path / 'b'}").questions
    found = {1.0: compare.compare("", question.tables(1.0), "", 50)}
    table = sections.comparisons(found, {1.0: question.tables(1.0)})[0]
    assert table.columns == [
        "subject",
        "runs",
        "pointing",
        "pointing, difference",
        "pointing_centre",
        "pointing, p (Holm)",
    ]
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_heads_of_one_encoder_are_compared_on_the_same_patients(tmp_path):
    heads = {"probe": predictions(1, skill=2), "knn": predictions(2), "attentive": predictions(3, skill=3)}
    for judge, table in heads.items():
        save(tmp_path / judge, table, judge=judge)
    save(tmp_path / "ridge", predictions(4), solver="ridge")
    save(tmp_path / "other", predictions(5))
    save(tmp_path / "wordy", predictions(5), judge="sentences")
    save(tmp_path / "few", predictions(6, ids=[f"i{k}" for k in range(30)]))
    save(tmp_path / "few_knn", predictions(7), judge="knn")
    given = [f"ours={tmp_path / name}" for name in (*heads, "ridge", "wordy")] + [f"other={tmp_path / 'other'}"]
    questions = collect.collect(",".join(given)).questions
    assert [question.name for question in questions][3] == "phantom · all · probe · solver=ridge"
    options = sections.Options("", 100, 0, 0, "", "", 0.5)
    found = by_head.sections(questions, options)
    assert list(found) == ["phantom · all · heads"]
    (ours,) = found["phantom · all · heads"].facts["comparison"].values()  # the other has one head
    expected = compare.compare("multilabel", {name: [table] for name, table in heads.items()}, "probe", 100, 0)
    for head in ("knn", "attentive"):
        assert ours["differences"][head]["auroc"] == expected.differences[head]["auroc"]
    assert list(ours["metrics"]) == ["probe", "probe · solver=ridge", "attentive", "knn"]
    table = found["phantom · all · heads"].parts[-1]
    assert [row[:3] for row in table.rows] == [["ours", head, 1] for head in ours["metrics"]]
    assert table.rows[0][4] is None and table.rows[3][4].interval == ours["differences"]["knn"]["auroc"]
    few = collect.collect(",".join(f"few={tmp_path / name}" for name in ("few", "few_knn"))).questions
    (section,) = by_head.sections(few, options).values()
    assert "few: its heads cannot be compared: predictions of different pictures" in section.parts[1].sentences[0]


def test_tables_show_sort_and_escape_their_cells():
    table = page.Table(
        "T|",
        ["a|b", "<i>"],
        [["<b>x|y</b>", Interval(0.5, 0.4, 0.6, 9)], [None, page.Gain(Interval(-0.25, -0.3, -0.2, 9))]],
    )
    text = page.to_html("t", "a", [page.Heading("h & h", 2, "short"), table])
    assert "<b>x" not in text and "&lt;b&gt;x|y&lt;/<wbr>b&gt;" in text
    assert '<td class="number" data-value="0.5">0.500 <small>(0.400 to 0.600)</small></td>' in text
    assert '<td class="number clear" data-value="-0.25">-0.250 <small>(-0.300 to -0.200)</small></td>' in text
    for low, high, clear in ((-0.1, 0.2, False), (0.0, 0.2, False), (0.01, 0.2, True), (-0.2, 0.0, False)):
        assert page.shown(page.Gain(Interval(0.1, low, high, 3))).clear is clear
    lines = page.to_markdown("t", "a", [table]).splitlines()
    assert r"| a\|b | &lt;i&gt; |" in lines and r"| &lt;b&gt;x\|y&lt;/b&gt; | 0.500 (0.400 to 0.600) |" in lines
    assert page.shown(float("nan")) == ("", None, False) and page.shown(12345)[0] == "12,345"


def test_charts_are_well_formed_and_stay_in_their_frame():
    wild = charts.Curve("<wild & long>", [0.0, 0.5, 1.0], [0.0, np.nan, 1.0], [0.0, np.nan, 0.9], [0.1, np.nan, 1.0])
    for options in ({"diagonal": True}, {"points": True}):
        drawn = charts.curves([wild], "x", "y", **options)
        root = ElementTree.fromstring(f"<div>{drawn}</div>".replace("<b>", ""))
        assert "nan" not in drawn
        points = [pair for line in root.iter() for pair in line.get("points", "").split()]
        for x, y in (map(float, pair.split(",")) for pair in points):
            assert 0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT
    shares = charts.curves(
        [charts.Curve("a", [0.01, 0.1, 1], [0.5, 0.6, 0.7])], "x", "y", (0.01, 1), points=True, log_x=True
    )
    assert ">1 %<" in shares and ">10 %<" in shares and ">100 %<" in shares
    centres = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', shares)]
    assert centres[1] - centres[0] == pytest.approx(centres[2] - centres[1], abs=0.2)
    rows = charts.rows(["a & b", "c"], [(0.1, 0.0, 0.2), (np.nan,) * 3], "x", 0.0)
    assert ElementTree.fromstring(rows).tag.endswith("svg") and rows.count("<circle") == 1
    right = re.search(r'<text x="([\d.]+)"[^>]*>random<', charts.rows(["random"], [(0.1, 0.0, 0.2)], "x", 0.0))
    assert right and float(right[1]) > 6 * 7.5, "its letters are 7.5 px wide on average, and it ends there"
    assert charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1] and charts.ticks(0.5, 0.5) == [0.5]


def test_examples_are_the_best_middle_and_worst_pictures():
    found = np.array([0.3, np.nan, 0.9, 0.1, 0.5, 0.7, 0.2])
    assert choose(found, 2) == {"best": [2, 5], "median": [4, 0], "worst": [6, 3]}
    assert choose(found[:3], 2) == {"best": [2], "median": [], "worst": [0]}
    table = predictions().head(4)
    table["target/Mass"], table["score/Mass"] = [1, 0, -1, 1], [0.5, 0.5, 0.0, 0.5]
    table["target/<b>Edema|</b>"], table["score/<b>Edema|</b>"] = [1, 1, -1, -1], [0.5, 0.25, 0.0, 0.9]
    value, what = quality(table)
    assert value[[0, 1, 3]] == pytest.approx([np.log(0.5), np.log(0.5 * 0.25) / 2, np.log(0.5)]) and np.isnan(value[2])
    assert what == "the probability of its labels"
    boxes = pandas.DataFrame({"true_boxes": [[[0.0, 0.0, 0.5, 0.5]], [], [[0, 0, 1, 1]]], "scores": [[0.9], [0.9], []]})
    boxes["boxes"] = [[[0.0, 0.0, 0.5, 1.0]], [[0, 0, 1, 1]], []]
    np.testing.assert_allclose(quality(boxes)[0], [0.5, np.nan, 0.0])
    for score, overlap in ((LEAST_SCORE, 0.5), (LEAST_SCORE - 0.01, 0.0)):
        assert quality(boxes.assign(scores=[[score], [0.9], []])).values[0] == overlap


def test_what_readers_and_models_marked_is_drawn_in_place():
    picture = np.full((60, 90), 100, np.uint8)
    mask = np.zeros((50, 50, 1), np.uint8)
    mask[10:20, 30:40] = 255
    example = {"image": cv2.imencode(".png", picture)[1].tobytes()}
    row = {"overlay/mask": cv2.imencode(".png", mask)[1].tobytes()}
    row |= {"boxes": [[0.5, 0.5, 1.0, 0.75], [0.0, 0.0, 0.2, 0.2]], "scores": [0.8, 0.1]}

    def drawn(row, px=100):
        return cv2.imdecode(np.frombuffer(examples.draw(example, row, px), np.uint8), cv2.IMREAD_COLOR)

    marked = (drawn(row) == examples.FOUND).all(axis=2)
    assert marked[20, 60:80].all() and marked[20:40, 60].all()  # the mask, twice as large
    # 90 wide at height 60 is 150 at 100, of which 25 are cut off: the box is from 50 to 88 and from 50 down.
    assert marked[50, 50:88].all() and marked[60:99, 50].all()
    assert not marked[:18].any()  # the second box has too small a score
    named = drawn(row | {"labels": ["mass", "nodule"]})
    tag = named[34:50, 50:88]
    assert (tag == examples.FOUND).all(axis=2).any() and (tag < 60).all(axis=2).any(), "its name stands on the box"
    heat = drawn({"overlay/map": [[0.0, 1.0], [0.0, 0.0]]})
    assert heat[10, 90].astype(int).sum() != heat[90, 10].astype(int).sum()
    assert (drawn({}) == 100).all()


@pytest.fixture(scope="module")
def written(phantom_dir, tmp_path_factory):
    """(folder of a report of three subjects on phantoms, config, tables of the first two)."""
    folder = tmp_path_factory.mktemp("report")
    converted = converted_sets.open_set("phantom", phantom_dir)
    ids = [i for split in ("train", "val", "test") for i in sources.select(converted, split).table["image_id"]]
    tables = [predictions(seed, ids, skill) for seed, skill in ((0, 0.2), (1, 1.5), (2, 1.5))]
    for share in (0.1, 1.0):
        save(folder / f"ours-{share}", tables[1], fraction=share, config={"seed": 3})
        save(folder / f"again-{share}", tables[2], fraction=share, config={"seed": 4})
    save(folder / "base", tables[0], config={"seed": 0})
    groups = ["North" if k % 3 else "South" for k in range(len(ids))]
    pandas.DataFrame({"image_id": ids, "hospital": groups}).to_csv(folder / "more.csv", index=False)
    ours = ",".join(f"ours={folder / name}" for name in ("ours-0.1", "ours-1.0", "again-0.1", "again-1.0"))
    config = runs.config("report", "", runs=f"base={folder / 'base'},{ours}", resamples=40, examples=1)
    config.data_dir, config.attributes = str(phantom_dir), str(folder / "more.csv")
    assert results_page.write(config, folder / "out") == folder / "out" / "report.html"
    return folder / "out", config, tables


def test_a_report_says_the_same_in_three_forms_and_needs_nothing_beside_it(written):
    folder, _, tables = written
    facts = json.loads((folder / "report.json").read_text())["phantom · all · probe"]
    expected = compare.compare("multilabel", {"base": tables[:1], "ours": tables[1:]}, resamples=40)
    gain = expected.differences["ours"]["auroc"]
    assert facts["comparison"]["1"]["differences"]["ours"]["auroc"] == pytest.approx(gain._asdict())
    assert facts["comparison"]["0.1"]["metrics"]["ours"]["auroc"]["n"] == len(tables[0])
    assert {group["value"] for group in facts["groups"]["ours"]} >= {"North", "South"}
    check = facts["labels"]["Mass"]["base"]["delong"]["value"]
    assert check == pytest.approx(metrics.auroc(tables[0]["target/Mass"], tables[0]["score/Mass"]))
    assert facts["labels"]["Mass"]["ours"]["delong"] is None  # of two runs
    assert set(facts["calibration"]["ours"]["metrics"]) >= {"ece", "brier/Mass"}
    assert "sensitivity@specificity=0.9" in facts["operating_points"]["base"]["Mass"]
    text, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for said in (f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})", "Subgroups", "Calibration", "a note &"):
        assert said in markdown and said.replace("&", "&amp;") in re.sub("</?small>", "", text)
    ece = facts["calibration"]["base"]["metrics"]["ece/Mass"]["value"]
    by_label = markdown.partition("**Calibration by label**")[2]
    rows = re.findall(r"^\|.*", markdown.partition("**Labels**")[2], re.M)[2:6]
    assert [row.split(" | ")[1] for row in rows] == ["base", "ours", "base", "ours"], "by label"
    assert f"| Mass | base | {len(tables[0])} | {ece:.3f} (" in by_label
    assert re.search("<h3>Labels</h3><p>DeLong's[^<]*</p><div[^>]*><table", html.unescape(text)), (
        "explained, then shown"
    )
    assert re.search("<td>[^<]*<wbr>", text), "a path breaks between folders"
    assert "In short" in markdown and f"Above base, and that is real: ours by {gain.value:+.3f}" in markdown
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert addresses and all(one.startswith(("data:", "#")) for one in addresses) and "<b>Edema" not in text
    pictures = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    assert len(pictures) == 6
    for data in pictures:
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert decoded.shape == (examples.PX, examples.PX, 3) and decoded.std() > 5
    for drawn in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawn)


def test_a_reference_can_be_named_and_what_cannot_be_compared_is_said(written, tmp_path):
    _, config, tables = written
    config = config.copy_and_resolve_references()
    save(tmp_path / "fewer", tables[0][1:])
    config.update({"runs": f"{config.runs.split(',')[0]},fewer={tmp_path / 'fewer'}", "resamples": 5})
    options = types.SimpleNamespace(workdir=str(tmp_path / "out"), distributed=False, coordinator=None, dry_run=False)
    main.main(config, "report", options)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "no paired differences at 100% of the labels: predictions of different pictures" in text
    assert "As saved by each run" in text
    config.reference = "nobody"
    with pytest.raises(ValueError, match="'nobody' is not among the subjects: base, fewer"):
        results_page.write(config, tmp_path / "out")


CHECK = """
window.addEventListener('load', function () {
  var wrong = [];
  document.querySelectorAll('img').forEach(function (one) {
    if (!one.complete || !one.naturalWidth) wrong.push('picture');
  });
  document.querySelectorAll('table').forEach(function (table) {
    if (table.scrollWidth > table.parentNode.clientWidth) wrong.push('clipped');
    Array.from(table.tHead.rows[0].cells).forEach(function (head, column) {
      [1, -1].forEach(function (sign) {
        head.querySelector('button').click();
        var cells = Array.from(table.tBodies[0].rows).map(function (row) { return row.cells[column]; });
        var known = cells.filter(function (cell) { return cell.dataset.value !== undefined; });
        var numbers = known.map(function (cell) { return Number(cell.dataset.value); });
        for (var i = 1; i < numbers.length; i++) if (sign * (numbers[i] - numbers[i - 1]) < 0) wrong.push('order');
        for (i = 0; i < known.length; i++) if (cells[i] !== known[i]) wrong.push('unknown first');
        if (!head.getAttribute('aria-sort')) wrong.push('unsorted');
      });
    });
  });
  document.body.dataset.checked = document.querySelectorAll('table').length + ' tables, '
    + document.querySelectorAll('img').length + ' pictures, wrong: ' + wrong.join(' ');
});
"""


def opened(text, folder):
    """(what CHECK found, what the console said) of a page in headless Chromium."""
    path = folder / "page.html"
    path.write_text(text.replace("<title>", f"<script>{CHECK}</script><title>", 1))
    options = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking dump-dom"
    options += " disable-component-update disable-sync disable-dev-shm-usage enable-logging=stderr window-size=1280,900"
    command = [
        CHROMIUM,
        *(f"--{one}" for one in options.split()),
        f"--user-data-dir={folder / 'profile'}",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r'data-checked="([^"]*)"', done.stdout)
    return found and found[1], [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_opens_without_an_error_shows_its_pictures_and_sorts(written, tmp_path):
    text = (written[0] / "report.html").read_text()
    tables = len(re.findall("<table[ >]", text))
    assert tables >= 5
    assert opened(text, tmp_path) == (f"{tables} tables, 6 pictures, wrong: ", [])
    # A broken page must be seen to be broken.
    broken = text.replace('src="data:image/png;base64,', 'src="data:image/png;base64,AAAA', 1)
    broken = broken.replace("return sign * order", "return 0").replace("</body>", "<script>nowhere()</script></body>")
    found, console = opened(broken, tmp_path)
    assert "picture" in found and "order" in found and "nowhere is not defined" in console[0]
