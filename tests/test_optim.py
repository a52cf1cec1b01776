import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from cxrjax import optim

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
    config = dict(name=name, lr=0.1, wd=0.1, schedule="constant", frozen=["encoder/"], layer_decay=0.5, grad_clip=1.0)
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


def test_schedule_warms_up_from_zero_then_follows_the_cosine(params):
    config = dict(base_lr=0.1, lr_end=0.01, warmup_epochs=0.8)
    _, report = make(config, params, total_steps=24, batch_size=512, steps_per_epoch=5)
    assert report(0)["lr"] == 0
    assert float(report(2)["lr"]) == pytest.approx(0.1)
    assert float(report(4)["lr"]) == pytest.approx(0.2)
    for step in (9, 14, 24):
        expected = 0.01 + 0.19 * (1 + np.cos(np.pi * (step - 4) / 20)) / 2
        assert float(report(step)["lr"]) == pytest.approx(expected, rel=1e-5)


def test_other_schedules(params):
    _, linear = make(dict(lr=1.0, schedule="linear", warmup_steps=2), params)
    assert [float(linear(step)["lr"]) for step in (1, 2, 6, 10)] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    _, constant = make(dict(lr=1.0, schedule="constant"), params)
    assert float(constant(0)["lr"]) == float(constant(9)["lr"]) == 1.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(lr=1.0, learning_rate=1.0), r"unknown optimizer keys \['learning_rate'\].*'lr'"),
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
    ],
)
def test_messages(params, config, message):
    with pytest.raises(ValueError, match=message):
        make(config, params)


def test_duration():
    def steps(**config):
        return optim.duration(config, "total", batch_size=256, examples_per_epoch=1000)

    assert steps(total_steps=7, total_epochs=None) == 7
    assert steps(total_epochs=2.5) == 10  # 2500 / 256 = 9.77
    assert steps(total_examples=512) == 2
    assert steps(total_epochs=0.01) == 1 and steps(total_epochs=0) == 0
    assert isinstance(steps(total_epochs=100), int)
    assert optim.duration({}, "warmup", 256, 1000, default=0) == 0
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
