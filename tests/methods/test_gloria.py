"""GLoRIA against its losses taken apart, on texts as odd as a batch can hold them."""

import jax
import numpy as np
import pytest

from cxrjax import methods
from cxrjax.losses import local
from tests import runs
from tests.methods.texts import odd_studies


@pytest.fixture
def batch():
    return odd_studies()


def made(name="gloria", words="smoke", **changes):
    method = methods.make(runs.config(name, words, **changes))
    params, state = jax.jit(lambda: method.init(jax.random.key(0), methods.blank_batch(method)))()
    return method, params, state


def outputs(method, params, state, batch):
    picture = jax.jit(method.joint.image)(params, state, batch["image"][:, 0])
    read = [batch[name] for name in ("ids", "text_mask", "word_index")]
    return picture, jax.jit(method.joint.text)(params, state, *read)


def test_the_global_loss_is_that_of_the_joint_space(batch):
    """The global loss is that of the vectors that `joint` gives: both directions added, times its weight."""
    method, params, state = made(loss__global_weight=2.0)
    _, aux = jax.jit(method.loss)(params, state, batch, jax.random.key(1), 0)
    picture, text = outputs(method, params, state, batch)
    u, w = (np.asarray(x["pooled"], np.float64) for x in (picture, text))
    total = 0.0
    for i in range(len(u)):
        to_texts, to_pictures = (np.exp([10 * a @ b for b in others]) for a, others in ((u[i], w), (w[i], u)))
        total -= np.log(to_texts[i] / to_texts.sum()) + np.log(to_pictures[i] / to_pictures.sum())
    assert float(aux.terms["global"]) == pytest.approx(2 * total / len(u), rel=1e-4)
    assert float(aux.monitors["report_twins"]) == pytest.approx(2 / 8)


def test_a_report_without_words_has_no_local_loss(batch):
    """Row 2 is padding alone: what its picture shows changes nothing local."""
    method, params, state = made()
    loss = jax.jit(method.loss)
    other = {**batch, "image": batch["image"].copy()}
    other["image"][2] = 255 - other["image"][2]
    terms = [loss(params, state, given, jax.random.key(1), 0)[1].terms for given in (batch, other)]
    assert float(terms[0]["local"]) == pytest.approx(float(terms[1]["local"]), rel=1e-6)
    assert abs(float(terms[0]["global"]) - float(terms[1]["global"])) > 1e-5


def test_cls_counts_as_a_word_where_asked_for(batch):
    """The released reading has one word more, the first; local losses then differ and word lists do not."""
    found = {}
    _, params, state = made()
    for asked in (False, True):
        method = methods.make(runs.config("gloria", loss__cls_is_a_word=asked))
        _, aux = jax.jit(method.loss)(params, state, batch, jax.random.key(1), 0)
        _, text = outputs(method, params, state, batch)
        found[asked] = float(aux.terms["local"]), np.asarray(text["word_mask"]).sum(1).tolist()
    assert found[False][0] != pytest.approx(found[True][0], rel=1e-4)
    assert found[False][1] == found[True][1] == [18, 1, 0, 46, 7, 7, 28, 10]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_odd_texts_give_finite_gradients(batch, dtype):
    method, params, state = made(text__dtype=dtype, model__dtype=dtype, loss__chunks=4)
    gradient = jax.jit(jax.grad(lambda p: method.loss(p, state, batch, jax.random.key(1), 0)[0]))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    for name in ("global", "local"):
        assert np.any(gradient["image_head"][name]["fc1"]["kernel"])
    assert np.any(gradient["text"]["layers"]["qkv"]["kernel"])


@pytest.mark.slow
def test_a_resnet_compares_words_with_layer3(batch):
    method, params, state = made(model=runs.config("gloria", "mimic_cxr,smoke").model, regions__enlarge_px=48)
    picture, _ = outputs(method, params, state, batch)
    assert picture["patches"].shape == (8, 3, 3, 64), "a sixteenth of 48 px"
    np.testing.assert_allclose(np.linalg.norm(picture["patches"], axis=-1), 1, atol=1e-5)
    encoded = jax.eval_shape(method.encode, params, state, batch["image"][:, 0])
    assert encoded["patches"].shape[1:3] == (2, 2), "the last map"
    _, aux = jax.jit(method.loss)(params, state, batch, jax.random.key(1), 0)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), aux.state["batch_stats"], state["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_the_local_loss_is_that_of_losses_local(batch):
    """Heads and words as the method has them, put together here once more.

    Only directions of words are known from outside; without attention's scale nothing else of them counts.
    """
    scales = {"attention_scale": 0.0, "word_scale": 3.0, "pair_scale": 2.0, "aggregate": "mean"}
    method, params, state = made(**{f"loss__{name}": value for name, value in scales.items()})
    _, aux = jax.jit(method.loss)(params, state, batch, jax.random.key(1), 0)
    features = jax.jit(method.encode)(params, state, batch["image"][:, 0])["patches"].reshape(8, 64, -1)
    _, text = outputs(method, params, state, batch)
    regions = features @ params["image_head"]["local"]["fc1"]["kernel"]
    expected = local.gloria(regions, text["words"], text["word_mask"], **scales)
    assert float(aux.terms["local"]) == pytest.approx(float(expected), rel=1e-4)


def test_the_recipe_has_the_released_values():
    config = runs.config("gloria", "mimic_cxr")
    assert (config.batch_size, config.optim.lr, config.text.length, config.regions.enlarge_px) == (48, 5e-5, 97, 299)
    assert config.text.one_sentence and config.loss.cls_is_a_word and config.model.variant == "resnet50"
