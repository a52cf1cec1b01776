"""Projectors and predictors against the same layers in plain torch, and what they start from."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.models.heads import MLP

ROWS = np.random.default_rng(0).standard_normal((12, 6), np.float32)
METHODS = {
    "byol": MLP((16, 5), last_bias=False),
    "moco_v3": MLP((16, 16, 5), last_norm=True, last_affine="none", bias=False, last_bias=False),
    "simclr": MLP((16, 5), last_norm=True, last_affine="scale", bias=False, last_bias=False),
    "vicreg": MLP((16, 16, 5), last_bias=False),
    "barlow_twins": MLP((16, 16, 5), bias=False, last_bias=False),
    "mlvicx": MLP((16, 16, 5), last_norm=True),
    "dino": MLP((16, 16, 5), norm="none", activation="gelu", initial="normal"),
    "layer_norm": MLP((16, 5), norm="layer", last_norm=True, last_affine="none"),
}


def oracle(name):
    """The authors' layers, each list as their code builds it."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nn = torch.nn

    def hidden(inputs, bias=True):
        return [nn.Linear(inputs, 16, bias=bias), nn.BatchNorm1d(16), nn.ReLU()]

    def without_bias(norm):
        norm.register_parameter("bias", None)
        return norm

    layers = {
        "byol": lambda: hidden(6) + [nn.Linear(16, 5, bias=False)],
        "moco_v3": lambda: (
            hidden(6, False) + hidden(16, False) + [nn.Linear(16, 5, bias=False), nn.BatchNorm1d(5, affine=False)]
        ),
        # Of the last norm the bias is no parameter of theirs: it stays 0.
        "simclr": lambda: hidden(6, False) + [nn.Linear(16, 5, bias=False), without_bias(nn.BatchNorm1d(5))],
        "vicreg": lambda: hidden(6) + hidden(16) + [nn.Linear(16, 5, bias=False)],
        "barlow_twins": lambda: hidden(6, False) + hidden(16, False) + [nn.Linear(16, 5, bias=False)],
        "mlvicx": lambda: hidden(6) + hidden(16) + [nn.Linear(16, 5), nn.BatchNorm1d(5)],
        "dino": lambda: [nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 5)],
        "layer_norm": lambda: [
            nn.Linear(6, 16),
            nn.LayerNorm(16),
            nn.ReLU(),
            nn.Linear(16, 5),
            nn.LayerNorm(5, elementwise_affine=False),
        ],
    }
    model = nn.Sequential(*layers[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def variables_of(model):
    """Parameters and running statistics by our names: fc1, norm1, fc2, …"""
    params, stats, i = {}, {}, 0
    for layer in model:
        kind = type(layer).__name__
        if kind == "Linear":
            i += 1
            params[f"fc{i}"] = {"kernel": layer.weight.detach().numpy().T.copy()}
            if layer.bias is not None:
                params[f"fc{i}"]["bias"] = layer.bias.detach().numpy().copy()
        elif "Norm" in kind:
            learned = {"scale": layer.weight, "bias": layer.bias}
            if found := {key: value.detach().numpy().copy() for key, value in learned.items() if value is not None}:
                params[f"norm{i}"] = found
            if kind == "BatchNorm1d":
                stats[f"norm{i}"] = {"mean": layer.running_mean.numpy().copy(), "var": layer.running_var.numpy().copy()}
    return {"params": params} | ({"batch_stats": stats} if stats else {})


@pytest.mark.parametrize("name", METHODS)
def test_layers_are_those_of_the_authors(name):
    """Values while training and after, running statistics, and which parameters there are."""
    theirs, head = oracle(name), METHODS[name]
    torch = pytest.importorskip("torch")
    variables = variables_of(theirs)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), ROWS, True))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)
    for train in (True, False):
        ours, updated = jax.jit(lambda v, x, t=train: head.apply(v, x, t, mutable=["batch_stats"]))(variables, ROWS)
        expected = theirs.train(train)(torch.from_numpy(ROWS)).detach().numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        variables = {**variables, **updated}
        expected = variables_of(theirs)
        assert jax.tree.structure(variables) == jax.tree.structure(expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), variables, expected)


def test_parameters_of_mlvicx_heads():
    """Counts: 35 688 448 for the global head on 512 features, 67 145 728 for the dense one."""
    for width, expected in ((512, 35_688_448), (8192, 67_145_728)):
        head = MLP((4096, 4096, 4096), last_norm=True)
        params = jax.eval_shape(lambda w=width, h=head: h.init(jax.random.key(0), jnp.zeros((2, w)), True))["params"]
        assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == expected


def test_torch_initial_values_are_uniform_within_one_over_root_of_the_inputs():
    """Deviation 1/√(3d), for the bias too; checked against torch's own draw where torch is installed."""
    params = MLP((2000, 40), norm="none").init(jax.random.key(0), jnp.zeros((1, 100)), True)["params"]
    for leaf, inputs in ((params["fc1"]["kernel"], 100), (params["fc1"]["bias"], 100), (params["fc2"]["kernel"], 2000)):
        bound = inputs**-0.5
        assert np.abs(leaf).max() == pytest.approx(bound, rel=0.01) and np.abs(leaf).max() <= bound
        assert leaf.std() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert abs(leaf.mean()) < 0.05 * bound
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Linear(100, 2000)
    for leaf, tensor in ((params["fc1"]["kernel"], theirs.weight), (params["fc1"]["bias"], theirs.bias)):
        assert leaf.std() == pytest.approx(float(tensor.detach().std()), rel=0.05)


def test_normal_initial_values_are_dinos():
    params = MLP((500, 5), norm="none", initial="normal").init(jax.random.key(0), jnp.zeros((1, 100)), True)["params"]
    assert params["fc1"]["kernel"].std() == pytest.approx(0.02, rel=0.02)
    np.testing.assert_array_equal(params["fc1"]["bias"], 0)


def test_bfloat16_computes_in_half_and_returns_float32():
    """A last BatchNorm normalises in float32: its output has the batch's exact mean, which bfloat16 would round."""
    head = METHODS["moco_v3"].clone(dtype=jnp.bfloat16)
    variables = head.init(jax.random.key(0), ROWS, True)
    ours, _ = head.apply(variables, ROWS, True, mutable=["batch_stats"])
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours.mean(0), 0, atol=1e-5)
    exact, _ = METHODS["moco_v3"].apply(variables, ROWS, True, mutable=["batch_stats"])
    assert 0 < np.abs(ours - exact).max() < 0.2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"norm": "group"}, "norm must be .* got 'group'"),
        ({"norm": "none", "last_norm": True}, "got 'none' with last_norm=True"),
        ({"activation": "tanh"}, "activation must be one of relu, gelu, got 'tanh'"),
        ({"initial": "zeros"}, "initial must be one of torch, normal, got 'zeros'"),
        ({"last_affine": "bias"}, "last_affine must be one of both, scale, none, got 'bias'"),
    ],
)
def test_unknown_words_are_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        MLP((4, 2), **options).init(jax.random.key(0), ROWS, True)
