"""The configs of all methods: recipes that fit their own networks, and a smoke word that shrinks each of them."""

import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cxrjax import config as shared
from cxrjax import initial, methods, optim, recipes, track
from cxrjax.evals import run
from tests import runs

METHODS = [name for name in methods.available() if name not in ("segment", "detect")]  # heads: tests/test_protocols.py
SIZES = ("chestxray14", "mimic_cxr", "five_sets")
ONE_VIEW = ("distill", "ijepa", "mae", "supervised")


def words(method):
    """WORDS of a config file."""
    source = (runs.CONFIGS / f"{method}.py").read_text()
    return re.findall(r'"(\w+)"', re.search(r"^WORDS = \((.*?)\)", source, re.MULTILINE | re.DOTALL)[1])


def recipe_words(method):
    """Each recipe, and the large one with every word that changes it."""
    known = words(method)
    sizes, others = sizes_of(method), [word for word in known if word not in (*SIZES, "smoke")]
    return [*sizes, *(f"{sizes[0]},{word}" for word in others)]


def sizes_of(method):
    return [word for word in SIZES if word in words(method)]


@pytest.mark.parametrize(("method", "word"), [(m, w) for m in METHODS for w in recipe_words(m)])
def test_recipes_fit_their_networks(method, word):
    """Sizes divide, every rule of the optimizer finds parameters, durations are given once."""
    config = initial.of_run(runs.config(method, word), builds=False)
    made = methods.make(config, total_steps=1000)
    params, _ = jax.eval_shape(made.init, jax.random.key(0), methods.blank_batch(made))
    steps = optim.duration(config.duration, "total", config.batch_size, 80_000)
    optim.make(config.optim, params, steps, config.batch_size, 80_000 / config.batch_size)
    assert config.data.sets != "phantom" and config.evals
    for entry in config.evals.values():
        assert "phantom" not in run.complete(entry)["set"]


@pytest.mark.parametrize("method", METHODS)
def test_smoke_shrinks_every_recipe(method):
    for word in words(method):
        config = runs.config(method, f"{word},smoke" if word != "smoke" else word)
        assert config.model.variant in ("test", "resnet_test") and config.model.image_px <= 32
        assert config.batch_size == 16 and dict(config.duration)["total_steps"] == 6
        assert config.duration.total_epochs is None and config.optim.base_lr is None
        assert all(entry.every_steps == 6 for entry in config.evals.values())
        assert "phantom" not in [config.data.sets, *(entry.set for entry in config.evals.values())]


@pytest.mark.parametrize("method", METHODS)
def test_a_collapse_shows_in_every_run(method, tmp_path, capsys):
    """Whatever a config trains: in the progress line, the records and TensorBoard, between two probes."""
    for word in ("", *sizes_of(method)):
        config = runs.config(method, word)
        every = {entry.judge: entry.every_steps for entry in config.evals.values()}
        assert 0 < every["knn"] < every["probe"]
        steps = config.duration.total_steps
        assert steps is None or every["knn"] < steps

    config = runs.config(method)
    made = methods.make(config)
    batch = jax.tree.map(lambda array: np.repeat(array, 2, axis=0), methods.blank_batch(made))
    params, state = jax.eval_shape(made.init, jax.random.key(0), batch)
    _, aux = jax.eval_shape(made.loss, params, state, batch, jax.random.key(0), 0)
    watched = {"feature_std", "effective_rank", "uniformity"}
    watched |= set() if method in ONE_VIEW else {"alignment", "retrieval_top1"}
    assert watched <= set(aux.monitors)

    result = SimpleNamespace(metrics={"auroc": SimpleNamespace(value=0.5)}, details={})
    (knn,) = (entry for entry in config.evals.values() if entry.judge == "knn")
    judged = run.scalars(knn, result)
    reported = {f"train/monitor/{name}": 1.0 for name in aux.monitors}
    with track.Tracker(tmp_path, 2, config.batch_size, every=1) as tracker:
        tracker.log(1, judged)
        tracker.log(2, {"train/loss": 2.0, **reported})
    said = capsys.readouterr().out.splitlines()[-1]
    assert "std 1" in said and "rank 1" in said and f"knn {knn.set} 0.5" in said
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in (*judged, *(f"train/monitor/{name}" for name in watched)):
        assert any(name in record for record in records) and name in board.Tags()["scalars"]


def test_a_resnet_shrinks_to_a_resnet():
    config = shared.pretrain()
    config.model = recipes.resnet()
    recipes.five_sets(config)
    computation = {"dtype": "float32", "remat": "dots"}
    assert config.model.to_dict() == {"variant": "resnet18", "image_px": 128, "channels": 1} | computation
    recipes.smoke(config)
    assert config.model.variant == "resnet_test" and "patch_px" not in config.model
