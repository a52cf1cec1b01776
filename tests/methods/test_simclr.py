"""SimCLR: algorithm 1 in PyTorch, the switches, the projector of the equation and of the code."""

import jax
import numpy as np
import pytest
import torch

from cxrjax import methods
from cxrjax.imaging import pixels
from cxrjax.input.augment import Augment
from cxrjax.methods import simclr
from cxrjax.models import heads
from tests import runs
from tests.methods import oracles


@pytest.fixture(scope="module")
def case():
    return oracles.case(oracles.config("simclr"))


def algorithm_1(z, temperature):
    """Rows 2k−1 and 2k of z are the two views of picture k."""
    z = z / z.norm(dim=1, keepdim=True)
    exponentials = torch.exp(z @ z.T / temperature)
    total = 0
    for i in range(len(z)):
        j = i ^ 1
        others = sum(exponentials[i, k] for k in range(len(z)) if k != i)
        total = total - torch.log(exponentials[i, j] / others)
    return total / len(z)


def test_a_step_is_algorithm_1(case):
    """Value, gradients and running statistics of heads that see both views of all pictures at once."""
    (loss, aux), (gradient, _), pooled = case.step(case.batch)
    h = [oracles.leaf(x) for x in pooled["online"]]
    projector = oracles.TorchMLP(case.params["projector"], case.state["batch_stats"]["projector"])
    z = projector(torch.stack(h, dim=1).flatten(0, 1))
    expected = algorithm_1(z, 0.1)
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    projector.check(gradient["projector"], aux.state["batch_stats"]["projector"])
    oracles.check_encoder(case.params, gradient, h)
    assert set(aux.terms) == {"contrast"}


def test_switches_of_released_code(case):
    """The sum of both directions is twice the mean over anchors; groups are separate batches behind one BatchNorm."""
    plain, doubled, grouped = (
        methods.make(oracles.config("simclr", **changes))
        for changes in ({}, {"loss__sum_of_views": True}, {"loss__groups": 2})
    )

    @jax.jit
    def losses(batch):
        def loss(method, batch):
            return method.loss(case.params, case.state, batch, jax.random.key(0), 0)[0]

        return [loss(method, batch) for method in (plain, doubled, grouped)]

    one, two, separate = map(float, losses(case.batch))
    assert two == pytest.approx(2 * one, rel=1e-6)
    assert np.log(15) < separate < one  # 14 negatives in place of 30, of vectors that are all alike


def test_projector_of_the_code_and_of_the_equation():
    def shapes(width=48, **changes):
        module = simclr.projection_head(runs.config("simclr", **changes).projector, width, np.float32)
        params, _ = jax.eval_shape(lambda key: heads.start(module, key, width), jax.random.key(0))
        return {f"{layer}/{name}": leaf.shape for layer, leaves in params.items() for name, leaf in leaves.items()}

    norms = {"norm1/scale": (64,), "norm1/bias": (64,), "norm2/scale": (32,)}
    assert shapes() == {"fc1/kernel": (48, 64), "fc2/kernel": (64, 32)} | norms
    equation = {"fc1/kernel": (48, 64), "fc1/bias": (64,), "fc2/kernel": (64, 32), "fc2/bias": (32,)}
    assert shapes(projector__norm="none") == equation
    assert shapes(words="")["fc1/kernel"] == (48, 48) and shapes(words="")["fc2/kernel"] == (48, 128)
    assert shapes(projector__layers=3)["fc3/kernel"] == (64, 32)


@pytest.mark.parametrize("name", ["simclr", "byol", "moco_v3"])
def test_views_are_two_different_crops(name):
    method = methods.make(runs.config(name))
    example = {"image": pixels.encode(oracles.pictures(1, 1, 64)[0, 0, :, :, 0], "png")}
    first, again, other = (method.views(example, np.random.default_rng(seed))["image"] for seed in (0, 0, 1))
    assert first.shape == (2, 32, 32, 1) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any() and (first != other).any()


@pytest.mark.parametrize("name", ["simclr", "byol", "moco_v3", "supervised"])
def test_drops_paths_where_asked(name):
    """The encoder refuses to train with stochastic depth where a method does not say what is dropped."""
    config = runs.config(name)
    config.model.drop_path = 0.1
    method = methods.make(config)
    batch = {name: np.repeat(value, 2, axis=0) for name, value in methods.blank_batch(method).items()}
    params, state = jax.eval_shape(method.init, jax.random.key(0), batch)
    assert jax.eval_shape(method.loss, params, state, batch, jax.random.key(0), 0)[0].shape == ()


WIDE = {"projector__hidden": 512, "projector__out": 128, "predictor__hidden": 512}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"), [("simclr", {}), ("byol", WIDE | {"predictor__out": 128}), ("moco_v3", WIDE)]
)
def test_learns_to_find_the_other_view(name, changes):
    """Two crops of each of 64 smooth pictures of equal mean and contrast: found among 64, by vectors that stay spread.

    BYOL needs its wide heads: with 64 for 512 it comes to lie in one direction.
    """
    config = runs.config(name, views__scale=(0.6, 1.0), views__flip=0.0, duration__total_steps=60, **changes)
    config.augment = Augment(jitter=0.8, brightness=0.2, contrast=0.2)._asdict()
    method, rng = methods.make(config), np.random.default_rng(0)
    examples = [{"image": pixels.encode(p, "png")} for p in oracles.pictures(64, 1, 48)[:, 0, :, :, 0]]
    batch = {"image": np.stack([method.views(example, rng)["image"] for example in examples])}
    _, _, reports = oracles.learn(method, batch, 60)
    assert np.mean([r["retrieval_top1"] for r in reports[-5:]]) > 0.5
    assert reports[-1]["feature_std"] > 0.7 and reports[-1]["effective_rank"] > 3
