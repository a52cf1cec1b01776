"""LeJEPA: a step written out, its forms, its views, its recipe."""

import jax
import numpy as np
import pytest

from cxrjax import methods, optim, rng
from cxrjax.losses import gaussian
from tests import runs
from tests.losses.test_gaussian import looped
from tests.methods import oracles
from tests.methods.test_dino import crops


@pytest.fixture(scope="module")
def step():
    """(batch, settings of loss) → loss, aux: of a method on noisy parameters, whose features are made once."""
    config = oracles.config("lejepa")
    method = methods.make(config)
    shapes = jax.eval_shape(method.init, jax.random.key(0), None)
    params, state = (oracles.noise(tree, seed) for seed, tree in enumerate(shapes))
    assert set(params) == {"encoder", "projector"} and set(state) == {"batch_stats"}
    batch, key = crops(), jax.random.key(3)
    prepared = jax.jit(method.parts.prepare)(batch, key)
    features, _ = jax.jit(method.parts.embed)(params, state, prepared)

    def run(**changes):
        made = methods.make(oracles.config("lejepa", **changes))
        return jax.jit(made.parts.loss_of)(params, state, features, prepared, 0)

    return run, params, state, features["y"], rng.fold(key, "slices")


def expected(step, large):
    """inv and SIGReg by hand, of what the projector makes of all views as one batch."""
    _, params, state, y, key = step
    projector = oracles.TorchMLP(params["projector"], state["batch_stats"]["projector"])
    z = projector(oracles.leaf(y).reshape(-1, y.shape[-1])).detach().numpy().reshape(*y.shape[:2], -1)
    x = np.float64(z) @ np.float64(gaussian.directions(key, z.shape[-1], 32))
    sigreg = np.mean([[looped(x[:, v, k]) for k in range(x.shape[2])] for v in range(x.shape[1])])
    return np.mean((z[:, :large].mean(axis=1, keepdims=True) - z) ** 2), sigreg


def test_a_step_is_the_papers(step):
    loss, aux = step[0]()
    inv, sigreg = expected(step, 2)
    assert float(aux.terms["inv"]) == pytest.approx(0.98 * inv, rel=1e-4)
    assert float(aux.terms["sigreg"]) == pytest.approx(0.02 * sigreg, rel=1e-4)
    assert float(loss) == pytest.approx(0.98 * inv + 0.02 * sigreg, rel=1e-4)
    assert float(aux.monitors["sigreg_above_floor"]) == pytest.approx(sigreg - 1.0524642, abs=1e-3)


def test_other_forms(step):
    """The centre of all views; the additive form; the factor of another batch; λ = 0 and 1."""
    inv, sigreg = expected(step, 4)
    loss, _ = step[0](loss__centre="all", loss__form="additive", loss__rows=64.0)
    assert float(loss) == pytest.approx(inv + 0.02 * sigreg * 64 / 16, rel=1e-4)
    inv, _ = expected(step, 2)
    assert float(step[0](loss__lambd=0.0)[0]) == pytest.approx(inv, rel=1e-4)
    assert float(step[0](loss__lambd=1.0)[0]) == pytest.approx(sigreg, rel=1e-4)


def test_the_recipe_is_the_authors():
    for words, wd in (("chestxray14", 5e-2), ("chestxray14,resnet50", 5e-4)):
        config = runs.config("lejepa", words)
        params, _ = jax.eval_shape(methods.make(config).init, jax.random.key(0), None)
        assert params["projector"]["fc3"]["kernel"].shape == (2048, 512) and "bias" in params["projector"]["fc3"]
        _, report = optim.make(config.optim, params, 30_000, config.batch_size, 300)
        rates = [float(report(step)["lr"]) for step in (0, 300, 30_000)]
        np.testing.assert_allclose(rates, [5e-6, 5e-4, 5e-7], rtol=1e-4)
        assert config.optim.wd == wd and config.optim.wd_mults == ((".*", 1.0),)
    assert (config.loss.lambd, config.loss.slices, config.local_views.count) == (0.05, 1024, 6)
