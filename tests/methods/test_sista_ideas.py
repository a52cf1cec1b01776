"""Whether the two ideas of SISTA do what they are for, on pairs whose truth is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxrjax import methods
from cxrjax.losses import alignment
from tests import runs

GROUPS, SHARE = 6, 0.3  # of reports that say the same in other words; the share of reports in one of them


def observe(key, meaning, mix):
    """Pictures b 16: a noisy meaning and a clearer manner, which tells studies apart and means nothing; the manner."""
    of_manner, *noise = jax.random.split(key, 3)
    manner = jax.random.normal(of_manner, meaning.shape)
    blurred, seen = (jax.random.normal(key, meaning.shape) for key in noise)
    return jnp.concatenate([meaning + blurred, manner + 0.5 * seen], axis=1) @ mix, manner


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, 0))
def accuracy(mode, seed):
    """Of a linear probe for the group, on a linear picture encoder that learned from pairs with SIA's targets."""
    of_centres, of_mix, of_f, of_g, of_pairs, *of_probe = jax.random.split(jax.random.key(seed), 7)
    centres, mix = jax.random.normal(of_centres, (GROUPS, 8)), jax.random.normal(of_mix, (16, 16)) / 4
    params = {name: jax.random.normal(key, (16, 8)) / 4 for name, key in (("f", of_f), ("g", of_g))}
    optimizer = optax.adam(1e-2)

    def step(carried, number):
        keys = jax.random.split(jax.random.fold_in(of_pairs, number), 5)
        group = jax.random.randint(keys[0], (64, 1), 0, GROUPS)
        grouped = jax.random.uniform(keys[1], (64, 1)) < SHARE
        meaning = jnp.where(grouped, centres[group[:, 0]], jax.random.normal(keys[2], (64, 8)))
        pictures, manner = observe(keys[3], meaning, mix)
        reports = jnp.concatenate([meaning, manner], axis=1)
        e = meaning + 0.1 * jax.random.normal(keys[4], meaning.shape)  # what a frozen encoder makes of a paraphrase

        def loss(params):
            u, w = pictures @ params["f"], reports @ params["g"]
            return alignment.sia(u, w, e, temperature=0.1, mode=mode, threshold=0.8)[0]

        params, moments = carried
        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(400))

    def features(key, count):
        group = jnp.arange(count) % GROUPS
        h = observe(key, centres[group], mix)[0] @ params["f"]
        return jnp.concatenate([h / jnp.linalg.norm(h, axis=1, keepdims=True), jnp.ones((count, 1))], axis=1), group

    (x, group), (held_out, truth) = (features(key, count) for key, count in zip(of_probe, (300, 2400), strict=True))
    probe = jnp.linalg.solve(x.T @ x + 0.01 * jnp.eye(9), x.T @ jax.nn.one_hot(group, GROUPS))
    return jnp.mean(jnp.argmax(held_out @ probe, axis=1) == truth)


@pytest.mark.slow
def test_paraphrases_are_no_negatives():
    """30 % of the reports come in groups. Contrast that knows it keeps what a group means; three seeds."""
    seeds = jnp.arange(3)
    baseline = np.asarray(accuracy("info_nce", seeds))
    soft, several, masked = (np.asarray(accuracy(mode, seeds)) for mode in ("soft", "multi_positive", "mask"))
    assert np.all(soft > baseline + 0.1) and np.all(several > baseline + 0.1), (baseline, soft, several)
    assert np.all(masked > baseline) and masked.mean() > baseline.mean() + 0.01, (baseline, masked)


SHADES = {"black": 0, "dark": 70, "light": 190, "white": 255}
PLACES = {"north": (0, 12), "east": (12, 24), "south": (24, 12), "west": (12, 0)} | {
    "northeast": (0, 24), "southeast": (24, 24), "southwest": (24, 0), "northwest": (0, 0)
}  # fmt: skip


def squares(seed):
    """32 noisy pictures of a square of some shade at some place, and the sentence "<shade> square <place>"."""
    rng, vocabulary = np.random.default_rng(seed), ["square", *SHADES, *PLACES]
    image, ids = rng.normal(128, 12, (32, 1, 32, 32, 1)), np.zeros((32, 8), np.int32)
    for i, (shade, place) in enumerate((shade, place) for shade in SHADES for place in PLACES):
        y, x = PLACES[place]
        image[i, 0, y : y + 8, x : x + 8] = SHADES[shade]
        ids[i, :5] = 2, *(5 + vocabulary.index(word) for word in (shade, "square", place)), 3
    return {
        "image": np.clip(image, 0, 255).astype(np.uint8),
        "ids": ids,
        "text_mask": ids > 0,
        "word_index": np.where(ids >= 5, np.arange(8) - 1, -1).astype(np.int32),
        "report": np.arange(32, dtype=np.int32),
        "report_embedding": np.eye(32, dtype=np.float32),
    }


@pytest.mark.slow
def test_overfits_squares():
    """After 120 steps every picture finds its sentence, and every word is told from those beside it; three seeds.

    Not asserted, since it does not hold: that the word of the place attends to the square. Inside lay 5.5 % of its
    attention after training, 6.7 % at the start, 5.5 % with InfoNCE alone; 6.3 % is chance. Nor did it gain more than
    0.9 points on both of these in some thirty other settings (two squares a picture, patches that see only themselves,
    σ up to 0.8, τ_l up to 1); the word of the shade did in one, by 2.9, where half of the sentences were not found.
    Negatives from within the report leave STA a solution that does not look: patches that differ, wherever they
    lie, can stand for its few words.
    """
    method = methods.make(runs.config("sista", text__length=8, model__remat="none"))
    optimizer = optax.adam(2e-3)

    @jax.jit
    def step(params, state, moments, batch, number):
        loss = jax.value_and_grad(method.loss, has_aux=True)
        (_, aux), gradient = loss(params, state, batch, jax.random.key(number), number)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), aux.state, moments, aux.terms

    @jax.jit
    def similarities(params, state, batch):
        texts = (batch[name] for name in ("ids", "text_mask", "word_index"))
        seen = method.joint.image(params, state, batch["image"][:, 0])["pooled"]
        return seen @ method.joint.text(params, state, *texts)["pooled"].T

    init = jax.jit(method.init)
    for seed in range(3):
        batch = squares(seed)
        params, state = init(jax.random.key(seed), batch)
        moments, first = optimizer.init(params), None
        for number in range(120):
            params, state, moments, terms = step(params, state, moments, batch, number)
            first = first or jax.device_get(terms)
        assert np.all(np.argmax(similarities(params, state, batch), axis=1) == np.arange(32))
        assert float(terms["sta"]) < 0.05 * float(first["sta"]) and float(terms["sia"]) < 0.05 * float(first["sia"])
