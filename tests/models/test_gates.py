"""Gates and level fusion of MLVICX against PyTorch layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.models.gates import ContextGate
from cxrjax.models.interpolation import pool_matrix, resize_matrix
from cxrjax.models.multilevel import LevelFusion

WIDTHS = (64, 64, 128, 256, 512)
SIDES = (112, 56, 28, 14, 7)
NAMES = tuple(f"level{i}" for i in range(1, 6))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def normal(seed, *shape):
    return np.float32(np.random.default_rng(seed).standard_normal(shape))


def test_parameter_counts_of_the_paper():
    gates = [jax.eval_shape(ContextGate().init, jax.random.key(0), jnp.ones((1, 8, 8, c))) for c in WIDTHS]
    assert sum(map(count, gates)) == 352_746
    maps = [jax.ShapeDtypeStruct((2, s, s, c), np.float32) for s, c in zip(SIDES, WIDTHS, strict=True)]
    grid, levels = jax.eval_shape(LevelFusion(NAMES).init_with_output, jax.random.key(0), maps)
    assert grid.shape == (2, 8192) and count(levels) == 526_848


def test_closed_and_open_gates():
    """σ(0) = ½ twice; weights that saturate both gates let the map through."""
    gate, x = ContextGate(), np.abs(normal(0, 2, 6, 5, 8)) + 0.1
    params = jax.jit(gate.init)(jax.random.key(0), x)
    np.testing.assert_array_equal(gate.apply(jax.tree.map(jnp.zeros_like, params), x), x / 4)
    saturated = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e4), params)
    np.testing.assert_allclose(gate.apply(saturated, x), x, rtol=1e-6)


def torch_gate(params, x):
    """The equations of the docstring with torch's own layers, b c h w; params are tensors in our tree."""
    import torch
    from torch.nn import functional as F

    def mlp(pooled):
        return F.relu(pooled @ params["channel1"]["kernel"]) @ params["channel2"]["kernel"]

    a = torch.sigmoid(mlp(F.adaptive_avg_pool2d(x, 1).flatten(1)) + mlp(F.adaptive_max_pool2d(x, 1).flatten(1)))
    y = a[:, :, None, None] * x
    pooled = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], dim=1)
    return torch.sigmoid(F.conv2d(pooled, params["spatial"]["kernel"].permute(3, 2, 0, 1), padding=3)) * y


def test_gate_against_torch():
    """Value and gradient; the map is not square, so that rows and columns cannot be exchanged."""
    torch = pytest.importorskip("torch")
    gate, x, cotangent = ContextGate(), normal(0, 2, 6, 5, 8), normal(1, 2, 6, 5, 8)
    params = jax.jit(gate.init)(jax.random.key(0), x)
    assert {path: leaf.shape for path, leaf in _named(params["params"])} == {
        "channel1/kernel": (8, 4),
        "channel2/kernel": (4, 8),
        "spatial/kernel": (7, 7, 2, 1),
    }

    value, pullback = jax.vjp(jax.jit(lambda x: gate.apply(params, x)), x)
    leaf = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    expected = torch_gate(jax.tree.map(lambda x: torch.from_numpy(np.array(x)), params["params"]), leaf)
    expected.backward(torch.from_numpy(cotangent.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(value, expected.detach().numpy().transpose(0, 2, 3, 1), atol=1e-6)
    np.testing.assert_allclose(pullback(cotangent)[0], leaf.grad.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_layers_start_as_torch_layers_do():
    """U(±1/√fan_in); the fan-in of the spatial convolution is 7·7·2, of a bias that of its kernel."""
    gate = jax.jit(ContextGate().init)(jax.random.key(0), jnp.ones((1, 8, 8, 256)))["params"]
    levels = jax.jit(LevelFusion(("a",)).init)(jax.random.key(0), [jnp.ones((1, 4, 4, 256))])["params"]
    for leaf, fan_in in (
        (gate["channel1"]["kernel"], 256),
        (gate["channel2"]["kernel"], 128),
        (gate["spatial"]["kernel"], 98),
        (levels["a"]["kernel"], 256),
        (levels["a"]["bias"], 256),
    ):
        assert np.abs(leaf).max() == pytest.approx(fan_in**-0.5, rel=0.06)
        assert np.abs(leaf).max() <= fan_in**-0.5
        assert np.mean(np.abs(leaf)) == pytest.approx(fan_in**-0.5 / 2, rel=0.15)


@pytest.mark.parametrize("size", [*SIDES, 1, 64, 75])
def test_resizing_is_torchs(size):
    torch = pytest.importorskip("torch")
    x = normal(0, 1, 1, size, size)
    expected = torch.nn.functional.interpolate(torch.from_numpy(x), size=64, mode="bilinear", align_corners=False)
    matrix = resize_matrix(size, 64)
    np.testing.assert_allclose(matrix @ x[0, 0] @ matrix.T, expected[0, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)


def test_antialiased_resizing_is_another_function():
    """jax.image.resize antialiases when it shrinks, which it does at level 1 only."""
    for size, differs in ((112, True), (56, False)):
        x = normal(0, size, size)
        ours = resize_matrix(size, 64) @ x @ resize_matrix(size, 64).T
        plain, smooth = (jax.image.resize(x, (64, 64), "bilinear", antialias=flag) for flag in (False, True))
        np.testing.assert_allclose(ours, plain, atol=1e-5)
        assert bool(np.abs(ours - smooth).max() > 0.1) == differs


def test_cells_are_adaptive_average_pooling():
    torch = pytest.importorskip("torch")
    x = normal(0, 1, 1, 12, 10)  # of which only one side is a multiple of 4
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x), 4)[0, 0].numpy()
    np.testing.assert_allclose(pool_matrix(12, 4) @ x[0, 0] @ pool_matrix(10, 4).T, expected, atol=1e-6)


def torch_levels(params, maps):
    """Resize → 1×1 convolution → sum → pool → flatten, with torch's own layers."""
    import torch
    from torch.nn import functional as F

    total = 0
    for name, x in zip(NAMES, maps, strict=True):
        x = F.interpolate(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), size=64, mode="bilinear")
        kernel, bias = (torch.from_numpy(np.array(params[name][leaf])) for leaf in ("kernel", "bias"))
        total = total + F.conv2d(x, kernel.T[:, :, None, None], bias)
    return F.adaptive_avg_pool2d(total, 4).flatten(1).numpy()


def test_fused_levels_are_the_plain_ones():
    """At the real sides, in the values of torch's layers and in both gradients of ours."""
    pytest.importorskip("torch")
    maps = [normal(i, 2, side, side, 3 + i) for i, side in enumerate(SIDES)]
    fused, plain = (LevelFusion(NAMES, features=6, fused=flag) for flag in (True, False))
    params = jax.jit(fused.init)(jax.random.key(0), maps)
    cotangent = normal(9, 2, 96)

    @jax.jit
    def evaluate(params, maps):
        results = []
        for module in (fused, plain):
            value, pullback = jax.vjp(module.apply, params, maps)
            results.append((value, pullback(cotangent)))
        return results

    (value, gradient), (plain_value, plain_gradient) = evaluate(params, maps)
    np.testing.assert_allclose(value, plain_value, atol=1e-5)
    np.testing.assert_allclose(value, torch_levels(params["params"], maps), atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradient, plain_gradient)


def test_a_constant_map_gives_a_constant_grid():
    """Every row of P_l sums to 1."""
    maps = [np.full((1, side, side, 2), 3.0, np.float32) for side in SIDES]
    module = LevelFusion(NAMES, features=5)
    params = jax.jit(module.init)(jax.random.key(0), maps)
    grid = np.reshape(jax.jit(module.apply)(params, maps), (5, 16))
    np.testing.assert_allclose(grid, grid[:, :1] @ np.ones((1, 16)), atol=1e-5)
    expected = sum(3 * p["kernel"].sum(axis=0) + p["bias"] for p in params["params"].values())
    np.testing.assert_allclose(grid[:, 0], expected, atol=1e-5)


def test_every_level_matters_and_a_missing_one_is_reported():
    maps = [normal(i, 1, 8, 8, 2) for i in range(5)]
    module = LevelFusion(NAMES, features=3, side=8, grid=2)
    params = jax.jit(module.init)(jax.random.key(0), maps)
    apply = jax.jit(module.apply)
    whole = apply(params, maps)
    for level in range(5):
        without = [np.zeros_like(x) if i == level else x for i, x in enumerate(maps)]
        assert np.abs(apply(params, without) - whole).max() > 0.01
    with pytest.raises(ValueError, match="4 maps for the 5 levels level1"):
        module.apply(params, maps[:4])


def _named(tree):
    return [(jax.tree_util.keystr(k, simple=True, separator="/"), v) for k, v in jax.tree.leaves_with_path(tree)]
