"""The configs of all methods: recipes that fit their own networks, and a smoke word that shrinks each of them."""

import re

import jax
import pytest

from cxrjax import config as shared
from cxrjax import methods, optim, recipes
from cxrjax.evals.run import complete
from tests import runs

METHODS = methods.available()


def words(method):
    """WORDS of a config file."""
    source = (runs.CONFIGS / f"{method}.py").read_text()
    return re.findall(r'"(\w+)"', re.search(r"^WORDS = \((.*?)\)", source, re.MULTILINE | re.DOTALL)[1])


def recipe_words(method):
    """Each recipe, and the large one with every word that changes it."""
    others = [word for word in words(method) if word not in ("chestxray14", "five_sets", "smoke")]
    return ["chestxray14", "five_sets", *(f"chestxray14,{word}" for word in others)]


@pytest.mark.parametrize(("method", "word"), [(m, w) for m in METHODS for w in recipe_words(m)])
def test_recipes_fit_their_networks(method, word):
    """Sizes divide, every rule of the optimizer finds parameters, durations are given once."""
    config = runs.config(method, word)
    made = methods.make(config, total_steps=1000)
    params, _ = jax.eval_shape(made.init, jax.random.key(0), methods.blank_batch(made))
    steps = optim.duration(config.duration, "total", config.batch_size, 80_000)
    optim.make(config.optim, params, steps, config.batch_size, 80_000 / config.batch_size)
    assert config.data.sets != "phantom" and config.evals
    for entry in config.evals.values():
        assert "phantom" not in complete(entry)["set"]


@pytest.mark.parametrize("method", METHODS)
def test_smoke_shrinks_every_recipe(method):
    for word in words(method):
        config = runs.config(method, f"{word},smoke" if word != "smoke" else word)
        assert config.model.variant in ("test", "resnet_test") and config.model.image_px <= 32
        assert config.batch_size == 16 and dict(config.duration)["total_steps"] == 6
        assert config.duration.total_epochs is None and config.optim.base_lr is None
        assert all(entry.every_steps == 6 for entry in config.evals.values())
        assert "phantom" not in [config.data.sets, *(entry.set for entry in config.evals.values())]


def test_a_resnet_shrinks_to_a_resnet():
    config = shared.pretrain()
    config.model = recipes.resnet()
    recipes.five_sets(config)
    assert config.model.to_dict() == {"variant": "resnet18", "image_px": 128, "channels": 1, "dtype": "float32"}
    recipes.smoke(config)
    assert config.model.variant == "resnet_test" and "patch_px" not in config.model
