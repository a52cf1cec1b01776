"""Low-rank adapters: the sums in NumPy, what learns and what stays, and that a plain network leaves."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import config as shared
from cxrjax import export, initial, methods, optim, train, trained
from cxrjax.methods.base import encoder_params
from cxrjax.models import lora
from tests import runs

LORA = {"lora__rank": 2, "lora__alpha": 6.0}


def blocks(depth=2, d=4):
    rng = np.random.default_rng(0)
    sizes = {"attention": {"qkv": (d, 3 * d), "out": (d, d)}, "mlp": {"fc1": (d, 8), "fc2": (8, d)}}
    return {
        part: {
            name: {"kernel": rng.normal(size=(depth, *size)), "bias": np.zeros((depth, size[1]))}
            for name, size in each.items()
        }
        for part, each in sizes.items()
    }


def test_kernels_and_gradients_are_those_of_numpy():
    params = {"norm": {"scale": np.ones(4)}, "blocks": blocks()}
    learned = lora.init(jax.random.key(0), params, 3, ("attention/qkv", "mlp/fc2"))
    assert set(learned["blocks"]) == {"attention", "mlp"} and set(learned["blocks"]["mlp"]) == {"fc2"}
    pair = learned["blocks"]["mlp"]["fc2"]
    assert not pair["b"].any() and 0.2 < float(jnp.std(pair["a"])) < 0.6  # 1/√8 is 0.35
    rng = np.random.default_rng(1)
    learned = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), learned)
    found = lora.merged(params, learned, 0.5)
    slopes = rng.normal(size=(2, 8, 4))

    def product(given):
        return (slopes * lora.merged(params, given, 0.5)["blocks"]["mlp"]["fc2"]["kernel"]).sum()

    gradient = jax.grad(product)
    by_pair = gradient(jax.tree.map(jnp.asarray, learned))["blocks"]["mlp"]["fc2"]
    for layer in range(2):
        a, b = (learned["blocks"]["mlp"]["fc2"][name][layer] for name in "ab")
        expected = params["blocks"]["mlp"]["fc2"]["kernel"][layer] + 0.5 * a @ b
        np.testing.assert_allclose(found["blocks"]["mlp"]["fc2"]["kernel"][layer], expected, atol=1e-5)
        np.testing.assert_allclose(by_pair["a"][layer], 0.5 * slopes[layer] @ b.T, atol=1e-5)
        np.testing.assert_allclose(by_pair["b"][layer], 0.5 * a.T @ slopes[layer], atol=1e-5)
    assert found["norm"] is params["norm"] and found["blocks"]["mlp"]["fc1"] is params["blocks"]["mlp"]["fc1"]
    np.testing.assert_array_equal(params["blocks"]["mlp"]["fc2"]["kernel"], blocks()["mlp"]["fc2"]["kernel"])
    for names in (("mlp/fc3",), ()):
        with pytest.raises(ValueError, match=r"lora.kernels names .*; choose of attention/qkv, attention/out"):
            lora.init(jax.random.key(0), params, 3, names)


def test_a_run_starts_as_the_frozen_network_and_learns_adapters_and_head_alone():
    adapted, whole = (methods.make(runs.config("finetune", "smoke", **changes)) for changes in (LORA, {}))
    start = jax.jit(lambda key: (adapted.init(key, None), whole.init(key, None)[0]))
    (params, state), plain = start(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, adapted.encoder(params, state), plain["encoder"])
    assert set(params) == {"encoder", "lora", "head"} and not params["encoder"]
    settings = runs.config("finetune", "smoke", **LORA)
    optimizer, _ = optim.make(settings.optim, params, 6, 16, 3.0)
    moments = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(optimizer.init, params)) if leaf.ndim)
    learned = sum(leaf.size for leaf in jax.tree.leaves(params))
    # Two blocks of width 64: the sides of qkv, out, fc1 and fc2, with a rank of 2; and a head of eight labels.
    assert learned == 2 * 2 * (64 + 192 + 64 + 64 + 64 + 256 + 256 + 64) + 8 * 65 and moments == 2 * learned
    assert sum(leaf.size for leaf in jax.tree.leaves(plain["encoder"])) > 80_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "frozen"}, "lora.rank=2 adapts .* encoder='frozen'"),
        ({"model__variant": "resnet_test"}, "model.variant='resnet_test'"),
    ],
)
def test_what_has_no_adapters_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        methods.make(runs.config("finetune", "smoke", **LORA, **changes))


def test_adapters_of_noise_and_ranks_that_save_nothing_are_refused():
    with pytest.raises(ValueError, match="lora.rank=2 adapts an encoder that was trained, and init_from names none"):
        initial.of_run(runs.config("finetune", "smoke", init_from="", **LORA))
    method = methods.make(runs.config("finetune", "smoke", **LORA | {"lora__rank": 64}))
    with pytest.raises(ValueError, match="lora.rank=64 saves nothing beside attention/qkv of 64 x 192"):
        jax.eval_shape(method.init, jax.random.key(0), None)


def test_a_rank_belongs_to_what_determines_a_run_and_no_rank_does_not():
    none, two = runs.config("finetune", "smoke"), runs.config("finetune", "smoke", **LORA)
    assert "lora" not in shared.determining(none) and shared.determining(two)["lora"]["alpha"] == 6.0


def test_an_adapted_run_leaves_and_is_started_from_as_a_plain_network(tmp_path):
    """A method without adapters computes the same with the sums, and another run starts from them."""
    runs.write(tmp_path / "run", runs.config("finetune", "smoke", **LORA))
    run, plain = trained.load(tmp_path / "run"), methods.make(runs.config("finetune", "smoke"))
    images = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 1), dtype=np.uint8)

    @jax.jit
    def both(params, state):
        alone = {"encoder": run.method.encoder(params, state), "head": params["head"]}
        return [
            method.encode(given, rest, images)["logits"]
            for method, given, rest in ((run.method, params, state), (plain, alone, {"batch_stats": {"encoder": {}}}))
        ]

    np.testing.assert_allclose(*both(run.params, run.state), atol=1e-6)
    own, sums = encoder_params(run.params, run.state), run.method.encoder(run.params, run.state)
    pair = {name: np.asarray(leaf, np.float64) for name, leaf in run.params["lora"]["blocks"]["mlp"]["fc1"].items()}
    kernels = [tree["blocks"]["mlp"]["fc1"]["kernel"] for tree in (own, sums)]
    np.testing.assert_allclose(kernels[1] - kernels[0], 3.0 * pair["a"] @ pair["b"], atol=1e-5)  # α/r = 6/2
    settings = runs.config("spcl", init_from=str(tmp_path / "run"))
    method = methods.make(settings)
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), methods.blank_batch(method)))
    abstract = train.TrainState(None, *shapes, None)
    by_path = initial.encoders(settings, abstract)
    np.testing.assert_array_equal(by_path["encoder/blocks/mlp/fc1/kernel"], kernels[1])
    assert not [path for path in by_path if "lora" in path]


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one_and_the_network_stays(tmp_path, monkeypatch, phantom_dir, capsys):
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    runs.write(tmp_path / "start", runs.config("spcl"))
    changes = {**LORA, "init_from": str(tmp_path / "start"), "data__sets": "phantom", "checkpoint__every_steps": 2}
    settings = initial.of_run(runs.config("finetune", "smoke", duration__total_steps=4, **changes))
    whole = train.fit(settings, tmp_path / "whole")
    assert "supervised: 4,616 parameters learn and 101,248 stay" in capsys.readouterr().out
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "4")
    again = train.fit(settings, tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole), jax.device_get(again))
    start = trained.load(tmp_path / "start")
    frozen = encoder_params(jax.device_get(whole.params), jax.device_get(whole.state))
    jax.tree.map(np.testing.assert_array_equal, frozen, jax.device_get(start.method.encoder(start.params, start.state)))
    assert jnp.any(whole.params["lora"]["blocks"]["mlp"]["fc2"]["b"] != 0)
    (tmp_path / "whole" / "config.json").write_text(shared.to_json(settings))
    parity = export.export(tmp_path / "whole", tmp_path / "model")
    assert parity is None or parity.difference < 2e-5
