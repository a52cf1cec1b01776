"""MGCA against its losses taken apart, and its switches, on texts as odd as a batch can hold them."""

from functools import cache

import jax
import numpy as np
import pytest
import torch

from cxrjax import methods
from cxrjax.methods import mgca
from tests import runs
from tests.methods.texts import odd_studies


@pytest.fixture
def batch():
    return odd_studies()


def made(words="smoke", **changes):
    method = methods.make(runs.config("mgca", words, **changes))
    params, state = jax.jit(lambda: method.init(jax.random.key(0), methods.blank_batch(method)))()
    return method, params, state


@cache
def plain():
    """The smoke config's method, its start, and its terms on the odd studies."""
    case = made()
    return case, terms_of(*case, odd_studies())[0]


def terms_of(method, params, state, batch):
    _, aux = jax.jit(method.loss)(params, state, batch, jax.random.key(1), 0)
    return {name: float(value) for name, value in aux.terms.items()}, aux


def test_negatives_of_one_device_only(batch):
    """Two groups: each half of the batch is an InfoNCE of its own; nothing else of the loss changes."""
    (_, *start), one = plain()
    method = methods.make(runs.config("mgca", loss__groups=2))
    two, _ = terms_of(method, *start, batch)
    assert two["ita"] < one["ita"] - 0.1
    assert (two["cta"], two["cpa"]) == pytest.approx((one["cta"], one["cpa"]), rel=1e-5)


@pytest.mark.parametrize("switch", ["padding_counts", "raw_seen_words", "shifted_attention"])
def test_each_released_switch_changes_the_token_loss_alone(batch, switch):
    (_, *start), default = plain()
    released, _ = terms_of(methods.make(runs.config("mgca", **{f"loss__{switch}": True})), *start, batch)
    assert released["cta"] != pytest.approx(default["cta"], rel=2e-5)
    assert (released["ita"], released["cpa"]) == pytest.approx((default["ita"], default["cpa"]), rel=1e-5)


def test_the_weights_of_tokens_are_where_cls_looks(batch):
    (_, *start), by_cls = plain()
    uniform, _ = terms_of(methods.make(runs.config("mgca", loss__weights="uniform")), *start, batch)
    assert by_cls["cta"] != pytest.approx(uniform["cta"], rel=1e-5)
    assert (by_cls["ita"], by_cls["cpa"]) == pytest.approx((uniform["ita"], uniform["cpa"]), rel=1e-5)


def test_a_report_without_words_moves_no_word_statistics(batch):
    """The third study is padding alone: its picture has no part in the tokens' loss, nor padding in their BatchNorm."""
    method, params, state = made()
    loss = jax.jit(method.loss)
    other = {**batch, "ids": np.where(batch["text_mask"], batch["ids"], 7)}
    aux, again = (loss(params, state, given, jax.random.key(1), 0)[1] for given in (batch, other))
    for a, b in zip(*(jax.tree.leaves(x.state["batch_stats"]["word_head"]) for x in (aux, again)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_prototypes_wait_for_the_first_epoch_and_are_told_crosswise(batch):
    method, params, state = made(prototypes__freeze_share=0.5)

    def gradient(step):
        def cpa(p):
            return method.loss(p, state, batch, jax.random.key(1), step)[1].terms["cpa"]

        return jax.grad(cpa)(params)

    early, late = jax.jit(gradient)(2), jax.jit(gradient)(3)
    assert not np.any(early["prototypes"]["direction"]) and np.any(late["prototypes"]["direction"])
    assert np.any(early["image_head"]["fc1"]["kernel"]) and np.any(early["text_head"]["fc1"]["kernel"])


def test_whole_reports_and_prototypes_by_the_equations(batch, monkeypatch):
    """ITA in both directions; codes by dividing rows and columns, the other view's log-probabilities, half of both."""
    method, params, state = made(prototypes__epsilon=0.5)
    vectors = []
    monkeypatch.setattr(mgca.monitors, "embedding", lambda *both: vectors.extend(both) or {})

    def loss(params, state, batch):
        _, aux = method.loss(params, state, batch, jax.random.key(1), 0)
        return aux.terms, tuple(vectors)

    found, (u, v) = jax.jit(loss)(params, state, batch)
    directions = torch.tensor(np.array(params["prototypes"]["direction"])).double()
    u, v = (torch.tensor(np.array(x)).double() for x in (u, v))
    np.testing.assert_allclose(u.norm(dim=1), 1, atol=1e-4)
    logits = u @ v.T / 0.07
    ita = sum(torch.logsumexp(logits, dim=axis).mean() for axis in (0, 1)) - 2 * logits.diagonal().mean()
    assert float(found["ita"]) == pytest.approx(ita.item(), rel=1e-4)

    def codes(scores):
        q = torch.exp(scores / 0.5).T
        for _ in range(3):
            q = q / q.sum(1, keepdim=True) / q.shape[0]
            q = q / q.sum(0, keepdim=True) / q.shape[1]
        return (q / q.sum(0)).T

    one, other = (x @ (directions / directions.norm(dim=0)) for x in (u, v))
    cpa = 0
    for a, b in ((one, other), (other, one)):
        cpa -= (codes(a) * torch.log_softmax(b / 0.2, dim=1)).sum(1).mean() / 2
    assert float(found["cpa"]) == pytest.approx(cpa.item(), rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_odd_texts_give_finite_gradients(batch, dtype):
    method, params, state = made(text__dtype=dtype, model__dtype=dtype)
    gradient = jax.jit(jax.grad(lambda p: method.loss(p, state, batch, jax.random.key(1), 0)[0]))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    for name in ("region_head", "word_head"):
        assert np.any(gradient[name]["fc1"]["kernel"])


def test_joint_vectors_have_unit_length_and_a_resnet_shows_layer3(batch):
    method, params, state = made("resnet50,smoke", regions__enlarge_px=48)
    picture = jax.jit(method.joint.image)(params, state, batch["image"][:, 0])
    assert picture["patches"].shape == (8, 3, 3, 32), "a sixteenth of 48 px"
    np.testing.assert_allclose(np.linalg.norm(picture["patches"], axis=-1), 1, atol=1e-4)
    text = jax.jit(method.joint.text)(params, state, *(batch[name] for name in ("ids", "text_mask", "word_index")))
    np.testing.assert_allclose(np.linalg.norm(text["words"], axis=-1), text["word_mask"], atol=1e-4)
    assert text["word_mask"].sum(axis=1).tolist() == [18, 1, 0, 46, 7, 7, 28, 10]
    assert np.isfinite(terms_of(method, params, state, batch)[0]["cta"]), "regions weigh the same, words by [CLS]"


def test_the_recipe_has_the_released_values():
    config = runs.config("mgca", "mimic_cxr,official")
    assert (config.batch_size, config.optim.lr, config.optim.wd, config.text.length) == (144, 2e-5, 0.05, 112)
    assert (config.prototypes.count, config.head.out, config.loss.groups, config.text.variant) == (500, 128, 2, "base6")
    assert runs.config("mgca", "mimic_cxr,resnet50").regions.enlarge_px == 299
