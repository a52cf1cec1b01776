"""What a comparison comes to, in words."""

from cxrjax import evaluate
from cxrjax.evals.base import Interval
from cxrjax.reporting import collect, compare, in_words
from tests import runs
from tests.reporting.test_results_page import predictions, save


def run(subject, encoder, step=6):
    name = "findings" if step else f"findings-{encoder}"
    return collect.Run(subject, None, None, 1.0, 0, 0, {"name": name, "encoder": {"name": encoder, "step": step}})


def comparison(values, gains):
    metrics = {name: {"auroc": Interval(value, value - 0.05, value + 0.05, 90)} for name, value in values.items()}
    differences = {name: {"auroc": Interval(*gain, 90)} for name, gain in gains.items()}
    with_seeds = {"seeds": {"auroc": Interval(0.04, -0.02, 0.1, 90)}} if "seeds" in gains else {}
    return compare.Comparison(metrics, differences, {}, {}, 90, 45, [], {}, {}, with_seeds, {})


def test_a_difference_is_real_where_its_interval_leaves_out_zero():
    runs = [run("ours", "spcl"), run("ours", "spcl"), run("better", "dino"), run("worse", "mae"), run("same", "simclr")]
    values = {"ours": 0.8, "better": 0.9, "worse": 0.7, "same": 0.81}
    gains = {"better": (0.1, 0.02, 0.2), "worse": (-0.1, -0.2, -0.02), "same": (0.01, -0.04, 0.06)}
    runs, values = [*runs, run("seeds", "byol")], values | {"seeds": 0.84}
    gains["seeds"] = (0.04, 0.01, 0.07)  # real for these very runs, and not where seeds count
    question = collect.Question("phantom · all · probe", "multilabel", {}, runs)
    said = in_words.paragraph(question, comparison(values, gains), "ours")
    assert "6 runs of 5 encoders, judged on 90 pictures of 45 patients." in said
    assert "By auroc, ours reaches 0.800 (0.750 to 0.850)." in said
    assert "Above ours, and that is real: better by +0.100 (+0.020 to +0.200)." in said
    assert "Below ours, and that is real: worse by -0.100 (-0.200 to -0.020)." in said
    assert "Not told apart from ours: same by +0.010 (-0.040 to +0.060); seeds by +0.040 (-0.020 to +0.100)." in said
    assert "A linear model of the pixels was not judged" in said and "The encoder before training was not" in said


def test_what_references_reach_is_said_from_the_side_of_the_run():
    runs = [run("ours", "spcl"), run("pixels-32", "pixels-32", 0), run("other (random)", "random", 0)]
    values = {"ours": 0.8, "pixels-32": 0.6, "other (random)": 0.79}
    gains = {"pixels-32": (-0.2, -0.3, -0.1), "other (random)": (-0.01, -0.06, 0.04)}
    question = collect.Question("phantom · all · probe", "multilabel", {}, runs)
    said = in_words.paragraph(question, comparison(values, gains), "ours")
    assert "1 run of 1 encoder," in said and "was not judged" not in said and "Below" not in said
    pixels = "A linear model of the pixels reaches 0.600; ours differs from it by +0.200 (+0.100 to +0.300)"
    assert f"{pixels}, and that is real." in said
    untrained = "The encoder before training reaches 0.790; ours differs from it by +0.010 (-0.040 to +0.060)"
    assert f"{untrained}, and the two are not told apart." in said


def test_a_run_is_told_beside_its_references_and_nothing_of_what_stands_alone(tmp_path):
    run_folder = tmp_path / "a=b [1]"
    save(run_folder, predictions(skill=3.0))
    save(run_folder, predictions(1, skill=0.0), encoder="pixels-32", reference=True, step=0)
    save(run_folder, predictions(), judge="knn", encoder="alone", reference=True, step=7)
    (said,) = in_words.of_run(run_folder, "spcl", resamples=50)
    assert said.startswith("phantom · all · probe: 1 run of 1 encoder") and "By auroc, spcl reaches 0.9" in said
    assert "A linear model of the pixels reaches" in said and "and that is real" in said


def test_references_are_judged_once_beside_a_finished_run(tmp_path, phantom_dir, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    config = runs.config("spcl", references="pixels")
    runs.write(tmp_path, config)
    evaluate.references(config, tmp_path)
    (found,) = tmp_path.glob("evals/*/0/results.json")
    assert found.parts[-3] == "phantom_probe-pixels-32", "and no k-NN"
    monkeypatch.setattr(evaluate, "evaluate", None)  # a second call would use it
    evaluate.references(config, tmp_path)


def test_only_its_own_references_and_those_that_its_judge_has_are_told():
    runs = [run("ours", "spcl"), run("ours (random)", "random", 0), run("other (random)", "random", 0)]
    runs += [run("ours (blur-16)", "blur-16", 0), run("metadata", "metadata", 0)]
    runs = [one._replace(workdir="other" if one.subject.startswith("other") else "ours") for one in runs]
    names = [one.subject for one in runs]
    found = comparison(dict.fromkeys(names, 0.8), dict.fromkeys(names[1:], (0.1, 0.05, 0.2)))
    for judge, lacking in (("probe", ["A linear model of the pixels"]), ("ground", []), ("zeroshot", [])):
        said = in_words.paragraph(collect.Question("q", "multilabel", {"judge": judge}, runs), found, "ours")
        assert said.count("The encoder before training reaches") == 1 and "blur" not in said and "metadata" not in said
        assert said.count("was not judged") == len(lacking) and all(
            f"{what} was not judged" in said for what in lacking
        )
