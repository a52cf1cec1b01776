"""Errors of groups at one threshold: against counting by hand, and a planted group whose scores are shifted."""

import types

import numpy as np
import pandas
import pytest

from cxrjax.evals import labelled, metrics
from cxrjax.evals.base import Interval, Targets
from cxrjax.reporting import by_group, gaps, subgroups


def judged(n=400, shift=1.5):
    """Scores of AP pictures lie `shift` higher, with and without the finding, so each view has the same AUROC."""
    rng = np.random.default_rng(0)
    ap, women = rng.random(n) < 0.5, rng.random(n) < 0.5
    targets = (rng.random((n, 1)) < 0.4).astype(np.int8)
    scores = rng.normal(size=(n, 1)) + 2 * targets + shift * ap[:, None]
    ids = np.array([f"i{k}" for k in range(n)])
    known = pandas.DataFrame({"image_id": ids, "view": np.where(ap, "AP", "PA"), "sex": np.where(women, "F", "M")})
    known.loc[:9, "sex"] = "unknown"
    table = metrics.prediction_table(("Mass",), targets, scores, np.array([f"p{k}" for k in range(n)]), ids)
    return table, known.sample(frac=1, random_state=0)


def test_a_gap_is_that_of_the_confusion_matrices():
    table, known = judged()
    found = {gap.value: gap for gap in gaps.gaps(table, known, {"Mass": 1.7}, resamples=50)}
    assert set(found) == {"AP", "PA", "F", "M"}
    rows = known.set_index("image_id").loc[table["image_id"]]
    target, called = table["target/Mass"].to_numpy() == 1, table["score/Mass"].to_numpy() >= 1.7

    def rates(group):
        missed = (group & target & ~called).sum() / (group & target).sum()
        return missed, (group & ~target & called).sum() / (group & ~target).sum()

    for attribute, pair in (("view", ("AP", "PA")), ("sex", ("F", "M"))):
        (fnr, fpr), (other_fnr, other_fpr) = (rates((rows[attribute] == value).to_numpy()) for value in pair)
        gap, back = (found[value] for value in pair)
        expected = (1 - fnr, 1 - fpr, fnr - other_fnr, fpr - other_fpr)
        assert [one.value for one in gap[4:]] == pytest.approx(expected)
        assert back.fnr_gap.value == pytest.approx(-gap.fnr_gap.value) and back.fnr_gap.high == -gap.fnr_gap.low


def test_a_shift_between_views_is_found_where_the_auroc_sees_none():
    table, known = judged()
    views = known[["image_id", "view"]]
    ap, pa = gaps.gaps(table, views, {"Mass": 1.7}, resamples=100)
    assert pa.fnr_gap.low > 0.2 and ap.fpr_gap.low > 0.2 and ap.fnr_gap.high < 0
    within = subgroups.groups(table, views, resamples=100)[0]
    assert within.gap.low < 0 < within.gap.high
    said = gaps.widest([ap, pa])
    assert "Missed more often than others most: Mass in view PA, by" in said
    assert "Called ill for nothing more often than others most: Mass in view AP, by" in said
    assert said.endswith("These are the widest of 2 gaps, so by chance they look wider than they are.")
    unclear = Interval(0.1, -0.1, 0.3, 9)
    even = gaps.gaps(*judged(shift=0.0), {"Mass": 1.0}, resamples=100)
    assert gaps.widest([gap._replace(fnr_gap=unclear, fpr_gap=unclear) for gap in even]) == ""


def test_a_page_shows_the_gaps_of_runs_that_fixed_thresholds(monkeypatch):
    table, known = judged()
    known.loc[known.index[:12], "view"] = "LATERAL"
    told, asked = subgroups.Attributes(known[["image_id", "view"]], []), []
    monkeypatch.setattr(by_group, "set_of", lambda judged, options: None)
    monkeypatch.setattr(subgroups, "attributes", lambda *given: asked.append(given) or told)
    runs = [types.SimpleNamespace(subject="ours", results={"details": {"score_thresholds": {"Mass": 1.7, "Gone": 0}}})]
    runs.append(types.SimpleNamespace(subject="old", results={}))
    question = types.SimpleNamespace(runs=runs, kind="multilabel")
    about = types.SimpleNamespace(question=question, first={"ours": table, "old": table}, remark="")
    found = by_group.sections(about, types.SimpleNamespace(resamples=20, seed=0, attributes=""))
    assert len(asked) == 1 and sorted(asked[0][1]) == sorted(table["image_id"])
    assert {row[1] for row in found["groups"].parts[0].rows} == {"AP", "PA", "LATERAL"}
    parts, facts = found["errors"]
    assert [row[:4] for row in parts[0].rows] == [["view", "AP", "Mass", "ours"], ["view", "PA", "Mass", "ours"]]
    assert "ours: Missed more often than others most: Mass in view PA" in parts[0].explanation
    assert len(facts["ours"]) == 2 and facts["old"] == []
    lateral = known.loc[known["view"] == "LATERAL", "image_id"]
    present = int(table.set_index("image_id").loc[lateral, "target/Mass"].sum())
    assert f"Mass in view LATERAL ({present} with it, {12 - present} without)" in parts[1].sentences[0]


def test_small_groups_and_labels_without_a_threshold_do_not_count():
    table, known = judged(60)
    known.loc[known["view"] == "AP", "view"] = "PA"
    known.iloc[:12, known.columns.get_loc("view")] = "AP"
    assert {gap.attribute for gap in gaps.gaps(table, known, {"Mass": 1.0}, resamples=5)} <= {"sex"}
    assert gaps.gaps(*judged(), {}, resamples=5) == []
    few = gaps.left_out(table, known[["image_id", "view"]], {"Mass": 1.0})
    assert len(few) == 2 and few[0].startswith("Mass in view AP (") and few[1].endswith("without among the others)")
    assert gaps.left_out(*judged(), {"Mass": 1.0}) == []


def test_intersections():
    known = pandas.DataFrame({"image_id": list("abc"), "sex": ["F", "M", "unknown"], "view": ["PA", "AP", "PA"]})
    assert gaps.crossed(known)["sex × view"].tolist() == ["F · PA", "M · AP", "unknown"]
    table, known = judged()
    found = {gap.value for gap in gaps.gaps(table, gaps.crossed(known), {"Mass": 1.0}, resamples=5)}
    assert {"AP · F", "PA · M"} <= found
    groups = subgroups.groups(table, gaps.crossed(known), resamples=5)
    worst = subgroups.worst(groups)
    assert set(worst) == {"view", "sex", "view × sex"}
    of_pair = [one for one in groups if one.attribute == "view × sex" and one.metrics and one.value != "unknown"]
    assert worst["view × sex"].metrics["auroc"].value == min(one.metrics["auroc"].value for one in of_pair)


def test_thresholds_are_of_labels_with_both_values():
    values = np.array([[1, 1], [0, 1], [1, 1], [0, 1], [-1, -1]], np.int8)
    scores = np.array([[3.0, 1], [1, 1], [4, 1], [2, 1], [9, 1]])
    key = Targets(("a", "b"), values, np.ones(5, bool), [])
    assert labelled.score_thresholds(key, scores) == {"a": 2.5}
