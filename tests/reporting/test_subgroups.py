import numpy as np
import pandas
import pytest

from cxrjax.evals import metrics
from cxrjax.input import converted_sets, record_index
from cxrjax.input import source as sources
from cxrjax.reporting import subgroups


def predictions(n=400, seed=0, labels=("a",), rate=0.4):
    """Women are ranked well and men at random; two pictures a patient, of whom every tenth has no known sex."""
    generator = np.random.default_rng(seed)
    women = np.repeat(generator.random(n // 2) < 0.5, 2)
    targets = (generator.random((n, len(labels))) < rate).astype(np.int8)
    scores = generator.normal(size=targets.shape) + 2 * targets * women[:, None]
    ids, patients = np.array([f"i{k}" for k in range(n)]), np.array([f"p{k // 2}" for k in range(n)])
    sex = np.where(np.arange(n) // 2 % 10 == 0, "unknown", np.where(women, "F", "M"))
    known = pandas.DataFrame({"image_id": ids, "sex": sex}).sample(frac=1, random_state=1)
    return metrics.prediction_table(labels, targets, scores, patients, ids), known


def test_each_group_has_the_metric_of_its_pictures_alone_and_the_gap_to_the_others():
    table, known = predictions()
    found = {group.value: group for group in subgroups.groups(table, known, resamples=200)}
    sex = known.set_index("image_id")["sex"].loc[table["image_id"]].to_numpy()
    assert list(found) == ["F", "M", "unknown"]
    for value, group in found.items():
        own = table[sex == value]
        assert group.metrics["auroc"].value == pytest.approx(metrics.auroc(own["target/a"], own["score/a"]))
        assert group.metrics["auprc"].value == pytest.approx(metrics.auprc(own["target/a"], own["score/a"]))
        assert (group.n, group.patients) == (len(own), own["patient_id"].nunique())
        assert group.positives == (own["target/a"] == 1).sum() and group.labels == ("a",)
    women, men = found["F"], found["M"]
    assert women.gap.value == pytest.approx(women.metrics["auroc"].value - men.metrics["auroc"].value)
    assert women.gap[:3] == pytest.approx([-men.gap.value, -men.gap.high, -men.gap.low])
    assert women.gap.low > 0.2 and men.metrics["auroc"].low < 0.5 < men.metrics["auroc"].high
    assert found["unknown"].gap is None
    assert women.metrics["auroc"].high - women.metrics["auroc"].low > 0.02


def test_the_interval_of_a_group_resamples_patients_of_the_whole_test():
    table, known = predictions(n=160)
    group = subgroups.groups(table, known, resamples=50, seed=3)[0]
    sex = known.set_index("image_id")["sex"].loc[table["image_id"]].to_numpy()
    generator, naive = np.random.default_rng(3), []
    patients = table["patient_id"].to_numpy(str)
    rows_of = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]
    for _ in range(50):
        rows = np.concatenate([rows_of[one] for one in generator.integers(len(rows_of), size=len(rows_of))])
        own = table.iloc[rows[sex[rows] == "F"]]
        naive.append(metrics.auroc(own["target/a"], own["score/a"]))
    assert group.metrics["auroc"][1:3] == pytest.approx(np.percentile(naive, [2.5, 97.5]))


def test_labels_with_few_patients_do_not_count_and_groups_with_none_are_only_counted():
    table, known = predictions(labels=("common", "rare"))
    table["target/rare"] = 0
    women = table["image_id"].isin(known["image_id"][known["sex"] == "F"])
    table.loc[table.index[women][:9], "target/rare"] = 1  # at most nine patients
    found = {group.value: group for group in subgroups.groups(table, known, resamples=20)}
    assert found["F"].labels == ("common",)
    own = table[women]
    assert found["F"].metrics["auroc"].value == pytest.approx(metrics.auroc(own["target/common"], own["score/common"]))
    table.loc[table.index[women][:30:2], "target/rare"] = 0
    table.loc[table.index[women][: 2 * 10 : 2], "target/rare"] = 1  # two pictures a patient: ten patients
    found = {group.value: group for group in subgroups.groups(table, known, resamples=20)}
    assert table["patient_id"][(table["target/rare"] == 1) & women].nunique() == 10
    assert found["F"].labels == ("common", "rare") and found["F"].gap is not None
    small = known.assign(sex=np.where(known["image_id"].isin(["i0", "i1", "i2"]), "M", "F"))
    few = {group.value: group for group in subgroups.groups(table, small, resamples=20)}["M"]
    assert few.n == 3 and few.metrics == {} and few.gap is None and few.labels == ()
    one_value = known.assign(sex="F")
    assert subgroups.groups(table, one_value, resamples=20) == []


def test_measures_per_picture_have_groups_too():
    table, known = predictions()
    table = table[["image_id", "patient_id"]].assign(**{"value/dice": np.linspace(0, 1, len(table))})
    found = subgroups.groups(table, known, resamples=20)
    own = table["image_id"].isin(known["image_id"][known["sex"] == "F"])
    assert found[0].metrics["dice"].value == pytest.approx(table["value/dice"][own].mean())
    assert found[0].gap.value == pytest.approx(table["value/dice"][own].mean() - found[1].metrics["dice"].value)


def test_bands_of_age_hold_their_lower_end():
    ages = [0, 17, 18, 39, 40, 59, 60, 79, 80, 103, -1]
    expected = ["0–17"] * 2 + ["18–39"] * 2 + ["40–59"] * 2 + ["60–79"] * 2 + ["80+"] * 2 + ["unknown"]
    assert [subgroups.age_band(age) for age in ages] == expected
    assert sorted(["80+", "18–39", "0–17", "x"], key=subgroups._order) == ["0–17", "18–39", "80+", "x"]


def test_attributes_come_from_the_set_and_from_a_table(phantom_dir, tmp_path, monkeypatch):
    converted = converted_sets.open_set("phantom", phantom_dir)
    rows = sources.select(converted, "test").table
    ids = rows["image_id"].to_numpy(str)[::-1]
    (tmp_path / "more.csv").write_text(f"Image_ID,hospital\n{ids[0]},North\nelsewhere,South\n")
    known, notes = subgroups.attributes(converted, ids, tmp_path / "more.csv")
    assert known["image_id"].tolist() == ids.tolist()
    assert known["view"].tolist() == rows["view"].tolist()[::-1]
    assert known["hospital"].tolist() == ["North"] + ["unknown"] * (len(ids) - 1)
    assert "sex" not in known and any("subgroups by sex cannot be formed" in note for note in notes)
    index = subgroups.index
    monkeypatch.setattr(
        subgroups, "index", lambda *given: index(*given).assign(sex="F", age=np.arange(len(index(*given))))
    )
    known, notes = subgroups.attributes(converted, ids)
    position = record_index.index(converted, "test")["image_id"].tolist().index(ids[0])
    assert set(known["sex"]) == {"F"} and known["age"][0] == subgroups.age_band(position) and notes == []
    with pytest.raises(ValueError, match="1 of 2 judged pictures are not in set 'phantom.*'nobody' is the first"):
        subgroups.attributes(converted, [ids[0], "nobody"])
