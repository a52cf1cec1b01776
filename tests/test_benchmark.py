import jax
import numpy as np
import pytest

from cxrjax import benchmark, methods
from cxrjax.speed import cost
from tests import runs


def shapes(config, size=4, px=32):
    batch = {
        "image": jax.ShapeDtypeStruct((size, 1, px, px, 1), np.uint8),
        "patient": jax.ShapeDtypeStruct((size,), np.int32),
    }
    params, state = jax.eval_shape(methods.make(config).init, jax.random.key(0), batch)
    return params, state, batch


@pytest.mark.parametrize(
    "changes",
    [
        {"model__remat": "full"},
        {"model__dtype": "bfloat16", "model__remat": "dots", "head__kind": "mlp"},
        {"partition__split_ratio": 0.25, "partition__embed": "all", "head__kind": "linear"},
        {"partition__keep_ratio": 0.2, "cls_shortcut": False},
    ],
)
def test_traced_cost_is_the_closed_form_whatever_is_recomputed(changes):
    config = runs.config(**changes)
    found, formula = cost.of_step(config, *shapes(config)), benchmark.closed_form(config)
    assert (found.forward, found.train) == formula
    assert found.executed > found.train
    # The logits and three monitors, 4 × 4 products of view vectors each.
    assert found.pairwise == 4 * 4 * (64 if config.head.kind == "none" else config.head.out)
    assert config.model.remat == changes.get("model__remat", "dots")


def test_spcxr_costs_two_encoders_and_two_heads():
    """At ViT-S/16: 9.33 GMAC forward; and as traced at the size of the smoke run."""
    config = runs.config("spcxr", "chestxray14")
    assert benchmark.closed_form(config).forward == 2 * (4_559_963_136 + 196 * (3 * 384**2 + 384 * 256))
    config = runs.config("spcxr")
    method = methods.make(config)
    batch = {name: jax.ShapeDtypeStruct((4, *x.shape[1:]), x.dtype) for name, x in methods.blank_batch(method).items()}
    params, state = jax.eval_shape(method.init, jax.random.key(0), batch)
    found = cost.of_step(config, params, state, batch)
    assert (found.forward, found.train) == benchmark.closed_form(config)
    assert found.executed > found.train
    config.contrast.weight = 1.0
    assert benchmark.closed_form(config) is None


def test_full_recomputation_executes_more_than_linear_layers_kept():
    executed = {}
    for remat in ("none", "dots", "full"):
        config = runs.config(model__remat=remat)
        executed[remat] = cost.of_step(config, *shapes(config)).executed
    assert executed["none"] < executed["dots"] < executed["full"]


def test_every_line_of_the_benchmark(phantom_dir, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    config = runs.config(batch_size=8, mesh={"data": 1})
    rows = {row.name: row for row in benchmark.benchmark(config, steps=2, input_seconds=0.5)}
    params, _, _ = shapes(config)
    assert rows["parameters"].value == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert (rows["forward"].value, rows["train"].value) == benchmark.closed_form(config)
    assert "as in closed form" in rows["train"].note
    assert rows["speed"].value == pytest.approx(8 / rows["step"].value)
    assert rows["achieved"].value == pytest.approx(2 * rows["train"].value * rows["speed"].value)
    assert rows["achieved"].value < rows["peak"].value
    assert rows["memory"].value > 3 * 4 * rows["parameters"].value
    assert rows["input for speed"].value == pytest.approx(rows["input"].value / rows["speed"].value)


def test_other_jobs_are_refused():
    config = runs.config()
    config.job = "evaluate"
    with pytest.raises(ValueError, match="pre-training"):
        benchmark.benchmark(config)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(17_293_971_456, "MAC", "17.29 GMAC"), (0.7558, "s", "755.8 ms"), (2118.4, "pictures/s", "2118 pictures/s")],
)
def test_numbers_are_printed_with_prefixes(value, unit, text):
    assert benchmark._text(value, unit) == text
