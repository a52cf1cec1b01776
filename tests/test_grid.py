"""A run for every combination, resumed and tabulated; the mean over seeds with one draw of patients for all."""

import json

import numpy as np
import pandas
import pytest

from cxrjax import checkpoint, grid
from cxrjax.evals import metrics
from tests import runs


def settings(text, **changes):
    return runs.config("finetune", grid=text, **changes)


def test_combinations_take_the_type_of_what_they_replace():
    found = grid.parse(settings("data.fraction=0.1,1; seed=0, 1; encoder=frozen"))
    assert found == [
        {"data.fraction": fraction, "seed": seed, "encoder": "frozen"} for fraction in (0.1, 1.0) for seed in (0, 1)
    ]
    assert [type(value) for value in found[0].values()] == [float, int, str]
    yes_or_no = grid.parse(settings("compile_cache=True,False"))
    assert [cell["compile_cache"] for cell in yes_or_no] == [True, False]
    cell = grid.cell_of(settings("seed=0,1"), {"seed": 1, "data.fraction": 0.1})
    assert (cell.seed, cell.data.fraction, cell.grid) == (1, 0.1, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data.fractions=0.1", "no setting 'data.fractions' to vary. Did you mean 'data.fraction'"),
        ("seed=0.5", "'seed' is 0, which '0.5' cannot replace"),
        ("seed=0,0", "gives 'seed' twice, a value twice, or none"),
        ("seed=0; seed=1", "gives 'seed' twice"),
        ("seed=", "or none"),
        (" ; ", "varies nothing"),
        ("views.scale=0.5", "numbers, words and yes-or-no settings can be varied"),
    ],
)
def test_mistakes_are_explained(text, message):
    with pytest.raises(ValueError, match=message):
        grid.parse(settings(text))


def test_judges_look_at_the_fold_that_is_left_out():
    config = runs.config("segment", "folds,smoke", grid="data.fold=0,3")
    cells = [grid.cell_of(config, each) for each in grid.parse(config)]
    judged = [(cell.data.fold, cell.evals.segment.fold, cell.evals.segment.folds) for cell in cells]
    assert judged == [(0, 0, 5), (3, 3, 5)]


def write_results(place, found, validation=None, **task):
    details = {"validation": validation} if validation else {}
    results = {"entry": {"task": task}, "metrics": found, "details": details}
    (place / "results.json").write_text(json.dumps(results))


def trainer(monkeypatch, trained, fail_at=None):
    """Stands in for the trainer: writes the results of a run whose scores are better the more it is trained on."""
    monkeypatch.setattr(checkpoint, "find", lambda folder, step: folder / "checkpoints" / "7")

    def fit(config, folder):
        if len(trained) == fail_at:
            raise SystemExit(143)
        trained.append(folder.name)
        rng = np.random.default_rng(config.seed)
        truth = np.tile([0, 1], 30)
        table = pandas.DataFrame({"image_id": map(str, range(60)), "patient_id": [f"{i // 3}" for i in range(60)]})
        table["target/Mass"] = truth.astype(np.int8)
        table["score/Mass"] = config.data.fraction * truth + rng.normal(size=60)
        place = folder / "evals" / "classify" / "7"
        place.mkdir(parents=True)
        table.to_parquet(place / "predictions.parquet")
        value = metrics.auroc(truth, table["score/Mass"].to_numpy())
        found = {name: {"value": value, "low": 0, "high": 1, "n": 60} for name in ("auroc", "mAP", "auroc/Mass")}
        of_val = {"log_likelihood": -9.0, "auroc": 1 - value}  # the other way round than the test patients say
        write_results(place, found, of_val, kind="multilabel")

    return fit


def test_a_grid_goes_on_where_it_stopped_and_is_tabulated(tmp_path, monkeypatch):
    config, trained, claimed = settings("data.fraction=0.5,1; seed=0,1"), [], []

    def claim(folder, config):
        claimed.append(folder.name)
        return config

    with pytest.raises(SystemExit):
        grid.run(config, tmp_path, claim, trainer(monkeypatch, trained, fail_at=3), resamples=20)
    lines = grid.run(config, tmp_path, claim, trainer(monkeypatch, trained), resamples=200)
    assert claimed == [*trained, *trained], "a finished run is still checked for other settings"
    assert trained == [f"data.fraction-{f}_seed-{s}" for f in (0.5, 1.0) for s in (0, 1)], "none is trained twice"
    assert [(line.settings, line.metric, line.runs) for line in lines] == [
        ({"data.fraction": fraction}, metric, 2) for fraction in (0.5, 1.0) for metric in ("auroc", "mAP")
    ]
    place = "evals/classify/7/predictions.parquet"
    tables = [pandas.read_parquet(tmp_path / name / place) for name in trained]
    each = [metrics.auroc(table["target/Mass"], table["score/Mass"]) for table in tables]
    assert lines[0].mean == pytest.approx(np.mean(each[:2]))
    assert lines[0].deviation == pytest.approx(np.std(each[:2], ddof=1))
    assert lines[0].low < lines[0].mean < lines[0].high and np.isnan(lines[1].low), "mAP is not resampled"
    assert "| 0.5 | classify | phantom_smoke | auroc | 2 |" in (tmp_path / "grid.md").read_text()
    assert len(json.loads((tmp_path / "grid.json").read_text())["lines"]) == 4


def test_what_is_tuned_is_chosen_by_the_validation_patients(tmp_path, monkeypatch):
    """One rate for each encoder, and the test patients are shown for it alone, though they favour another."""
    config = settings("encoder=learned,frozen; optim.lr=0.1,1; seed=0,1")
    train = trainer(monkeypatch, [])

    def fit(cell, folder):
        cell.data.fraction = cell.optim.lr if cell.encoder == "learned" else 1.1 - cell.optim.lr
        train(cell, folder)

    lines = grid.run(config, tmp_path, lambda _, config: config, fit, resamples=20)
    choices = grid.choose(config, tmp_path, grid.parse(config))
    assert {(one.by, one.runs) for one in choices} == {("classify auroc on phantom_smoke", 2)}
    chosen = [{"encoder": "learned", "optim.lr": 0.1}, {"encoder": "frozen", "optim.lr": 1.0}]
    assert [one.settings for one in choices if one.chosen] == chosen
    assert [line.settings for line in lines if line.chosen and line.metric == "auroc"] == chosen
    assert len(json.loads((tmp_path / "grid.json").read_text())["choices"]) == 4
    of_choice, of_test = (tmp_path / "grid.md").read_text().split("On the test patients, the chosen settings alone:")
    assert of_choice.count("| chosen |") == 2 and "| learned | 1.0 |" in of_choice
    assert "| learned | 0.1 | classify" in of_test and "| learned | 1.0 |" not in of_test
    config.checkpoint.best_metric = ""
    assert grid.choose(config, tmp_path, grid.parse(config))[0].by == "classify log_likelihood on phantom_smoke"


def test_without_validation_numbers_the_table_warns(tmp_path):
    lines = [grid.Line({"optim.lr": rate}, "zeroshot", "phantom", "auroc", 1, rate, 0, 0, 0) for rate in (0.1, 0.2)]
    assert "No judge kept a number of the validation patients" in grid.markdown(lines)
    assert grid.markdown(lines).count("| zeroshot |") == 2


def test_one_draw_of_patients_serves_all_seeds(tmp_path):
    """Runs that agree on every picture have the interval of one; independent draws would make it narrower."""
    rng, places = np.random.default_rng(0), []
    scores = rng.random(40)
    for seed in range(4):
        place = tmp_path / f"{seed}"
        place.mkdir()
        names = [f"{i}" for i in range(40)]
        table = pandas.DataFrame({"image_id": names, "patient_id": names, "value/dice_present": scores})
        table = table.sample(frac=1, random_state=seed)  # the order of the rows says nothing
        table.to_parquet(place / "predictions.parquet")
        write_results(place, {"dice_present": {"value": scores.mean()}})
        places.append(place)
    one, four = grid.summarise(places[:1]), grid.summarise(places)
    np.testing.assert_allclose(four[0][4:], one[0][4:], rtol=1e-9)
    assert four[0][5] - four[0][4] == pytest.approx(2 * 1.96 * scores.std() / 40**0.5, rel=0.15)


def test_folds_of_other_patients_are_weighed_by_their_own(tmp_path):
    """A fold's mean follows its own patients: a mean over folds is over all of them."""
    places = []
    for fold, value in enumerate((0.2, 0.8)):
        place = tmp_path / f"{fold}"
        place.mkdir()
        names = [f"{fold} {i}" for i in range(9)]
        table = pandas.DataFrame({"image_id": names, "patient_id": names, "value/dice_all": value})
        table.to_parquet(place / "predictions.parquet")
        write_results(place, {"dice_all": {"value": value}})
        places.append(place)
    ((_, count, mean, deviation, low, high),) = grid.summarise(places)
    assert (count, mean, low, high) == pytest.approx((2, 0.5, 0.5, 0.5)) and deviation == pytest.approx(0.6 / 2**0.5)
