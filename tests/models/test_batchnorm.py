"""BatchNorm against torch.nn's, and the same on one device as on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import parallel
from cxrjax.accelerators import aot
from cxrjax.models.batchnorm import BatchNorm


def data(*shape, seed=0):
    """Features of different means and deviations."""
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return x * np.linspace(0.2, 3, shape[-1], dtype=np.float32) + np.linspace(-2, 5, shape[-1], dtype=np.float32)


def variables_of(features, affine):
    rng = np.random.default_rng(7)
    params = {"scale": rng.normal(1, 0.5, features), "bias": rng.normal(0, 0.5, features)} if affine else {}
    stats = {"mean": np.zeros(features), "var": np.ones(features)}
    return jax.tree.map(np.float32, {"params": params, "batch_stats": stats})


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2, 5)])
def test_value_gradient_and_two_updates_are_torchs(shape, affine):
    torch = pytest.importorskip("torch")
    variables = variables_of(5, affine)
    theirs = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(5, affine=affine).double().train()
    if affine:
        theirs.weight.data = torch.tensor(variables["params"]["scale"]).double()
        theirs.bias.data = torch.tensor(variables["params"]["bias"]).double()
    norm, weight = BatchNorm(use_scale=affine, use_bias=affine), data(*shape, seed=9)

    def loss(x, params, stats):
        y, updates = norm.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y) * weight), (y, updates["batch_stats"])

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    stats = variables["batch_stats"]
    for seed in (1, 2):
        x = data(*shape, seed=seed)
        (of_x, of_params), (y, stats) = gradient(x, variables["params"], stats)
        x_torch = torch.tensor(np.moveaxis(x, -1, 1)).double().requires_grad_()
        theirs.zero_grad()
        y_torch = theirs(x_torch)
        (torch.sin(y_torch) * torch.tensor(np.moveaxis(weight, -1, 1))).sum().backward()
        np.testing.assert_allclose(y, np.moveaxis(y_torch.detach().numpy(), 1, -1), atol=2e-6)
        np.testing.assert_allclose(of_x, np.moveaxis(x_torch.grad.numpy(), 1, -1), rtol=1e-5, atol=2e-5)
        if affine:
            np.testing.assert_allclose(of_params["scale"], theirs.weight.grad, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(of_params["bias"], theirs.bias.grad, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stats["mean"], theirs.running_mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(stats["var"], theirs.running_var, rtol=2e-6)

    y = norm.apply({"params": variables["params"], "batch_stats": stats}, x, train=False)
    with torch.inference_mode():
        y_torch = theirs.eval()(x_torch).numpy()
    np.testing.assert_allclose(y, np.moveaxis(y_torch, 1, -1), atol=2e-6)


def test_statistics_are_of_all_devices_together():
    """Value, gradient and running statistics over a mesh of eight; the statistics of one shard would be others."""
    x, variables, norm = data(16, 3, 5), variables_of(5, True), BatchNorm()

    def loss(params, x):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        y, updates = norm.apply(given, x, train=True, mutable=["batch_stats"])
        return jnp.sum(y**3), (y, updates)

    results = []
    for devices in (1, 8):
        placed = parallel.to_global(x, parallel.make_mesh({"data": devices}))
        gradient, (y, updates) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"], placed)
        results.append(jax.device_get((gradient, y, updates)))
        assert len(placed.sharding.device_set) == devices
    jax.tree.map(lambda one, eight: np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-5), *results)

    _, (of_shard, updates) = loss(variables["params"], x[:2])
    assert np.abs(of_shard - results[0][1][:2]).max() > 0.1
    assert np.abs(updates["batch_stats"]["mean"] - results[0][2]["batch_stats"]["mean"]).max() > 0.01


def test_large_means_and_bfloat16_keep_their_digits():
    """E[x²] − E[x]² in float32 gives a variance of 0 or 4 here; a sum in bfloat16 stops growing at 256."""
    x = np.float32(1e4) + data(4096, 2)
    y, updates = BatchNorm(use_scale=False, use_bias=False).apply(
        variables_of(2, False), x, train=True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(np.std(y, axis=0), 1, rtol=1e-3)
    np.testing.assert_allclose(updates["batch_stats"]["var"], 0.9 + 0.1 * x.astype(np.float64).var(0), rtol=1e-3)

    x = jnp.asarray(data(4096, 2), jnp.bfloat16)
    half = BatchNorm(use_scale=False, use_bias=False, dtype=jnp.bfloat16)
    y, updates = half.apply(variables_of(2, False), x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16 and updates["batch_stats"]["mean"].dtype == jnp.float32
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * np.asarray(x, np.float64).mean(0), rtol=1e-5)


@pytest.mark.parametrize("shape", [(256, 3), (8, 7, 5, 3)])
def test_value_and_gradient_keep_their_digits_where_the_mean_is_large(shape):
    """Mean 100 and deviation 0.1, from running statistics that know nothing of it."""
    torch = pytest.importorskip("torch")
    x = np.float32(100 + 0.1 * np.random.default_rng(0).standard_normal(shape))
    variables, weight = variables_of(3, True), data(*shape, seed=9)

    def loss(x):
        y, _ = BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y) * weight), y

    of_x, y = jax.jit(jax.grad(loss, has_aux=True))(x)
    scale, bias = (torch.tensor(np.float64(variables["params"][name])) for name in ("scale", "bias"))
    wide = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    axes = tuple(range(x.ndim - 1))
    expected = (wide - wide.mean(axes)) / (wide.var(axes, correction=0) + 1e-5).sqrt() * scale + bias
    (torch.sin(expected) * torch.tensor(weight)).sum().backward()
    np.testing.assert_allclose(y, expected.detach(), atol=1e-3)
    np.testing.assert_allclose(of_x, wide.grad, atol=1e-3 * np.abs(wide.grad).max())


@pytest.mark.parametrize("masked", [False, True])
def test_each_direction_exchanges_one_array(masked):
    """Sums of x and x² forward; of the gradient and its product with x̂ backward, which are those of bias and scale."""
    mesh = parallel.make_mesh({"data": 8})
    x, mask = parallel.to_global((data(16, 3, 5), np.ones((16, 3), bool)), mesh)
    variables, norm = variables_of(5, True), BatchNorm()

    def loss(params, x, weight):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        y, updates = norm.apply(given, x, True, mask if masked else None, mutable=["batch_stats"])
        return y, updates

    def both(params, x, weight):
        y, pull, updates = jax.vjp(lambda *given: loss(*given, weight), params, x, has_aux=True)
        return y, pull(weight), updates

    compiled = jax.jit(both).lower(variables["params"], x, x).compile()
    sums = 2 * 5 * 8 + 8 + 2 * 5 * 4  # two of five features and how many counted in float64; two in float32
    assert aot.collectives(compiled.as_text()) == {"all-reduce": aot.Collective(2, sums)}


def test_half_precision_is_what_the_backward_pass_keeps():
    """Nothing as large as x is kept but x itself, in its own two bytes."""
    x = jnp.asarray(data(64, 4, 5), jnp.bfloat16)
    norm = BatchNorm(dtype=jnp.bfloat16)

    def run(params, x):
        given = {"params": params, "batch_stats": variables_of(5, True)["batch_stats"]}
        return norm.apply(given, x, True, mutable=["batch_stats"])

    _, pull, _ = jax.vjp(run, variables_of(5, True)["params"], x, has_aux=True)
    large = [leaf.dtype for leaf in jax.tree.leaves(pull) if leaf.size >= x.size]
    assert large == [jnp.bfloat16]


def test_initialising_leaves_the_running_statistics_alone():
    variables = BatchNorm().init(jax.random.key(0), data(1, 5), train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)
    assert set(variables["params"]) == {"scale", "bias"} and "params" not in BatchNorm(
        use_scale=False, use_bias=False
    ).init({}, data(2, 5), True)


def test_one_value_per_feature_is_refused_in_training_only():
    with pytest.raises(ValueError, match=r"shape \(1, 5\) in training: one value per feature"):
        BatchNorm().apply(variables_of(5, True), data(1, 5), train=True, mutable=["batch_stats"])
    BatchNorm().apply(variables_of(5, True), data(1, 5), train=False)
