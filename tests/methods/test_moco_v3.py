"""MoCo v3: algorithm 1 in PyTorch, the momentum encoder in the order of the released code, the frozen projection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cxrjax import methods
from cxrjax.methods.base import encoder_params
from tests import runs
from tests.methods import oracles


@pytest.fixture(scope="module")
def case():
    return oracles.case(oracles.config("moco_v3"))


def ctr(q, k, temperature):
    """Algorithm 1."""
    q, k = (torch.nn.functional.normalize(x, dim=1) for x in (q, k))
    loss = torch.nn.functional.cross_entropy(q @ k.T / temperature, torch.arange(len(q)))
    return 2 * temperature * loss


def test_a_step_is_algorithm_1(case):
    """Value, gradients, running statistics that move with one view after the other; heads without biases."""
    (loss, aux), (gradient, _), pooled = case.step(case.batch)
    stats = case.state["batch_stats"]
    h = [oracles.leaf(x) for x in pooled["online"]]
    projector = oracles.TorchMLP(case.params["projector"], stats["projector"])
    predictor = oracles.TorchMLP(case.params["predictor"], stats["predictor"])
    momentum = oracles.TorchMLP(case.state["target"]["projector"], stats["projector"])
    q = [predictor(projector(x)) for x in h]
    with torch.no_grad():
        k = [momentum(torch.tensor(np.asarray(x))) for x in pooled["target"]]
    terms = ctr(q[0], k[1], 0.2), ctr(q[1], k[0], 0.2)
    sum(terms).backward()
    assert float(loss) == pytest.approx(sum(terms).item(), rel=1e-5)
    assert float(aux.terms["contrast"]) == pytest.approx(terms[0].item(), rel=1e-5)
    assert float(aux.terms["contrast_swapped"]) == pytest.approx(terms[1].item(), rel=1e-5)
    projector.check(gradient["projector"], aux.state["batch_stats"]["projector"])
    predictor.check(gradient["predictor"], aux.state["batch_stats"]["predictor"])
    oracles.check_encoder(case.params, gradient, h)
    assert (projector.depth, predictor.depth) == (3, 2)
    assert not projector.norm3.affine and not predictor.norm2.affine and projector.fc3.bias is None


def test_keys_get_no_gradient_and_do_not_move_in_the_loss(case):
    (_, aux), (_, by_state), _ = case.step(case.batch)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(by_state["target"]))
    jax.tree.map(np.testing.assert_array_equal, aux.state["target"], case.state["target"])
    assert set(case.state["target"]) == {"encoder", "projector"}  # and no predictor
    assert float(aux.monitors["momentum"]) == pytest.approx(1 - 0.01 * (np.cos(np.pi * 2 / 6) + 1) / 2)


def test_momentum_encoder_in_the_released_order():
    """There the momentum encoder moves when a step begins, with that step's m; ours must meet the same keys."""
    steps, m0 = 6, 0.9
    after = methods.make(runs.config("moco_v3", momentum=m0, duration__total_steps=steps)).after
    queries = [np.random.default_rng(step).normal(size=3) for step in range(steps)]  # parameters when step begins
    theirs, ours = queries[0], {"target": {"encoder": {"w": jnp.asarray(queries[0])}}, "batch_stats": {}}
    for step in range(steps):
        m = 1 - 0.5 * (1 + np.cos(np.pi * step / steps)) * (1 - m0)
        theirs = theirs * m + queries[step] * (1 - m)
        np.testing.assert_allclose(ours["target"]["encoder"]["w"], theirs, rtol=1e-5)
        if step + 1 < steps:
            ours = after({"encoder": {"w": queries[step + 1]}, "predictor": {}}, ours, step)


def shapes(**changes):
    return jax.eval_shape(methods.make(runs.config("moco_v3", **changes)).init, jax.random.key(0), None)


def test_the_patch_projection_is_kept_where_nothing_learns(case):
    """It is no parameter, shared by both encoders, part of what encodes, and still random noise after training."""
    params, state = shapes()
    assert "patch_embed" not in params["encoder"] and "patch_embed" not in state["target"]["encoder"]
    assert set(state["frozen"]["encoder"]["patch_embed"]) == {"kernel", "bias"}
    whole = encoder_params(params, state)
    learned, state = shapes(freeze_patch_embed=False)
    assert jax.tree.structure(learned["encoder"]) == jax.tree.structure(whole) and not state["frozen"]["encoder"]
    assert "patch_embed" in state["target"]["encoder"]
    assert shapes(words="resnet,smoke")[1]["frozen"] == {"encoder": {}}

    (_, aux), _, _ = case.step(case.batch)
    jax.tree.map(np.testing.assert_array_equal, aux.state["frozen"], case.state["frozen"])
    encode = jax.jit(case.method.encode)
    blank = {**case.state, "frozen": jax.tree.map(np.zeros_like, case.state["frozen"])}
    seen, unseen = (encode(case.params, state, case.batch["image"][:2, 0])["pooled"] for state in (case.state, blank))
    assert np.abs(seen[0] - seen[1]).max() > 1e-3
    np.testing.assert_allclose(unseen[0], unseen[1], atol=1e-6)


def test_heads_of_the_authors_resnet():
    """Two layers each; the predictor ends without BatchNorm."""
    params, state = shapes(words="chestxray14,resnet,smoke")
    stats = state["batch_stats"]
    assert set(params["projector"]) == {"fc1", "norm1", "fc2"} and set(stats["projector"]) == {"norm1", "norm2"}
    assert set(params["predictor"]) == {"fc1", "norm1", "fc2"} and set(stats["predictor"]) == {"norm1"}
