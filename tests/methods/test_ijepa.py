"""I-JEPA: a step written out, what may leak, padding, the targets, the schedules, and the released masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import methods, optim
from cxrjax.imaging import pixels
from cxrjax.losses import masked
from cxrjax.methods import ijepa
from cxrjax.models.predictor import Predictor
from cxrjax.models.vit import ViT
from tests import runs
from tests.losses.test_contrastive import DTYPES, assert_gradient, numeric_gradient, rounded
from tests.methods import oracles
from tests.methods.conftest import smooth_pictures


def rows_of(method, count=4):
    rng = np.random.default_rng(0)
    rows = [method.views({"image": pixels.encode(p, "png")}, rng) for p in smooth_pictures(count, 48)[:, 0, :, :, 0]]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class Case:
    """A method on noisy parameters, one compiled step (batch) → (loss, aux), (gradient by params, by state)."""

    def __init__(self, **changes):
        self.config = runs.config("ijepa", duration__total_steps=40, **changes)
        self.method = methods.make(self.config)
        self.batch = rows_of(self.method)
        shapes = jax.eval_shape(self.method.init, jax.random.key(0), None)
        self.params, self.state = (oracles.noise(tree, seed) for seed, tree in enumerate(shapes))

        @jax.jit
        def step(batch):
            def loss(params, state):
                return self.method.loss(params, state, batch, jax.random.key(0), 10)

            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(self.params, self.state)

        self.step = step


@pytest.fixture(scope="module")
def case():
    return Case()


def test_a_step_picture_by_picture_and_block_by_block(case):
    """Every context, block and prediction by itself, without padding."""
    (loss, aux), (gradient, to_state) = case.step(case.batch)
    encoder, predictor = ViT("test", 4, 32), Predictor(64, 32, 1, 2)
    frozen = case.state["frozen"]["encoder"]
    learned, target = ({**tree["encoder"], **frozen} for tree in (case.params, case.state["target"]))
    images = (case.batch["image"][:, 0] / np.float32(255) - case.config.standardise.mean) / case.config.standardise.std
    total, tokens = 0.0, 0
    for b, image in enumerate(images):
        k, t = case.batch["context_count"][b], case.batch["target_count"][b]
        ids = case.batch["context"][b : b + 1, :k]
        wanted = encoder.apply({"params": target}, image[None], drop_cls=True)["patches"][0]
        known = encoder.apply({"params": learned}, image[None], ids, drop_cls=True)["patches"]
        for block in case.batch["targets"][b, :, :t]:
            counts = np.array([k]), np.array([t])
            given = known, ids, counts[0], block[None, None], counts[1], (8, 8)
            predicted = np.asarray(predictor.apply({"params": case.params["predictor"]}, *given))[0, 0]
            y = np.asarray(wanted)[block]
            y = (y - y.mean(axis=1, keepdims=True)) / np.sqrt(y.var(axis=1, keepdims=True) + 1e-5)
            delta = np.abs(predicted - y)
            total += np.where(delta < 1, delta**2 / 2, delta - 0.5).mean(axis=1).sum()
            tokens += t
    assert float(loss) == pytest.approx(total / tokens, rel=1e-4)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(to_state)), "targets have no gradient"
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert float(aux.monitors["context_patches"]) == case.batch["context_count"].mean()


def test_padding_changes_nothing(case):
    """What stands behind the last id of a context or block: neither loss nor gradient."""
    batch = {name: array.copy() for name, array in case.batch.items()}
    for b in range(4):
        batch["context"][b, batch["context_count"][b] :] = 5
        batch["targets"][b, :, batch["target_count"][b] :] = 9
    assert np.any(batch["context"] != case.batch["context"]) and np.any(batch["targets"] != case.batch["targets"])
    (loss, _), (gradient, _) = case.step(case.batch)
    (same, _), (equal, _) = case.step(batch)
    assert float(loss) == float(same)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), gradient, equal)


def test_predictions_see_the_context_only():
    """Bit for bit the same with other pixels elsewhere; and two blocks of one place get one prediction."""
    encoder, predictor = ViT("test", 4, 16), Predictor(64, 32, 1, 2)
    image, ids = jax.random.normal(jax.random.key(0), (1, 16, 16, 1)), jnp.array([[0, 1, 5]])
    targets, one = jnp.array([[[10, 11], [10, 11], [3, 2]]]), jnp.array([3])
    params = jax.jit(encoder.init)(jax.random.key(1), image)
    see = jax.jit(lambda image: encoder.apply(params, image, ids, drop_cls=True)["patches"])
    given = ids, one, targets, jnp.array([2])
    shapes = jax.jit(lambda known: predictor.init(jax.random.key(2), known, *given, (4, 4)))(see(image))
    predict = jax.jit(lambda known: predictor.apply(shapes, known, *given, (4, 4)))

    def run(image):
        return predict(see(image))

    found = run(image)
    np.testing.assert_allclose(found[0, 0], found[0, 1], atol=1e-6)
    assert np.abs(found[0, 0] - found[0, 2]).max() > 1e-3
    np.testing.assert_array_equal(found, run(image.at[:, 8:].add(1.0)))
    assert np.abs(found - run(image.at[:, :4, :4].add(1.0))).max() > 1e-4


def test_contexts_are_cut_to_the_smallest_of_the_batch_as_released():
    case = Case(masking__context_cut="first")
    (loss, aux), _ = case.step(case.batch)
    least = case.batch["context_count"].min()
    assert float(aux.monitors["context_patches"]) == least and case.method.couples_batch
    (same, _), _ = case.step({**case.batch, "context_count": np.full(4, least)})
    assert float(loss) == float(same)


def test_errors_by_hand():
    """½ δ² and |δ| − ½; δ²; LN of 1, 2, 3, 4, of a constant; and a prediction of 0."""
    rows = jnp.float32([[1, 2, 3, 4]])
    ln = [-1.3416354, -0.44721181, 0.44721181, 1.3416354]
    np.testing.assert_allclose(masked.standardised(rows)[0], ln, atol=1e-6)
    gradient = jax.grad(lambda x: masked.standardised(x).sum())(jnp.ones((1, 4)))
    assert not np.any(masked.standardised(jnp.ones((1, 4)))) and np.isfinite(gradient).all()
    target, there = rows[None, None], jnp.ones((1, 1, 1), bool)  # b m t d
    predicted = jnp.float32(ln) + jnp.float32([0.5, 2, -1, 0])
    for kind, expected in (("smooth_l1", 0.53125), ("l2", 1.3125)):
        error, count = masked.regression_errors(predicted[None, None, None], target, there, kind)
        assert float(error[0]) == pytest.approx(expected, abs=1e-6) and float(count[0]) == 1
    error, _ = masked.regression_errors(jnp.zeros((1, 1, 1, 4)), target, there)
    assert float(error[0]) == pytest.approx(0.47081731, abs=1e-6)


@pytest.mark.parametrize("kind", masked.REGRESSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_are_the_loops(kind, dtype):
    rng = np.random.default_rng(0)
    (prediction, target), exact = rounded(dtype, *(rng.normal(0, 1.5, (2, 2, 3, 4)) for _ in range(2)))
    there = rng.random((2, 2, 3)) < 0.6

    def loop(prediction):
        total = 0.0
        for place in zip(*np.nonzero(there), strict=True):
            y = exact[1][place]
            delta = prediction[place] - (y - y.mean()) / np.sqrt(y.var() + 1e-5)
            for each in delta:
                total += (each**2 if kind == "l2" else each**2 / 2 if abs(each) < 1 else abs(each) - 0.5) / 4
        return total / there.sum()

    def ours(prediction):
        return masked.quotient(*masked.regression_errors(prediction, target, there, kind))

    value, gradient = jax.value_and_grad(ours)(prediction)
    assert float(value) == pytest.approx(loop(exact[0]), rel=1e-5)
    assert_gradient(gradient, numeric_gradient(loop, exact[0]), dtype, atol=1e-6)


def test_the_momentum_is_linear_and_the_targets_follow():
    method = methods.make(runs.config("ijepa", duration__total_steps=1500))
    old, new = {"encoder": {"w": jnp.zeros(1)}}, {"encoder": {"w": jnp.ones(1)}}
    for step, expected in ((0, 0.004), (1, 1 - 0.99600267), (750, 0.002), (1499, 1 - 0.99999733)):
        moved = method.after(new, {"target": old}, step)
        assert float(moved["target"]["encoder"]["w"][0]) == pytest.approx(expected, abs=1e-7)


def test_the_start_of_the_blocks_as_intended():
    kernel = {"kernel": np.ones((12, 2, 2))}
    params = {"blocks": {"attention": {"out": kernel}, "mlp": {"fc2": kernel}}}
    found = ijepa.rescaled(params)["blocks"]
    for layer in (found["attention"]["out"], found["mlp"]["fc2"]):
        np.testing.assert_allclose(layer["kernel"][[0, 1, 11], 0, 0], [0.70710678, 0.5, 0.20412415], atol=1e-8)


def test_the_recipe_is_the_authors():
    config = runs.config("ijepa", "chestxray14")
    params, state = jax.eval_shape(methods.make(config, total_steps=1500).init, jax.random.key(0), None)
    sizes = {part: sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params[part])) for part in params}
    colours = 2 * 16 * 16 * 768  # of their three channels
    assert sizes == {"encoder": 85_646_592 - colours, "predictor": 11_238_912}
    assert "cls" not in params["encoder"] and state["frozen"]["encoder"]["cls"].shape == (768,)
    config.optim.update({"warmup_epochs": None, "warmup_steps": 200})
    _, report = optim.make(config.optim, params, 1500, 2048, 50)
    rates = [float(report(step)["lr"]) for step in (1, 100, 199, 200, 850, 1500)]
    np.testing.assert_allclose(rates, [2.04e-4, 6e-4, 9.96e-4, 1e-3, 5.005e-4, 1e-6], rtol=1e-4)
    decays = [float(report(step)["wd"]) for step in (1, 750, 1500)]
    np.testing.assert_allclose(decays, [0.040000395, 0.22, 0.4], rtol=1e-5)
    released = runs.config("ijepa", "chestxray14,released").masking
    assert not released.inclusive and not released.independent_aspect and released.context_cut == "first"


def test_what_is_seen_of_a_picture_is_its_context_and_its_blocks():
    method = methods.make(runs.config("ijepa"))
    batch = rows_of(method)
    context, blocks = (~np.asarray(row.hidden) for row in method.look({}, {}, batch, jax.random.key(0)))
    np.testing.assert_array_equal(context.sum(axis=(1, 2)), batch["context_count"])
    for b, count in enumerate(batch["target_count"]):
        wanted = np.zeros(blocks[b].size, bool)
        wanted[batch["targets"][b, :, :count].ravel()] = True
        np.testing.assert_array_equal(blocks[b].ravel(), wanted)
