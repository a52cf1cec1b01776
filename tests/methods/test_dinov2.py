"""DINOv2: a step written out, centres, the masks, the head, the schedules, what is held, the recipes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cxrjax import methods, optim
from cxrjax.imaging import pixels
from cxrjax.input.block_masks import Rectangles
from cxrjax.losses import distill
from cxrjax.models import backbone, linen
from cxrjax.models.prototypes import Prototypes
from tests import runs
from tests.losses.test_dino_loss import looped_sinkhorn
from tests.methods import oracles
from tests.methods.conftest import smooth_pictures
from tests.methods.test_dino import Head, algorithm_1


def rows_of(method, count=4):
    rng = np.random.default_rng(0)
    rows = [method.views({"image": pixels.encode(p, "png")}, rng) for p in smooth_pictures(count, 48)[:, 0, :, :, 0]]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class Case:
    """A method on noisy parameters; what its encoders make of a batch, and (loss, aux) of that at a step."""

    def __init__(self, **changes):
        changes = {"loss__teacher_temperature": 0.07, "loss__start_temperature": 0.04, **changes}
        self.config = runs.config("dinov2", duration__total_steps=40, batch_size=4, **changes)
        self.method = methods.make(self.config)
        self.batch = rows_of(self.method)
        shapes = jax.eval_shape(self.method.init, jax.random.key(0), None)
        self.params, self.state = (oracles.noise(tree, seed) for seed, tree in enumerate(shapes))
        self.prepared = jax.jit(self.method.parts.prepare)(self.batch, jax.random.key(0))
        self.features, _ = jax.jit(self.method.parts.embed)(self.params, self.state, self.prepared)
        self.loss = jax.jit(
            lambda features, step: self.method.parts.loss_of(self.params, self.state, features, self.prepared, step)
        )


@pytest.fixture(scope="module")
def case():
    return Case(ibot_head__separate=True)


def heads_of(case, name):
    return Head(case.params[name]), Head(case.state["target"][name])


def test_a_step_is_the_papers(case):
    """All pairs of crops; hidden patches crop by crop; neighbours of each large crop by itself."""
    loss, aux = case.loss(case.features, 1)
    tau = 0.04 + 0.03 * min(1 / (0.06 * 40), 1)
    features = {name: torch.tensor(np.asarray(x)) for name, x in case.features.items()}
    student, teacher = heads_of(case, "head")
    with torch.no_grad():
        logits = [student(features["student"][:, v]) for v in range(4)]
        of_teacher = np.stack([teacher(features["teacher"][:, v]).numpy() for v in range(2)])
        dino = algorithm_1(logits, torch.tensor(looped_sinkhorn(of_teacher, tau, 3)), 0.1).item()
        student, teacher = heads_of(case, "ibot_head")
        count, total = case.batch["hidden_count"], 0.0
        pairs = [(b, j) for b in range(4) for j in range(count[b].sum())]
        hidden, seen = (
            torch.stack([features[name][pair] for pair in pairs]) for name in ("student_tokens", "teacher_tokens")
        )
        codes = looped_sinkhorn(teacher(seen).numpy()[None], tau, 3)[0]
        log_p = torch.log_softmax(student(hidden) / 0.1, dim=-1).numpy()
        for (b, _), q, p in zip(pairs, codes, log_p, strict=True):
            total -= q @ p / count[b].max() / 8  # of one of two crops of each of four pictures
    koleo = sum(float(distill.koleo(case.features["student"][:, v])[0]) for v in range(2))
    found = {name: float(value) for name, value in aux.terms.items()}
    assert found == pytest.approx({"dino": dino, "ibot": total, "koleo": 0.1 * koleo}, rel=1e-4)
    assert float(loss) == pytest.approx(dino + total + 0.1 * koleo, rel=1e-4)


def test_the_mean_over_masked_crops_is_twice_as_large(case):
    _, aux = case.loss(case.features, 1)
    config = case.config.copy_and_resolve_references()
    config.loss.ibot_average = "masked"
    other = methods.make(config)
    _, masked = jax.jit(other.parts.loss_of)(case.params, case.state, case.features, case.prepared, 1)
    assert float(masked.terms["ibot"]) == pytest.approx(2 * float(aux.terms["ibot"]), rel=1e-6)


def test_hidden_patches_are_picked_from_their_places(case):
    """Features of the teacher, which sees all patches, at the places that the batch names."""
    count, ids = case.batch["hidden_count"], case.batch["hidden_ids"]
    mask = case.batch["hidden"]
    for b in range(4):
        np.testing.assert_array_equal(ids[b, : count[b].sum()], np.flatnonzero(mask[b]))
        assert sorted(count[b] > 0) == [False, True] and np.all(count[b] == mask[b].sum(axis=1))
    moved = {**case.features, "student_tokens": case.features["student_tokens"].at[0, count[0].sum() :].add(100.0)}
    assert float(case.loss(moved, 1)[0]) == float(case.loss(case.features, 1)[0])


def test_centres_follow_what_is_there():
    case = Case(loss__assignment="centre", loss__warmup_share=0.0)
    _, aux = case.loss(case.features, 0)
    _, teacher = heads_of(case, "head")
    features = {name: torch.tensor(np.asarray(x)) for name, x in case.features.items()}
    count = case.batch["hidden_count"].sum(axis=1)
    seen = torch.cat([features["teacher_tokens"][b, : count[b]] for b in range(4)])
    with torch.no_grad():
        means = teacher(features["teacher"].reshape(8, -1)).mean(dim=0), teacher(seen).mean(dim=0)
    for name, mean in zip(("centre", "ibot_centre"), means, strict=True):
        oracles.close(aux.state[name], 0.9 * case.state[name] + 0.1 * mean.numpy())


def test_gram_anchoring_is_to_patches_of_an_earlier_teacher():
    """Of the student's large crops, some patches hidden, and of a network that sees all and is renewed in time."""
    case = Case(loss__gram_weight=2.0, loss__gram_refresh_steps=3)
    encoder, large = backbone.make_vit({**case.config.model, "mask_token": True})[1], case.prepared["crops"]["image"]
    images, hidden = large["images"].reshape(8, 32, 32, 1), case.batch["hidden"].reshape(8, -1)
    paths = large["paths"].reshape(8, *large["paths"].shape[2:])
    seen = linen.apply(encoder, case.params["encoder"], images, mask=hidden, paths=paths)["patches"]
    anchor = linen.apply(encoder, case.state["gram"]["encoder"], images)["patches"]
    expected = 2 * np.mean(distill.gram(seen, anchor))
    assert float(case.loss(case.features, 1)[1].terms["gram"]) == pytest.approx(float(expected), rel=1e-4)
    after = jax.jit(case.method.after)
    for step, renewed in ((1, False), (2, True)):
        state = after(case.params, case.state, step)
        source = state["target"] if renewed else case.state["gram"]
        np.testing.assert_array_equal(state["gram"]["encoder"]["cls"], source["encoder"]["cls"])


@pytest.mark.parametrize("side", [14, 16, 37])
def test_masks_have_as_many_patches_as_asked_for(side):
    masks, rng, wanted = Rectangles(), np.random.default_rng(0), int(0.3 * side**2)
    drawn = [masks.mask(rng, wanted, (side, side)) for _ in range(100)]
    sizes = np.array([mask.sum() for mask in drawn])
    assert sizes.max() <= wanted and wanted - sizes.mean() < 0.5
    share = np.mean(drawn, axis=0)
    assert share[0, 0] < 0.12 < 0.4 < share[side // 2, side // 2]  # cells of the corner are hidden seldom
    one = [Rectangles().mask(rng, 12, (side, side)) for _ in range(20)]
    assert not any(mask.all(axis=0).any() or mask.all(axis=1).any() for mask in one)


def test_the_head_with_lengths():
    z, w = jnp.float32([[3, 4]]), jnp.float32([[1, 0], [0, 2], [1, 1]])
    params = {"params": {"direction": w.T, "length": jnp.float32([1, 2, 0.5])}}
    found = Prototypes(3, learn_length=True).apply(params, z)
    np.testing.assert_allclose(found[0], [0.6, 1.6, 0.49497475], atol=1e-6)


def test_schedules_are_the_released_codes():
    config = runs.optim(lr=2e-3, lr_end=1e-6, warmup_steps=21, warmup_includes_peak=True, wd=0.04, wd_end=0.2)
    params = {"encoder": {"w": jnp.zeros((2, 2))}}
    _, report = optim.make(config, params, 140, 64, 10)
    expected = {0: 0, 1: 1e-4, 10: 1e-3, 20: 2e-3, 21: 2e-3, 80: 1.0136930e-3, 139: 1.3482839e-6}
    for step, rate in expected.items():
        assert float(report(step)["lr"]) == pytest.approx(rate, rel=1e-4)
    for step, decay in {0: 0.04, 35: 0.063431458, 70: 0.12, 139: 0.19997986}.items():
        assert float(report(step)["wd"]) == pytest.approx(decay, rel=1e-5)
    for batch, lr, peak in ((3072, 2e-4, 3.4641016e-4), (2048, 4e-3, 5.6568542e-3), (512, 4e-3, 2.8284271e-3)):
        _, report = optim.make(runs.optim(sqrt_lr=lr), params, 10, batch, 1)
        assert float(report(0)["lr"]) == pytest.approx(peak, rel=1e-6)


def test_rates_of_layers():
    config = runs.config("dinov2", "chestxray14", model__variant="B", model__registers=2)
    params, _ = jax.eval_shape(methods.make(config).init, jax.random.key(0), None)
    rates = optim.layer_multipliers(params, 0.9)["encoder"]
    for name in ("pos_embed", "cls", "cls_pos", "registers", "mask_token"):
        assert rates[name] == pytest.approx(0.25418658)
    assert 0.2 * rates["patch_embed"]["kernel"] == pytest.approx(0.050837317)
    found = np.ravel(rates["blocks"]["attention"]["qkv"]["kernel"])[[0, 6, 11]]
    np.testing.assert_allclose(found, [0.28242954, 0.531441, 0.9], rtol=1e-6)


def test_what_is_held_keeps_its_value_and_gathers_moments():
    """Then its first step is no longer than the others'. Networks are clipped each by its own norm."""
    params = {"encoder": {"w": jnp.ones((2, 2))}, "head": {"prototypes": {"direction": jnp.ones((2, 2))}}}
    config = runs.optim(lr=0.1, schedule="constant", wd=0.1, held=("prototypes/",), held_share=0.5, wd_mults=())
    transformation, _ = optim.make(config, params, 8, 4, 1)
    state, path = transformation.init(params), []
    for _ in range(6):
        updates, state = transformation.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        path.append(float(params["head"]["prototypes"]["direction"][0, 0]))
    assert path[:4] == [1.0] * 4 and path[4] == pytest.approx(1 - 0.1 * 1.1, rel=1e-4)
    config = runs.optim(name="sgd", lr=1.0, schedule="constant", momentum=0.0, wd=0.0, clip_per_part=1.0)
    transformation, _ = optim.make(config, params, 8, 4, 1)
    gradient = {"encoder": {"w": jnp.full((2, 2), 5.0)}, "head": {"prototypes": {"direction": jnp.full((2, 2), 0.1)}}}
    updates, _ = transformation.update(gradient, transformation.init(params), params)
    np.testing.assert_allclose(updates["encoder"]["w"], -0.5, rtol=1e-5)
    np.testing.assert_allclose(updates["head"]["prototypes"]["direction"], -0.1, rtol=1e-5)


def test_the_recipes():
    config = runs.config("dinov2", "chestxray14")
    params, _ = jax.eval_shape(methods.make(config).init, jax.random.key(0), None)
    size = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params["head"]))
    assert size == 23_138_560 - 65_536  # DINOv2 learns the lengths as well
    config = runs.config("dinov2", "chestxray14,chexfound")
    params, _ = jax.eval_shape(methods.make(config).init, jax.random.key(0), None)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params["head"])) == 57_545_088
    assert params["ibot_head"]["prototypes"]["direction"].shape == (256, 131_072)
    assert params["encoder"]["registers"].shape == (4, 1024)
