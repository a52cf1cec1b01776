"""FaNe: terms of a step from its own features, what never learns, sentences of tokens, the running offset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import methods
from cxrjax.losses import contrastive, mining
from cxrjax.methods import fane
from cxrjax.text import tokenizer
from tests import runs
from tests.methods import oracles
from tests.methods import test_every_method as every

TEXT = "There is no effusion. The heart is large. No pneumothorax is seen."


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    texts = [TEXT, *(example["report"]["findings"] for example in every.examples())]
    tokenizer.save(tokenizer.train(texts, 256), folder)
    return str(folder)


@pytest.fixture(scope="module")
def case(vocabulary):
    """(method, parameters, state, prepared, features) on noise, and the compiled loss of these at a step."""
    config = runs.config("fane", text__tokenizer=vocabulary)
    method = methods.make(config)
    batch = every.batch_of(method)
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    params, state = (oracles.noise(tree, seed) for seed, tree in enumerate(shapes))
    state["offset"] = jnp.float32(0.5)
    prepared = method.parts.prepare(batch, jax.random.key(0))
    features, _ = jax.jit(method.parts.embed)(params, state, prepared)

    @jax.jit
    def step(state):
        def loss(params, state, features):
            return method.parts.loss_of(params, state, features, prepared, 3)

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, state, features)

    return params, state, prepared, features, step


def test_a_step_is_its_terms(case):
    params, state, prepared, features, step = case
    (_, aux), (gradient, to_state, to_features) = step(state)
    offset = 0.05 * mining.centroid_cosine(features["r"]) + 0.95 * state["offset"]
    same = mining.same_meaning(features["r"], offset, 0.95)
    v = features["picture"] @ params["image_head"]["kernel"] + params["image_head"]["bias"]
    scale = jnp.exp(params["scale"])
    mp = contrastive.sigmoid(v, features["pooled"], scale=scale, bias=params["bias"], positives=same)
    hn = sum(mining.hard_negatives(x, same, 0.07) for x in (v, features["pooled"])) / 2
    for name, expected in (("mp", mp), ("hn", hn)):
        assert float(aux.terms[name]) == pytest.approx(float(expected), rel=1e-4)
    assert float(aux.state["offset"]) == pytest.approx(float(offset), rel=1e-6)
    (_, first), _ = step({**state, "offset": jnp.float32(-1)})
    assert float(first.state["offset"]) == pytest.approx(float(mining.centroid_cosine(features["r"])), rel=1e-6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(to_state)) and not np.any(to_features["r"])
    assert gradient["scale"] and gradient["bias"] and np.any(gradient["see"]["gate_out"]["kernel"])


def test_tokens_know_their_sentence(vocabulary):
    reader = fane.StudyReader(runs.config("fane", text__tokenizer=vocabulary))
    study = next(every.examples(1))
    study["report"] = {"findings": TEXT, "impression": "", "text": ""}
    orders = set()
    for seed in range(4):
        found = reader(study, np.random.default_rng(seed))
        index, words = found["sentence_index"], reader.tokenizer
        said = [words.decode(found["ids"][index == number]) for number in range(found["sentence_count"])]
        assert sorted(said) == sorted(words.decode(reader.tokens(s)["ids"]) for s in reader_sentences())
        assert words.decode(found["ids_as_written"]) == words.decode(reader.tokens(TEXT)["ids"])
        orders.add(tuple(said))
    assert len(orders) > 1


def reader_sentences():
    return ["There is no effusion.", "The heart is large.", "No pneumothorax is seen."]


def test_the_recipe_and_the_released_one():
    config = runs.config("fane", "mimic_cxr,released", text__tokenizer="nowhere")
    assert (config.batch_size, config.optim.lr, config.width, config.loss.bias) == (196, 4e-4, 128, 10.0)
    params, _ = jax.eval_shape(methods.make(config).init, jax.random.key(0), None)
    assert params["patch_head"]["kernel"].shape == (768, 128)
