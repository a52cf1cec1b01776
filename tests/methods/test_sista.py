"""SISTA: a step against loops over its equations, on texts as odd as a batch can hold them; views and joint space."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import methods
from cxrjax.input import converted_sets, device, source, studies
from cxrjax.models import bert, regions, text_tower
from tests import runs
from tests.losses.test_alignment import loop_sia, loop_sta, unit
from tests.methods.conftest import smooth_pictures

L = 24


def config(words="smoke", **changes):
    return runs.config("sista", words, **{"text__length": L, **changes})


@pytest.fixture(scope="module")
def batch():
    """Eight studies: one report of a word, one of padding alone, two that are equal, one with a word twice."""
    rng = np.random.default_rng(0)
    lengths = np.array([12, 3, 0, L, 9, 9, 20, 7])
    mask = np.arange(L) < lengths[:, None]
    ids = np.where(mask, rng.integers(5, 600, (8, L)), 0).astype(np.int32)
    ids[5] = ids[4]
    inside = mask & (np.arange(L) > 0) & (np.arange(L) < lengths[:, None] - 1)
    word_index = np.where(inside, np.arange(L) - 1, -1)
    word_index[6, 3:19] -= 1  # its second word has two pieces
    number = np.tile(np.arange(L - 2, dtype=np.int32), (8, 1))
    number[0, 4] = number[0, 1]
    e = rng.normal(size=(8, 5)).astype(np.float32)
    e[5] = e[4]
    return {
        "image": smooth_pictures(8, 32),
        "ids": ids,
        "text_mask": mask,
        "word_index": word_index.astype(np.int32),
        "report": lengths.astype(np.int32),
        "report_embedding": e,
        "word_number": number,
    }


def made(settings):
    method = methods.make(settings)
    params, state = jax.jit(lambda: method.init(jax.random.key(0), methods.blank_batch(method)))()
    return method, params, state


def head(params, x, counted):
    """Linear–BN–ReLU–Linear–BN on the rows of x, statistics over the counted ones; and those of the first BatchNorm."""
    stats = []
    for i in (1, 2):
        x = x @ np.float64(params[f"fc{i}"]["kernel"])
        mean, var = x[counted].mean(axis=0), x[counted].var(axis=0)
        stats.append((mean, var))
        x = (x - mean) / np.sqrt(var + 1e-5)
        if i == 1:
            x = np.maximum(x * params["norm1"]["scale"] + params["norm1"]["bias"], 0)
    return unit(x), stats[0]


WAYS = {
    "default": {},
    "switches": {
        "loss__mode": "mask",
        "loss__threshold": 0.5,
        "loss__direction": "sum",
        "loss__sia_weight": 2.0,
        "loss__sta_weight": 0.5,
        "loss__intra_modal_weight": 0.3,
        "loss__average": "words",
        "loss__sparsity": 0.4,
        "loss__both_ways": True,
        "loss__mask_equal_words": True,
        "loss__token_temperature": 0.2,
        "head__bn_include_pad": True,
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_the_equations(batch, way):
    settings = config(**WAYS[way])
    method, params, state = made(settings)
    given = dict(batch)
    if not settings.loss.mask_equal_words:
        del given["word_number"]

    @jax.jit
    def step(params, given):
        encoder, tower = regions.make(settings.model), text_tower.make(settings.text)
        images = device.standardise(given["image"][:, 0], **settings.standardise)
        seen, _ = encoder.apply(params["encoder"], {}, images, train=True)
        read = tower.apply(params["text"], {}, given["ids"], given["text_mask"])
        words = bert.words(read["tokens"], given["word_index"], L - 2)
        loss, aux = method.loss(params, state, given, jax.random.key(0), 0)
        return loss, aux, (seen["pooled"], seen["regions"], read["pooled"], *words)

    loss, aux, (pooled, seen, text, words, mask) = jax.device_get(step(params, given))
    every = np.ones(8, bool)
    u, _ = head(params["image_head"]["global"], np.float64(pooled), every)
    w, _ = head(params["text_head"]["global"], np.float64(text), every)
    v, _ = head(params["image_head"]["local"], np.float64(seen).reshape(8 * 64, -1), np.ones(8 * 64, bool))
    counted = np.ones(mask.size, bool) if settings.head.bn_include_pad else mask.reshape(-1)
    t, (mean, var) = head(params["text_head"]["local"], np.float64(words).reshape(mask.size, -1), counted)
    v, t = v.reshape(8, 64, -1), t.reshape(*mask.shape, -1)

    chosen, e = settings.loss, batch["report_embedding"]
    sia = loop_sia(u, w, e, 0.07, chosen.mode, threshold=chosen.threshold)
    number = batch["word_number"]
    equal = number[:, :, None] == number[:, None, :] if chosen.mask_equal_words else None
    sta = loop_sta(t, v, mask, chosen.token_temperature, chosen.sparsity, chosen.average, chosen.both_ways, equal)
    assert float(aux.terms["sia"]) == pytest.approx(sia * (4 if way == "switches" else 1), rel=1e-4)
    assert float(aux.terms["sta"]) == pytest.approx(sta * (0.5 if way == "switches" else 1), rel=1e-3)
    assert ("intra_modal" in aux.terms) == (way == "switches")
    assert float(loss) == pytest.approx(sum(map(float, aux.terms.values())), rel=1e-6)

    running = aux.state["batch_stats"]["text_head"]["local"]["norm1"]
    np.testing.assert_allclose(running["mean"], 0.1 * mean, rtol=1e-3, atol=1e-5)
    count = counted.sum()
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * var * count / (count - 1), rtol=1e-3)
    best = [np.argmax(a @ b.T, axis=1) == np.arange(8) for a, b in ((u, w), (w, u))]
    assert float(aux.monitors["retrieval_top1"]) == pytest.approx(best[0].mean())
    assert float(aux.monitors["retrieval_top1_of_text"]) == pytest.approx(best[1].mean())
    assert 1 <= aux.monitors["effective_patches"] <= aux.monitors["survivors"] < 64


@pytest.mark.slow
def test_half_precision_and_a_learned_temperature(batch):
    """Odd texts leave every gradient finite; τ stays within its bounds."""
    settings = config(model__dtype="bfloat16", text__dtype="bfloat16", loss__learned=True, model__remat="none")
    method, params, state = made(settings)
    assert float(jnp.exp(params["log_temperature"])) == pytest.approx(0.07)
    step = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
    (loss, aux), gradient = step(params, state, batch, jax.random.key(0), 0)
    assert np.isfinite(loss) and float(aux.monitors["temperature"]) == pytest.approx(0.07)
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf) for leaf in jax.tree.leaves(gradient))
    for log, bound in ((-9.0, 0.01), (2.0, 0.5)):
        (loss, aux), _ = step({**params, "log_temperature": jnp.float32(log)}, state, batch, jax.random.key(0), 0)
        assert np.isfinite(loss) and float(aux.monitors["temperature"]) == pytest.approx(bound)


def test_joint_space(batch):
    """Unit vectors of the running statistics, zeros for padding; nothing depends on the other rows."""
    method, params, state = made(config())
    read, see = jax.jit(method.joint.text), jax.jit(method.joint.image)
    texts = [batch[name] for name in ("ids", "text_mask", "word_index")]
    found = jax.device_get(read(params, state, *texts))
    assert found["words"].shape == (8, L - 2, 32) and found["word_mask"].sum(axis=1).tolist() == [
        10, 1, 0, L - 2, 7, 7, 17, 5
    ]  # fmt: skip
    np.testing.assert_allclose(np.linalg.norm(found["words"], axis=-1), found["word_mask"], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found["pooled"][[0, 1, 3]], axis=-1), 1, atol=1e-5)
    alone = read(params, state, *(x[[0] * 8] for x in texts))
    np.testing.assert_allclose(alone["words"][0], found["words"][0], atol=1e-5)
    seen = see(params, state, batch["image"][:, 0])
    assert seen["patches"].shape == (8, 8, 8, 32)
    np.testing.assert_allclose(np.linalg.norm(seen["patches"], axis=-1), 1, atol=1e-4)


def test_without_sta_there_are_no_local_heads(batch):
    method = methods.make(config(loss__sta_weight=0.0))
    params, state = jax.eval_shape(method.init, jax.random.key(0), None)
    assert set(params["image_head"]) == set(params["text_head"]) == {"global"}
    _, aux = jax.eval_shape(method.loss, params, state, batch, jax.random.key(0), 0)
    assert set(aux.terms) == {"sia"} and jax.tree.structure(aux.state) == jax.tree.structure(state)
    texts = [batch[name] for name in ("ids", "text_mask", "word_index")]
    assert jax.eval_shape(method.joint.text, params, state, *texts)["words"].shape == (8, L - 2, 32)
    assert jax.eval_shape(method.joint.image, params, state, batch["image"][:, 0])["patches"].shape == (8, 8, 8, 32)


def test_words_see_layer3_of_a_resnet(batch):
    method = methods.make(config("resnet,smoke"))
    params, state = jax.eval_shape(method.init, jax.random.key(0), None)
    wide = {kind: tree["fc1"]["kernel"].shape[0] for kind, tree in params["image_head"].items()}
    assert wide["global"] == 2 * wide["local"]
    _, aux = jax.eval_shape(method.loss, params, state, batch, jax.random.key(0), 0)
    assert jax.tree.structure(aux.state) == jax.tree.structure(state)
    coarse = jax.eval_shape(method.encode, params, state, batch["image"][:, 0])["patches"].shape
    fine = jax.eval_shape(method.joint.image, params, state, batch["image"][:, 0])["patches"].shape
    assert fine[1] == 2 * coarse[1]


def test_views(phantom_dir, monkeypatch):
    """Each study has the vector of its own report, also once pickled; words that are spelt alike have one number."""
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    settings = config(data__sets="phantom", loss__mask_equal_words=True, text__length=80)
    see = methods.make(settings).views
    whole = studies.studies(source.select(converted_sets.open_set("phantom"), "train"))
    rng = np.random.default_rng(0)
    rows = [see(whole[i], rng) for i in range(12)]
    e = np.stack([row["report_embedding"] for row in rows])
    np.testing.assert_allclose(np.linalg.norm(e, axis=1), 1, atol=1e-5)
    equal = np.equal.outer(*[[row["report"] for row in rows]] * 2)
    likeness = e @ e.T
    np.testing.assert_allclose(likeness[equal], 1, atol=1e-5)
    assert likeness[~equal].max() < 0.999
    again = pickle.loads(pickle.dumps(see))(whole[3], np.random.default_rng(0))
    np.testing.assert_array_equal(again["report_embedding"], e[3])

    text = see.text(whole[0]["report"])
    words = see.tokenizer.words(rows[0]["ids"])
    number = rows[0]["word_number"]
    assert number.shape == (78,) and text
    for i, a in enumerate(words[:78]):
        for j, b in enumerate(words[:78]):
            assert (number[i] == number[j]) == (a == b)
    blank = methods.blank_batch(methods.make(settings))
    assert not blank["report_embedding"].any()
