import json
import os
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from ml_collections import ConfigDict

from cxrjax import config as shared
from cxrjax import evaluate
from cxrjax.evals import encoders, registry, run, shortcuts
from cxrjax.evals.base import Encoder, Joint, digest
from cxrjax.evals.features import features
from cxrjax.evals.joint import TOKENS
from cxrjax.input import boxes, converted_sets, crops
from cxrjax.input import source as sources
from cxrjax.methods.base import Answers, Method
from tests import radiographs

TASK = {"kind": "binary", "positive": "Effusion,Consolidation,Edema,Mass", "negative": "No Finding", "name": "finding"}
LABELS = ("Mass", "Nodule")


def blank(image_px=16):
    """A method whose parameters are a projection of the pixels; `calls` counts how often it is traced."""
    calls = []

    def encode(params, state, images):
        calls.append(1)
        pooled = images.reshape(len(images), -1).astype(jnp.float32) @ params["kernel"]
        return {"pooled": pooled, "patches": images}

    def init(key, batch):
        return {"kernel": jax.random.normal(key, (image_px**2, 8))}, {}

    return Method(None, init, None, None, encode, image_px), calls


def entry(data_dir, **changes):
    return {"set": "phantom", "data_dir": str(data_dir), "task": TASK, "batch_size": 12, "bootstrap": 20, **changes}


@pytest.fixture
def frontal(phantom_dir):
    return sources.select(converted_sets.open_set("phantom", phantom_dir), "train", projections=("PA", "AP"))


def test_features_are_those_of_each_picture_alone_on_one_compilation(frontal):
    method, calls = blank()
    params, state = method.init(jax.random.key(0), None)
    encoder = encoders.from_method(method, params, state, name="blank")
    # 12 is rounded up to 16, a multiple of the 8 devices, which does not divide the number of pictures.
    table = features(encoder, frontal, 12)
    assert len(frontal) % 16 and table.features.shape == (len(frontal), 8) and len(calls) == 1
    for number in (0, len(frontal) - 1):
        picture = crops.fit(crops.decode(frontal[number]["image"]), 16)
        np.testing.assert_allclose(
            table.features[number], picture.reshape(-1).astype(np.float32) @ params["kernel"], rtol=1e-4, atol=0.1
        )
        assert table.image_ids[number] == frontal[number]["image_id"]
        np.testing.assert_array_equal(table.labels[number], frontal[number]["labels"])
    later = encoders.from_method(method, jax.tree.map(lambda leaf: leaf + 1, params), state, name="blank", step=1)
    assert later.digest != encoder.digest
    features(later, frontal, 12)
    assert len(calls) == 1  # along training nothing is compiled again


def test_features_are_cached_per_encoder_pictures_and_size(phantom_dir, tmp_path, monkeypatch):
    data_dir = tmp_path / "data"  # a copy, in which no other test has fitted a picture
    shutil.copytree(phantom_dir, data_dir, ignore=shutil.ignore_patterns("fitted"))
    converted = converted_sets.open_set("phantom", data_dir)
    frontal = sources.select(converted, "train", projections=("PA", "AP"))
    encoder = encoders.pixels(8)
    first = features(encoder, frontal, 16, tmp_path)
    the_same = sources.select(converted, "train", projections=("AP", "PA"))
    with_laterals = sources.select(converted, "train")
    another_split = sources.select(converted, "test", projections=("PA", "AP"))

    def unreadable(*_):
        raise AssertionError("a picture was read")

    monkeypatch.setattr(sources.Source, "__getitem__", unreadable)
    again = features(encoder, the_same, 4, tmp_path)
    for ours, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    another = features(encoder._replace(digest="other"), frontal, 16, tmp_path)
    np.testing.assert_array_equal(another.features, first.features)  # another encoder finds the pictures fitted
    assert len(list(tmp_path.glob("*.npz"))) == 2  # and leaves a table of its own
    for other_encoder, other in (
        (encoder._replace(image_px=9), frontal),
        (encoder, with_laterals),
        (encoder, another_split),
    ):
        with pytest.raises(AssertionError, match="a picture was read"):
            features(other_encoder, other, 16, tmp_path)


def test_the_cache_forgets_what_was_used_longest_ago(frontal, tmp_path):
    def made(name, room=1e9):
        features(encoders.pixels(8)._replace(digest=name), frontal, 16, tmp_path, cache_bytes=room)
        return set(tmp_path.iterdir())

    (a,) = made("a")
    (b,) = made("b") - {a}
    os.utime(a, (1, 1)), os.utime(b, (2, 2))
    made("a")  # used again, and so after b
    size = a.stat().st_size
    kept = made("c", room=2.5 * size)
    assert len(kept) == 2 and a in kept and b not in kept
    assert len(made("d", room=1)) == 1


def test_pixels_are_the_area_average(frontal):
    table = features(encoders.pixels(), frontal, 16)
    assert table.features.shape == (len(frontal), 32 * 32)
    assert 0.05 < table.features.mean() < 0.95 and table.features.max() <= 1


@pytest.mark.parametrize("judge", ["probe", "knn"])
def test_evaluate_writes_results_and_predictions_that_agree(phantom_dir, tmp_path, judge):
    own = {"neighbours": (3, 5)} if judge == "knn" else {"solver": "ridge"}
    config = ConfigDict(entry(phantom_dir, judge=judge, projections="PA,AP", **own))
    encoder = encoders.pixels()._replace(step=7)
    result = run.evaluate(encoder, config, tmp_path, seed=1)
    folder = tmp_path / "evals" / f"phantom-finding-{judge}" / "7"
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.parquet", "results.json"]
    report = json.loads((folder / "results.json").read_text())
    assert set(report["entry"]) == {*run.COMMON, *registry.find(judge).keys}
    found = report["metrics"]["auroc"]
    assert found["value"] == result.metrics["auroc"].value
    # So few patients of the phantom have a finding that an interval is not always given; JSON has no NaN.
    assert all(np.isnan(bound) if found[name] is None else found[name] == bound
               for name, bound in result.metrics["auroc"]._asdict().items() if name in ("low", "high"))  # fmt: skip
    predictions = pandas.read_parquet(folder / "predictions.parquet")
    assert found["n"] == len(predictions) and found["n_positive"] == (predictions["target/positive"] == 1).sum()
    assert report["encoder"]["digest"] == encoder.digest and report["versions"]["jax"] == jax.__version__
    assert report["details"]["strength" if judge == "probe" else "k"] and report["seed"] == 1
    prefix = "" if judge == "probe" else "knn_"
    assert run.scalars(config, result)[f"eval/phantom/finding/{prefix}auroc"] == found["value"]
    np.testing.assert_equal(run.evaluate(encoder, config, tmp_path, seed=1).metrics, result.metrics)


def test_results_of_other_settings_are_never_overwritten(tmp_path):
    """The same entry on another set, and with other options there, has folders of its own; the same again has one."""

    def settings(**changes):
        return {
            "name": "probe",
            "every_steps": 5,
            "set": "phantom",
            "task": {"name": "all"},
            "bootstrap": 20,
            **changes,
        }

    def judged(entry):
        folder = run.place(tmp_path, entry, 6)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps({"entry": entry}))
        return folder.relative_to(tmp_path / "evals").as_posix()

    assert judged(settings()) == "probe/6"
    assert judged(settings(set="clinic/256")) == "probe-on-clinic_256/6"
    more = judged(settings(set="clinic/256", bootstrap=50))
    assert more.startswith("probe-on-clinic_256-") and more.endswith("/6")
    assert judged(settings(every_steps=7)) == "probe/6"
    assert judged(settings(set="clinic/256")) == "probe-on-clinic_256/6"
    (tmp_path / "evals/probe/6/results.json").write_text('{"entry": {"set": "phantom", "an older": "key"}}')
    assert judged(settings()) == "probe/6"
    (tmp_path / "evals/probe/6/results.json").write_text("cut")
    assert judged(settings(set="clinic/256", bootstrap=70)) == "probe/6"


def test_a_fraction_thins_the_train_split_alone(phantom_dir):
    found, _ = run.sources(run.complete(entry(phantom_dir, fraction=0.3)))
    whole = converted_sets.open_set("phantom", phantom_dir).split_sizes
    assert 0 < len(found["train"]) < 0.5 * whole["train"]
    assert {split: len(found[split]) for split in ("val", "test")} == {split: whole[split] for split in ("val", "test")}


def test_failures_name_the_evaluation_the_encoder_and_the_step(phantom_dir, tmp_path):
    def broken(images):
        raise FloatingPointError("no luck")

    encoder = Encoder(broken, 16, digest("broken"), "broken", 42)
    with pytest.raises(run.EvaluationError, match="'phantom-finding-probe' of 'broken' at step 42 failed: no luck"):
        run.evaluate(encoder, entry(phantom_dir), tmp_path)
    pixels = encoders.pixels()
    for changes, words in (
        ({"judge": "svm"}, "'svm'.*'probe', .*'knn'"),
        ({"set": ""}, "needs 'set'"),
        ({"task": {"kind": "multilabel", "labels": "Hernia"}}, "'Hernia'.*'Cardiomegaly'"),
    ):
        with pytest.raises(run.EvaluationError, match=words):
            run.evaluate(pixels, entry(phantom_dir, **changes), tmp_path)
    assert not list(tmp_path.rglob("results.json"))


def test_digest_sees_values_shapes_types_and_names():
    base = {"a": jnp.zeros((2, 3))}
    others = [{"b": jnp.zeros((2, 3))}, {"a": jnp.zeros((3, 2))}, {"a": jnp.zeros((2, 3), jnp.bfloat16)}]
    others += [{"a": jnp.zeros((2, 3)).at[0, 0].set(1)}, {"a": jnp.zeros((2, 3)), "key": jax.random.key(0)}]
    assert len({digest(tree) for tree in [base, *others]}) == 6
    assert digest(base) == digest({"a": np.zeros((2, 3), np.float32)})


def test_a_checkpoint_is_compared_with_random_and_pixels(phantom_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXRJAX_DATA", str(tmp_path))  # without the set that is trained on
    method, _ = blank()
    method = method._replace(views=lambda example, rng: {"image": np.zeros((1, 16, 16, 1), np.uint8)})
    params, state = method.init(jax.random.key(3), None)
    trained_with = shared.pretrain()
    trained_with.method = "blank"
    loaded = evaluate.trained.Trained(trained_with, method, params, state, 9, "d", tmp_path)
    monkeypatch.setattr(evaluate.trained, "load", lambda directory, step: loaded)
    config = ConfigDict({"checkpoint": "DIR", "step": "latest", "seed": 0, "references": ""})
    config.references = "random,pixels,metadata,blur,lungs"
    config.evals = {"findings": entry(phantom_dir, projections="PA,AP")}
    found = evaluate.run(config)["findings"]
    assert list(found) == ["blank", "random", "pixels-32", "metadata", "blur-16", "lungs"]
    versus = json.loads((tmp_path / "evals" / "findings" / "9" / "versus-pixels-32.json").read_text())
    gain = found["blank"].metrics["auroc"].value - found["pixels-32"].metrics["auroc"].value
    assert versus["auroc"]["value"] == pytest.approx(gain)
    assert (tmp_path / "evals" / "findings-random" / "0" / "results.json").is_file()
    printed = capsys.readouterr().out
    assert "blank minus random: auroc" in printed and "blank minus lungs: auroc" in printed
    assert "the AUROC of blank" in printed or "The AUROC of blank" in printed

    def without_masks(*given, **options):
        raise shortcuts.NoMasks("nobody drew them")

    config.references = "lungs,metadata"
    unread = encoders.pixels(8)._replace(name="lungs", read=without_masks)
    monkeypatch.setattr(shortcuts, "masked", lambda encoder, keep_lungs: unread)
    assert list(evaluate.run(config)["findings"]) == ["blank", "metadata"]
    assert "lungs was left out: nobody drew them" in capsys.readouterr().out


def judged(judge, data_dir, skill):
    """An encoder whose answers are the better the larger `skill` is, up to 1."""
    known, rng = {}, np.random.default_rng(int(100 * skill))
    for split in ("val", "test") if judge == "detect" else ():
        for example in sources.select(converted_sets.open_set("phantom", data_dir), split):
            known[boxes.whole(crops.decode(example["image"]), 64).tobytes()] = boxes.of_example(example, LABELS)

    def encode(images):
        images = np.asarray(images)
        if judge == "segment":
            return {"mask_logits": 10 * (0.35 * skill - images / 255)}
        rows = [boxes.pad(known[image.tobytes()], 6) for image in images]
        found, classes = (np.stack([row[name] for row in rows]) for name in ("boxes", "classes"))
        scores = np.where(classes >= 0, rng.uniform(0.3, 0.9, classes.shape), 0).astype(np.float32)
        return {"boxes": found + (1 - skill) * rng.normal(0, 0.1, found.shape), "classes": classes, "scores": scores}

    def joint(found):
        found = np.asarray(found, np.float32).reshape(len(found), -1)[:, :6]
        return {"pooled": found / np.linalg.norm(found, axis=1, keepdims=True)}

    def tokens(text):
        return dict.fromkeys(TOKENS, np.random.default_rng(len(text)).random(6) ** (1 + skill))

    more = {
        "segment": {"target": "mask"},
        "detect": {"answers": Answers(LABELS, "boxes")},
        "retrieve": {"joint": Joint(joint, lambda ids, *_: joint(ids), tokens, lambda report: report["impression"])},
    }
    if judge == "probe":
        return encoders.pixels(8 if skill == 1 else 2)._replace(name=f"skilled-{skill}")
    return Encoder(encode, 64, f"{judge}-{skill}", f"skilled-{skill}", **more[judge])


@pytest.mark.parametrize(
    ("judge", "first", "others"),
    [
        ("probe", "auroc", {"auprc", "auroc/Mass", "accuracy"}),
        ("segment", "dice_present", {"iou_all", "gain"}),
        ("detect", "map", {"map50", "map_mgca_compat", "map/Mass"}),
        ("retrieve", "image_to_text_recall@1", {"text_to_image_recall@5"}),
    ],
)
def test_a_difference_is_that_of_the_results(phantom_dir, tmp_path, monkeypatch, capsys, judge, first, others):
    ours, theirs = (judged(judge, phantom_dir, skill) for skill in (1, 0.5))
    loaded = types.SimpleNamespace(workdir=tmp_path, config=None)
    monkeypatch.setattr(evaluate.trained, "load", lambda directory, step: loaded)
    monkeypatch.setattr(evaluate, "_of_checkpoint", lambda found: ours)
    monkeypatch.setattr(evaluate, "_untrained", lambda found, seed: theirs)
    config = ConfigDict({"checkpoint": "DIR", "step": "latest", "seed": 0, "references": "random"})
    task = {"kind": "multilabel", "labels": "Mass,Effusion"} if judge == "probe" else {}
    own = {"confidence": 0.4} if judge == "detect" else {}
    config.evals = {judge: entry(phantom_dir, judge=judge, task=task, **own)}
    found = evaluate.run(config)[judge]
    versus = json.loads((tmp_path / "evals" / judge / "0" / f"versus-{theirs.name}.json").read_text())
    assert next(iter(versus)) == first and others < set(versus)
    assert f"{ours.name} minus {theirs.name}: {first} " in capsys.readouterr().out
    values = [{name: one.value for name, one in found[encoder.name].metrics.items()} for encoder in (ours, theirs)]
    expected = {name: values[0][name] - values[1][name] for name in versus}
    assert {name: row["value"] for name, row in versus.items()} == pytest.approx(expected)
    assert any(expected.values())
    assert versus[first]["n"] == found[ours.name].metrics[first].n


def test_results_note_what_the_training_has_seen_of_the_test_pictures(phantom_dir, tmp_path, monkeypatch):
    tested = sources.select(converted_sets.open_set("phantom", phantom_dir), "test", projections=("PA", "AP"))
    rows = [(f"copy {n}", f"someone {n}", "train", crops.decode(tested[n]["image"])) for n in range(4)]
    radiographs.write(tmp_path, "clinic", rows, short_side=64)
    monkeypatch.setenv("CXRJAX_DATA", str(tmp_path))

    def notes(exclude_overlap=True, **changes):
        config = shared.pretrain()
        config.data.update({"sets": "clinic", "exclude_overlap": exclude_overlap} | changes)
        result = run.evaluate(encoders.pixels(8), entry(phantom_dir), tmp_path, trained_with=config)
        path = tmp_path / "evals" / "phantom-finding-probe" / "0" / "results.json"
        assert json.loads(path.read_text())["notes"] == result.notes
        return [note for note in result.notes if "trained on" in note]

    (note,) = notes()
    assert note == notes(exclude_overlap=False, judged_on="phantom")[0]
    told = "4 pictures of 4 patients (0 by id, 4 by fingerprint"
    assert f"clinic/64-png with what is in val or test of phantom, {told}" in note
    assert notes(judged_on="phantom") == []


@pytest.mark.parametrize(
    ("trained", "asked", "said"),
    [
        ((4, 1), (0, 0), "by fold 1 of 4 and is judged by the set's own parts"),
        ((0, 0), (4, 1), "by the set's own parts and is judged by fold 1 of 4"),
        ((4, 1), (4, 2), "by fold 1 of 4 and is judged by fold 2 of 4"),
        ((4, 1), (4, 1), None),
        ((0, 0), (0, 0), None),
    ],
)
def test_patients_of_other_folds_were_seen(phantom_dir, monkeypatch, trained, asked, said):
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    config, given = shared.pretrain(), entry(phantom_dir)
    config.data.sets = given["set"]
    config.data.folds, config.data.fold = trained
    given["folds"], given["fold"] = asked
    found = run._leaks(config, run.complete(given))
    assert (found == []) if said is None else said in found[0] and "may be too good" in found[0]
