"""A planted space that reads sentences is perfect; one that does not read a word, or does not look, is at chance."""

import re

import numpy as np
import pytest
import scipy.stats

from cxrjax.evals import metrics, run, sentences
from cxrjax.evals.base import FeatureTable, Task
from cxrjax.input import converted_sets
from cxrjax.input import source as sources

TASK = Task("multilabel", labels=("Mass",))
PROMPTS = {"Mass": {"positive": ("A (left|right) mass.", "Mass."), "negative": ("No mass.", "There is no mass.")}}


def judge(reads_no=True, reads_sides=True, looks=True, n=120):
    """Pictures have the axes finding and side; a sentence has what of the two it says and the encoder reads."""
    rng = np.random.default_rng(0)
    present = rng.random(n) < 0.5
    side = np.where(present, np.where(rng.random(n) < 0.5, "left", "right"), "")
    features = np.stack([np.where(present, 1, -1), np.select([side == "left", side == "right"], [1, -1], 0)], axis=1)
    features = features if looks else np.tile([[0.6, 0.8]], (n, 1))

    def embed(said):
        rows = []
        for one in said:
            words = re.findall("[a-z]+", one.lower())
            denied = -1 if reads_no and "no" in words else 1
            rows.append([denied, reads_sides * (("left" in words) - float("right" in words))])
        return np.array(rows, float)

    ids = np.array([f"i{k}" for k in range(n)])
    table = FeatureTable(features.astype(np.float32), present[:, None].astype(np.int8), ids, ids)
    given = {"embed": embed, "sides": {"Mass": side}, "prompts": PROMPTS, "resamples": 40}
    return sentences.sentences(table, TASK, ("Mass",), **given), present, side


def test_a_space_that_reads_is_perfect():
    result, present, side = judge()
    for name in ("negation_present", "negation_absent", "laterality_left", "laterality_right"):
        assert result.metrics[f"{name}/Mass"][:3] == result.metrics[name][:3] == (1, 1, 1)
    assert result.metrics["laterality_left"].n == (side == "left").sum()
    assert result.metrics["negation_absent"].n == (~present).sum()
    assert result.predictions["value/negation_present/Mass"].isna().sum() == (~present).sum()


@pytest.mark.parametrize(
    ("broken", "names"),
    [("reads_no", ["negation"]), ("reads_sides", ["laterality"]), ("looks", ["negation", "laterality"])],
)
def test_what_is_not_read_or_not_looked_at_is_at_chance(broken, names):
    result, *_ = judge(**{broken: False})
    for name in names:
        pair = {"negation": ("present", "absent"), "laterality": ("left", "right")}[name]
        assert sum(result.metrics[f"{name}_{one}"].value for one in pair) == pytest.approx(1)
    kept = {"reads_no": "laterality_left", "reads_sides": "negation_present"}.get(broken)
    assert kept is None or result.metrics[kept].value == 1


def test_the_spread_is_that_of_the_aurocs_of_single_statements():
    result, present, side = judge()
    areas = []
    for left, right in ((1, 0), (0, 1), (0, 0)):  # what each statement adds for the side of a finding
        score = (
            np.where(present, 1, -1)
            + np.where(side == "left", left - right, 0)
            - np.where(side == "right", left - right, 0)
        )
        areas.append(metrics.auroc(present.astype(int), score))
    assert list(result.details["labels"]["Mass"]["auroc"].values()) == pytest.approx(areas)
    assert result.metrics["prompt_spread"].value == pytest.approx(np.std(areas))
    assert result.details["labels"]["Mass"]["cosine_of_statement_and_denial"] == pytest.approx(-1)


def test_severity_is_scipys_rank_correlation_also_where_patients_are_drawn_again():
    rng = np.random.default_rng(3)
    margin, area = rng.integers(0, 6, 40).astype(float), rng.random(40).round(1)
    weights = np.stack([np.ones(40, int), rng.integers(0, 3, 40)], axis=1)
    found = sentences.spearman(margin, area, weights)
    for column, drawn in zip(weights.T, found, strict=True):
        expected = scipy.stats.spearmanr(np.repeat(margin, column), np.repeat(area, column)).statistic
        assert drawn == pytest.approx(expected, abs=1e-9)

    names, ids = ("Mass", "Nodule"), np.array([f"i{k}" for k in range(60)])
    sizes = np.concatenate([rng.permutation(50) + 1, np.zeros(10)])
    directions = np.stack([np.where(sizes > 0, sizes, -20.0), np.full(60, 30.0)], axis=1)
    features = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    labels = np.stack([sizes > 0, ids == "i3"], axis=1).astype(np.int8)
    areas = {"Mass": sizes / 100, "Nodule": (ids == "i3") * 0.1}
    result = sentences.sentences(
        FeatureTable(features.astype(np.float32), labels, ids, ids),
        Task("multilabel", labels=names),
        names,
        embed=lambda said: np.array([[-1.0 if "No" in one else 1.0, 0.0] for one in said]),
        sides={},
        areas=areas,
        prompts={name: {"positive": (f"{name}.",), "negative": (f"No {name}.",)} for name in names},
        resamples=40,
    )
    assert result.metrics["severity/Mass"][:3] == pytest.approx((1, 1, 1)) and result.metrics["severity"].n == 50
    assert "severity/Nodule" not in result.metrics
    assert any("severity/Nodule has no number: 1 patients" in note for note in result.notes)


def test_areas_are_the_sums_of_boxes(phantom_dir):
    test = sources.select(converted_sets.open_set("phantom", phantom_dir), "test")
    found = sentences.areas_of(test)
    row = next(row for row in range(len(test)) if len(test[row]["boxes"]["label"]))
    label = test[row]["boxes"]["label"][0]
    drawn = zip(test[row]["boxes"]["label"], test[row]["boxes"]["bbox"], strict=True)
    expected = sum((y1 - y0) * (x1 - x0) for one, (y0, x0, y1, x1) in drawn if one == label)
    assert found[label][row] == pytest.approx(expected) and len(found[label]) == len(test)


def test_pairs_of_sides():
    every = [
        "A left mass.",
        "A right mass.",
        "Left and right effusion.",
        "Right apical line.",
        "No side, not leftover.",
    ]
    assert sentences.sided(every) == [
        ("A left mass.", "A right mass."),
        ("Left apical line.", "Right apical line."),
    ]


def test_few_patients_are_named():
    result, *_ = judge(n=30)
    said = r"^laterality_\w+/Mass has no number of its own: \d patients have it"
    assert any(re.search(said, note) for note in result.notes)
    assert "laterality_left" in result.metrics and "negation_present/Mass" in result.metrics
    few, *_ = judge(n=6)
    assert "negation_present" in few.metrics and "negation_present/Mass" not in few.metrics
    table = FeatureTable(np.ones((3, 2), np.float32), np.full((3, 1), -2, np.int8), *2 * [np.array(list("abc"))])
    with pytest.raises(ValueError, match="no test picture is known to have, or not to have, any of Mass"):
        sentences.sentences(table, TASK, ("Mass",), embed=lambda said: np.ones((len(said), 2)), sides={})


def test_sides_of_the_phantom_are_those_of_its_reports(phantom_dir):
    """Reports are true to the findings, and name the patient's side."""
    train = sources.select(converted_sets.open_set("phantom", phantom_dir), "train", projections=("PA", "AP"))
    sides, told = sentences.sides_of(train), 0
    for label in ("Mass", "Pneumothorax", "Nodule", "Consolidation"):
        for row, side in enumerate(sides.get(label, ())):
            about = [
                one for one in re.split(r"(?<=\.)\s", train[row]["report"]["findings"].lower()) if label.lower() in one
            ]
            named = {word for one in about if " no " not in f" {one}" for word in re.findall("left|right", one)}
            if side and len(named) == 1:
                told += 1
                assert named == {side}, (label, row, about)
    assert told > 5


def test_a_task_of_classes_is_refused(phantom_dir):
    entry = {"judge": "sentences", "set": "phantom", "data_dir": str(phantom_dir)}
    assert run.check(entry | {"task": {"kind": "multilabel"}})["task"]["name"] == "all"
    with pytest.raises(ValueError, match="label by label, in a task of kind 'multilabel', not 'binary'"):
        run.check(entry | {"task": {"kind": "binary", "positive": "Mass"}})
