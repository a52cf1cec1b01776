"""VICReg: the authors' loss in PyTorch, the views, the expander, and the recipe's learning rate."""

import jax
import numpy as np
import pytest
import torch

from cxrjax import methods, optim
from tests import runs
from tests.methods import oracles


@pytest.fixture(scope="module")
def case():
    return oracles.case(oracles.config("vicreg"))


def algorithm_1(one, two):
    """Bardes et al., algorithm 1, with the ½ of the authors' code; weights 25, 25, 1."""
    n, d = one.shape
    terms = {"invariance": 25 * torch.nn.functional.mse_loss(one, two), "variance": 0, "covariance": 0}
    for z in (one, two):
        terms["variance"] = terms["variance"] + 25 * torch.relu(1 - torch.sqrt(z.var(dim=0) + 1e-4)).mean() / 2
        covariance = torch.cov(z.T)
        terms["covariance"] = terms["covariance"] + (covariance**2).sum() / d - (covariance.diagonal() ** 2).sum() / d
    return terms


def test_a_step_is_the_papers(case):
    """Value, gradients, and statistics that move with one view after the other, each normalised by itself."""
    (loss, aux), (gradient, _), pooled = case.step(case.batch)
    y = [oracles.leaf(x) for x in pooled["online"]]
    expander = oracles.TorchMLP(case.params["projector"], case.state["batch_stats"]["projector"])
    expected = algorithm_1(*[expander(x) for x in y])
    sum(expected.values()).backward()
    assert float(loss) == pytest.approx(sum(expected.values()).item(), rel=1e-5)
    assert {name: float(value) for name, value in aux.terms.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-4
    )
    expander.check(gradient["projector"], aux.state["batch_stats"]["projector"])
    oracles.check_encoder(case.params, gradient, y)


def test_views_may_be_swapped(case):
    (loss, _), (gradient, _), _ = case.step(case.batch)
    (swapped, _), (same, _), _ = case.step({"image": case.batch["image"][:, ::-1]})
    assert float(swapped) == pytest.approx(float(loss), rel=1e-6)
    jax.tree.map(oracles.close, gradient, same)


def test_the_recipe_is_the_authors():
    """Sizes of the expander, whose last layer is bare; a residual network; LARS outside of momentum; its schedule."""
    config = runs.config("vicreg", "chestxray14")
    params, state = jax.eval_shape(methods.make(config).init, jax.random.key(0), None)
    assert {name: sorted(layer) for name, layer in params["projector"].items()} == {
        "fc1": ["bias", "kernel"],
        "norm1": ["bias", "scale"],
        "fc2": ["bias", "kernel"],
        "norm2": ["bias", "scale"],
        "fc3": ["kernel"],
    }
    assert params["projector"]["fc3"]["kernel"].shape == (8192, 8192)
    assert set(state["batch_stats"]) == {"encoder", "projector"} and "layer4" in state["batch_stats"]["encoder"]
    _, report = optim.make(config.optim, params, total_steps=42_000, batch_size=2048, steps_per_epoch=42)
    rates = [float(report(step)["lr"]) for step in (0, 210, 420, 42_000)]
    np.testing.assert_allclose(rates, [0, 0.8, 1.6, 0.0016], rtol=1e-5)
    assert not config.optim.lr_in_momentum


@pytest.mark.slow
def test_alike_views_alone_are_one_point():
    """Control: without the other two terms the deviations drift to 0, for a collapse answers invariance best."""
    method = methods.make(oracles.config("vicreg", loss__std=0.0, loss__cov=0.0))
    _, _, reports = oracles.learn(method, {"image": oracles.pictures(32)}, 40, lr=3e-3)
    assert reports[-1]["loss"] < 0.05 * reports[0]["loss"]
    assert reports[-1]["embedding_std"] < 0.3 * reports[0]["embedding_std"]
