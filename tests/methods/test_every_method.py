"""The contract of DESIGN's method record, for every method: shapes, terms, devices, resuming, learning, and what params
may hold. One compilation of a method's step on one device serves all tests of that method."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest

from cxrjax import checkpoint, methods, parallel
from cxrjax.imaging import pixels
from cxrjax.step import TrainState, make_step
from cxrjax.text import tokenizer
from tests import runs
from tests.methods.conftest import smooth_pictures

STEPS = 48
# One rate for losses of every size. The large ε keeps the rounding of gradients near 0 out of the parameters, so that
# they can be compared between numbers of devices.
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-3, eps=1e-4))
# What is off by default and couples the batch in its own way.
ALSO = {"spcxr": {"contrast__weight": 1.0}, "dino": {"loss__assignment": "centre"}}
ALSO |= {name: {"augment__jitter": 0.5} for name in ("supervised", "segment", "detect", "convirt")}
NO_DRAWS = ("gloria", "mgca", "sista", "fane", "ijepa")  # their pictures are drawn on the host, and nothing in the loss
FINDINGS = ("no acute disease", "left pleural effusion", "opacity of the right base", "enlarged heart")


class Case(NamedTuple):
    """A method on one device: its batch, its start, its compiled step and what that made of the start."""

    name: str
    method: methods.Method
    batch: dict
    mesh: Any
    abstract: TrainState  # shapes and shardings of `start`
    start: TrainState
    step: Any  # (TrainState, batch on the mesh) -> (TrainState, scalars)
    first: TrainState  # after one step
    scalars: dict  # of that step


def examples(count=16, px=48):
    """Pictures as a set has them, which are studies too: each with another picture as its lateral, and a report."""
    encoded = [pixels.encode(picture, "png") for picture in smooth_pictures(count, px)[:, 0, :, :, 0]]
    for i, picture in enumerate(encoded):
        names = {"set": "", "image_id": f"{i}", "patient_id": f"{i}", "study_id": f"{i}"}
        frontal = {"image": picture, "view": "PA", **names}
        lateral = {"image": encoded[(i + 1) % count], "view": "LATERAL", **names, "image_id": f"{i}, lateral"}
        finding = f"{FINDINGS[i % 4]}, seen {i} days ago"
        report = {"findings": f"There is {finding}.", "impression": f"{finding}.", "text": ""}
        laterals = [lateral] if i % 8 > 1 else []  # of eight devices two have no study with one
        parts = {"frontals": [frontal], "laterals": laterals, "others": [], "has_frontal": True}
        parts["has_lateral"] = bool(laterals)
        yield {**frontal, **parts, "report": report}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A folder with the vocabulary of the examples' reports, as a converted set has it."""
    folder = tmp_path_factory.mktemp("vocabulary")
    tokenizer.save(tokenizer.train([example["report"]["findings"] for example in examples()], 256), folder)
    return str(folder)


def make(name, vocabulary, **changes):
    """The method of a smoke config; momenta of targets go to 1 over the steps that the tests train."""
    config = runs.config(name, **ALSO.get(name, {}), **changes)
    if changes and "teachers" in config:  # which see what the student sees
        for network in config.teachers.networks.values():
            network.model.image_px = config.model.image_px
    if "text" in config:
        config.text.tokenizer = vocabulary
    return methods.make(config, STEPS)


def batch_of(method):
    """What the method's own views make of sixteen smooth pictures, or of as many studies."""
    rng = np.random.default_rng(0)
    rows = [method.views(example, rng) for example in examples()]
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    if "labels" in found:  # which a picture of no set does not have
        found["labels"] = rng.integers(0, 2, found["labels"].shape).astype(np.int8)
    if "boxes" in found:  # and neither boxes: one in most pictures, from smaller than a patch to half the picture
        start, side = rng.uniform(0, 0.5, (len(rows), 2)), rng.uniform(0.05, 0.5, (len(rows), 1))
        found["boxes"][:12, 0] = np.concatenate([start, start + side], axis=1)[:12]
        found["classes"][:12, 0] = np.arange(12) % 8
    if "mask" in found:  # and no mask either: where it is bright
        found |= {"mask": found["image"][:, 0] > 140, "known": np.ones(len(rows), bool)}
    if "report_embedding" in found:  # and neither what a set's encoder makes of its report
        found["report_embedding"] = rng.normal(size=(len(rows), 8)).astype(np.float32)
    return found


def start_of(method, batch):
    params, state = method.init(jax.random.key(0), batch)
    return TrainState(np.int32(0), params, state, OPTIMIZER.init(params))


@functools.cache
def step_of(method):
    """One function for all numbers of devices: jax traces it once."""
    return make_step(method, OPTIMIZER, jax.random.key(0))


def compiled(method, mesh, abstract, batch):
    """The trainer's step for one number of devices, compiled for these shapes: a step that changes them is an error."""
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    step = jax.jit(
        step_of(method),
        in_shardings=(layout, parallel.batch_sharding(mesh)),
        out_shardings=(layout, parallel.replicated(mesh)),
    )
    return step.lower(abstract, batch).compile()


@pytest.fixture(scope="module", params=methods.available())
def case(request, vocabulary):
    method, mesh = make(request.param, vocabulary), parallel.make_mesh({"data": 1})
    batch = batch_of(method)
    abstract = parallel.abstract(jax.eval_shape(lambda: start_of(method, batch)), mesh)
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    start = jax.jit(lambda: start_of(method, batch), out_shardings=layout)()
    shards = parallel.to_global(batch, mesh)
    step = compiled(method, mesh, abstract, shards)
    first, scalars = step(start, shards)
    return Case(
        request.param,
        method,
        batch,
        mesh,
        abstract,
        start,
        lambda state: step(state, shards),
        first,
        jax.device_get(scalars),
    )


def gradient_of(first, scalars):
    """The gradient of the first step, as long as it was before it was clipped."""
    norm = max(1.0, float(scalars["train/norm/gradient"]))
    return jax.tree.map(lambda leaf: np.asarray(leaf) * norm / 0.1, optax.tree.get(first.opt_state, "mu"))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_contract(case):
    method, batch = case.method, case.batch
    params, state = case.abstract.params, case.abstract.state
    loss, aux = jax.eval_shape(method.loss, params, state, batch, jax.random.key(0), 0)
    assert loss.shape == () and loss.dtype == np.float32
    assert jax.tree.structure(aux.state) == jax.tree.structure(state)
    assert aux.terms and all(value.shape == () for value in (*aux.terms.values(), *aux.monitors.values()))
    assert {"feature_std", "effective_rank"} <= set(aux.monitors)
    out = jax.eval_shape(method.encode, params, state, batch["image"][:, 0])
    assert out["pooled"].shape[0] == out["patches"].shape[0] == len(batch["image"])
    assert out["patches"].ndim == 4 and out["pooled"].dtype == np.float32
    after = jax.eval_shape(method.after, params, state, 0)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    rows = jax.eval_shape(method.look, params, state, batch, jax.random.key(0))
    assert rows[0].images.shape[0] == len(batch["image"]) and all(row.label for row in rows)
    assert all(row.images is None or row.images.ndim == 3 for row in rows)
    if method.joint is not None:
        image = jax.eval_shape(method.joint.image, params, state, batch["image"][:, 0])
        found = method.joint.tokens(FINDINGS[0])
        tokens = [found[name][None] for name in ("ids", "text_mask", "word_index")]
        assert [array.shape[1:] for array in tokens] == 3 * [batch["ids"].shape[1:]]
        text = jax.eval_shape(method.joint.text, params, state, *tokens)
        assert image["pooled"].shape[-1] == image["patches"].shape[-1] == text["pooled"].shape[-1]
        assert text["words"].shape == (*text["word_mask"].shape, text["pooled"].shape[-1])


def test_terms_sum_to_the_loss_and_all_params_learn(case):
    terms = [value for name, value in case.scalars.items() if name.startswith("train/term/")]
    assert float(sum(terms)) == pytest.approx(float(case.scalars["train/loss"]), rel=1e-6)
    gradient = gradient_of(case.first, case.scalars)
    idle = [jax.tree_util.keystr(k) for k, g in jax.tree_util.tree_leaves_with_path(gradient) if not np.any(g)]
    assert not idle, "params hold only what is learned"


def test_every_step_draws_anew(case):
    """Same parameters, same batch, another step: other grey values, masks or partitions, and so another loss."""
    _, scalars = case.step(case.start._replace(step=np.int32(7)))
    same = float(scalars["train/loss"]) == float(case.scalars["train/loss"])
    assert same == (case.name in NO_DRAWS)


def test_targets_follow_the_updated_parameters(case):
    """Every target starts as a copy: an average with the parameters of before the update would not move it."""
    if "target" not in case.start.state:
        pytest.skip("keeps no target")
    before, after = case.start.state["target"], case.first.state["target"]
    updated = {part: case.first.params[part] for part in before}
    moved, ahead = (jax.tree.leaves(optax.tree.sub(tree, before)) for tree in (after, updated))
    moved, ahead = (np.concatenate([np.ravel(leaf) for leaf in leaves]) for leaves in (moved, ahead))
    share = np.vdot(moved, ahead) / np.vdot(ahead, ahead)
    assert 0 < share < 1
    # Targets near 1 round by as much as 1e-7.
    np.testing.assert_allclose(moved, share * ahead, atol=0.02 * share * np.abs(ahead).max() + 2e-7)


def test_one_device_is_eight(case):
    """Loss, gradient norm and the updated parameters; losses are global, so no device may see only its own rows."""
    mesh = parallel.make_mesh({"data": 8})
    abstract, shards = parallel.abstract(case.abstract, mesh), parallel.to_global(case.batch, mesh)
    start = jax.device_put(jax.device_get(case.start), jax.tree.map(lambda leaf: leaf.sharding, abstract))
    eight, scalars = jax.device_get(compiled(case.method, mesh, abstract, shards)(start, shards))
    for name, value in case.scalars.items():
        np.testing.assert_allclose(scalars[name], value, rtol=2e-5, atol=1e-6, err_msg=name)

    def same(a, b, change, allowed):
        # Updates may be far above the parameters, and float32 keeps five digits of them.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=allowed + 2e-5 * np.abs(change).max())

    one, before = jax.device_get((case.first, case.start))
    for part in ("params", "state"):
        a, b, old = (getattr(train_state, part) for train_state in (one, eight, before))
        jax.tree.map(lambda a, b, old: same(a, b, a - old, 5e-6 if part == "params" else 1e-6), a, b, old)  # noqa: B023
    a, b = gradient_of(one, case.scalars), gradient_of(eight, scalars)
    # A bias whose gradient is zero keeps what its sums round to, which is as large as the gradients around it allow.
    rounding = max(1e-5, 1e-6 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(a)))
    jax.tree.map(lambda a, b: same(a, b, a, rounding if np.abs(a).max() < rounding else 1e-5), a, b)


def test_resumes_bit_for_bit(case, tmp_path):
    """Two steps after a restored one are those of a run that went on: parameters, moments, targets, statistics."""
    expected, expected_scalars = case.step(case.step(case.first)[0])
    with checkpoint.open(tmp_path / "checkpoints") as saved:
        saved.save(1, case.first, {})
        saved.wait()
        restored = saved.restore(1, case.abstract)
    assert_equal(restored, case.first)
    found, scalars = case.step(case.step(restored)[0])
    assert int(found.step) == 3
    assert_equal(found, expected)
    assert_equal(scalars, expected_scalars)


def test_overfits_one_batch(case):
    """With one step's draws in every step: the loss falls, vectors stay apart, and momentum copies follow behind."""
    train_state, found = case.first, {}
    for number in range(1, STEPS + 1):
        train_state, scalars = case.step(train_state._replace(step=case.start.step))
        if number >= STEPS // 2 and number % 4 == 0:  # half of the steps are enough for most
            found = fitted(case, train_state, scalars)
            if all(found.values()):
                break
    assert all(found.values()), found


def fitted(case, train_state, scalars):
    # Where a teacher's answers change, the loss says less than its distance from the least that it could be.
    name = "train/monitor/divergence" if "train/monitor/divergence" in scalars else "train/loss"
    found = {
        "the loss falls": float(scalars[name]) < 0.7 * float(case.scalars[name]),
        "features differ": float(scalars["train/monitor/feature_std"]) > 0.02,
        "in more than one direction": float(scalars["train/monitor/effective_rank"]) > 1.1,
    }
    if "target" in train_state.state:
        before = {part: case.start.params[part] for part in train_state.state["target"]}
        online = {part: train_state.params[part] for part in before}
        far, behind = (distance(tree, before) for tree in (online, train_state.state["target"]))
        found["the target follows behind"] = 0.01 * far < behind < 0.9 * far
    return found


def distance(a, b):
    return float(optax.tree.norm(optax.tree.sub(a, b)))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("ijepa", "spcxr") else pytest.mark.slow) for name in methods.available()],
)
def test_pictures_may_be_no_squares(name, vocabulary):
    """Views, loss and features, traced."""
    method = make(name, vocabulary, model__image_px=(64, 32))
    batch = batch_of(method)
    assert batch["image"].shape[2:] == (64, 32, 1)
    params, state = jax.eval_shape(method.init, jax.random.key(0), batch)
    loss, _ = jax.eval_shape(method.loss, params, state, batch, jax.random.key(0), 0)
    rows = jax.eval_shape(method.look, params, state, batch, jax.random.key(0))
    assert loss.shape == () and all(row.images is None or row.images.shape[1:] != (32, 32) for row in rows)
    patches = jax.eval_shape(method.encode, params, state, batch["image"][:, 0])["patches"]
    assert patches.shape[1] == 2 * patches.shape[2]


def test_unknown_method_lists_what_exists():
    config = runs.config("spcl")
    config.method = "spc1"
    with pytest.raises(ValueError, match="there is no method 'spc1'; available: .*spcl.* Did you mean 'spcl'"):
        methods.make(config)
