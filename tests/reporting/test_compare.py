import numpy as np
import pandas
import pytest

from cxrjax.evals import metrics
from cxrjax.evals.predictions import picture_values
from cxrjax.reporting import compare, seeds, significance


def tables(count, n=200, labels=("a", "b"), seed=0, skill=1.0):
    """Predictions of `count` seeds: the same pictures and targets, other scores; two pictures a patient."""
    generator = np.random.default_rng(9)
    targets = (generator.random((n, len(labels))) < 0.4).astype(np.int8)
    ids, patients = np.array([f"i{k}" for k in range(n)]), np.array([f"p{k // 2}" for k in range(n)])
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        scores = 1 / (1 + np.exp(-generator.normal(size=targets.shape) - skill * targets))
        found.append(metrics.prediction_table(labels, targets, scores, patients, ids))
    return found


def flat(found):
    return {(name, key): value for name, row in found.items() for key, value in row._asdict().items()}


def mean_area(table, metric="auroc", weights=None):
    return np.mean([getattr(metrics, metric)(table[f"target/{n}"], table[f"score/{n}"], weights) for n in "ab"], axis=0)


def test_intervals_cover_seeds_where_a_subject_has_several():
    several, alone = tables(4, skill=1.5), tables(1, seed=7)
    found = compare.compare("multilabel", {"base": alone, "four": several}, resamples=200, seed=1)
    values = [mean_area(one) for one in several]
    component = found.components["four"]["auroc"]
    assert component.of_mean == pytest.approx(np.std(values, ddof=1) / 2) and "base" not in found.components
    plain, wide = found.metrics["four"]["auroc"], found.with_seeds["four"]["auroc"]
    assert wide.value == plain.value and wide.high - wide.low > plain.high - plain.low
    plain, wide = found.differences["four"]["auroc"], found.differences_with_seeds["four"]["auroc"]
    assert wide.value == plain.value and wide.high - wide.low > plain.high - plain.low
    heads = {"four": ["a", "a", "b", "b"]}
    nested = compare.compare("multilabel", {"base": alone, "four": several}, resamples=20, pretrainings=heads)
    assert nested.components["four"]["auroc"] == seeds.components(values, heads["four"])
    assert compare.compare("multilabel", {"base": alone, "one": several[:1]}, resamples=20).with_seeds == {}


def test_p_is_of_the_paired_resamples():
    (first,), (second,) = tables(1, skill=1.2), tables(1, seed=1, skill=1.0)
    found = compare.compare("multilabel", {"old": [second], "new": [first]}, resamples=100, seed=4)
    weights = np.concatenate(list(metrics.patient_weights(first["patient_id"], 100, 4)), axis=1)
    drawn = mean_area(first, weights=weights) - mean_area(second, weights=weights)
    assert set(found.p) == {"new"}
    assert found.p["new"]["auroc"] == significance.p_of_samples(drawn)


def test_one_seed_a_subject_is_the_metric_and_its_paired_difference():
    (first,), (second,) = tables(1, skill=1.5), tables(1, seed=1, skill=0.5)
    shuffled = second.sample(frac=1, random_state=0)
    found = compare.compare("multilabel", {"old": [shuffled], "new": [first]}, "old", resamples=100, seed=4)
    for metric in ("auroc", "auprc"):
        weights = np.concatenate(list(metrics.patient_weights(first["patient_id"], 100, 4)), axis=1)
        gain, drawn = (mean_area(first, metric, w) - mean_area(second, metric, w) for w in (None, weights))
        expected = (gain, *np.percentile(drawn, [2.5, 97.5]), 200)
        assert found.differences["new"][metric] == pytest.approx(expected)
    names = ("a", "b")
    ordered = first.sort_values("image_id", ignore_index=True)
    targets, scores = (ordered[[f"{side}/{name}" for name in names]].to_numpy() for side in ("target", "score"))
    alone, counts, _ = metrics.summarise("multilabel", names, targets, scores, ordered["patient_id"], 100, 4)
    assert flat(found.metrics["new"]) == pytest.approx(flat(alone)) and found.positives == counts
    assert "old" not in found.differences and found.spread == {}
    assert (found.pictures, found.patients) == (200, 100)


def test_seeds_are_averaged_on_shared_resamples():
    several = tables(3)
    found = compare.compare("multilabel", {"base": tables(1, seed=7), "three": several}, resamples=60, seed=1)
    each = [mean_area(one) - mean_area(tables(1, seed=7)[0]) for one in several]
    assert found.differences["three"]["auroc"].value == pytest.approx(np.mean(each))
    low, high = found.spread["three"]["auroc"]
    assert low < found.metrics["three"]["auroc"].value < high
    same = compare.compare("multilabel", {"one": several[:1], "thrice": several[:1] * 3}, resamples=60)
    assert flat(same.metrics["one"]) == pytest.approx(flat(same.metrics["thrice"]))
    assert same.differences["thrice"]["auroc"][:3] == pytest.approx((0, 0, 0), abs=1e-12)


def test_a_difference_sees_what_two_intervals_cannot():
    generator = np.random.default_rng(5)
    targets = (generator.random(400) < 0.5).astype(np.int8)
    shared = generator.normal(size=400) + 0.8 * targets
    patients = [f"p{number // 2}" for number in range(400)]
    found = compare.compare(
        "binary",
        {
            name: [metrics.prediction_table(("positive",), targets[:, None], scores[:, None], patients, range(400))]
            for name, scores in (("worse", shared), ("better", shared + 0.3 * targets))
        },
        resamples=300,
    )
    assert found.metrics["better"]["auroc"].low < found.metrics["worse"]["auroc"].high
    assert 0 < found.differences["better"]["auroc"].low


def test_labels_that_one_run_was_not_judged_on_are_left_out_of_all():
    (full,), (partial,) = tables(1, labels=("a", "b", "c")), tables(1, labels=("a", "b", "c"), seed=2)
    partial = partial.drop(columns=["target/b", "score/b"])
    found = compare.compare("multilabel", {"full": [full], "partial": [partial]}, resamples=20)
    assert set(found.metrics["full"]) == set(found.metrics["partial"]) and "auroc/b" not in found.metrics["full"]
    mean = np.mean([found.metrics["full"][f"auroc/{name}"].value for name in "ac"])
    assert found.metrics["full"]["auroc"].value == pytest.approx(mean)
    assert any("not every run was judged on it: b" in note for note in found.notes)


def test_predictions_that_do_not_belong_together_are_refused():
    (table,) = tables(1)
    with pytest.raises(ValueError, match="'b' has 199 and 'a' 200, 199 in both"):
        compare.compare("multilabel", {"a": [table], "b": [table[1:]]})
    other = table.assign(**{"target/b": 1 - table["target/b"]})
    with pytest.raises(ValueError, match="different target/b for 200 of the same pictures"):
        compare.compare("multilabel", {"a": [table], "b": [other]})
    moved = table.assign(patient_id="someone")
    with pytest.raises(ValueError, match="different patient_id for 200"):
        compare.compare("multilabel", {"a": [table], "b": [moved]})
    about = {"image_id": table["image_id"], "patient_id": table["patient_id"], "value/dice": 0.5}
    rows = [[[0.0, 0.0, 0.5, 0.5]], []] * 100
    for column, truth, false in (
        ("report", 7, 8),
        ("true_boxes", rows, [[[0.0, 0.0, 0.5, 0.6]], []] * 100),
        ("true_labels", [["Mass"], []] * 100, [["Nodule"], []] * 100),
    ):
        one, other = (pandas.DataFrame({**about, column: value}) for value in (truth, false))
        with pytest.raises(ValueError, match=f"different {column} for {100 if column[4] == '_' else 200} of the same"):
            compare.compare("", {"a": [one], "b": [other]})
    with pytest.raises(ValueError, match=r"'c' is not among what is compared: \['a'\]"):
        compare.compare("multilabel", {"a": [table]}, "c")
    with pytest.raises(ValueError, match="no label in common"):
        compare.compare("multilabel", {"a": [table], "b": tables(1, labels=("x", "y"))})


def test_measures_per_picture_are_averaged_without_pictures_that_have_none():
    generator = np.random.default_rng(3)
    ids, patients = [f"i{k}" for k in range(40)], [f"p{k // 4}" for k in range(40)]
    dice = np.where(np.arange(40) % 5 == 0, np.nan, generator.uniform(0.5, 1, 40))
    about = {"image_id": ids, "patient_id": patients, "mask": [b""] * 40, "report": range(40)}
    ours = pandas.DataFrame({**about, "value/dice": dice, "hit/image_to_text@5": dice > 0.7, "rank/image_to_text": 3.0})
    theirs = ours.assign(**{"value/dice": dice - 0.1})
    assert list(picture_values(ours)) == ["dice", "image_to_text_recall@5"]
    found = compare.compare("", {"theirs": [theirs], "ours": [ours]}, resamples=50, seed=2)
    assert found.metrics["ours"]["dice"].value == pytest.approx(np.nanmean(dice))
    assert found.metrics["ours"]["dice"].n == 32 and found.positives == {}
    assert found.differences["ours"]["dice"][:3] == pytest.approx((0.1, 0.1, 0.1))
    generator, naive = np.random.default_rng(2), []
    for _ in range(50):
        drawn = np.unique(patients)[generator.integers(10, size=10)]
        naive.append(np.nanmean(np.concatenate([dice[np.array(patients) == patient] for patient in drawn])))
    assert found.metrics["ours"]["dice"][1:3] == pytest.approx(np.percentile(naive, [2.5, 97.5]))
    with pytest.raises(ValueError, match="measure nothing per picture"):
        compare.compare("", {"nothing": [ours[["image_id", "patient_id"]]]})


def test_boxes_are_compared_by_mean_average_precision(tmp_path):
    pytest.importorskip("pycocotools")
    from cxrjax.evals import detect

    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 0.5, (24, 1, 2))
    truth = np.concatenate([corners, corners + 0.3], axis=2)
    about = {"image_id": [f"i{k}" for k in range(24)], "patient_id": [f"p{k // 2}" for k in range(24)]}
    about |= {"true_boxes": truth.tolist(), "true_labels": [["Mass" if k % 2 else "Nodule"] for k in range(24)]}

    def found(blur):
        moved = truth + generator.normal(size=truth.shape) * blur
        scores = generator.uniform(size=(24, 1)).tolist()
        return pandas.DataFrame({**about, "boxes": moved.tolist(), "scores": scores, "labels": about["true_labels"]})

    good, bad = found(0.01), found(0.06)
    ours = compare.compare("", {"bad": [bad], "good": [good]}, resamples=20, seed=1)
    (names, of_good), (_, of_bad) = detect.measures(good), detect.measures(bad)
    weights = np.concatenate(list(metrics.patient_weights(good["patient_id"], 20, 1)), axis=1)
    gains, drawn = (of_good(w) - of_bad(w) for w in (np.ones((24, 1)), weights))
    assert list(ours.differences["good"]) == names and {"map", "map50", "map/Mass"} < set(names)
    for name, (gain,), of_resamples in zip(names, gains, drawn, strict=True):
        known = of_resamples[np.isfinite(of_resamples)]
        assert ours.differences["good"][name] == pytest.approx((gain, *np.percentile(known, [2.5, 97.5]), 24))
    assert ours.differences["good"]["map"].low > 0
    good.to_parquet(tmp_path / "predictions.parquet")
    again = pandas.read_parquet(tmp_path / "predictions.parquet").sample(frac=1, random_state=0)
    same = compare.compare("", {"given": [good], "read": [again]}, resamples=20).differences["read"]
    assert all(gain[:3] == (0, 0, 0) for gain in same.values())


def test_pictures_of_all_folds_are_counted():
    folds = [pandas.DataFrame({"image_id": list(ids), "patient_id": list(ids)}) for ids in ("abcd", "efg")]
    folds = [fold.assign(**{"value/dice": [np.nan, *[0.5] * (len(fold) - 1)]}) for fold in folds]
    found = compare.compare("", {"ours": folds}, resamples=20)
    assert found.metrics["ours"]["dice"].n == 5 and found.pictures == 7


def test_folds_are_averaged_as_runs_on_pictures_of_their_own():
    (whole,), (other,) = tables(1), tables(1, seed=5, skill=0.3)
    halves = [one.sort_values("image_id")[part] for one in (whole, other) for part in (slice(0, 80), slice(80, None))]
    halves[0]["target/b"] = halves[2]["target/b"] = 1
    found = compare.compare(
        "multilabel", {"ours": halves[:2], "theirs": halves[3:1:-1]}, "theirs", resamples=40, seed=1
    )
    expected = np.mean([metrics.auroc(half["target/a"], half["score/a"]) for half in halves[:2]])
    assert found.metrics["ours"]["auroc/a"].value == pytest.approx(expected)
    assert "auroc/b" not in found.metrics["ours"] and any("'b' was skipped" in note for note in found.notes)
    assert found.pictures == 200 and found.differences["ours"]["auroc"].value > 0
    patients, naive = np.unique(whole["patient_id"].to_numpy(str)), []
    own = [(one, {name: np.flatnonzero(one["patient_id"] == name) for name in patients}) for one in halves[:2]]
    generator = np.random.default_rng(1)
    for _ in range(40):
        drawn = patients[generator.integers(len(patients), size=len(patients))]
        rows = [one.iloc[np.concatenate([rows_of[name] for name in drawn])] for one, rows_of in own]
        naive.append(np.mean([metrics.auroc(one["target/a"], one["score/a"]) for one in rows]))
    assert found.metrics["ours"]["auroc/a"][1:3] == pytest.approx(np.percentile(naive, [2.5, 97.5]))
    with pytest.raises(ValueError, match="cannot be compared"):
        compare.compare("multilabel", {"ours": halves[:2], "theirs": [other]})
