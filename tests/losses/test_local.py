"""GLoRIA's and MGCA's losses against loops over pairs, words and regions in PyTorch, and against values by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cxrjax import parallel
from cxrjax.losses import local

PAIRS, WORDS, REGIONS, WIDTH = 4, 5, 6, 3
LENGTHS = (5, 2, 1, 3)  # one report of a single word


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    regions = rng.normal(size=(PAIRS, REGIONS, WIDTH)).astype(np.float32)
    words = rng.normal(size=(PAIRS, WORDS, WIDTH)).astype(np.float32)
    return regions, words, np.arange(WORDS) < np.array(LENGTHS)[:, None]


def torch_gloria(regions, words, mask, attention_scale, word_scale, pair_scale, over_words, aggregate):
    z = {}
    for i, v in enumerate(regions):
        for j in range(len(words)):
            t = words[j][torch.as_tensor(mask[j])]
            s = v @ t.T  # regions × words
            s = torch.softmax(s, dim=1) if over_words else s
            parts = []
            for w, word in enumerate(t):
                seen = torch.softmax(attention_scale * s[:, w], dim=0) @ v
                parts.append(torch.exp(word_scale * torch.dot(seen, word) / (seen.norm() * word.norm())))
            total = sum(parts) if aggregate == "sum" else sum(parts) / len(parts)
            z[i, j] = pair_scale * torch.log(total)
    loss, b = 0, len(regions)
    for i in range(b):
        loss = loss - torch.log(torch.exp(z[i, i]) / sum(torch.exp(z[i, j]) for j in range(b)))
        loss = loss - torch.log(torch.exp(z[i, i]) / sum(torch.exp(z[j, i]) for j in range(b)))
    return loss / b


def torch_alignment(regions, words, mask, temperature, region_weights, word_weights, raw_seen_words=False):
    def unit(x):
        return x / x.norm(dim=-1, keepdim=True)

    def told_apart(own, seen, weights):
        loss, targets = 0, range(len(own))
        for k in targets:
            forth = sum(torch.exp(own[k] @ seen[m] / temperature) for m in targets)
            back = sum(torch.exp(seen[k] @ own[m] / temperature) for m in targets)
            both = torch.log(forth) + torch.log(back) - 2 * own[k] @ seen[k] / temperature
            loss = loss + weights[k] * both / 2
        return loss

    of_words = of_regions = 0
    for i in range(len(words)):
        v, t = unit(regions[i]), unit(words[i][torch.as_tensor(mask[i])])
        s = t @ v.T / temperature
        seen_regions = unit(torch.softmax(s, dim=1) @ v)
        seen_words = torch.softmax(s.T, dim=1) @ t
        seen_words = seen_words if raw_seen_words else unit(seen_words)
        of_words = of_words + told_apart(t, seen_regions, word_weights[i][mask[i]] / word_weights[i][mask[i]].sum())
        of_regions = of_regions + told_apart(v, seen_words, region_weights[i] / region_weights[i].sum())
    return (of_words + of_regions) / len(words)


def compare(ours, theirs, *inputs, rtol=2e-5):
    """Value, and gradient by every input."""
    leaves = [torch.tensor(np.float64(x), requires_grad=True) for x in inputs]
    expected = theirs(*leaves)
    expected.backward()
    value, gradients = jax.jit(jax.value_and_grad(ours, argnums=tuple(range(len(inputs)))))(*map(jnp.asarray, inputs))
    np.testing.assert_allclose(value, expected.item(), rtol=rtol)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        np.testing.assert_allclose(np.float32(gradient), leaf.grad, atol=rtol * float(leaf.grad.abs().max()))


@pytest.mark.parametrize("over_words", [True, False])
@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_gloria(arrays, over_words, aggregate):
    regions, words, mask = arrays
    options = {"attention_scale": 4.0, "word_scale": 5.0, "pair_scale": 2.0}
    options |= {"over_words": over_words, "aggregate": aggregate}
    compare(
        lambda v, t: local.gloria(v, t, mask, **options),
        lambda v, t: torch_gloria(v, t, mask, **options),
        regions,
        words,
    )


def test_gloria_has_the_released_scales(arrays):
    regions, words, mask = arrays
    expected = torch_gloria(torch.tensor(regions), torch.tensor(words), mask, 4.0, 5.0, 10.0, True, "sum")
    assert local.gloria(*arrays) == pytest.approx(expected.item(), rel=1e-4)


def test_gloria_by_hand():
    v = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])  # one region each
    ones = {"attention_scale": 1.0, "word_scale": 1.0, "pair_scale": 1.0}
    mask = np.array([[True], [True]])
    assert local.gloria(v, v, mask, **ones) == pytest.approx(2 * np.log(1 + np.exp(-1)), rel=1e-6)
    # The first report says its word twice: its sum over words is doubled, its mean is not.
    t = jnp.concatenate([v, v], axis=1)
    twice = np.array([[True, True], [True, False]])
    doubled = (np.log(1 + 1 / (2 * np.e)) + np.log(1 + 2 / np.e) + 2 * np.log(1 + 1 / np.e)) / 2
    assert local.gloria(v, t, twice, **ones) == pytest.approx(doubled, rel=1e-6)
    mean = local.gloria(v, t, twice, aggregate="mean", **ones)
    assert mean == pytest.approx(2 * np.log(1 + np.exp(-1)), rel=1e-6)


@pytest.mark.parametrize("over_words, cosine", [(False, 0.75 / np.sqrt(0.625)), (True, np.sqrt(0.5))])
def test_attention_by_hand(over_words, cosine):
    """A word that is the first of two regions: softmax(ln 3 · (1, 0)) = (¾, ¼); a lone word wins every region alike."""
    v, t = jnp.eye(2)[None], jnp.array([[[2.0, 0.0]]])
    scores = local.gloria_scores(
        v, t / 2, np.ones((1, 1), bool), attention_scale=np.log(3), word_scale=1.0, over_words=over_words
    )
    assert scores[0, 0] == pytest.approx(cosine, rel=1e-6)


@pytest.mark.parametrize("raw", [False, True])
def test_token_alignment(arrays, raw):
    regions, words, mask = arrays
    rng = np.random.default_rng(1)
    weights = rng.uniform(size=(PAIRS, REGIONS)), rng.uniform(size=(PAIRS, WORDS))
    named = {"region_weights": jnp.asarray(weights[0]), "word_weights": jnp.asarray(weights[1]), "raw_seen_words": raw}
    compare(
        lambda v, t: sum(local.token_alignment(v, t, mask, temperature=0.5, **named)),
        lambda v, t: torch_alignment(v, t, mask, 0.5, *map(torch.tensor, weights), raw_seen_words=raw),
        regions,
        words,
    )


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_token_alignment_by_hand(temperature):
    """Three orthonormal words that are the regions: c_l ∝ (e, 1, 1) with e = exp(1/τ), uniform weights."""
    e = np.exp(1 / temperature)
    loss = np.log(1 + 2 * np.exp((1 - e) / np.sqrt(e * e + 2) / temperature))
    identity = jnp.eye(3)[None]
    for found in local.token_alignment(identity, identity, np.ones((1, 3), bool), temperature=temperature):
        assert found == pytest.approx(loss, rel=1e-4, abs=1e-6)


def test_words_of_one_report_alone_are_told_apart(arrays):
    """No term crosses pairs: other words in one report change its own share of the loss only."""
    regions, words, mask = arrays
    alignment = jax.jit(local.token_alignment)
    each = [alignment(regions[[i]], words[[i]], mask[[i]]) for i in range(PAIRS)]
    assert sum(alignment(*arrays)) == pytest.approx(np.sum(each) / PAIRS, rel=1e-5)
    of_words, of_regions = each[2]
    assert of_words == pytest.approx(0, abs=1e-6) and of_regions > 0, "a report of one word has nothing to tell apart"


def test_padding_as_negative(arrays):
    """The released code's denominators: what stands in the padded slots then matters, and costs."""
    regions, words, mask = arrays
    alignment = jax.jit(partial(local.token_alignment, padding_is_negative=True))
    plain, counted = local.token_alignment(*arrays), alignment(*arrays)
    assert counted[0] > plain[0] + 0.01 and counted[1] == pytest.approx(float(plain[1]), rel=1e-6)
    other = np.where(mask[..., None], words, -words)
    assert abs(alignment(regions, other, mask)[0] - counted[0]) > 1e-3


def losses(regions, words, mask):
    alignment = local.token_alignment(regions, words, mask, word_weights=local.clipped(jnp.abs(words[..., 0]), mask))
    return jnp.stack([local.gloria(regions, words, mask), *alignment])


both = jax.jit(losses)
summed = jax.jit(jax.value_and_grad(lambda v, t, m: losses(v, t, m).sum(), argnums=(0, 1)))


def test_padding_and_order_are_nothing(arrays):
    regions, words, mask = arrays
    expected = both(*arrays)
    longer = np.concatenate([words, np.full((PAIRS, 3, WIDTH), 9.0, np.float32)], axis=1)
    padded = both(regions, longer, np.pad(mask, ((0, 0), (0, 3))))
    np.testing.assert_allclose(padded, expected, rtol=1e-5)
    filled = both(regions, np.where(mask[..., None], words, 1e3), mask)
    np.testing.assert_allclose(filled, expected, rtol=1e-5)
    pairs, order = [2, 0, 3, 1], [4, 1, 0, 5, 3, 2]
    np.testing.assert_allclose(both(*(x[pairs] for x in arrays)), expected, rtol=1e-5)
    np.testing.assert_allclose(both(regions[:, order], words[:, ::-1], mask[:, ::-1]), expected, rtol=1e-5)
    assert np.all(np.abs(both(regions[pairs], words, mask) - expected) > 1e-3), "but who belongs to whom is"


def test_reports_without_words_are_left_out(arrays):
    regions, words, mask = arrays
    without = np.concatenate([mask, np.zeros((2, WORDS), bool)])
    more = np.concatenate([regions, 3 * regions[:2]]), np.concatenate([words, 5 * words[1:3]])
    np.testing.assert_allclose(both(*more, without), both(*arrays), rtol=1e-5)
    value, gradients = summed(*more, without)
    assert np.isfinite(value)
    for gradient in gradients:
        assert np.all(np.isfinite(gradient)) and not np.any(gradient[PAIRS:]) and np.any(gradient[:PAIRS])
    value, gradients = summed(*more, np.zeros_like(without))
    assert value == 0 and not any(np.any(gradient) for gradient in gradients)


def test_half_precision_inputs_are_computed_in_full(arrays):
    regions, words, mask = arrays
    halves = [jnp.asarray(x, jnp.bfloat16) for x in (regions, words)]
    value, gradients = summed(*halves, mask)
    expected, exact = summed(*(x.astype(jnp.float32) for x in halves), mask)
    assert value.dtype == jnp.float32 and value == pytest.approx(float(expected), rel=1e-6)
    for gradient, reference in zip(gradients, exact, strict=True):
        np.testing.assert_allclose(np.float32(gradient), reference, rtol=1e-2, atol=1e-3 * np.abs(reference).max())


def test_extreme_vectors_are_finite():
    """All the same, zeros, and long ones at a temperature of 0.01."""
    mask = np.ones((2, 3), bool)

    @jax.jit
    @jax.value_and_grad
    def loss(x):
        return local.gloria(x, x, mask) + sum(local.token_alignment(x, x, mask, temperature=0.01))

    for x in (jnp.ones((2, 3, 4)), jnp.zeros((2, 3, 4)), 1e4 * jnp.eye(3, 4)[None].repeat(2, 0)):
        value, gradient = loss(x)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_chunks_change_memory_alone(arrays):
    regions, words, mask = arrays

    def value_and_gradient(chunks):
        loss = jax.value_and_grad(lambda *a: local.gloria(*a, chunks=chunks), argnums=(0, 1))
        return jax.jit(loss)

    value, gradients = value_and_gradient(1)(*arrays)
    found, of_chunks = value_and_gradient(2)(*arrays)
    assert found == pytest.approx(float(value), rel=1e-6)
    for a, b in zip(of_chunks, gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((32, 64, 16), (32, 24, 16))]
    shapes.append(jax.ShapeDtypeStruct((32, 24), bool))
    bytes_held = [value_and_gradient(c).lower(*shapes).compile().memory_analysis().temp_size_in_bytes for c in (1, 8)]
    assert bytes_held[1] < bytes_held[0] / 4
    with pytest.raises(ValueError, match="4 reports do not divide into 3 chunks"):
        local.gloria(*arrays, chunks=3)
    with pytest.raises(ValueError, match="one of sum, mean, got 'max'"):
        local.gloria(*arrays, aggregate="max")


def test_one_device_is_eight():
    rng = np.random.default_rng(2)
    regions, words = (rng.normal(size=(16, n, 8)).astype(np.float32) for n in (9, 6))
    batch = {"regions": regions, "words": words, "mask": rng.uniform(size=(16, 6)) < 0.6}

    @jax.jit
    def run(batch):
        plain = local.gloria(batch["regions"], batch["words"], batch["mask"], chunks=4)
        return jnp.stack([plain, *local.token_alignment(batch["regions"], batch["words"], batch["mask"])])

    one, eight = (run(parallel.to_global(batch, parallel.make_mesh({"data": d}))) for d in (1, 8))
    np.testing.assert_allclose(one, eight, rtol=2e-5)


def test_clipped():
    """Eleven weights 0…10: their 10th and 90th percentiles are 1 and 9; padding has no say in them."""
    row = np.arange(11.0)
    expected = np.clip(row, 1, 9) / 55
    weights = np.stack([np.append(row, 1e6), np.append(row, 0.0)])
    mask = np.stack([np.arange(12) < 11, np.zeros(12, bool)])
    found = local.clipped(jnp.asarray(weights), mask)
    np.testing.assert_allclose(found[0], np.append(expected, 0), rtol=1e-6)
    assert not np.any(found[1]), "a row of padding is 0 and not NaN"
    assert not np.any(jax.grad(lambda w: (local.clipped(w, mask) ** 2).sum())(jnp.asarray(weights)))
