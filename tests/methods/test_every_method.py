"""The contract of DESIGN's method record, for every method: shapes, terms, devices, and what params may hold."""

import jax
import numpy as np
import optax
import pytest

from cxrjax import methods, parallel
from cxrjax.imaging import pixels
from cxrjax.train import TrainState, make_step
from tests import runs
from tests.methods.conftest import smooth_pictures

METHODS = methods.available()


@pytest.fixture(params=METHODS)
def method(request):
    return methods.make(runs.config(request.param))


@pytest.fixture
def batch(method):
    """What the method's own views make of sixteen smooth pictures."""
    rng, rows = np.random.default_rng(0), []
    for i, picture in enumerate(smooth_pictures(16, 48)[:, 0, :, :, 0]):
        names = {"set": "", "image_id": f"{i}", "patient_id": f"{i}", "study_id": f"{i}"}
        rows.append(method.views({"image": pixels.encode(picture, "png"), **names}, rng))
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    if "labels" in found:  # which a picture of no set does not have
        found["labels"] = rng.integers(0, 2, found["labels"].shape).astype(np.int8)
    return found


def test_contract(method, batch):
    params, state = jax.eval_shape(method.init, jax.random.key(0), batch)
    loss, aux = jax.eval_shape(method.loss, params, state, batch, jax.random.key(0), 0)
    assert loss.shape == () and loss.dtype == np.float32
    assert jax.tree.structure(aux.state) == jax.tree.structure(state)
    assert aux.terms and all(value.shape == () for value in (*aux.terms.values(), *aux.report.values()))
    assert {"feature_std", "effective_rank"} <= set(aux.report)
    out = jax.eval_shape(method.encode, params, state, batch["image"][:, 0])
    assert out["pooled"].shape[0] == out["patches"].shape[0] == len(batch["image"])
    assert out["patches"].ndim == 4 and out["pooled"].dtype == np.float32
    after = jax.eval_shape(method.after, params, state, 0)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_terms_sum_to_the_loss_and_all_params_learn(method, batch):
    params, state = jax.jit(method.init)(jax.random.key(0), batch)

    def objective(params):
        return method.loss(params, state, batch, jax.random.key(1), 0)

    (loss, aux), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    assert float(sum(aux.terms.values())) == pytest.approx(float(loss), rel=1e-6)
    idle = [jax.tree_util.keystr(k) for k, g in jax.tree_util.tree_leaves_with_path(gradient) if not np.any(g)]
    assert not idle, "params hold only what is learned"


def test_one_device_is_eight(method, batch):
    """Loss, gradient norm and the updated parameters; losses are global, so no device may see only its own rows."""
    optimizer = optax.sgd(0.1)
    results = []
    for devices in (1, 8):
        mesh = parallel.make_mesh({"data": devices})
        params, state = jax.jit(method.init, out_shardings=parallel.replicated(mesh))(jax.random.key(0), batch)
        start = TrainState(np.int32(0), params, state, optimizer.init(params))
        step = jax.jit(make_step(method, optimizer, jax.random.key(0)))
        results.append(jax.device_get(step(start, parallel.to_global(batch, mesh))))
    (one, scalars_one), (eight, scalars_eight) = results
    for name, value in scalars_one.items():
        np.testing.assert_allclose(scalars_eight[name], value, rtol=2e-5, atol=1e-6, err_msg=name)

    def same(a, b, before):
        # Losses of several tens make updates far above 1, of which float32 keeps five digits.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 + 2e-5 * np.abs(a - before).max())

    jax.tree.map(same, (one.params, one.state), (eight.params, eight.state), jax.device_get((params, state)))


def test_unknown_method_lists_what_exists():
    config = runs.config("spcl")
    config.method = "spc1"
    with pytest.raises(ValueError, match="there is no method 'spc1'; available: .*spcl.* Did you mean 'spcl'"):
        methods.make(config)
