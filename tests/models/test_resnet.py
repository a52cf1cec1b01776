"""Our ResNet against one in plain torch, the published counts, and the gate that MLVICX hangs into it."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.models import resnet
from cxrjax.models.resnet import ResNet
from cxrjax.speed import flops

BOTTLENECK = resnet.Size((1, 2, 1, 1), 8, bottleneck=True)


def oracle(size, channels):
    """The plain torch module in float64, its random numbers fixed."""
    pytest.importorskip("torch").manual_seed(0)
    from tests import torch_resnet

    return torch_resnet.ResNet(size.blocks, size.stem, size.bottleneck, channels).double()


def renamed(arrays):
    """Arrays of a torch state_dict as ours: names by path, kernels from (out, in, h, w) to (h, w, in, out)."""
    leaves = {"running_mean": "mean", "running_var": "var", "bias": "bias"}
    found = {"params": {}, "batch_stats": {}}
    for name, array in arrays.items():
        *modules, leaf = name.split(".")
        tree = found["batch_stats" if leaf.startswith("running") else "params"]
        for module in modules:
            tree = tree.setdefault(module, {})
        if array.ndim == 4:
            tree["kernel"] = array.transpose(2, 3, 1, 0)
        else:
            tree[leaves.get(leaf, "scale")] = array
    return found


def variables_of(model):
    state = {name: array.numpy().astype(np.float32) for name, array in model.state_dict().items()}
    return renamed({name: array for name, array in state.items() if not name.endswith("tracked")})


def pictures(b, px, channels):
    return np.random.default_rng(1).standard_normal((b, *px, channels), np.float32)


def to_torch(images):
    return pytest.importorskip("torch").from_numpy(images.transpose(0, 3, 1, 2)).double()


def wave(level, rows):
    """Factors of the rows, of both signs, so that multiplying by them does not commute with the max-pool."""
    return np.cos(1 + level + 3 * np.arange(rows) / rows).astype(np.float32)[:, None]


def gate(level, x):
    return x * wave(level, x.shape[1])[..., None]


def their_gate(level, x):
    return x * x.new_tensor(wave(level, x.shape[2]))


def assert_close(ours, theirs):
    """Within 1e-4 of the largest value."""
    theirs = np.asarray(theirs)
    assert np.abs(theirs).max() > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("variant", "px", "channels"),
    [("resnet18", (64, 64), 3), ("resnet50", (64, 64), 1), ("resnet_test", (50, 38), 1), ("resnet_test", (33, 47), 3)],
)
def test_taps_are_torchs(variant, px, channels, train):
    """Also for sides that the strides do not divide, where Flax's own padding would differ."""
    model = oracle(resnet.VARIANTS[variant], channels)
    variables, images = variables_of(model), pictures(4, px, channels)
    run = jax.jit(lambda v, x: ResNet(variant, channels).apply(v, x, train, mutable=["batch_stats"]))
    ours, updated = run(variables, images)
    theirs = [tap.detach().numpy().transpose(0, 2, 3, 1) for tap in model.train(train)(to_torch(images))]
    assert len(ours["taps"]) == 5
    for tap, expected, width in zip(ours["taps"], theirs, resnet.VARIANTS[variant].widths, strict=True):
        assert tap.shape == expected.shape and tap.shape[-1] == width
        assert_close(tap, expected)
    assert_close(ours["pooled"], theirs[-1].mean((1, 2)))
    jax.tree.map(assert_close, updated["batch_stats"], variables_of(model)["batch_stats"])


@pytest.mark.parametrize("size", [resnet.VARIANTS["resnet_test"], BOTTLENECK])
def test_gated_taps_and_all_gradients_are_torchs(monkeypatch, size):
    """The gate changes the tap and what follows it, before the max-pool; gradients are those of training."""
    monkeypatch.setitem(resnet.VARIANTS, "tiny", size)
    model, images = oracle(size, 1), pictures(6, (64, 64), 1)
    variables = variables_of(model)
    weights = [np.random.default_rng(i).standard_normal(width, np.float32) for i, width in enumerate(size.widths)]

    def loss(params, x):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        out, _ = ResNet("tiny").apply(given, x, True, gate, mutable=["batch_stats"])
        pairs = zip(out["taps"], weights, strict=True)
        return sum((jnp.tanh(tap) * weight).mean() for tap, weight in pairs), out["taps"]

    (of_params, of_images), taps = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables["params"], images)
    x = to_torch(images).requires_grad_()
    theirs = model.train()(x, their_gate)
    pairs = zip(theirs, weights, strict=True)
    sum((tap.tanh() * to_torch(weight[None, None, None])).mean() for tap, weight in pairs).backward()
    for tap, expected in zip(taps, theirs, strict=True):
        assert_close(tap, expected.detach().numpy().transpose(0, 2, 3, 1))
    assert_close(of_images, x.grad.numpy().transpose(0, 2, 3, 1))
    expected = renamed({name: parameter.grad.numpy() for name, parameter in model.named_parameters()})["params"]
    jax.tree.map(assert_close, of_params, expected)


@pytest.mark.parametrize(
    ("variant", "channels", "parameters", "macs"),
    [
        # torchvision's published 11 689 512 and 25 557 032 less the classifiers; its 1.814 and 4.089 G likewise.
        ("resnet18", 3, 11_176_512, 1_813_561_344),
        ("resnet50", 3, 23_508_032, 4_087_136_256),
        ("resnet18", 1, 11_176_512 - 2 * 64 * 49, 1_813_561_344 - 2 * 112 * 112 * 64 * 49),
    ],
)
def test_published_counts(variant, channels, parameters, macs):
    model, picture = ResNet(variant, channels), jnp.zeros((1, 224, 224, channels))
    variables = jax.eval_shape(lambda key: model.init(key, picture, False), jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == parameters
    assert flops.count(lambda v, x: model.apply(v, x, False), variables, picture) == (macs, 0)


def test_taps_of_resnet18_have_the_sides_that_mlvicx_states():
    model, picture = ResNet(), jnp.zeros((2, 224, 224, 1))
    taps = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), picture, False)[0])["taps"]
    expected = [(112, 64), (56, 64), (28, 128), (14, 256), (7, 512)]
    assert [tap.shape for tap in taps] == [(2, side, side, width) for side, width in expected]


@pytest.fixture(scope="module")
def fresh():
    """Initial variables of the small variant whose blocks begin as the identity."""
    model = ResNet("resnet_test", zero_init_residual=True)
    return jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 1)), False))(jax.random.key(0))


def test_initial_values_are_torchvisions(fresh):
    """Kaiming normal by fan-out for convolutions, norms as the identity, the last of a block as zero if asked for."""
    params = fresh["params"]
    for kernel in (params["conv1"]["kernel"], params["layer4"]["0"]["downsample"]["0"]["kernel"]):
        side, _, _, outputs = kernel.shape
        assert kernel.std() == pytest.approx((2 / (outputs * side**2)) ** 0.5, rel=0.08)
        assert abs(kernel.mean()) < 0.1 * kernel.std()
    assert np.abs(kernel).max() > 3 * kernel.std()  # not cut off
    np.testing.assert_array_equal(params["layer2"]["0"]["bn1"]["scale"], 1)
    np.testing.assert_array_equal(params["layer2"]["0"]["bn2"]["scale"], 0)
    plain = jax.eval_shape(lambda: ResNet("resnet_test").init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)), False))
    assert jax.tree.structure(plain) == jax.tree.structure(fresh)
    assert (
        resnet.Block(4, 1, False).init(jax.random.key(0), jnp.ones((1, 2, 2, 4)), False)["params"]["bn2"]["scale"].all()
    )


def test_zero_initialised_residuals_let_the_stem_pass(fresh):
    images = pictures(2, (64, 64), 1)
    stem, first, *_ = jax.jit(lambda x: ResNet("resnet_test").apply(fresh, x, False)["taps"])(images)
    windows = np.pad(stem, [(0, 0), (1, 0), (1, 0), (0, 0)])  # maps are positive after the stem
    pooled = np.max([windows[:, i : i + 31 : 2, j : j + 31 : 2] for i in range(3) for j in range(3)], axis=0)
    np.testing.assert_allclose(first, pooled, atol=1e-6)


def test_bfloat16_stays_close_and_pools_in_float32():
    variables, images = variables_of(oracle(resnet.VARIANTS["resnet_test"], 1)), pictures(4, (64, 64), 1)

    def run(dtype):
        model = ResNet("resnet_test", dtype=dtype)
        out, updated = jax.jit(lambda x: model.apply(variables, x, True, mutable=["batch_stats"]))(images)
        return out, updated["batch_stats"]

    (half, stats), (full, expected) = run(jnp.bfloat16), run(jnp.float32)
    assert half["pooled"].dtype == jnp.float32 and {tap.dtype for tap in half["taps"]} == {jnp.dtype("bfloat16")}
    np.testing.assert_allclose(half["pooled"], full["pooled"], atol=0.05 * np.abs(full["pooled"]).max())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=0.02), stats, expected)


def test_a_block_recomputes_what_it_is_told_and_never_the_statistics(fresh):
    """Counted in the traced gradient; the numbers are the same but for rounding."""
    images, found = pictures(4, (32, 32), 1), {}
    params = jax.tree.map(lambda leaf: leaf + 0.1, fresh["params"])
    for remat in ("none", "dots", "full"):

        def loss(params, model):
            given = {"params": params, "batch_stats": fresh["batch_stats"]}
            out, updates = model.apply(given, images, True, mutable=["batch_stats"])
            return jnp.square(out["pooled"]).mean(), updates

        gradient = functools.partial(jax.grad(loss, has_aux=True), model=ResNet("resnet_test", remat=remat))
        traced = str(jax.make_jaxpr(gradient)(params))
        convolutions, statistics = traced.count("conv_general_dilated["), len(re.findall("f64.* = reduce_sum", traced))
        found[remat] = (convolutions, statistics, traced.count("rsqrt"), jax.jit(gradient)(params))
    norms = 12
    # Of every convolution its value and two gradients, but none of the pictures; the stem is in no block.
    assert found["none"][:3] == (3 * norms - 1, norms, 2 * norms)
    assert found["dots"][:3] == (3 * norms - 1, norms, 3 * norms - 1)
    assert found["full"][:3] == (3 * norms - 1 + norms - 1, norms, 3 * norms - 1)
    for remat in ("dots", "full"):
        jax.tree.map(assert_close, found[remat][3], found["none"][3])


def test_wrong_channels_are_explained():
    with pytest.raises(ValueError, match=r"\(1, 32, 32, 1\) given to a ResNet of 3 channel"):
        jax.eval_shape(lambda: ResNet(channels=3).init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)), False))
