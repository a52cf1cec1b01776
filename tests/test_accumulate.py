"""A step over slices of the batch is the step of the batch: value, gradient, what is watched, and what is kept."""

import functools

import jax
import numpy as np
import pytest

from cxrjax import accumulate, methods, parallel
from cxrjax import config as shared
from cxrjax.step import make_step, program
from cxrjax.text import tokenizer
from tests import runs
from tests.methods import test_every_method as every

# By the name of a case: the config, and what else is set there. Paths are dropped where a ViT can.
CASES = {
    "spcl": ("spcl", {}),
    "spcl_two_lengths_and_head": ("spcl", {"partition__split_ratio": 0.25, "head__kind": "mlp"}),
    "mae": ("mae", {"model__drop_path": 0.4}),
    "simclr": ("simclr", {"model__drop_path": 0.4}),
    "moco_v3": ("moco_v3", {"model__drop_path": 0.4}),
    "dino": ("dino", {"model__drop_path": 0.4, "loss__assignment": "centre"}),
    "dinov2": ("dinov2", {"model__drop_path": 0.4, "loss__assignment": "centre"}),
    "byol": ("byol", {"model__drop_path": 0.4}),
    "vicreg": ("vicreg", {"model__drop_path": 0.4}),
    "barlow_twins": ("barlow_twins", {}),
    "ijepa": ("ijepa", {"model__drop_path": 0.4}),
    "lejepa": ("lejepa", {"model__drop_path": 0.4}),
    "ark": ("ark", {"model__drop_path": 0.4}),
    "distill": ("distill", {"model__drop_path": 0.4}),
    "supervised": ("supervised", {"model__drop_path": 0.4}),
    "supervised_classes": ("supervised", {"task": "multiclass"}),
    "convirt": ("convirt", {"loss__chunks": 4, "augment__jitter": 0.5, "model__drop_path": 0.4}),
    "siglip": ("convirt", {"loss__form": "sigmoid"}),
    "sista": ("sista", {}),
    "gloria": ("gloria", {"loss__cls_is_a_word": True}),
    "mgca": ("mgca", {"model__drop_path": 0.4}),
    "fane": ("fane", {"model__drop_path": 0.4}),
    "frontal_lateral": ("frontal_lateral", {"defects__lateral_stochastic_depth": True}),
    "spcxr": ("spcxr", {"model__drop_path": 0.4}),
    "sit": ("spcxr", {"contrast__weight": 1.0}),
}
QUICK = ("mae", "supervised", "convirt")  # and S-PCL on eight devices
SLICES = 4


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A folder with the vocabulary of the examples' reports, as a converted set has it."""
    folder = tmp_path_factory.mktemp("vocabulary")
    tokenizer.save(tokenizer.train([example["report"]["findings"] for example in every.examples()], 256), folder)
    return str(folder)


def make(name, vocabulary="", **changes):
    config = runs.config(name, **changes)
    if "text" in config:
        config.text.tokenizer = vocabulary
    return methods.make(config, every.STEPS)


def batch_of(method):
    """Sixteen examples; of the labels fewer are known in one slice than in another, and none in one of four."""
    found = every.batch_of(method)
    if "labels" in found:
        rng = np.random.default_rng(1)
        found["labels"] = np.eye(found["labels"].shape[1], dtype=np.int8)[rng.integers(0, 2, 16)]
        found["labels"][[0, 4, 5]] = -1
        found["labels"][2::4] = -1
    return found


@functools.cache
def compiled(method, mesh, slices):
    """The start, and the trainer's step over so many slices of the batch: (TrainState) → (TrainState, scalars)."""
    batch = batch_of(method)
    abstract = parallel.abstract(jax.eval_shape(lambda: every.start_of(method, batch)), mesh)
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    shards = parallel.to_global(batch, mesh)
    step = jax.jit(
        make_step(method, every.OPTIMIZER, jax.random.key(0), slices),
        in_shardings=(layout, parallel.batch_sharding(mesh)),
        out_shardings=(layout, parallel.replicated(mesh)),
    )
    step = step.lower(abstract, shards).compile()
    start = jax.jit(lambda: every.start_of(method, batch), out_shardings=layout)()
    return start, lambda state: step(state, shards)


def assert_same_steps(one, other, share=1e-5):
    """The gradient of the first step to a share of its scale, and what is logged, learned and kept over five."""
    (a, step_a), (b, step_b) = one, other
    for number in range(5):
        (a, scalars_a), (b, scalars_b) = step_a(a), step_b(b)
        for name, value in jax.device_get(scalars_a).items():
            np.testing.assert_allclose(scalars_b[name], value, rtol=5e-5, atol=1e-5, err_msg=f"{number}: {name}")
        if number == 0:
            gradients = [every.gradient_of(*jax.device_get(found)) for found in ((a, scalars_a), (b, scalars_b))]
            scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients[0]))
            assert_close(*gradients, share * scale, rtol=0)
    for part in ("params", "state"):
        # Adam moves a parameter whose gradient is rounding by as much as any other, up to 1e-2 in all.
        assert_close(*(jax.device_get(getattr(train_state, part)) for train_state in (a, b)), 1e-4)


def assert_close(a, b, atol, rtol=1e-4):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, rtol=rtol, atol=atol), a, b)


def cases():
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("case", cases())
def test_slices_are_the_batch(case, vocabulary):
    name, changes = CASES[case]
    method, mesh = make(name, vocabulary, **changes), parallel.make_mesh({"data": 1})
    # At the start views are nearly alike, and Barlow Twins' last BatchNorm magnifies what float32 rounds.
    share = 3e-5 if case == "barlow_twins" else 1e-5
    assert_same_steps(compiled(method, mesh, 1), compiled(method, mesh, SLICES), share)


def test_slices_on_eight_devices_are_the_batch_on_one():
    method = make("spcl")
    one, eight = (parallel.make_mesh({"data": count}) for count in (1, 8))
    assert_same_steps(compiled(method, one, 1), compiled(method, eight, 2))


@pytest.mark.slow
def test_a_batch_norm_in_the_encoder_sees_slices_one_after_another():
    """Its statistics move with every slice, and features are those of the slice's statistics."""
    method, key = make("simclr", model__variant="resnet_test", model__zero_init_residual=False), jax.random.key(3)
    batch = batch_of(method)
    params, state = jax.jit(method.init)(jax.random.key(0), batch)
    prepared, features, now = method.parts.prepare(batch, key), [], state
    for i in range(SLICES):
        part = jax.tree.map(lambda x: x[i::SLICES], prepared)  # noqa: B023
        of_slice, stats = method.parts.embed(params, now, part)
        features, now = [*features, of_slice["y"]], {"batch_stats": {**state["batch_stats"], "encoder": stats}}
    joined = np.stack(features, axis=1).reshape(16, 2, -1)
    value, aux = method.parts.loss_of(params, now, {"y": joined}, prepared, 0)
    found, _ = jax.jit(accumulate.value_and_grad(method, SLICES))(params, state, batch, key, 0)
    np.testing.assert_allclose(found[0], value, rtol=1e-5)
    assert_close(jax.device_get(aux.state), jax.device_get(found[1].state), 1e-5)


def test_memory_is_that_of_a_slice():
    method = make("spcl", batch_size=256)
    batch = {"image": np.zeros((256, 1, 32, 32, 1), np.uint8), "patient": np.zeros(256, np.int32)}

    def temporaries(slices):
        params, state = jax.eval_shape(method.init, jax.random.key(0), batch)
        gradient = jax.jit(accumulate.value_and_grad(method, slices))
        return gradient.lower(params, state, batch, jax.random.key(0), 0).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 0.4 * temporaries(1)


REFUSED = [
    (
        "spcl",
        {"accumulate": 3},
        {"data": 1},
        r"accumulate = 3 does not cut batch_size = 16 .* choose one of 1, 2, 4, 8,",
    ),
    (
        "spcl",
        {"accumulate": 4},
        {"data": 8},
        r"accumulate = 4 .* over the 8 device\(s\) of the batch; choose one of 1, 2$",
    ),
    ("spcl", {"accumulate_batch_norm": "slices"}, {"data": 1}, "must be 'whole' or 'slice', got 'slices'"),
    (
        "detect",
        {"accumulate": 2},
        {"data": 1},
        "accumulate = 2 would change the training of 'detect': .* set accumulate=1",
    ),
    ("segment", {"accumulate": 2}, {"data": 1}, "'segment': .*BatchNorm"),
    (
        "frontal_lateral",
        {"accumulate": 2, "defects__last_caption_selects": True},
        {"data": 1},
        "with defects.last_caption_selects the last report",
    ),
    (
        "mlvicx",
        {"accumulate": 2},
        {"data": 1},
        "the BatchNorm in its encoder normalises by the batch, and would by the 8 examples of a slice; take an encoder "
        "without one .* accumulate_batch_norm='slice'",
    ),
    ("supervised", {"accumulate": 2, "model__variant": "resnet_test"}, {"data": 1}, "the BatchNorm in its encoder"),
]


@pytest.mark.parametrize(("name", "changes", "axes", "said"), REFUSED)
def test_what_would_change_the_training_is_refused(name, changes, axes, said, vocabulary):
    check = functools.partial(checked, name, vocabulary, axes)
    with pytest.raises(ValueError, match=said):
        check(**changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mlvicx", {"accumulate_batch_norm": "slice"}),
        ("supervised", {"model__variant": "resnet_test", "encoder": "frozen"}),
        ("detect", {"accumulate": 1}),
    ],
)
def test_what_may_is_not_refused(name, changes, vocabulary):
    checked(name, vocabulary, {"data": 1}, **{"accumulate": 2, **changes})


def checked(name, vocabulary, axes, **changes):
    config = runs.config(name, batch_size=16, **changes)
    if "text" in config:
        config.text.tokenizer = vocabulary
    method = methods.make(config, every.STEPS)
    state = jax.eval_shape(lambda: method.init(jax.random.key(0), methods.blank_batch(method))[1])
    accumulate.check(config, method, state, parallel.make_mesh(axes))


def test_a_run_may_be_resumed_in_other_slices():
    """As on another mesh, unless slices decide what a BatchNorm normalises by."""
    whole, cut = runs.config("spcl"), runs.config("spcl", accumulate=4)
    assert shared.differences(whole, cut) == [] and shared.digest(whole) == shared.digest(cut)
    cut.accumulate_batch_norm = "slice"
    assert shared.differences(whole, cut) == ["accumulate: (absent) → 4", "accumulate_batch_norm: (absent) → slice"]


def test_the_trainer_takes_the_slices_of_the_config():
    for slices in (1, 8):
        config = runs.config("spcl", batch_size=16, accumulate=slices)
        method = methods.make(config, every.STEPS)
        made = program(config, method, parallel.make_mesh({"data": 1}), every.STEPS, 64)
        traced = str(jax.make_jaxpr(made.step)(made.abstract, batch_of(method)))
        assert ("length=8" in traced) == (slices == 8)


def test_no_slices_leave_the_step_as_it_is():
    method = make("spcl")
    params, state = jax.eval_shape(method.init, jax.random.key(0), batch_of(method))
    arguments = params, state, batch_of(method), jax.random.key(0), 0
    plain = jax.value_and_grad(method.loss, has_aux=True)
    assert str(jax.make_jaxpr(accumulate.value_and_grad(method, 1))(*arguments)) == str(
        jax.make_jaxpr(plain)(*arguments)
    )
