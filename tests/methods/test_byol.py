"""BYOL: the loss in PyTorch, who learns and who follows, and the order of what BatchNorm remembers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cxrjax import methods
from cxrjax.input import device
from tests import runs
from tests.methods import oracles


@pytest.fixture(scope="module")
def case():
    return oracles.case(oracles.config("byol"))


def distance(q, z):
    """Eq. 2."""
    q, z = (x / x.norm(dim=1, keepdim=True) for x in (q, z))
    return ((q - z) ** 2).sum(dim=1).mean()


def test_a_step_is_the_papers(case):
    """Value, gradients of the online network, running statistics that move with one view after the other."""
    (loss, aux), (gradient, _), pooled = case.step(case.batch)
    stats = case.state["batch_stats"]
    y = [oracles.leaf(x) for x in pooled["online"]]
    projector = oracles.TorchMLP(case.params["projector"], stats["projector"])
    predictor = oracles.TorchMLP(case.params["predictor"], stats["predictor"])
    target = oracles.TorchMLP(case.state["target"]["projector"], stats["projector"])
    q = [predictor(projector(x)) for x in y]
    with torch.no_grad():
        z = [target(torch.tensor(np.asarray(x))) for x in pooled["target"]]
    terms = distance(q[0], z[1]), distance(q[1], z[0])
    sum(terms).backward()
    assert float(loss) == pytest.approx(sum(terms).item(), rel=1e-5)
    assert float(aux.terms["regression"]) == pytest.approx(terms[0].item(), rel=1e-5)
    assert float(aux.terms["regression_swapped"]) == pytest.approx(terms[1].item(), rel=1e-5)
    projector.check(gradient["projector"], aux.state["batch_stats"]["projector"])
    predictor.check(gradient["predictor"], aux.state["batch_stats"]["predictor"])
    oracles.check_encoder(case.params, gradient, y)


def test_the_target_gets_no_gradient_and_does_not_move_in_the_loss(case):
    (_, aux), (_, by_state), _ = case.step(case.batch)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(by_state["target"]))
    jax.tree.map(np.testing.assert_array_equal, aux.state["target"], case.state["target"])
    assert set(case.state["target"]) == {"encoder", "projector"}  # and no predictor


def test_views_may_be_swapped(case):
    (loss, aux), (gradient, _), _ = case.step(case.batch)
    (swapped, other), (same, _), _ = case.step({"image": case.batch["image"][:, ::-1]})
    assert float(swapped) == pytest.approx(float(loss), rel=1e-6)
    assert float(other.terms["regression"]) == pytest.approx(float(aux.terms["regression_swapped"]), rel=1e-5)
    jax.tree.map(oracles.close, gradient, same)


def test_the_target_follows():
    """Eq. 1 with τ from τ_base to 1 over the run's own steps, whatever the config's unit; the predictor is left out."""
    config = runs.config("byol", momentum=0.9, duration__total_steps=None, duration__total_epochs=3.0)
    after = methods.make(config, total_steps=8).after
    rng = np.random.default_rng(0)
    xi, state = np.float64(rng.normal(size=3)), {"target": {}, "batch_stats": "as they are"}
    state["target"] = {"encoder": {"w": jnp.asarray(xi)}, "projector": {"w": jnp.asarray(-xi)}}
    for step in range(10):
        theta = rng.normal(size=3)
        tau = 1 - (1 - 0.9) * (np.cos(np.pi * min(step, 8) / 8) + 1) / 2
        xi = tau * xi + (1 - tau) * theta
        params = {"encoder": {"w": theta}, "projector": {"w": -theta}, "predictor": {"w": np.nan}}
        state = after(params, state, step)
        np.testing.assert_allclose(state["target"]["encoder"]["w"], xi, rtol=1e-5)
        np.testing.assert_allclose(state["target"]["projector"]["w"], -xi, rtol=1e-5)
    assert set(state["target"]) == {"encoder", "projector"} and state["batch_stats"] == "as they are"
    with pytest.raises(ValueError, match=r"'byol' changes from 0.9 to 1.0 over the whole run.*'total_epochs': 3.0"):
        methods.make(config).after(params, state, 0)


def test_the_target_starts_as_a_copy_or_by_itself():
    copy, independent = (methods.make(runs.config("byol", target_start=word)) for word in ("copy", "independent"))

    @jax.jit
    def starts(key):
        return [method.init(key, None) for method in (copy, independent)]

    (params, state), (same, other) = starts(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, same)
    for name in ("encoder", "projector"):
        jax.tree.map(np.testing.assert_array_equal, params[name], state["target"][name])
    kernels = other["target"]["encoder"]["patch_embed"]["kernel"], params["encoder"]["patch_embed"]["kernel"]
    assert abs(np.corrcoef(*(np.ravel(kernel) for kernel in kernels))[0, 1]) < 0.2


def test_a_resnet_remembers_one_view_after_the_other_and_encodes_by_it():
    config = oracles.config("byol", "chestxray14,smoke")
    method = methods.make(config)
    shapes = jax.eval_shape(method.init, jax.random.key(0), None)
    params, state = (oracles.noise(tree, seed) for seed, tree in enumerate(shapes))
    batch = {"image": oracles.pictures()}

    @jax.jit
    def after_a_step(batch):
        stats = method.loss(params, state, batch, jax.random.key(0), 0)[1].state
        single = method.encode(params, state, batch["image"][:1, 0])
        return stats, method.encode(params, state, batch["image"][:, 0]), single

    moved, together, single = after_a_step(batch)
    remembered = {name: leaf.astype(np.float64) for name, leaf in state["batch_stats"]["encoder"]["bn1"].items()}
    weight = torch.tensor(params["encoder"]["conv1"]["kernel"].transpose(3, 2, 0, 1))
    images = np.asarray(device.standardise(batch["image"], **config.standardise))[..., 0]
    for v in range(2):
        x = torch.nn.functional.conv2d(torch.tensor(images[:, v, None]), weight, stride=2, padding=3).double()
        variance, mean = torch.var_mean(x, dim=(0, 2, 3))
        remembered["mean"] = 0.9 * remembered["mean"] + 0.1 * mean.numpy()
        remembered["var"] = 0.9 * remembered["var"] + 0.1 * variance.numpy()
    for name, leaf in moved["batch_stats"]["encoder"]["bn1"].items():
        oracles.close(leaf, remembered[name])
    np.testing.assert_allclose(single["pooled"][0], together["pooled"][0], rtol=1e-4, atol=1e-5)


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="predictor.out = 16 must be projector.out = 32"):
        methods.make(runs.config("byol", predictor__out=16))
