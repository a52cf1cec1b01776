"""DINO: a whole step in PyTorch, the teacher, the schedules, the crops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cxrjax import methods, optim, recipes
from cxrjax.imaging import pixels
from cxrjax.input import device
from cxrjax.input.augment import Augment
from cxrjax.models import backbone
from cxrjax.models.prototypes import Prototypes
from tests import runs
from tests.losses.test_dino_loss import looped_sinkhorn
from tests.methods import oracles
from tests.methods.conftest import smooth_pictures


def plain(words="smoke", **changes):
    """A tiny config whose crops reach the encoder as `views` gave them, standardised only; 40 steps."""
    config = oracles.config("dino", words, duration__total_steps=40)
    config.loss.update({"teacher_temperature": 0.07, "teacher_temperature_start": 0.04})
    if "sinkhorn" not in words:
        config.loss.assignment = "centre"
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    config.augment_local = Augment()._asdict()
    config.model.drop_path = 0.0
    return config


def crops(seed=0):
    return {
        "image": oracles.pictures(),
        "local": np.concatenate([smooth_pictures(16, 16, seed + s) for s in (7, 8)], axis=1),
    }


class Case:
    """A method on noisy parameters, with its compiled step (batch, step) -> (loss, aux), gradients, features."""

    def __init__(self, config):
        self.config, self.method = config, methods.make(config)
        shapes = jax.eval_shape(self.method.init, jax.random.key(0), None)
        self.params, self.state = (oracles.noise(tree, seed) for seed, tree in enumerate(shapes))
        encoder, stats = backbone.make(config.model), self.state["batch_stats"]["encoder"]

        def vectors(network, images):
            images = device.standardise(images, **config.standardise)
            seen = [encoder.apply(network["encoder"], stats, images[:, v], train=True)[0] for v in range(2)]
            return [y["pooled"] for y in seen]

        @jax.jit
        def step(batch, step):
            def loss(params, state):
                return self.method.loss(params, state, batch, jax.random.key(0), step)

            student = vectors(self.params, batch["image"]) + vectors(self.params, batch["local"])
            features = {"student": student, "teacher": vectors(self.state["target"], batch["image"])}
            gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(self.params, self.state)
            return *gradients, features

        self.step = step


@pytest.fixture(scope="module")
def case():
    return Case(plain(freeze_share=0.25, loss__warmup_share=0.5))


class Head(torch.nn.Module):
    """The paper's projection head: MLP with GELU, unit length, a weight-normalised layer of gain 1."""

    def __init__(self, params):
        super().__init__()
        self.linears = torch.nn.ModuleList()
        for name in sorted(params["projector"]):
            kernel, bias = (torch.tensor(np.asarray(params["projector"][name][k])) for k in ("kernel", "bias"))
            linear = torch.nn.Linear(*kernel.shape)
            linear.weight.data, linear.bias.data = kernel.T.contiguous(), bias
            self.linears.append(linear)
        direction = torch.tensor(np.asarray(params["prototypes"]["direction"]))
        last = torch.nn.Linear(*direction.shape, bias=False)
        last.weight.data = direction.T.contiguous()
        self.last = torch.nn.utils.parametrizations.weight_norm(last)
        self.last.parametrizations.weight.original0.data.fill_(1)

    def forward(self, x):
        for linear in self.linears[:-1]:
            x = torch.nn.functional.gelu(linear(x))
        return self.last(torch.nn.functional.normalize(self.linears[-1](x), dim=-1))


def algorithm_1(student, targets, temperature):
    """student, targets: logits and probabilities of each crop; every pair of different crops, their mean."""
    pairs = [(t, v) for t in range(2) for v in range(len(student)) if t != v]
    return sum(
        -(targets[t] * torch.log_softmax(student[v] / temperature, dim=-1)).sum(dim=-1).mean() for t, v in pairs
    ) / len(pairs)


def test_a_step_is_algorithm_1(case):
    """Value, gradients up to the encoder, the old centre in the targets and the new one in the state."""
    (loss, aux), (gradient, to_state), features = case.step(crops(), 10)
    y = [oracles.leaf(x) for x in features["student"]]
    student, teacher = Head(case.params), Head(case.state["target"])
    with torch.no_grad():
        logits = [teacher(torch.tensor(np.asarray(x))) for x in features["teacher"]]
        centre = torch.tensor(case.state["centre"])
        targets = [torch.softmax((x - centre) / 0.055, dim=-1) for x in logits]
    expected = algorithm_1([student(x) for x in y], targets, 0.1)
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    for i, linear in enumerate(student.linears, 1):
        oracles.close(gradient["projector"][f"fc{i}"]["kernel"], linear.weight.grad.T)
        oracles.close(gradient["projector"][f"fc{i}"]["bias"], linear.bias.grad)
    oracles.close(gradient["prototypes"]["direction"], student.last.parametrizations.weight.original1.grad.T)
    oracles.check_encoder(case.params, gradient, y)
    oracles.close(aux.state["centre"], 0.9 * centre + 0.1 * torch.cat(logits).mean(dim=0))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(to_state)), "the teacher and its centre get no gradient"
    entropy = -sum((p * torch.log(p + 1e-30)).sum(dim=-1).mean() for p in targets) / 2
    assert float(aux.monitors["target_entropy"]) == pytest.approx(entropy.item(), rel=1e-4)
    assert float(aux.monitors["divergence"]) == pytest.approx(expected.item() - entropy.item(), rel=1e-4)
    jax.tree.map(np.testing.assert_array_equal, aux.state["target"], case.state["target"])


def test_schedules_over_the_run(case):
    """τ_t rises over half of 40 steps, prototypes are held for a quarter, the momentum ends at 1."""
    for step, tau, held in (
        (0, 0.04, True),
        (9, 0.0535, True),
        (10, 0.055, False),
        (20, 0.07, False),
        (40, 0.07, False),
    ):
        (_, aux), (gradient, _), _ = case.step(crops(), step)
        assert float(aux.monitors["teacher_temperature"]) == pytest.approx(tau, rel=1e-5)
        momentum = 1 - 0.01 * (np.cos(np.pi * step / 40) + 1) / 2
        assert float(aux.monitors["momentum"]) == pytest.approx(momentum, rel=1e-6)
        assert np.any(gradient["prototypes"]["direction"]) != held
        assert np.any(gradient["projector"]["fc3"]["kernel"])


def test_the_teacher_sees_the_large_crops_only(case):
    (loss, aux), _, _ = case.step(crops(), 10)
    (other_loss, other), _, _ = case.step(crops(seed=5), 10)
    np.testing.assert_array_equal(aux.state["centre"], other.state["centre"])
    assert float(aux.monitors["target_entropy"]) == float(other.monitors["target_entropy"])
    assert abs(float(loss) - float(other_loss)) > 1e-4


def test_sinkhorn_in_place_of_the_centre_and_paths_that_drop(case):
    """Both crops of all pictures in one balance, at the same temperature. Only the student's paths are dropped."""
    balanced = methods.make(plain("smoke,sinkhorn", loss__warmup_share=0.0))
    dropping = plain(freeze_share=0.25, loss__warmup_share=0.5)
    dropping.model.drop_path = 0.5
    dropping = methods.make(dropping)
    state = {name: case.state[name] for name in ("target", "batch_stats")}
    assert jax.tree.structure(jax.eval_shape(balanced.init, jax.random.key(0), None)[1]) == jax.tree.structure(state)

    @jax.jit
    def losses(batch):
        key = jax.random.key(0)
        return balanced.loss(case.params, state, batch, key, 0), dropping.loss(case.params, case.state, batch, key, 0)

    (loss, aux), (dropped_loss, dropped) = losses(crops())
    (whole_loss, whole), _, features = case.step(crops(), 0)
    teacher, student = Head(state["target"]), Head(case.params)
    with torch.no_grad():
        logits = np.stack([teacher(torch.tensor(np.asarray(x))).numpy() for x in features["teacher"]])
        targets = torch.tensor(looped_sinkhorn(logits, 0.07, 3))
        expected = algorithm_1([student(torch.tensor(np.asarray(x))) for x in features["student"]], targets, 0.1)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    assert set(aux.state) == {"target", "batch_stats"}
    np.testing.assert_allclose(dropped.state["centre"], whole.state["centre"], atol=1e-6)
    assert abs(float(dropped_loss) - float(whole_loss)) > 1e-3


def test_the_teacher_follows_and_starts_as_a_copy():
    method = methods.make(plain(momentum=0.9))
    params, state = jax.jit(method.init)(jax.random.key(0), None)
    jax.tree.map(np.testing.assert_array_equal, params, state["target"])
    assert not np.any(state["centre"]) and set(params) == {"encoder", "projector", "prototypes"}
    old, new = {"w": jnp.asarray([1.0, 2.0])}, {"w": jnp.asarray([3.0, -2.0])}
    for step, expected in ((0, [1.2, 1.6]), (20, [1.1, 1.8]), (40, [1.0, 2.0])):
        moved = method.after(new, {"target": old, "centre": "as it is"}, step)
        np.testing.assert_allclose(moved["target"]["w"], expected, rtol=1e-6)
        assert moved["centre"] == "as it is"


def test_the_teacher_encodes(case):
    """Whatever the student's parameters are, and without them."""
    images = crops()["image"][:2, 0]
    found = jax.jit(case.method.encode)({}, case.state, images)
    encoder, target = backbone.make(case.config.model), case.state["target"]["encoder"]
    expected, _ = jax.jit(functools.partial(encoder.apply, train=False))(target, {}, device.standardise(images))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_a_resnet_keeps_the_teachers_statistics():
    """Of both large crops in one batch; no others are kept, and pictures are encoded by them."""
    config = plain()
    config.model = recipes.resnet("resnet_test", 32)
    method, encoder = methods.make(config), backbone.make(config.model)
    shapes = jax.eval_shape(method.init, jax.random.key(0), None)
    params, state = (oracles.noise(tree, seed) for seed, tree in enumerate(shapes))
    assert set(state["batch_stats"]) == {"encoder"}
    target, stats = state["target"]["encoder"], state["batch_stats"]["encoder"]

    @jax.jit
    def both(batch):
        aux = method.loss(params, state, batch, jax.random.key(0), 0)[1]
        images = device.standardise(batch["image"]).swapaxes(0, 1).reshape(32, 32, 32, 1)
        _, moved = encoder.apply(target, stats, images, train=True)
        encoded = method.encode(params, aux.state, batch["image"][:, 0])
        by_hand, _ = encoder.apply(target, moved, images[:16], train=False)
        return (aux.state["batch_stats"]["encoder"], encoded), (moved, by_hand)

    jax.tree.map(oracles.close, *both(crops()))


def test_views_are_large_and_small_crops_of_one_picture():
    """Of a picture that brightens from left to right, whose crops show by their range how wide they are."""
    example = {"image": pixels.encode(np.tile(np.arange(256, dtype=np.uint8), (256, 1)), "png")}
    method = methods.make(runs.config("dino", views__scale=(0.4, 1.0), local_views__scale=(0.05, 0.1)))
    many = [method.views(example, np.random.default_rng(seed)) for seed in range(40)]
    shapes = {name: view.shape for name, view in many[0].items()}
    assert shapes == {"image": (2, 32, 32, 1), "local": (2, 16, 16, 1)}
    widths = {name: np.ptp([view[name] for view in many], axis=(2, 3, 4)) / 255 for name in shapes}
    assert widths["image"].min() > (0.4 * 3 / 4) ** 0.5 - 0.05
    assert widths["local"].max() < (0.1 * 4 / 3) ** 0.5 and widths["local"].min() < 0.3
    assert all((np.abs(both[:, 0] - both[:, 1]) > 0.01).mean() > 0.5 for both in widths.values())
    config = runs.config("dino", local_views__count=0)
    method = methods.make(config)
    assert set(method.views(example, np.random.default_rng(0))) == {"image"}
    params, state = jax.eval_shape(method.init, jax.random.key(0), None)
    batch = {"image": jax.ShapeDtypeStruct((4, 2, 32, 32, 1), np.uint8)}
    assert jax.eval_shape(method.loss, params, state, batch, jax.random.key(0), 0)[0].shape == ()


def test_prototypes_are_cosines():
    """Lengths of vectors and columns do not matter; in half precision the sum is still in float32."""
    x, direction = (np.random.default_rng(s).normal(size=(3, 5)).astype(np.float32) for s in range(2))
    params = {"params": {"direction": direction.T}}
    found = Prototypes(3).apply(params, x)
    expected = (x @ direction.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(direction, axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    scaled = {"params": {"direction": direction.T * [0.1, 1, 50]}}
    np.testing.assert_allclose(Prototypes(3).apply(scaled, 7 * x), expected, atol=1e-6)
    half = Prototypes(3, jnp.bfloat16).apply(params, x)
    assert half.dtype == jnp.float32 and 0 < np.abs(half - expected).max() < 0.02
    assert np.isfinite(jax.grad(lambda x: Prototypes(3).apply(params, x).sum())(jnp.zeros((1, 5)))).all()


def test_the_recipe_is_the_papers():
    config = runs.config("dino", "chestxray14")
    method = methods.make(config, total_steps=3000)
    params, state = jax.eval_shape(method.init, jax.random.key(0), None)
    assert params["prototypes"]["direction"].shape == (256, 65536) and state["centre"].shape == (65536,)
    assert [params["projector"][f"fc{i}"]["kernel"].shape for i in (1, 2, 3)] == [
        (384, 2048),
        (2048, 2048),
        (2048, 256),
    ]
    _, report = optim.make(config.optim, params, 3000, config.batch_size, 10)
    assert float(report(99)["lr"]) == pytest.approx(5e-4 * 4) and float(report(3000)["lr"]) == pytest.approx(1e-6)
    assert [float(report(step)["wd"]) for step in (0, 3000)] == pytest.approx([0.04, 0.4])
    assert config.optim.clip_per_tensor == 3.0 and config.local_views.count == 8 and config.local_views.px == 96
    assert (config.momentum, config.loss.warmup_share * config.duration.total_epochs) == (0.996, 30)
    assert (config.loss.teacher_temperature_start, config.loss.teacher_temperature) == (0.04, 0.07)
    assert (tuple(config.views.scale), tuple(config.local_views.scale)) == ((0.4, 1.0), (0.05, 0.4))


def test_what_cannot_be_built_or_known_is_explained():
    method = methods.make(runs.config("dino", duration__total_steps=None, duration__total_epochs=3.0))
    params, state = jax.eval_shape(method.init, jax.random.key(0), None)
    with pytest.raises(ValueError, match="'dino' changes over the whole run.*total_steps is not known here"):
        jax.eval_shape(method.loss, params, state, crops(), jax.random.key(0), 0)


def large_crops(method):
    """Two crops of each of 32 smooth pictures."""
    rng = np.random.default_rng(0)
    rows = [method.views({"image": pixels.encode(p, "png")}, rng) for p in smooth_pictures(32, 48)[:, 0, :, :, 0]]
    return {"image": np.stack([row["image"] for row in rows])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("collapse", "changes"),
    [
        ("", {"loss__teacher_temperature": 0.04}),
        ("one answer", {"loss__centre_momentum": 1.0}),
        ("equal answers", {"loss__teacher_temperature": 1.0, "loss__teacher_temperature_start": 1.0}),
    ],
)
def test_centre_and_sharpness_keep_each_other_from_collapse(collapse, changes):
    """Section 5.3: without the centre all targets become one prototype, without a low temperature all are equal."""
    settings = {"momentum": 0.99, "local_views__count": 0, "views__scale": (0.6, 1.0), "views__flip": 0.0}
    method = methods.make(plain(**settings, duration__total_steps=200, **changes))
    _, _, reports = oracles.learn(method, large_crops(method), 60 if collapse else 150, lr=1e-3 if collapse else 3e-4)
    first, last = reports[0], reports[-1]
    if collapse == "one answer":
        assert last["mean_target_entropy"] < 0.5 and last["loss"] < 0.5
    elif collapse == "equal answers":
        assert last["target_entropy"] > np.log(64) - 0.01 and last["divergence"] < 0.01
    else:
        assert last["mean_target_entropy"] - last["target_entropy"] > 1
        assert last["feature_std"] > first["feature_std"] + 0.1
