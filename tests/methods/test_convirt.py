"""ConVIRT, CLIP and SigLIP against loops over the equations, on texts as odd as a batch can hold them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import initial, methods
from tests import runs
from tests.methods.conftest import smooth_pictures

L = 48


@pytest.fixture
def batch():
    """Eight studies: a report of one word, one that is padding alone, two with the same words."""
    rng = np.random.default_rng(0)
    lengths = np.array([20, 3, 0, 48, 9, 9, 30, 12])
    mask = np.arange(L) < lengths[:, None]
    ids = np.where(mask, rng.integers(5, 600, (8, L)), 0).astype(np.int32)
    ids[5] = ids[4]
    inside = mask & (np.arange(L) > 0) & (np.arange(L) < lengths[:, None] - 1)
    word_index = np.where(inside, np.arange(L) - 1, -1).astype(np.int32)
    image = smooth_pictures(8, 32)
    return {"image": image, "ids": ids, "text_mask": mask, "word_index": word_index, "report": lengths.astype(np.int32)}


def made(words="smoke", **changes):
    method = methods.make(runs.config("convirt", words, **changes))
    params, state = jax.jit(lambda: method.init(jax.random.key(0), methods.blank_batch(method)))()
    return method, params, state


def outputs(method, params, state, batch):
    picture = jax.jit(method.joint.image)(params, state, batch["image"][:, 0])
    read = [batch[name] for name in ("ids", "text_mask", "word_index")]
    return picture, jax.jit(method.joint.text)(params, state, *read)


def vectors(method, params, state, batch):
    picture, text = outputs(method, params, state, batch)
    return np.asarray(picture["pooled"], np.float64), np.asarray(text["pooled"], np.float64)


def test_the_loss_weighs_the_two_directions(batch):
    method, params, state = made()
    u, w = vectors(method, params, state, batch)
    to_texts, to_pictures = [], []
    for i in range(len(u)):
        texts, pictures = (np.exp([a @ b / 0.1 for b in others]) for a, others in ((u[i], w), (w[i], u)))
        to_texts.append(-np.log(texts[i] / texts.sum()))
        to_pictures.append(-np.log(pictures[i] / pictures.sum()))
    for share in (0.75, 0.5):
        method = methods.make(runs.config("convirt", loss__share=share))
        loss, aux = jax.jit(method.loss)(params, state, batch, jax.random.key(1), 0)
        expected = share * np.mean(to_texts) + (1 - share) * np.mean(to_pictures)
        assert float(loss) == pytest.approx(expected, rel=1e-5)
        assert float(aux.monitors["report_twins"]) == pytest.approx(2 / 8)


def test_clip_learns_its_temperature_up_to_a_bound(batch):
    method, params, state = made("clip,smoke")
    assert float(jnp.exp(params["log_scale"])) == pytest.approx(1 / 0.07, rel=1e-5)

    def at(scale):
        given = {**params, "log_scale": jnp.log(jnp.float32(scale))}
        return jax.jit(method.loss)(given, state, batch, jax.random.key(1), 0)[0]

    assert float(at(1000.0)) == pytest.approx(float(at(100.0)), rel=1e-6)
    assert float(at(50.0)) != pytest.approx(float(at(100.0)), rel=1e-3)


def test_siglip_judges_every_pair_by_itself(batch):
    method, params, state = made("siglip,smoke")
    loss, _ = jax.jit(method.loss)(params, state, batch, jax.random.key(1), 0)
    u, w = vectors(method, params, state, batch)
    total = 0.0
    for i in range(len(u)):
        for j in range(len(w)):
            sign = 1 if i == j else -1
            total += np.log1p(np.exp(-sign * (10 * u[i] @ w[j] - 10)))
    assert float(loss) == pytest.approx(total / len(u), rel=1e-5)


@pytest.mark.parametrize(("pool", "dtype"), [("cls", "bfloat16"), ("mean", "float32"), ("max", "bfloat16")])
def test_odd_texts_give_finite_gradients(batch, pool, dtype):
    method, params, state = made(text__pool=pool, text__dtype=dtype, model__dtype=dtype)
    gradient = jax.jit(jax.grad(lambda p: method.loss(p, state, batch, jax.random.key(1), 0)[0]))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.any(gradient["text"]["layers"]["qkv"]["kernel"])


def test_joint_vectors_have_unit_length_and_padding_words_none(batch):
    method, params, state = made()
    picture, out = outputs(method, params, state, batch)
    lengths = np.linalg.norm(out["words"], axis=-1)
    np.testing.assert_allclose(lengths, out["word_mask"], atol=1e-5)
    assert out["word_mask"].sum(axis=1).tolist() == [18, 1, 0, 46, 7, 7, 28, 10]
    assert picture["patches"].shape[:3] == (8, 8, 8)
    np.testing.assert_allclose(np.linalg.norm(picture["patches"], axis=-1), 1, atol=1e-5)


def test_frozen_layers_are_no_parameters_and_change_nothing(batch):
    method, params, state = made(text__frozen_layers=1)
    assert set(params["text"]) == {"layers"} and set(state["frozen"]["text"]) == {"embeddings", "lower"}
    _, aux = jax.eval_shape(method.loss, params, state, batch, jax.random.key(1), 0)
    assert jax.tree.structure(aux.state) == jax.tree.structure(state)


def test_an_unknown_text_encoder_is_refused():
    with pytest.raises(ValueError, match="there is no text encoder 'large'; there are"):
        made(text__variant="large")


def test_a_locked_tower_stays_and_sees_as_in_evaluation(batch):
    """LiT: a ResNet's statistics neither move nor are those of the batch, and what learns has no picture's encoder."""
    method, params, state = made("siglip,smoke", encoder="frozen", model__variant="resnet_test")
    assert params["encoder"] == {} and set(state["frozen"]) == {"encoder", "text"}
    prepared = method.parts.prepare(batch, jax.random.key(1))
    features, stats = jax.jit(method.parts.embed)(params, state, prepared)
    jax.tree.map(np.testing.assert_array_equal, stats, state["batch_stats"]["encoder"])
    seen = jax.jit(method.encode)(params, state, batch["image"][:, 0])["pooled"]
    np.testing.assert_allclose(features["picture"], seen, rtol=1e-5, atol=1e-6)
    assert "bn1" in method.encoder(params, state)


def test_a_tower_that_arrives_has_its_own_size(tmp_path):
    runs.write(tmp_path / "run", runs.config("mae", model__variant="test", standardise__mean=0.3))
    config = initial.of_run(runs.config("convirt", "siglip,lit", init_from=str(tmp_path / "run")), builds=False)
    assert (config.model.variant, config.model.image_px, config.model.pool) == ("test", 32, "mean")
    assert (config.standardise.mean, config.encoder) == (0.3, "frozen")
    assert methods.make(config).image_px == 32
