"""Key patches: what is kept, dropped and gathered, with tokens that some studies lack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.models import selection

RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(4, 20, 16)).astype(np.float32)  # 12 of one picture, 8 of the other
WORDS = RNG.normal(size=(4, 6, 16)).astype(np.float32)
ALL, COUNTED = np.ones((4, 20), bool), np.ones((4, 6), bool)
LACKING = np.stack([ALL[0], np.arange(20) < 12, ALL[0], np.arange(20) < 12])
GATHER = selection.Gather(5)
PARAMS = jax.tree.map(
    lambda leaf: leaf + 0.3 * RNG.normal(size=leaf.shape).astype(np.float32),
    jax.jit(GATHER.init)(jax.random.key(0), TOKENS, ALL)["params"],
)


@jax.jit
def select(tokens, there, words, counted):
    """[P; e], b 6 d."""
    return selection.select(
        lambda *inputs: GATHER.apply({"params": PARAMS}, *inputs), tokens, there, words, counted, 0.8
    )


def looped(tokens, there, words, counted):
    """One study after the other, on the tokens that are there alone, in float64."""
    out = []
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS)
    for v, has, t, is_word in zip(tokens.astype(np.float64), there, words.astype(np.float64), counted, strict=True):
        v, t = v[has], t[is_word]
        s = unit(v) @ unit(v.mean(axis=0)) + unit(v) @ unit(t.mean(axis=0))
        order = np.argsort(-s)
        count = int(np.ceil(0.8 * len(v) - 1e-9))
        kept, dropped = v[order[:count]], order[count:]
        x = (kept - kept.mean(axis=1, keepdims=True)) / np.sqrt(kept.var(axis=1, keepdims=True) + 1e-5)
        x = (x * p["norm"]["scale"] + p["norm"]["bias"]) @ p["fc1"]["kernel"] + p["fc1"]["bias"]
        x = x * (1 + np.vectorize(__import__("math").erf)(x / np.sqrt(2))) / 2
        logits = (x @ p["fc2"]["kernel"] + p["fc2"]["bias"]) * p["scale"]
        a = np.exp(logits) / np.exp(logits).sum(axis=0)
        w = np.exp(s[dropped])
        out.append(np.concatenate([a.T @ kept, (w / w.sum() @ v[dropped])[None]]))
    return np.stack(out)


@pytest.mark.parametrize("there", [ALL, LACKING], ids=["all there", "some lacking"])
def test_is_the_loop(there):
    counted = COUNTED.copy()
    counted[1, 4:] = False
    np.testing.assert_allclose(select(TOKENS, there, WORDS, counted), looped(TOKENS, there, WORDS, counted), atol=1e-5)


def test_a_ramp_by_hand():
    """With ⌈0.8·10⌉ kept; ⌈0.8·7⌉ = 6 of those that are there; of equals the earlier."""
    ramp = jnp.arange(10.0)[None]
    there = jnp.ones((1, 10), bool)
    kept = selection.keep(ramp, there, 0.8)
    np.testing.assert_array_equal(kept[0], np.arange(10) >= 2)
    tokens = jnp.asarray(TOKENS[:1, :10])
    e = np.exp([0.0, 1.0]) / np.exp([0.0, 1.0]).sum()
    np.testing.assert_allclose(selection.extra(tokens, ramp, ~kept)[0], e @ TOKENS[0, :2], rtol=1e-5)
    np.testing.assert_array_equal(selection.keep(ramp, ramp < 7, 0.8)[0], (np.arange(10) >= 1) & (np.arange(10) < 7))
    np.testing.assert_array_equal(selection.keep(jnp.zeros((1, 5)), there[:, :5], 0.8)[0], np.arange(5) < 4)
    assert not np.any(selection.keep(ramp, ~there, 0.8))
    assert not np.any(selection.extra(tokens, ramp, ~there))


def test_no_opinion_gathers_means():
    """Of what is kept alone."""
    flat = {**PARAMS, "fc2": jax.tree.map(jnp.zeros_like, PARAMS["fc2"])}
    kept = LACKING & (np.arange(20) % 3 > 0)
    found = GATHER.apply({"params": flat}, TOKENS, kept)
    for row in range(4):
        np.testing.assert_allclose(found[row], np.tile(TOKENS[row][kept[row]].mean(axis=0), (5, 1)), atol=1e-5)


def test_orders_and_padding_mean_nothing():
    """Each study's own report alone; what a study lacks may hold anything."""
    whole = select(TOKENS, LACKING, WORDS, COUNTED)
    order = RNG.permutation(20)
    np.testing.assert_allclose(select(TOKENS[:, order], LACKING[:, order], WORDS, COUNTED), whole, atol=2e-6)
    turned = [np.roll(x, 1, axis=0) for x in (TOKENS, LACKING, WORDS, COUNTED)]
    np.testing.assert_allclose(select(*turned), np.roll(whole, 1, axis=0), atol=1e-6)
    noisy = np.where(LACKING[..., None], TOKENS, 50 * RNG.normal(size=TOKENS.shape).astype(np.float32))
    np.testing.assert_allclose(select(noisy, LACKING, WORDS, COUNTED), whole, atol=1e-6)
    padded = np.concatenate([WORDS, np.full((4, 3, 16), 7, np.float32)], axis=1)
    counted = np.arange(9) < np.full((4, 1), 6)
    np.testing.assert_allclose(select(TOKENS, LACKING, padded, counted), whole, atol=1e-6)
    others = WORDS.copy()
    others[2] = -others[2]
    changed = np.abs(select(TOKENS, LACKING, others, COUNTED) - whole).max(axis=(1, 2))
    assert changed[2] > 1e-2 and not np.any(changed[[0, 1, 3]])


def test_a_planted_patch_comes_first_and_its_opposite_last():
    tokens, mean = TOKENS - TOKENS.mean(axis=1, keepdims=True), WORDS.mean(axis=1)
    tokens[:, 5] += tokens[:, 3] + tokens[:, 7]  # the study's own mean stays 0 and points nowhere
    tokens[:, 3], tokens[:, 7] = 9 * mean, -9 * mean
    s = selection.scores(tokens, ALL, WORDS, COUNTED)
    assert (np.argmax(s, axis=1) == 3).all() and (np.argmin(s, axis=1) == 7).all()


def test_gradient_reaches_values_and_not_through_scores():
    """Nothing reaches the report; the extra token's values get exactly their weights; the lacking get nothing."""
    total = lambda tokens, words: jnp.sum(select(tokens, LACKING, words, COUNTED) ** 2)  # noqa: E731
    to_tokens, to_words = jax.jit(jax.grad(total, argnums=(0, 1)))(TOKENS, WORDS)
    assert not np.any(to_words) and np.isfinite(to_tokens).all()
    assert np.any(to_tokens, axis=-1)[LACKING].all() and not np.any(to_tokens[~LACKING])
    to_extra = jax.jit(jax.grad(lambda tokens: jnp.sum(select(tokens, ALL, WORDS, COUNTED)[:, -1])))(TOKENS)
    np.testing.assert_allclose(to_extra.sum(axis=1), 1, rtol=1e-5)


def test_sizes():
    """Sizes; an adapter's softmax over tokens, whose mean is 1 / n whatever the picture (D2)."""
    assert selection.sizes(245, 0.8, 0.7) == (196, 137)
    assert selection.sizes(10, 0.8, 0.7) == (8, 5)
    with pytest.raises(ValueError, match="keep 4 of 4 tokens"):
        selection.sizes(4, 0.8, 0.7)

    def count(module, *inputs):
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), *inputs)))

    tokens = jnp.zeros((1, 49, 768))
    assert count(selection.Gather(219), tokens[..., :512], jnp.ones((1, 49), bool)) == 75_908
    assert count(selection.Adapter(512, token_softmax=True), tokens) == 984_320
    assert count(selection.Adapter(512), tokens) == 984_320 + 1024
    inert = selection.Adapter(8, token_softmax=True)
    params = jax.jit(inert.init)(jax.random.key(0), TOKENS)
    pooled = lambda tokens: inert.apply(params, tokens).mean(axis=1)  # noqa: E731
    np.testing.assert_allclose(pooled(TOKENS), 1 / 20, rtol=1e-5)
    assert np.abs(jax.grad(lambda tokens: jnp.sum(pooled(tokens) * jnp.arange(8)))(TOKENS)).max() < 1e-6


def test_half_precision():
    kept = jnp.asarray(LACKING)
    found = selection.Gather(5, jnp.bfloat16).apply({"params": PARAMS}, TOKENS, kept)
    np.testing.assert_allclose(found, GATHER.apply({"params": PARAMS}, TOKENS, kept), atol=0.1)
    adapter = selection.Adapter(8)
    params = jax.jit(adapter.init)(jax.random.key(0), TOKENS)
    half = selection.Adapter(8, dtype=jnp.bfloat16).apply(params, TOKENS)
    assert found.dtype == half.dtype == jnp.float32
    np.testing.assert_allclose(half, adapter.apply(params, TOKENS), atol=0.1)
