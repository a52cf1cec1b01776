"""MLVICX: a step against PyTorch, counts, switches, what learns, and the recipe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cxrjax import methods, optim
from cxrjax.input import device
from cxrjax.models.resnet import ResNet
from tests import runs, torch_resnet
from tests.methods import oracles
from tests.methods.test_vicreg import algorithm_1
from tests.models.test_gates import torch_gate

LEVELS = [f"level{i}" for i in range(1, 6)]


def make(**changes):
    return methods.make(oracles.config("mlvicx", **changes))


class Case:
    """One step on noisy parameters; `forward` runs another configuration on arrays of that one."""

    def __init__(self):
        self.config = oracles.config("mlvicx")
        shapes = jax.eval_shape(make().init, jax.random.key(0), None)
        self.params, self.state = (oracles.noise(tree, seed) for seed, tree in enumerate(shapes))
        self.batch = {"image": oracles.pictures()}

        def loss(params):
            return make().loss(params, self.state, self.batch, jax.random.key(0), 0)

        (self.loss, self.aux), self.gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(self.params)

    def forward(self, params, state, **changes):
        step = jax.jit(lambda params, state: make(**changes).loss(params, state, self.batch, jax.random.key(0), 0))
        return jax.device_get(step(params, state))


@pytest.fixture(scope="module")
def case():
    return Case()


def leaf_of(tree, name):
    """The array that a parameter or statistic of a torch module stands for."""
    *modules, leaf = name.split(".")
    for module in modules:
        tree = tree[module]
    renamed = {"running_mean": "mean", "running_var": "var"}.get(leaf, leaf)
    if leaf == "weight":
        return tree["kernel"].transpose(3, 2, 0, 1) if "kernel" in tree else tree["scale"]
    return tree[renamed]


class Oracle:
    """The released model in float64 torch: gated trunk, resize → 1×1 convolution → sum → pool, heads, two losses."""

    def __init__(self, case, params, state):
        self.trunk = torch_resnet.ResNet((1, 1, 1, 1), 16, channels=1).double()
        stats = state["batch_stats"]
        for name, tensor in self.trunk.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                tensor.copy_(torch.tensor(leaf_of((stats if "running" in name else params)["encoder"], name)))
        parts = {name: params[name] for name in ("gates", "level_proj") if name in params}
        self.leaves = jax.tree.map(lambda x: torch.tensor(x, dtype=torch.float64, requires_grad=True), parts)
        self.heads = {
            name: oracles.TorchMLP(head, stats["projector"][name]).double()
            for name, head in params["projector"].items()
        }
        images = np.asarray(device.standardise(case.batch["image"], **case.config.standardise))
        self.views = [torch.tensor(images[:, v].transpose(0, 3, 1, 2), dtype=torch.float64) for v in range(2)]

    def maps(self, x):
        return self.trunk(x, self.gate) if "gates" in self.leaves else self.trunk(x)

    def gate(self, level, x):
        return torch_gate(self.leaves["gates"][LEVELS[level]], x)

    def fused(self, maps):
        total = 0
        for name, x in zip(LEVELS, maps, strict=True):
            conv = self.leaves["level_proj"][name]
            x = F.interpolate(x, size=8, mode="bilinear")
            total = total + F.conv2d(x, conv["kernel"].T[:, :, None, None], conv["bias"])
        return F.adaptive_avg_pool2d(total, 2).flatten(1)


def test_a_step_is_the_papers(case):
    """Value, every gradient (one set of weights serves both views), statistics that move view by view."""
    oracle = Oracle(case, case.params, case.state)
    embeddings = []
    for x in oracle.views:
        maps = oracle.maps(x)
        embeddings.append((oracle.heads["global"](maps[-1].mean((2, 3))), oracle.heads["levels"](oracle.fused(maps))))
    expected = {}
    for name, pair in zip(("global", "levels"), zip(*embeddings, strict=True), strict=True):
        expected |= {f"{name}_{term}": value for term, value in algorithm_1(*pair).items()}
    sum(expected.values()).backward()
    assert float(case.loss) == pytest.approx(sum(expected.values()).item(), rel=1e-5)
    assert {name: float(value) for name, value in case.aux.terms.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-4, abs=1e-5
    )
    gradient, stats = jax.device_get((case.gradient, case.aux.state["batch_stats"]))
    for name, parameter in oracle.trunk.named_parameters():
        oracles.close(leaf_of(gradient["encoder"], name), parameter.grad)
    for name, buffer in oracle.trunk.named_buffers():
        if not name.endswith("num_batches_tracked"):
            oracles.close(leaf_of(stats["encoder"], name), buffer)
    learned = {name: gradient[name] for name in oracle.leaves}
    jax.tree.map(lambda ours, leaf: oracles.close(ours, leaf.grad), learned, oracle.leaves)
    for name, head in oracle.heads.items():
        head.check(gradient["projector"][name], stats["projector"][name])


def test_parameter_counts_and_shapes_of_the_release():
    config = runs.config("mlvicx", "chestxray14", model__channels=3)
    params, state = jax.eval_shape(methods.make(config).init, jax.random.key(0), None)

    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    assert {name: count(tree) for name, tree in params.items() if name != "projector"} == {
        "encoder": 11_176_512,
        "gates": 352_746,
        "level_proj": 526_848,
    }
    heads = {name: count(tree) for name, tree in params["projector"].items()}
    assert heads == {"global": 35_688_448, "levels": 67_145_728}
    assert set(state) == {"batch_stats"}
    trunk = ResNet("resnet18")
    images = jnp.zeros((2, 224, 224, 1))
    out, _ = jax.eval_shape(lambda key: trunk.init_with_output(key, images, False), jax.random.key(0))
    assert [x.shape[1:] for x in out["taps"]] == [
        (112, 112, 64),
        (56, 56, 64),
        (28, 28, 128),
        (14, 14, 256),
        (7, 7, 512),
    ]


def test_each_branch_may_have_its_own_head():
    method = methods.make(runs.config("mlvicx", heads__levels_sizes=(40, 20)))
    params, _ = jax.eval_shape(method.init, jax.random.key(0), methods.blank_batch(method))
    assert params["projector"]["levels"]["fc2"]["kernel"].shape == (40, 20)
    assert params["projector"]["global"]["fc3"]["kernel"].shape == (24, 24)


def test_gates_pass_everything_only_when_open(case):
    """Saturated, they leave the plain ResNet, which is what strip_gates computes whatever they are."""
    saturated = {**case.params, "gates": jax.tree.map(lambda leaf: np.full_like(leaf, 1e4), case.params["gates"])}
    images = case.batch["image"][:, 0]
    gated, plain = (jax.jit(make(strip_gates=strip).encode) for strip in (False, True))
    found, expected = gated(saturated, case.state, images), plain(case.params, case.state, images)
    for name in ("pooled", "patches"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4 * np.abs(expected[name]).max())
    closed = gated(case.params, case.state, images)
    assert np.abs(closed["pooled"] - expected["pooled"]).max() > 0.01 * np.abs(expected["pooled"]).max()
    single = gated(case.params, case.state, images[:1])  # running statistics: alone as in company
    np.testing.assert_allclose(
        single["pooled"][0], closed["pooled"][0], rtol=1e-4, atol=1e-4 * np.abs(closed["pooled"]).max()
    )


def test_step_by_step_frozen_and_rebalanced(case):
    """fused=False gives the same; so do level convolutions kept in the state; rebalance weights c by 3/(24/15 − 1)."""
    state = {**case.state, "frozen": {"level_proj": case.params["level_proj"]}}
    params = {name: tree for name, tree in case.params.items() if name != "level_proj"}
    changes = {"levels__fused": False, "train_level_proj": False, "loss__rebalance": True}
    _, aux = case.forward(params, state, **changes)
    for name, value in case.aux.terms.items():
        factor = 5 if name.endswith("covariance") else 1
        assert float(aux.terms[name]) == pytest.approx(factor * float(value), rel=1e-4, abs=1e-5)
    jax.tree.map(np.testing.assert_array_equal, aux.state["frozen"], state["frozen"])
    shapes = jax.eval_shape(make(**changes).init, jax.random.key(0), None)
    assert "level_proj" not in shapes[0] and set(shapes[1]["frozen"]["level_proj"]) == set(LEVELS)
    assert jax.tree.structure(shapes) == jax.tree.structure((params, state))


def test_level_convolutions_reach_only_the_levels_embedding(case):
    method = make()
    step = jax.jit(lambda params: method.loss(params, case.state, case.batch, jax.random.key(0), 0)[1].terms)
    before = step(case.params)
    for level in LEVELS:
        level_proj = dict(case.params["level_proj"])
        level_proj[level] = jax.tree.map(lambda leaf: 2 * leaf, level_proj[level])
        terms = step({**case.params, "level_proj": level_proj})
        for term in ("invariance", "variance", "covariance"):
            assert float(terms[f"global_{term}"]) == float(before[f"global_{term}"])
        assert abs(float(terms["levels_invariance"]) - float(before["levels_invariance"])) > 1e-4


def test_a_loss_for_each_level(case):
    """per_level, with VICReg's head and without gates: five losses of the plain trunk's mean maps, averaged."""
    changes = {"per_level": True, "final_bn": False, "gates__use": False}
    shapes, stats = jax.eval_shape(make(**changes).init, jax.random.key(0), None)
    assert set(shapes) == {"encoder", "projector"} and set(shapes["projector"]) == {"global", *LEVELS}
    assert set(shapes["projector"]["level3"]) == {"fc1", "norm1", "fc2"} and set(
        shapes["projector"]["level3"]["fc2"]
    ) == {"kernel"}
    params, state = oracles.noise(shapes, 2), oracles.noise(stats, 3)
    params["encoder"], state["batch_stats"]["encoder"] = case.params["encoder"], case.state["batch_stats"]["encoder"]
    _, aux = case.forward(params, state, **changes)
    oracle = Oracle(case, params, state)
    with torch.no_grad():
        views = [[x.mean((2, 3)) for x in oracle.maps(x)] for x in oracle.views]
        for name, level, weight in [("global", 4, 1.0), *((name, i, 0.2) for i, name in enumerate(LEVELS))]:
            expected = algorithm_1(*[oracle.heads[name](view[level]) for view in views])
            for term, value in expected.items():
                assert float(aux.terms[f"{name}_{term}"]) == pytest.approx(weight * value.item(), rel=1e-4)


def test_every_parameter_learns(case):
    """Under the recipe's LARS: no parameter came after the optimizer, as the release's level convolutions did.

    A constant on all pictures is taken out again by the next BatchNorm, or by the loss's own means after the last one.
    """
    config = runs.config("mlvicx", "chestxray14").optim
    config.update({"warmup_epochs": None})
    optimizer, _ = optim.make(config, case.params, total_steps=10, batch_size=256, steps_per_epoch=1)
    updates, _ = jax.jit(optimizer.update)(case.gradient, optimizer.init(case.params), case.params)
    largest = {jax.tree_util.keystr(k): np.abs(u).max() for k, u in jax.tree.leaves_with_path(updates)}
    idle = {name for name, size in largest.items() if size < 1e-6}
    constants = {f"['level_proj']['{level}']['bias']" for level in LEVELS}
    for head in ("global", "levels"):
        constants |= {f"['projector']['{head}']['{name}']['bias']" for name in ("fc1", "fc2", "fc3", "norm3")}
    assert idle <= constants
    assert set(updates) == {"encoder", "gates", "level_proj", "projector"}


def test_nothing_follows(case):
    """No copy is kept, and what comes after a step is what the step left."""
    state = make().after(case.params, case.aux.state, 3)
    assert set(state) == {"batch_stats"}
    jax.tree.map(np.testing.assert_array_equal, state, case.aux.state)


@pytest.mark.parametrize(
    ("changes", "heads", "levels", "gates"),
    [
        ({"loss__lambda": 0.0}, {"global"}, None, LEVELS),
        ({"loss__global": 0.0}, {"levels"}, LEVELS, LEVELS),
        ({"levels__use": "4,5"}, {"global", "levels"}, LEVELS[3:], LEVELS),
        ({"gates__use": False}, {"global", "levels"}, LEVELS, None),
    ],
)
def test_ablations_leave_out_what_they_do_not_train(changes, heads, levels, gates):
    """Parameters without a loss would be decayed and nothing else."""
    method = make(**changes)
    params, state = jax.eval_shape(method.init, jax.random.key(0), None)
    assert set(params["projector"]) == heads
    assert set(params.get("level_proj", ())) == set(levels or ()) and set(params.get("gates", ())) == set(gates or ())
    batch = {"image": jax.ShapeDtypeStruct((8, 2, 32, 32, 1), np.uint8)}
    _, aux = jax.eval_shape(method.loss, params, state, batch, jax.random.key(0), 0)
    assert {name.split("_")[0] for name in aux.terms} == heads
    assert {f"std_{name}" for name in heads} < set(aux.monitors)


def test_lars_by_hand():
    """|p| = 2 and |g| = 4 give 0.1 · 0.001 · 2/4 · g; a vector gets plain momentum; zeros a factor of 1."""
    settings = runs.optim(name="lars", lr=0.1, schedule="constant", wd=0.0, lr_in_momentum=False)
    rng = np.random.default_rng(0)
    directions = {name: np.float32(rng.normal(size=(3, 2))) for name in ("p", "g")}
    p, g = (length * directions[name] / np.linalg.norm(directions[name]) for name, length in (("p", 2), ("g", 4)))
    params = {"matrix": p, "vector": p[:, 0], "still": p, "new": 0 * p}
    gradient = {"matrix": g, "vector": g[:, 0], "still": 0 * g, "new": g}
    optimizer, _ = optim.make(settings, params, total_steps=10, batch_size=256, steps_per_epoch=1)
    state = optimizer.init(params)
    first, state = optimizer.update(gradient, state, params)
    second, _ = optimizer.update(gradient, state, params)
    expected = {"matrix": -0.1 * 0.001 * 2 / 4 * g, "vector": -0.1 * g[:, 0], "still": 0 * g, "new": -0.1 * g}
    for name, step in expected.items():
        np.testing.assert_allclose(first[name], step, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(second[name], 1.9 * step, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("batch", "peak"), [(256, 0.2), (64, 0.05)])
def test_learning_rate_of_the_recipe(batch, peak):
    """0, the peak after two epochs; 0.001 of it at the end, or 0.00111 where the cosine's period is the whole."""
    ends = {}
    for words in ("chestxray14", "chestxray14,release"):
        config = runs.config("mlvicx", words)
        _, report = optim.make(config.optim, {"w": np.zeros((2, 2))}, 300 * 100, batch, steps_per_epoch=100)
        rates = [float(report(step)["lr"]) for step in (0, 100, 200, 30_000)]
        np.testing.assert_allclose(rates[:3], [0, peak / 2, peak], rtol=1e-5)
        ends[words] = rates[3] / peak
    assert ends["chestxray14"] == pytest.approx(1e-3, rel=1e-3)
    assert ends["chestxray14,release"] == pytest.approx(1e-3 + (1 - 1e-3) * 0.5 * (1 - np.cos(np.pi / 150)), rel=1e-3)


def test_half_precision_stays_inside_the_network():
    """Losses, running statistics and features are float32 whatever the computation is in."""
    method = make(model__dtype="bfloat16", model__channels=3)
    params, state = jax.eval_shape(method.init, jax.random.key(0), None)
    batch = {"image": jax.ShapeDtypeStruct((8, 2, 32, 32, 1), np.uint8)}
    results = jax.eval_shape(method.loss, params, state, batch, jax.random.key(0), 0)
    features = jax.eval_shape(lambda p, s, b: method.encode(p, s, b["image"][:, 0]), params, state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, results, features))} == {np.dtype(np.float32)}


def test_mistakes_are_explained():
    for changes, message in (
        ({"model__variant": "mini"}, "taps the stages of a ResNet: resnet_test.*got 'mini'"),
        ({"levels__use": "5,1"}, "some of 1, 2, 3, 4, 5, each once and in order; got '5,1'"),
        ({"levels__use": "6"}, "got '6'"),
        ({"loss__global": 0.0, "loss__lambda": 0.0}, "nothing is left to train"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**changes)
    with pytest.raises(ValueError, match="more dimensions than pictures, got 24 and 32"):
        make(loss__rebalance=True, batch_size=32)


@pytest.mark.slow
def test_views_grow_alike_and_stay_spread_out():
    """In small: s falls while every deviation stays near 1 and the rank where it was."""
    _, _, reports = oracles.learn(make(), {"image": oracles.pictures(32)}, 40, lr=1e-2)
    assert reports[-1]["alignment"] < 0.1 * reports[0]["alignment"]
    assert reports[-1]["effective_rank"] > 0.7 * reports[0]["effective_rank"]
    assert min(reports[-1]["std_global"], reports[-1]["std_levels"]) > 0.7
