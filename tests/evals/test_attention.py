"""Where [CLS] attention: against the blocks in NumPy, only where [CLS] is what is judged, and as a report draws it."""

import base64
import json
import re
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pandas
import pytest
import scipy.special

from cxrjax import evaluate, methods, train, trained
from cxrjax.evals import attention, encoders
from cxrjax.evals.predictions import choose, quality
from cxrjax.input import converted_sets, crops, source
from cxrjax.models import posemb
from cxrjax.reporting import results_page
from tests import runs
from tests.methods.conftest import smooth_pictures


def normed(x, given):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * given["scale"] + given["bias"]


def linear(x, given):
    return x @ given["kernel"] + given["bias"]


def looks_in_numpy(config, params, image):
    """uint8 h w -> p q, token by token and head by head."""
    side, params = config.model.patch_px, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = (image / 255 - config.standardise.mean) / config.standardise.std
    p, q = (length // side for length in x.shape)
    tokens = [x[i * side : (i + 1) * side, j * side : (j + 1) * side].ravel() for i in range(p) for j in range(q)]
    x = linear(np.stack(tokens), params["patch_embed"]) + posemb.sincos_2d((p, q), params["cls"].size)
    x = np.concatenate([params["cls"][None], x])
    for number in range(2):
        block = jax.tree.map(lambda leaf, number=number: leaf[number], params["blocks"])
        query, key, value = np.split(linear(normed(x, block["norm1"]), block["attention"]["qkv"]), 3, axis=1)
        weights = []
        mixed = np.zeros_like(x)
        for head in (slice(0, 32), slice(32, 64)):
            weights.append(scipy.special.softmax(query[:, head] @ key[:, head].T / np.sqrt(32), axis=1))
            mixed[:, head] = weights[-1] @ value[:, head]
        x = x + linear(mixed, block["attention"]["out"])
        hidden = linear(normed(x, block["norm2"]), block["mlp"]["fc1"])
        x = x + linear(hidden * scipy.special.ndtr(hidden), block["mlp"]["fc2"])
    return np.mean(weights, axis=0)[0, 1:].reshape(p, q)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run whose attention is not flat."""
    folder = tmp_path_factory.mktemp("run")
    runs.write(folder, runs.config("spcl"))
    return folder


def test_it_is_the_softmax_of_the_last_block_in_numpy(workdir):
    loaded = trained.load(workdir)
    images = smooth_pictures(8, 32)[:, 0]
    encoder = encoders.from_method(loaded.method, loaded.params, loaded.state, name="spcl", attention=True)
    found = np.asarray(encoder.attention(images))
    assert found.shape == (8, 8, 8)
    params = jax.device_get(loaded.params["encoder"])
    for image, one in zip(images[:3], found, strict=False):
        expected = looks_in_numpy(loaded.config, params, image[..., 0].astype(float))
        assert expected.max() > 1.2 * expected.min()
        np.testing.assert_allclose(one, expected, rtol=2e-3)


@pytest.mark.parametrize(
    ("name", "changes", "there"),
    [
        ("dino", {}, True),
        ("simclr", {}, True),
        ("supervised", {}, True),
        ("moco_v3", {}, True),
        ("mgca", {"model__variant": "test"}, True),
        ("spcl", {"model__pool": "mean"}, False),  # [CLS] is not what is judged
        ("mae", {}, False),
        ("supervised", {"model__variant": "resnet_test"}, False),
    ],
)
def test_there_is_a_map_where_cls_of_a_vit_is_judged(name, changes, there, phantom_dir):
    vocabulary = (
        {"text__tokenizer": str(converted_sets.open_set("phantom", phantom_dir).directory)} if name == "mgca" else {}
    )
    if name == "spcl" and changes:
        changes = changes | {"cls_shortcut": False}
    method = methods.make(runs.config(name, **changes, **vocabulary), 10)
    params, state = jax.eval_shape(lambda: method.init(jax.random.key(0), methods.blank_batch(method)))
    found = jax.eval_shape(attention.maps(method.encode), params, state, np.zeros((2, 32, 32, 1), np.uint8))
    assert (None if found is None else found.shape) == ((2, 8, 8) if there else None)


@pytest.fixture(scope="module")
def judged(workdir, phantom_dir):
    """The workdir once a probe has judged it on its own; its predictions."""
    config = runs.config("eval_probe", "", checkpoint=str(workdir), references="")
    config.evals.phantom_probe.update({"data_dir": str(phantom_dir), "bootstrap": 20, "batch_size": 12})
    config.evals.phantom_probe.task.labels = "Nodule,Effusion"
    evaluate.run(config)
    return pandas.read_parquet(workdir / "evals" / "phantom_probe" / "6" / "predictions.parquet")


def test_the_pictures_that_a_report_may_show_have_their_own_map(judged, workdir, phantom_dir):
    chosen = choose(quality(judged)[0], attention.MOST)
    rows = sorted(row for of_kind in chosen.values() for row in of_kind)
    assert 5 < len(rows) <= 3 * attention.MOST
    assert np.flatnonzero(judged["overlay/map"].notna()).tolist() == rows
    for fewer in (1, 2, 3):
        shown = choose(quality(judged)[0], fewer)
        assert {row for of_kind in shown.values() for row in of_kind} <= set(rows)
    loaded = trained.load(workdir)
    params = jax.device_get(loaded.params["encoder"])
    records = source.select(converted_sets.open_set("phantom", phantom_dir), "test")
    pictures = {records[i]["image_id"]: records[i]["image"] for i in range(len(records))}
    for row in rows[::3]:
        picture = crops.fit(crops.decode(pictures[judged["image_id"][row]]), 32).astype(float)
        found = np.stack(list(map(np.asarray, judged["overlay/map"][row])))
        np.testing.assert_allclose(found, looks_in_numpy(loaded.config, params, picture), rtol=2e-3)


def test_a_report_draws_it_and_says_what_it_is(judged, workdir, phantom_dir, tmp_path):
    config = runs.config("report", "", runs=str(workdir), resamples=10, data_dir=str(phantom_dir))
    results_page.write(config, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "Colours: how much [CLS] attends to each patch in the encoder&#x27;s last block, mean over the heads" in text
    assert "(0.016 would be even)" in text and len(re.findall(r"Colours: 0\.0\d+ to 0\.\d+</", text)) == 6
    drawn = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    assert len(drawn) == 6
    for data in drawn:
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR).astype(int)
        assert np.ptp(picture, axis=2).max() > 50, "no colours"
    details = json.loads((workdir / "evals" / "phantom_probe" / "6" / "results.json").read_text())["details"]
    assert details["map"].startswith("how much [CLS] attends")


def test_along_training_only_the_last_step_pays_for_it(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(train, "from_method", lambda *_, attention, **__: asked.append(attention))
    judge = SimpleNamespace(evaluate=lambda *_: None, scalars=lambda *_: {}, summary=lambda _: "")
    entries = {"probe": {"set": "phantom"}}
    monkeypatch.setattr(train, "evals", judge)
    config = runs.config("spcl")
    state, going = SimpleNamespace(params={}, state={}), SimpleNamespace(method=None, mesh=None, total_steps=12)
    for step in (6, 12):
        train._evaluate(config, going, state, step, tmp_path, entries)
    assert asked == [False, True]
