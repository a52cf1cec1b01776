import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from cxrjax import optim
from tests import runs

DEPTH, WIDTH = 3, 4


@pytest.fixture(scope="module")
def params():
    draw = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(draw.normal(size=shape), jnp.float32)

    return {
        "encoder": {
            "patch_embed": {"kernel": normal(6, WIDTH), "bias": normal(WIDTH)},
            "cls": normal(WIDTH),
            "pos_embed": normal(5, WIDTH),
            "blocks": {"fc1": {"kernel": normal(DEPTH, WIDTH, 8), "bias": normal(DEPTH, 8)}},
            "norm": {"scale": normal(WIDTH)},
        },
        "head": {"kernel": normal(WIDTH, 2), "bias": normal(2)},
        "logit_scale": normal(),
    }


@pytest.fixture(scope="module")
def grads(params):
    return jax.tree.map(lambda leaf: jnp.sin(3 * leaf) + 0.1, params)


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): np.asarray(leaf) for keys, leaf in leaves}


def make(config, params, total_steps=10, batch_size=256, steps_per_epoch=5):
    """Of the config's settings, without decay, and with these."""
    config = runs.optim(wd=0.0) | dict(config)
    return optim.make(config, jax.eval_shape(lambda: params), total_steps, batch_size, steps_per_epoch)


def run(config, params, grads, steps=1):
    transformation, _ = make(config, params)
    state = transformation.init(params)
    for _ in range(steps):
        updates, state = jax.jit(transformation.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    return flat(params), state


DECAYED = {"encoder/patch_embed/kernel", "encoder/blocks/fc1/kernel", "head/kernel"}


def test_adamw_against_hand_written_steps(params, grads):
    lr, wd, b1, b2, eps = 0.1, 0.3, 0.8, 0.95, 1e-6
    config = ml_collections.ConfigDict(
        dict(name="adamw", lr=lr, schedule="constant", wd=wd, betas=(b1, b2), eps=eps, grad_clip=None)
    )
    found, _ = run(config, params, grads, steps=2)
    for path, expected in flat(params).items():
        gradient = flat(grads)[path].astype(np.float64)
        mean, square = 0.0, 0.0
        for step in (1, 2):
            mean = b1 * mean + (1 - b1) * gradient
            square = b2 * square + (1 - b2) * gradient**2
            update = mean / (1 - b1**step) / (np.sqrt(square / (1 - b2**step)) + eps)
            expected = expected - lr * (update + wd * (path in DECAYED) * expected)
        np.testing.assert_allclose(found[path], expected, rtol=2e-5, atol=2e-6, err_msg=path)


def test_sgd_against_hand_written_steps(params, grads):
    config = dict(name="sgd", lr=0.1, schedule="constant", wd=0.3, momentum=0.5)
    found, _ = run(config, params, grads, steps=2)
    for path, expected in flat(params).items():
        velocity = 0.0
        for _ in range(2):
            velocity = 0.5 * velocity + flat(grads)[path] + 0.3 * (path in DECAYED) * expected
            expected = expected - 0.1 * velocity
        np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-6, err_msg=path)


def test_lars_against_hand_written_steps_with_a_trust_ratio_per_layer(params, grads):
    config = dict(name="lars", lr=2.0, schedule="constant", wd=0.3, momentum=0.5, trust_coefficient=0.01)
    found, _ = run(config, params, grads, steps=2)
    for path, start in flat(params).items():
        layers = list(zip(start, flat(grads)[path], strict=True)) if "blocks/" in path else [(start, flat(grads)[path])]
        expected = []
        for value, gradient in layers:
            velocity = 0.0
            for _ in range(2):
                update = gradient
                if path in DECAYED:
                    update = gradient + 0.3 * value
                    update = update * 0.01 * np.linalg.norm(value) / np.linalg.norm(update)
                velocity = 0.5 * velocity + 2.0 * update
                value = value - velocity
            expected.append(value)
        expected = np.stack(expected) if "blocks/" in path else expected[0]
        np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-6, err_msg=path)


def test_lars_by_hand():
    """|p| = 2, |g| = 4, no decay, lr 0.1: 0.1 · 0.001 · 2/4 · g; 1-D plain; factor 1 where either norm is zero."""
    start = {
        "matrix": jnp.ones((2, 2)),
        "bias": jnp.ones(4),
        "zero": jnp.zeros((2, 2)),
        "still": jnp.ones((2, 2)),
    }
    grads = {
        "matrix": jnp.full((2, 2), 2.0),
        "bias": jnp.full(4, 2.0),
        "zero": jnp.full((2, 2), 2.0),
        "still": jnp.zeros((2, 2)),
    }
    found, _ = run(dict(name="lars", lr=0.1, schedule="constant"), start, grads)
    np.testing.assert_allclose(found["matrix"], 1 - 0.1 * 0.001 * 2 / 4 * 2, rtol=1e-7)
    np.testing.assert_allclose(found["bias"], 1 - 0.1 * 2, rtol=1e-6)
    np.testing.assert_allclose(found["zero"], -0.1 * 2, rtol=1e-6)
    np.testing.assert_array_equal(found["still"], 1)


@pytest.mark.parametrize("inside", [True, False])
def test_lars_momentum_with_the_learning_rate_inside_or_outside(inside):
    """They differ as soon as the learning rate changes: here 1, 0.5 and 0 under a linear schedule."""
    start, grads = {"bias": jnp.zeros(3)}, {"bias": jnp.array([1.0, -2.0, 0.5])}
    config = dict(name="lars", lr=1.0, schedule="linear", momentum=0.9, lr_in_momentum=inside)
    transformation, report = make(config, start, total_steps=2)
    assert [float(report(step)["lr"]) for step in range(3)] == [1, 0.5, 0]
    state, value, velocity = transformation.init(start), np.zeros(3), 0.0
    for rate in (1.0, 0.5, 0.0):
        updates, state = transformation.update(grads, state, start)
        start = optax.apply_updates(start, updates)
        velocity = 0.9 * velocity + (rate if inside else 1) * np.asarray(grads["bias"])
        value = value - (1 if inside else rate) * velocity
        np.testing.assert_allclose(start["bias"], value, rtol=1e-6)


def test_layer_decay_per_layer(params, grads):
    base = dict(name="sgd", lr=1.0, schedule="constant", momentum=0.0)
    plain, _ = run(base, params, grads)
    found, _ = run(base | dict(layer_decay=0.5), params, grads)
    ratio = {path: (found[path] - start) / (plain[path] - start) for path, start in flat(params).items()}
    for path in ("encoder/blocks/fc1/kernel", "encoder/blocks/fc1/bias"):
        for layer, expected in enumerate([0.125, 0.25, 0.5]):
            np.testing.assert_allclose(ratio[path][layer], expected, rtol=2e-3)
    for path in ("encoder/patch_embed/kernel", "encoder/patch_embed/bias", "encoder/cls", "encoder/pos_embed"):
        np.testing.assert_allclose(ratio[path], 0.5**4, rtol=2e-3)
    for path in ("encoder/norm/scale", "head/kernel", "logit_scale"):
        np.testing.assert_allclose(ratio[path], 1.0, rtol=2e-3)


def test_layer_decay_counts_each_tower_by_itself():
    leaf = jax.ShapeDtypeStruct
    params = {
        "vision": {"blocks": {"w": leaf((2, 3, 3), "float32")}, "cls": leaf((3,), "float32")},
        "text": {"blocks": {"w": leaf((4, 3, 3), "float32")}},
        "cls": leaf((3,), "float32"),
    }
    found = optim.layer_multipliers(params, 0.5)
    assert found["vision"]["blocks"]["w"].shape == (2, 1, 1)
    np.testing.assert_allclose(found["vision"]["blocks"]["w"].ravel(), [0.25, 0.5])
    np.testing.assert_allclose(found["text"]["blocks"]["w"].ravel(), [0.0625, 0.125, 0.25, 0.5])
    assert found["vision"]["cls"] == 0.125 and found["cls"] == 1.0
    with pytest.raises(ValueError, match="needs parameters under 'blocks/'.*cls"):
        optim.layer_multipliers({"cls": leaf((3,), "float32")}, 0.5)


def test_layers_of_a_bert_are_layers_too():
    """Stacked biases and norms do not decay, and every layer is clipped by itself."""
    start = {"text": {"layers": {"norm1": {"scale": jnp.ones((2, 3))}, "fc1": {"kernel": jnp.ones((2, 3, 3))}}}}
    grads = jax.tree.map(jnp.zeros_like, start)
    config = dict(name="sgd", lr=0.1, schedule="constant", momentum=0.0)
    found, _ = run(config | dict(wd=0.5), start, grads)
    np.testing.assert_allclose(found["text/layers/norm1/scale"], 1)
    np.testing.assert_allclose(found["text/layers/fc1/kernel"], 0.95, rtol=1e-6)
    grads = jax.tree.map(
        lambda leaf: jnp.ones_like(leaf) * jnp.array([3.0, 0.1]).reshape(2, *[1] * (leaf.ndim - 1)), start
    )
    found, _ = run(config | dict(clip_per_tensor=3.0), start, grads)
    np.testing.assert_allclose(found["text/layers/fc1/kernel"][:, 0, 0], [1 - 0.1, 1 - 0.01], rtol=1e-5)


def test_rules_set_rates_and_decay(params, grads):
    config = dict(
        name="sgd",
        lr=1.0,
        schedule="constant",
        momentum=0.0,
        wd=0.5,
        lr_mults=[("head/", 0.1), (".*", 1.0)],
        wd_mults=[("bias", 0.0), ("norm", 2.0), (".*", 1.0)],
    )
    found, _ = run(config, params, grads)
    for path, start in flat(params).items():
        rate = 0.1 if "head/" in path else 1.0
        decay = 0.5 * (0.0 if "bias" in path else 2.0 if "norm" in path else 1.0)
        np.testing.assert_allclose(
            found[path], start - rate * (flat(grads)[path] + decay * start), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", ["adamw", "lars", "sgd"])
def test_frozen_keep_their_value_and_cost_no_memory(params, grads, name):
    config = dict(name=name, lr=0.1, wd=0.1, schedule="constant", frozen=["encoder/"], layer_decay=0.5)
    config |= dict(wd_end=0.2, clip_per_tensor=1.0) if name == "adamw" else dict(grad_clip=1.0)
    found, state = run(config, params, grads, steps=2)
    for path, start in flat(params).items():
        assert np.array_equal(found[path], start) == path.startswith("encoder/"), path
    assert not [path for path in flat(state) if "encoder" in path]
    assert [path for path in flat(state) if "head/kernel" in path]


def test_empty_and_none_mean_not_given(params, grads):
    config = dict(name="adamw", lr=0.1, wd=0.1, schedule="constant")
    blank = dict(base_lr=None, warmup_steps=None, grad_clip=None, layer_decay=None, lr_mults=(), wd_mults=[], frozen=())
    found, _ = run(ml_collections.ConfigDict(config | blank), params, grads)
    expected, _ = run(config, params, grads)
    assert all(np.array_equal(found[path], expected[path]) for path in expected)


def test_grad_clip_is_the_global_norm(params, grads):
    config = dict(name="sgd", lr=1.0, schedule="constant", momentum=0.0, grad_clip=0.5)
    found, _ = run(config, params, grads)
    change = {path: found[path] - start for path, start in flat(params).items()}
    assert np.sqrt(sum(np.sum(one.astype(np.float64) ** 2) for one in change.values())) == pytest.approx(0.5, rel=1e-4)
    unclipped, _ = run(config | dict(grad_clip=None), params, grads)
    assert np.abs(unclipped["head/kernel"] - flat(params)["head/kernel"]).max() > np.abs(change["head/kernel"]).max()


def test_clip_per_tensor_clips_every_parameter_and_every_layer_by_itself():
    """Norms 6 and 1, at most 3: 3 and 1, where a global clip gives 2.96 and 0.49. Alone and as layers of a block."""
    start = {"large": jnp.zeros((2, 2)), "small": jnp.zeros(1), "blocks": {"w": jnp.zeros((3, 2, 2))}}
    grads = {
        "large": jnp.full((2, 2), 3.0),
        "small": jnp.ones(1),
        "blocks": {"w": jnp.array([3.0, 0.5, 0.0])[:, None, None] * jnp.ones((3, 2, 2))},
    }
    config = dict(name="sgd", lr=1.0, schedule="constant", momentum=0.0)
    found, _ = run(config | dict(clip_per_tensor=3.0), start, grads)
    np.testing.assert_allclose(found["large"], -1.5, rtol=1e-6)
    np.testing.assert_allclose(found["small"], -1.0, rtol=1e-6)
    np.testing.assert_allclose(found["blocks/w"][:, 0, 0], [-1.5, -0.5, 0], rtol=1e-6)
    # A small norm shows the 1e-6 beside it.
    found, _ = run(config | dict(clip_per_tensor=1e-6), start, jax.tree.map(lambda g: 1e-6 * g, grads))
    np.testing.assert_allclose(found["large"], -3e-6 / 7, rtol=1e-5)
    np.testing.assert_allclose(found["small"], -1e-6 / 2, rtol=1e-5)
    both = {name: start[name] for name in ("large", "small")}, {name: grads[name] for name in ("large", "small")}
    found, _ = run(config | dict(grad_clip=3.0), *both)
    norms = [np.linalg.norm(found[name]) for name in ("large", "small")]
    assert norms == pytest.approx([2.96, 0.49], abs=0.005)


def test_weight_decay_follows_its_cosine_and_its_rules(params, grads):
    """wd 0.04 → 0.4 over 4 steps against a NumPy loop; reported step by step; what has no decay gets none."""
    config = dict(name="sgd", lr=0.1, schedule="constant", momentum=0.0, wd=0.04, wd_end=0.4)
    rules = [("bias|norm|cls|pos_embed|logit_scale", 0.0), ("head", 0.5), (".*", 1.0)]
    for extra, half in ((dict(), 1.0), (dict(wd_mults=rules), 0.5)):
        transformation, report = make(config | extra, params, total_steps=4)
        state, now = transformation.init(params), params
        expected = flat(params)
        for step in range(5):
            wd = 0.4 + (0.04 - 0.4) * (1 + np.cos(np.pi * min(step, 4) / 4)) / 2
            assert float(report(step)["wd"]) == pytest.approx(wd, rel=1e-5)
            updates, state = jax.jit(transformation.update)(grads, state, now)
            now = optax.apply_updates(now, updates)
            for path, value in expected.items():
                strength = wd * (path in DECAYED) * (half if "head" in path else 1.0)
                expected[path] = value - 0.1 * (flat(grads)[path] + strength * value)
        for path, value in expected.items():
            np.testing.assert_allclose(flat(now)[path], value, rtol=1e-5, atol=1e-6, err_msg=path)
    assert make(dict(lr=1.0, wd=0.3), params)[1](7)["wd"] == 0.3 and make(dict(lr=1.0), params)[1](7)["wd"] == 0


def test_cosine_ramp_goes_from_start_to_end_and_stays():
    """BYOL's momentum 0.996 → 1, under jit and out of it."""
    for step, expected in ((0, 0.996), (25, 1 - 0.004 * (np.cos(np.pi / 4) + 1) / 2), (50, 0.998), (100, 1), (140, 1)):
        assert float(optim.cosine_ramp(step, 100, 0.996, 1.0)) == pytest.approx(expected, abs=1e-7)
        assert float(jax.jit(lambda s: optim.cosine_ramp(s, 100, 0.996, 1.0))(step)) == pytest.approx(
            expected, abs=1e-7
        )


def test_schedule_warms_up_from_zero_then_follows_the_cosine(params):
    config = dict(base_lr=0.1, lr_end=0.01, warmup_epochs=0.8)
    _, report = make(config, params, total_steps=24, batch_size=512, steps_per_epoch=5)
    assert report(0)["lr"] == 0
    assert float(report(2)["lr"]) == pytest.approx(0.1)
    assert float(report(4)["lr"]) == pytest.approx(0.2)
    for step in (9, 14, 24):
        expected = 0.01 + 0.19 * (1 + np.cos(np.pi * (step - 4) / 20)) / 2
        assert float(report(step)["lr"]) == pytest.approx(expected, rel=1e-5)


def test_warm_up_that_includes_its_peak(params):
    """The released code of GMML and DINO: 0 first, the peak at the last warm-up step and at the one after it."""
    config = dict(base_lr=5e-4, lr_end=1e-6, warmup_steps=5, warmup_includes_peak=True)
    _, report = make(config, params, total_steps=20, batch_size=512)
    rates = [float(report(step)["lr"]) for step in range(21)]
    assert rates[:6] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])
    assert rates[6] < 1e-3 and rates[20] == pytest.approx(1e-6)
    _, report = make(config | dict(lr_start=1e-5), params, total_steps=20, batch_size=512)
    assert float(report(0)["lr"]) == pytest.approx(1e-5, rel=1e-5) and float(report(4)["lr"]) == pytest.approx(1e-3)
    for steps, expected in ((1, [0, 1, 1 - np.sin(np.pi / 38) ** 2]), (2, [0, 1, 1])):
        _, report = make(dict(lr=1.0, warmup_steps=steps, warmup_includes_peak=True), params, total_steps=20)
        assert [float(report(step)["lr"]) for step in range(3)] == pytest.approx(expected)


def test_cosine_over_all_steps_stops_short_of_its_end(params):
    """MLVICX: 2 warm-up epochs of 300, 0.2 at a batch of 256, 0.05 at 64; its period ends at 1.11e-3 of the peak."""
    for batch_size, peak in ((256, 0.2), (64, 0.05)):
        for period, share in (("rest", 1.0e-3), ("total", 1.0e-3 + 0.999 * np.sin(np.pi * 2 / 300 / 2) ** 2)):
            config = dict(base_lr=0.2, lr_end_ratio=0.001, lr_end=0.0, warmup_epochs=2, cosine_period=period)
            _, report = make(config, params, total_steps=3000, batch_size=batch_size, steps_per_epoch=10)
            assert float(report(0)["lr"]) == 0 and float(report(20)["lr"]) == pytest.approx(peak)
            assert float(report(3000)["lr"]) == pytest.approx(share * peak, rel=2e-3)
    assert share == pytest.approx(1.11e-3, rel=2e-3)


def test_other_schedules(params):
    _, linear = make(dict(lr=1.0, schedule="linear", warmup_steps=2), params)
    assert [float(linear(step)["lr"]) for step in (1, 2, 6, 10)] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    _, constant = make(dict(lr=1.0, schedule="constant"), params)
    assert float(constant(0)["lr"]) == float(constant(9)["lr"]) == 1.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(lr=1.0, learning_rate=1.0), r"unknown optimizer keys \['learning_rate'\], missing \[\].*'lr'"),
        (dict(), "neither given: give exactly one of lr"),
        (dict(lr=1.0, base_lr=1.0), "give exactly one of lr"),
        (dict(lr=1.0, name="adam"), r"name 'adam' is not known; there are \['adamw', 'lars', 'sgd'\]"),
        (dict(lr=1.0, schedule="cos"), "schedule 'cos' is not known.*'cosine'"),
        (dict(lr=1.0, warmup_steps=10), "warm-up of 10 steps leaves nothing of 10"),
        (dict(lr=1.0, warmup_steps=1, warmup_epochs=1), "exactly one of"),
        (dict(lr=1.0, lr_mults=[("encoder/", 1.0)]), "leaves out head/bias, head/kernel, logit_scale"),
        (dict(lr=1.0, wd_mults=[("encodr", 1.0), (".*", 1.0)]), r"\['encodr'\] fits no parameter; there are encoder/"),
        (dict(lr=1.0, frozen=["hed"]), r"frozen: \['hed'\] fits no parameter"),
        (dict(lr=1.0, frozen=["."]), "freezes every parameter"),
        (dict(lr=1.0, grad_clip=1.0, clip_per_tensor=3.0), "clip_per_tensor = 3.0 .* give one of them"),
        (dict(lr=1.0, lr_end=1e-6, lr_end_ratio=0.1), "lr_end_ratio = 0.1 given: give one of them"),
        (dict(lr=1.0, cosine_period="all"), r"cosine_period 'all' is not known; there are \['rest', 'total'\]"),
    ],
)
def test_messages(params, config, message):
    with pytest.raises(ValueError, match=message):
        make(config, params)


def test_nothing_has_a_value_of_its_own(params):
    """What a config leaves out is an error, and not a second default beside the config's."""
    for key in optim.KEYS:
        config = {name: value for name, value in runs.optim(lr=1.0).items() if name != key}
        with pytest.raises(ValueError, match=rf"missing \['{key}'\]"):
            optim.make(config, params, 10, 256, 5)
    assert set(runs.optim()) == set(optim.KEYS)


def test_eps_trust_coefficient_and_warm_up_in_examples_are_settings_of_every_config(params):
    config = runs.config(optim__eps=1e-3, optim__trust_coefficient=0.02, optim__warmup_steps=None)
    config.optim.warmup_examples = 512
    _, report = optim.make(config.optim, params, 20, 256, 5)
    assert float(report(1)["lr"]) == pytest.approx(float(report(2)["lr"]) / 2) and report(0)["lr"] == 0


def test_duration():
    def steps(name="total", default=None, **config):
        durations = dict.fromkeys(f"{name}_{unit}" for unit in ("steps", "epochs", "examples"))
        return optim.duration(durations | config, name, batch_size=256, examples_per_epoch=1000, default=default)

    assert steps(total_steps=7, total_epochs=None) == 7
    assert steps(total_epochs=2.5) == 10  # 2500 / 256 = 9.77
    assert steps(total_examples=512) == 2
    assert steps(total_epochs=0.01) == 1 and steps(total_epochs=0) == 0
    assert isinstance(steps(total_epochs=100), int)
    assert steps("warmup", default=0) == 0
    with pytest.raises(KeyError, match="total_examples"):
        optim.duration({"total_steps": 7, "total_epochs": None}, "total", 256, 1000)
    with pytest.raises(ValueError, match=r"none given for the duration 'total'.*'total_examples'"):
        steps()
    with pytest.raises(ValueError, match=r"\{'total_steps': 1, 'total_epochs': 2\} given"):
        steps(total_steps=1, total_epochs=2)
    with pytest.raises(ValueError, match="negative"):
        steps(total_steps=-1)
    with pytest.raises(ValueError, match="whole number"):
        steps(total_steps=1.5)


def test_ema():
    found = optim.ema({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 4.0])}, 0.75)
    np.testing.assert_allclose(found["w"], [1.5, 2.5])
