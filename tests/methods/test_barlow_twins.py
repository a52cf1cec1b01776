"""Barlow Twins: the authors' loss in PyTorch, the projector, and what their factor 0.024 did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cxrjax import methods, optim
from tests import runs
from tests.methods import oracles


@pytest.fixture(scope="module")
def case():
    return oracles.case(oracles.config("barlow_twins"))


def test_a_step_is_the_papers(case):
    """Value, gradients, and statistics that move with one view after the other, each normalised by itself."""
    (loss, aux), (gradient, _), pooled = case.step(case.batch)
    # In double precision: the views are nearly alike at the start, and BatchNorm magnifies what float32 rounds.
    y = [oracles.leaf(np.float64(x)) for x in pooled["online"]]
    projector = oracles.TorchMLP(case.params["projector"], case.state["batch_stats"]["projector"]).double()
    normalise = torch.nn.BatchNorm1d(48, affine=False).double()
    c = normalise(projector(y[0])).T @ normalise(projector(y[1])) / len(y[0])
    on_diagonal = ((c.diagonal() - 1) ** 2).sum()
    off_diagonal = 0.0051 * (c[~torch.eye(48, dtype=bool)] ** 2).sum()
    (on_diagonal + off_diagonal).backward()
    assert float(loss) == pytest.approx((on_diagonal + off_diagonal).item(), rel=1e-5)
    assert float(aux.terms["on_diagonal"]) == pytest.approx(on_diagonal.item(), rel=1e-5)
    assert float(aux.terms["off_diagonal"]) == pytest.approx(off_diagonal.item(), rel=1e-4)
    projector.check(gradient["projector"], aux.state["batch_stats"]["projector"])
    oracles.check_encoder(case.params, gradient, y)


def test_views_may_be_swapped(case):
    """C becomes its transpose."""
    (loss, _), (gradient, _), _ = case.step(case.batch)
    (swapped, _), (same, _), _ = case.step({"image": case.batch["image"][:, ::-1]})
    assert float(swapped) == pytest.approx(float(loss), rel=1e-6)
    jax.tree.map(oracles.close, gradient, same)


def test_the_recipe_is_the_authors():
    """A projector without a single bias in its linear layers, and biases and norms at 0.0048 · 8 of the rate."""
    config = runs.config("barlow_twins", "chestxray14")
    params, _ = jax.eval_shape(methods.make(config).init, jax.random.key(0), None)
    assert {name: sorted(layer) for name, layer in params["projector"].items()} == {
        "fc1": ["kernel"],
        "norm1": ["bias", "scale"],
        "fc2": ["kernel"],
        "norm2": ["bias", "scale"],
        "fc3": ["kernel"],
    }
    _, report = optim.make(config.optim, params, total_steps=42_000, batch_size=2048, steps_per_epoch=42)
    rates = [float(report(step)["lr"]) for step in (0, 420, 42_000)]
    np.testing.assert_allclose(rates, [0, 1.6, 0.0016], rtol=1e-5)


def test_a_scaled_loss_is_a_slower_rate_of_biases():
    """LARS's trust ratio takes the factor 0.024 from the weights; biases and norms keep it. Without weight decay."""
    config = runs.config("barlow_twins", "chestxray14").optim
    config.update({"warmup_epochs": None, "wd": 0.0})
    rng = np.random.default_rng(0)
    tree = {"fc": {"kernel": (4, 3), "bias": (3,)}, "norm": {"scale": (3,), "bias": (3,)}}
    params, gradient = (
        jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape)), tree, is_leaf=lambda x: isinstance(x, tuple))
        for _ in range(2)
    )

    def update(config, gradient):
        optimizer, _ = optim.make(config, params, total_steps=10, batch_size=256, steps_per_epoch=1)
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    slower_biases = update(config, gradient)
    config.lr_mults = ()
    scaled_loss = update(config, jax.tree.map(lambda leaf: 0.024 * leaf, gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), slower_biases, scaled_loss)
    np.testing.assert_allclose(slower_biases["norm"]["scale"], -0.0048 * gradient["norm"]["scale"], rtol=1e-5)


@pytest.mark.slow
def test_twins_grow_alike_and_their_dimensions_apart():
    batch = {"image": oracles.pictures(32)}
    _, _, reports = oracles.learn(methods.make(oracles.config("barlow_twins", loss__lambd=0.05)), batch, 40, lr=3e-3)
    assert reports[-1]["loss"] < 0.3 * reports[0]["loss"]
    assert reports[-1]["effective_rank"] > reports[0]["effective_rank"]
