"""The trainer: killed, terminated and resumed runs, other meshes, NaN, and what it leaves behind."""

import json
import re
import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cxrjax import checkpoint, histograms, look, methods, parallel, rng, train
from cxrjax import config as shared
from cxrjax.drawing import panels, style
from cxrjax.evals import run as evals
from cxrjax.input import converted_sets, crops, source
from cxrjax.step import TrainState, make_step
from cxrjax.track import NonFinite
from tests import radiographs, runs
from tests.processes import records
from tests.tiny_method import LINE, line


@pytest.fixture(autouse=True)
def data_folder(monkeypatch, phantom_dir):
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))


OPTIONS = {"duration__total_steps": 8, "log_every_steps": 1, "checkpoint__every_steps": 4}


@pytest.mark.slow
def test_resumes_on_other_meshes(tmp_path):
    """Saved on 8 devices at step 4, resumed on 8, 4 and 1: the same run up to the order of sums."""
    config = runs.config(**OPTIONS, mesh__data=8)
    reference = train.fit(config, tmp_path / "eight")
    shutil.rmtree(tmp_path / "eight" / "checkpoints" / "8")
    for devices in (8, 4, 1):
        workdir = tmp_path / str(devices)
        shutil.copytree(tmp_path / "eight", workdir)
        config.mesh.data = devices
        resumed = train.fit(config, workdir)
        assert int(resumed.step) == 8
        tolerance = 0 if devices == 8 else 2e-4
        jax.tree.map(
            lambda a, b, atol=tolerance: np.testing.assert_allclose(a, b, rtol=0, atol=atol),
            jax.device_get(resumed.params),
            jax.device_get(reference.params),
        )
        assert [line["step"] for line in records(workdir)] == [1, 2, 3, 4, 5, 6, 6, 7, 8, 8]


def test_labels_of_another_set_are_refused_before_anything_is_traced(phantom_dir, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    monkeypatch.setattr(train, "program", None)  # which traces the networks
    with pytest.raises(ValueError, match=r"labels \['Silicosis'\] are in none of the sets"):
        train.build(runs.config("supervised", labels="Mass,Silicosis"))


def test_a_run_leaves_its_records(tmp_path, capsys):
    config = runs.config(mesh__data=2, profile_steps=2)
    state = train.fit(config, tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb")), "a trace of two steps"
    assert int(state.step) == 6 and checkpoint.steps(tmp_path) == [6]
    lines = records(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6, 6]
    assert {"train/loss", "train/term/contrast", "train/monitor/feature_std", "train/lr", "train/norm/gradient"} <= set(
        lines[0]
    )
    assert 0 <= lines[-1]["eval/phantom_smoke/all/auroc"] <= 1
    sheet = cv2.imread(str(tmp_path / "views.png"))
    assert sheet.shape[1] == look.EXAMPLES * (160 + style.GAP_PX), "the same parts again: not drawn twice"
    hidden = np.all(sheet[..., ::-1] == style.HIDDEN, axis=2).sum() / (2 * look.EXAMPLES * 160**2)
    assert hidden == 1 - 8 / 64, "both parts have 8 of 64 patches"
    assert (tmp_path / "evals" / "phantom_probe" / "6" / "results.json").exists()
    predictions = pandas.read_parquet(tmp_path / "evals" / "phantom_probe" / "6" / "predictions.parquet")
    assert predictions["overlay/map"].notna().any(), "attention on the pictures that a report may show"
    assert json.loads((tmp_path / "pictures.json").read_text())["phantom_smoke/train"]["pictures"] > 30
    said = capsys.readouterr().out
    assert "2 device(s)" in said and re.search(r"of 0:0\d:\d\d: .*% opening sets.*% compiling.*% judging", said)


def test_a_misspelt_key_of_a_judge_is_found_before_sets_are_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "build", lambda config: pytest.fail("a set was opened"))
    config = runs.config("spcl", evals__phantom_probe__set="phantom")
    with config.unlocked():
        config.evals.phantom_probe.solvr = "logistic"
    with pytest.raises(ValueError, match="evals.phantom_probe: evaluation key 'solvr'.*Did you mean 'solver'"):
        train.fit(config, tmp_path)


def test_a_step_draws_updates_and_follows_in_this_order():
    """The key of the step, the gradient, the optimizer with its moments, the new parameters, then `after` with them."""
    root, momentum, rate = jax.random.key(7), 0.9, 0.1
    method, optimizer = line(), optax.sgd(rate, momentum)
    params, state = method.init(jax.random.key(0), None)
    train_state = TrainState(jnp.zeros((), jnp.int32), params, state, optimizer.init(params))
    step = jax.jit(make_step(method, optimizer, root))
    w, trace, average = np.asarray(params["w"], np.float64), np.zeros(64), np.zeros(64)
    for number in range(3):
        pictures = np.random.default_rng(number).integers(0, 256, (4, 1, 8, 8, 1)).astype(np.uint8)
        train_state, scalars = step(train_state, {"image": pictures})
        mean = pictures.mean((0, 1)).ravel() / 255
        gradient = (number + 1) * (mean + np.asarray(jax.random.normal(rng.fold(root, "loss", number), (64,))))
        value = gradient @ w
        trace = gradient + momentum * trace
        w = w - rate * trace
        average = (average + w) / 2
        expected = {"train/loss": value, "train/term/product": value, "train/monitor/largest": mean.max()}
        norms = {"gradient": np.linalg.norm(gradient), "update": rate * np.linalg.norm(trace)}
        expected |= {f"train/norm/{name}": norm for name, norm in norms.items()}
        assert {name: float(found) for name, found in scalars.items()} == pytest.approx(expected, rel=1e-4)
        assert int(train_state.step) == number + 1 and int(train_state.state["after"]) == number
        np.testing.assert_allclose(train_state.params["w"], w, atol=1e-5)
        np.testing.assert_allclose(train_state.state["average"], average, atol=1e-5)
        np.testing.assert_allclose(train_state.state["mean"], mean, atol=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch):
    """Batch i makes step i. Stopped after 3 of 6, a run has the same keys, rates, moments and records, bit for bit."""
    monkeypatch.setattr(methods, "make", lambda config, total_steps=None: line())
    config = runs.config(**LINE, duration__total_steps=6, checkpoint__every_steps=3)
    whole = train.fit(config, tmp_path / "whole")
    run = train.build(config)
    by_hand = run.init()
    for number in range(6):
        by_hand, _ = run.step(by_hand, parallel.to_global(run.batches[number], run.mesh))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole), jax.device_get(by_hand))
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "6")
    resumed = train.fit(config, tmp_path / "resumed")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(whole))
    assert records(tmp_path / "resumed") == records(tmp_path / "whole")
    moments = [leaf for leaf in jax.tree.leaves(whole.opt_state) if leaf.shape == (64,)]
    assert len(moments) == 2 and all(np.abs(leaf).min() > 0 for leaf in moments)
    rates = [record["train/lr"] for record in records(tmp_path / "whole")]
    assert rates[:3] == pytest.approx([0, config.optim.lr / 2, config.optim.lr])


def test_the_seed_decides_where_a_run_starts_and_what_it_sees(monkeypatch):
    monkeypatch.setattr(methods, "make", lambda config, total_steps=None: line())
    one, again, other = (train.build(runs.config(**LINE, duration__total_steps=6, seed=seed)) for seed in (0, 0, 1))
    starts = [np.asarray(run.init().params["w"]) for run in (one, again, other)]
    pictures = [run.batches[0]["image"] for run in (one, again, other)]
    for found in (starts, pictures):
        np.testing.assert_array_equal(found[0], found[1])
        assert (found[0] != found[2]).mean() > 0.5


def test_the_start_stands_beside_the_newest(tmp_path, monkeypatch):
    """A picture that the network changes is drawn at the start, every two steps and at the end, in TensorBoard too."""

    def shown(params, state, batch, key):
        given = batch["image"][:, 0, ..., 0]
        return [panels.Panel("given", given), panels.Panel("changed", given + 255 * jnp.sin(params["w"]).reshape(8, 8))]

    monkeypatch.setattr(methods, "make", lambda config, total_steps=None: line()._replace(look=shown))
    state = train.fit(
        runs.config(**LINE, duration__total_steps=5, look_every_steps=2, histograms_every_steps=5), tmp_path
    )
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("views")] == [0, 2, 4, 5]
    first, *_, last = (cv2.imdecode(np.frombuffer(e.encoded_image_string, np.uint8), 1) for e in events.Images("views"))
    assert last.shape == (len(first), 2 * first.shape[1], 3)
    np.testing.assert_array_equal(last[:, : first.shape[1]], first)
    np.testing.assert_array_equal(last, cv2.imread(str(tmp_path / "views.png")))
    (spread,) = events.Histograms("params/w")
    w = np.asarray(state.params["w"])
    counts, _ = np.histogram(w, histograms.BINS)
    found = spread.histogram_value
    assert spread.step == 5 and found.num == 64 and found.sum == pytest.approx(w.sum(), abs=1e-4)
    assert (found.min, found.max) == pytest.approx((w.min(), w.max())) and list(found.bucket) == counts.tolist()


def test_nan_stops_the_run_and_keeps_what_was_saved(tmp_path):
    config = runs.config(optim__lr=1e30, checkpoint__every_steps=1, duration__total_steps=12, log_every_steps=1)
    with pytest.raises(NonFinite, match="train/"):
        train.fit(config, tmp_path)
    assert all(np.isfinite(line["train/loss"]) for line in records(tmp_path)[:1])
    saved = checkpoint.steps(tmp_path)
    assert saved and max(saved) < 12


def test_what_a_judge_would_refuse_is_refused_before_training(tmp_path):
    """And nothing of the folder stands in the way of the run as it was meant."""
    for changes, sentence in (
        ({"evals": {"probe": {"set": "phantom_smoke", "judge": "prob"}}}, "evals.probe: judge 'prob' is not known"),
        (
            {"evals": {"a": {"set": "phantom_smoke", "task": {"kind": "multilabel", "labels": "Mas"}}}},
            "labels .'Mas'.,",
        ),
        ({"checkpoint__best_metric": "eval/foo"}, "'eval/foo' is no metric of config.evals; theirs begin with eval/"),
        ({"name": "detect", "labels": "Nodule,Mas"}, "labels .'Mas'. are of no box in phantom_smoke; its boxes are of"),
        ({"data__split": "train+test"}, "trains on test of 'phantom_smoke', which evals.phantom_"),
    ):
        with pytest.raises(ValueError, match=sentence):
            train.fit(runs.config(**changes), tmp_path)
    assert not (tmp_path / "pictures.json").exists() and not checkpoint.steps(tmp_path)
    split = {"data__split": "train+test", "data__exclude_overlap": False}
    assert len(train.build(runs.config(**split)).sources[0]) > len(train.build(runs.config()).sources[0])
    (remark,) = train.build(runs.config(batch_size=256)).remarks
    assert "a batch of 256 is more than all" in remark


def test_a_probe_that_cannot_be_made_is_refused_before_training(tmp_path):
    """Every picture has the finding: nothing can be learned of it."""
    splits = 6 * ["train"] + ["val", "test"]
    rows = [(f"{n}", f"patient {n}", split, radiographs.radiograph(n)) for n, split in enumerate(splits)]
    place = str(radiographs.write(tmp_path, "clinic", rows).directory)
    probe = {"probe": {"set": place, "task": {"kind": "multilabel"}}}
    config = runs.config(data__sets=place, data__projections="", batch_size=8, evals=probe)
    with pytest.raises(
        ValueError, match="evals.probe: the train split cannot teach this multilabel task: 'Finding' .6 of 6 positive"
    ):
        train.fit(config, tmp_path / "run")


def test_a_failed_judge_costs_no_step_and_looks_again(tmp_path, monkeypatch):
    """The last step is saved before it is judged, and the same command judges it."""
    judge, save, order = evals.evaluate, checkpoint.Checkpoints.save, []
    monkeypatch.setattr(
        checkpoint.Checkpoints,
        "save",
        lambda self, step, *rest, **more: order.append(step) or save(self, step, *rest, **more),
    )

    def fail(*_):
        order.append("judge")
        raise evals.EvaluationError("the disk is full")

    monkeypatch.setattr(evals, "evaluate", fail)
    with pytest.raises(evals.EvaluationError):
        train.fit(runs.config(), tmp_path)
    assert checkpoint.steps(tmp_path) == [6] and order == [6, "judge"]
    monkeypatch.setattr(evals, "evaluate", judge)
    train.fit(runs.config(), tmp_path)
    assert order == [6, "judge"]
    assert (tmp_path / "evals" / "phantom_probe" / "6" / "results.json").exists()
    assert any("eval/phantom_smoke/all/auroc" in line for line in records(tmp_path))


@pytest.mark.slow
def test_best_checkpoint_is_kept(tmp_path):
    metric = "eval/phantom_smoke/all/auroc"
    config = runs.config(checkpoint__best_metric=metric, checkpoint__keep_latest=1, duration__total_steps=8)
    config.evals.phantom_probe.every_steps = 2
    train.fit(config, tmp_path)
    scores = {line["step"]: line[metric] for line in records(tmp_path) if metric in line}
    best = max(scores, key=scores.get)
    assert set(checkpoint.steps(tmp_path)) == {best, 8}
    assert int(checkpoint.find(tmp_path, "best").name) == best


def test_batch_must_divide_over_the_devices(tmp_path):
    with pytest.raises(ValueError, match="multiple of 8; use 16 or 24"):
        train.build(runs.config(batch_size=20, mesh__data=8))


@pytest.fixture
def copied(tmp_path, phantom_dir, monkeypatch):
    """Data folder with "phantom_smoke" and "elsewhere", which has copies of two of its train patients in val and test
    and of a third one in train. Returns the two."""
    data_dir = tmp_path / "data"
    shutil.copytree(converted_sets.open_set("phantom_smoke", phantom_dir).directory.parent, data_dir / "phantom_smoke")
    monkeypatch.setenv("CXRJAX_DATA", str(data_dir))
    convert_copies(data_dir, ("val", "test", "train"))
    patients = source.select(converted_sets.open_set("phantom_smoke"), "train", projections=("PA", "AP")).table[
        "patient_id"
    ]
    return list(dict.fromkeys(patients))[:2]


def convert_copies(data_dir, splits):
    frontal = source.select(converted_sets.open_set("phantom_smoke"), "train", projections=("PA", "AP"))
    patients = list(dict.fromkeys(frontal.table["patient_id"]))
    rows = []
    for patient, split in zip(patients, splits, strict=False):
        number = frontal.table["patient_id"].tolist().index(patient)
        picture = crops.decode(frontal[number]["image"])
        rows.append((f"copy {len(rows)}", f"someone {len(rows)}", split, radiographs.jpeg(picture, 80)))
    shutil.rmtree(data_dir / "elsewhere", ignore_errors=True)
    shutil.rmtree(data_dir / "raw", ignore_errors=True)
    radiographs.write(data_dir, "elsewhere", rows, short_side=64)


def test_what_the_run_is_judged_on_is_left_out_of_training(copied):
    def trained_on(**changes):
        run = train.build(runs.config(**changes))
        return set(run.sources[0].table["patient_id"]), run.remarks

    everyone, remarks = trained_on()
    assert set(copied) < everyone and remarks == ()
    left, remarks = trained_on(data__judged_on="elsewhere")
    assert left == everyone - set(copied)
    assert "left out of training" in remarks[0] and "of 2 patients (0 by id, 2 by fingerprint" in remarks[0]
    judge = {"set": "elsewhere", "task": {"kind": "multilabel"}}
    assert trained_on(evals={"probe": judge}) == (left, remarks)
    assert trained_on(data__judged_on="elsewhere", data__exclude_overlap=False) == (everyone, ())


def test_judged_sets_determine_a_run_but_its_own_splits_do_not():
    def digest(**changes):
        return shared.digest(runs.config(**changes))

    elsewhere = {"probe": {"set": "elsewhere"}}
    assert digest(evals={}) == digest() == digest(evals={"probe": {"set": "phantom_smoke", "judge": "knn"}})
    assert digest(evals=elsewhere) == digest(data__judged_on="elsewhere") != digest()
    assert digest(evals=elsewhere, data__exclude_overlap=False) == digest(data__exclude_overlap=False)
    # Of two sets that are trained on, each is judged on patients that the other may share.
    assert shared.judged(runs.config(evals=elsewhere, data__sets="phantom_smoke,elsewhere")) == ("elsewhere",)
    changed = shared.differences(runs.config(), runs.config(evals=elsewhere))
    assert changed == ["data.judged_on:  → elsewhere"]


def test_a_resumed_run_keeps_its_pictures(tmp_path, copied, capsys):
    config = runs.config(data__judged_on="elsewhere")
    run = train.build(config)
    train._print_setting(config, run, tmp_path)
    assert "phantom_smoke: left out of training" in capsys.readouterr().out
    train._check_pictures(tmp_path, run.sources, 0)
    train._check_pictures(tmp_path, train.build(config).sources, 2)
    convert_copies(tmp_path / "data", ("val", "test", "test"))
    changed = train.build(config).sources
    assert len(changed[0]) < len(run.sources[0])
    with pytest.raises(
        ValueError, match=f"a run on phantom_smoke/train with {len(run.sources[0])} pictures, but .*other"
    ):
        train._check_pictures(tmp_path, changed, 2)
    train._check_pictures(tmp_path, changed, 0)
    (tmp_path / "pictures.json").write_text('{"phantom')
    with pytest.raises(ValueError, match="pictures.json is damaged.*copy it from a backup, or delete it"):
        train._check_pictures(tmp_path, changed, 2)
