"""The configs of trained heads: each word makes something that can be built, and keeps its best step by val alone."""

import re
from types import SimpleNamespace

import jax
import pytest

from cxrjax import config as shared
from cxrjax import grid, methods, optim
from cxrjax.evals import run
from cxrjax.evals.segment import METRICS
from cxrjax.initial import of_run
from cxrjax.methods.base import Answers
from tests import runs
from tests.test_recipes import words

JUDGES = {"supervised": "classify", "segment": "segment", "detect": "detect"}
CONFIGS = ["finetune", "segment", "detect", *sorted(path.stem for path in runs.CONFIGS.glob("eval_*_*.py"))]
HEADS = [name for name in CONFIGS if "protocols" in (runs.CONFIGS / f"{name}.py").read_text()]
CASES = [(name, word) for name in HEADS for word in ("", *(word for word in words(name) if word != "smoke"))]
LOGGED = {"classify": ("auroc", "log_likelihood"), "segment": METRICS}


@pytest.mark.parametrize(("name", "word"), CASES)
def test_every_word_makes_a_run(name, word):
    """Sizes divide, rules of the optimizer find parameters, labels are named, the metric of the best step is logged."""
    config = of_run(runs.config(name, word))
    made = methods.make(config, total_steps=1000)
    params, _ = jax.eval_shape(made.init, jax.random.key(0), methods.blank_batch(made))
    steps = optim.duration(config.duration, "total", config.batch_size, 80_000)
    optim.make(config.optim, params, steps, config.batch_size, 80_000 / config.batch_size)
    ((key, entry),) = config.evals.items()
    full = run.complete(entry)
    assert full["judge"] == key == JUDGES[config.method] and full["set"] == config.data.sets
    if key in LOGGED:
        result = SimpleNamespace(metrics={}, details={"validation": dict.fromkeys(LOGGED[key], 0.5)})
        assert config.checkpoint.best_metric in run.scalars(entry, result)
    if config.get("grid"):
        assert len(grid.parse(config)) > 1
    assert not config.encoder == "frozen" or not jax.tree.leaves(params["encoder"])
    if config.method == "supervised":
        assert made.answers == Answers(shared.names(config.labels), config.task)


def test_the_best_step_is_chosen_by_what_is_judged():
    config = runs.config("finetune", "tb")
    config.update_from_flattened_dict({"evals.classify.set": "clinic", "evals.classify.task.name": "nodule"})
    assert config.checkpoint.best_metric == "eval/clinic/nodule/classify_val_auroc"
    config = runs.config("segment", "phantom", target="finding_mask")
    assert config.checkpoint.best_metric == "eval/phantom/finding_mask/segment_val_dice_present"


@pytest.mark.parametrize("name", ["finetune", "segment", "detect", "supervised"])
def test_a_head_is_judged_on_what_it_is_trained_on(name):
    """Its best step too, and with the projections of the training, unless evals says otherwise."""
    for word in ("", "smoke"):
        config = runs.config(name, word, data__sets="clinic, other", data__projections="")
        assert {(entry.set, entry.projections) for entry in config.evals.values()} == {("clinic", "")}
        assert config.checkpoint.best_metric.startswith("eval/clinic/")
        next(iter(config.evals.values())).set = "elsewhere"
        assert config.checkpoint.best_metric.startswith("eval/elsewhere/") and config.data.sets == "clinic, other"


@pytest.mark.parametrize("name", HEADS)
def test_smoke_shrinks_every_word(name):
    for word in words(name):
        config = runs.config(name, f"{word},smoke" if word != "smoke" else word)
        assert config.model.variant in ("test", "resnet_test") and config.model.image_px == 32
        assert config.batch_size == 16 and config.duration.to_dict()["total_steps"] == 6
        ((_, entry),) = config.evals.items()
        assert entry.every_steps == 6 and entry.bootstrap == 50 and f"/{entry.set}/" in config.checkpoint.best_metric
        assert "phantom" not in (config.data.sets, entry.set)


def test_protocols_name_their_source_and_what_is_ours():
    """And those with a defect put right have the word that brings it back."""
    for name in HEADS:
        text = (runs.CONFIGS / f"{name}.py").read_text().split('"""')[1]
        if name.startswith("eval_"):
            assert re.search(r"\d{4}\.\d{5}|github\.com", text)
            assert re.search(r"Ours:|our choice|put right", text)
        assert ("`compat`" in text) == ("compat" in words(name))
