"""Hand-computed values of SIA and STA, and plain loops for their values and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import parallel
from cxrjax.losses import alignment, contrastive, pairs

EYE3 = np.eye(3)[None]
ALL = {"mode": "info_nce", "target_temperature": 0.1, "threshold": 0.95, "neutral": 0.9}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def loop_sia(u, w, e, temperature, mode, target_temperature=0.1, threshold=0.95, neutral=0.9):
    """Both directions, row by row and pair by pair, in float64."""
    u, w, e = (unit(np.float64(x)) for x in (u, w, e))
    m, total = len(u), 0.0
    for one, other in ((u, w), (w, u)):
        for i in range(m):
            s = [1.0 if i == j else float(np.clip(e[i] @ e[j], -1, 1)) for j in range(m)]
            if mode == "soft":
                raw, kept = [np.exp(x / target_temperature) for x in s], list(range(m))
            elif mode == "mask":
                raw = [float(j == i) for j in range(m)]
                kept = [j for j in range(m) if j == i or s[j] < threshold]
            else:
                raw = [float(j == i or s[j] >= threshold) for j in range(m)]
                kept = [j for j in range(m) if raw[j] or mode == "multi_positive" or s[j] < neutral]
            y = np.array(raw) / sum(raw)
            logits = one[i] @ other.T / temperature
            log_all = np.log(sum(np.exp(logits[k]) for k in kept))
            total -= sum(y[j] * (logits[j] - log_all) for j in kept) / m
    return total / 2


def loop_weights(s, sparsity):
    low, high = min(s), max(s)
    if high - low < 1e-6:
        return np.full(len(s), 1 / len(s))
    scaled = [(x - low) / (high - low) for x in s]
    kept = np.array([x if x >= sparsity else 0 for x in scaled])
    return kept / kept.sum()


def loop_one_way(queries, keys, sparsity, temperature, equal):
    """Mean over the queries of one example."""
    seen = np.stack([unit(loop_weights(keys @ q, sparsity) @ keys) for q in queries])
    total = 0.0
    for i in range(len(queries)):
        rivals = [k for k in range(len(queries)) if k == i or not equal[i][k]]
        for one, other in ((seen, queries), (queries, seen)):
            total += np.log(sum(np.exp(one[i] @ other[k] / temperature) for k in rivals))
            total -= one[i] @ other[i] / temperature
    return total / (2 * len(queries))


def loop_sta(words, patches, mask, temperature, sparsity=None, average="reports", both_ways=False, equal=None):
    losses, shares = [], []
    for i in range(len(words)):
        t, v = unit(np.float64(words[i][mask[i]])), unit(np.float64(patches[i]))
        length = len(t)
        if length == 0:
            continue
        none = np.zeros((max(length, len(v)),) * 2, bool)
        alike = none if equal is None else equal[i][mask[i]][:, mask[i]]
        loss = loop_one_way(t, v, 1 / len(v) if sparsity is None else sparsity, temperature, alike)
        if both_ways:
            loss = (loss + loop_one_way(v, t, 1 / length, temperature, none)) / 2
        losses.append(loss)
        shares.append({"reports": float(length > 1), "all_reports": 1.0, "words": length}[average])
    return np.dot(losses, shares) / max(sum(shares), 1)


def numeric_gradient(f, x, eps=1e-6):
    x = np.float64(x)
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[index] = eps
        gradient[index] = (f(x + step) - f(x - step)) / (2 * eps)
    return gradient


sia = jax.jit(
    alignment.sia, static_argnames=("mode", "target_temperature", "threshold", "neutral", "direction", "groups")
)
compiled_sta = jax.jit(alignment.sta, static_argnames=("sparsity", "average", "both_ways"))
weights = jax.jit(alignment.weights)


def sta(words, patches, mask=None, temperature=1.0, **options):
    words = jnp.asarray(words, jnp.float32)
    mask = jnp.ones(words.shape[:2], bool) if mask is None else jnp.asarray(mask)
    return compiled_sta(words, jnp.asarray(patches, jnp.float32), mask, temperature=temperature, **options)


@pytest.fixture(scope="module")
def batch():
    """Six pairs; reports 0 and 4 are equal and 2 resembles 0, with no similarity near a threshold."""
    rng = np.random.default_rng(0)
    u, w, e = (rng.normal(size=(6, n)).astype(np.float32) for n in (4, 4, 3))
    e[4] = e[0]
    e[2] = e[0] + 0.3 * e[2]
    return u, w, e


MODES = [
    {"mode": "soft"},
    {"mode": "soft", "target_temperature": 0.5},
    {"mode": "mask", "threshold": 0.8},
    {"mode": "multi_positive", "threshold": 0.8},
    {"mode": "triage", "threshold": 0.99, "neutral": 0.3},
]


@pytest.mark.parametrize(
    ("options", "dtype"), [(mode, jnp.float32) for mode in MODES] + [(MODES[0], jnp.bfloat16)], ids=str
)
def test_sia_is_the_loop(batch, options, dtype):
    u, w, e = (np.asarray(jnp.asarray(x, dtype), np.float32) for x in batch)

    @jax.jit
    def ours(u, w):
        return sia(u, w, e, temperature=0.3, **options)[0]

    value, (by_u, by_w) = jax.value_and_grad(ours, argnums=(0, 1))(jnp.asarray(u, dtype), jnp.asarray(w, dtype))
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    expected = numeric_gradient(lambda x: loop_sia(x, w, e, 0.3, **options), u)
    np.testing.assert_allclose(np.float32(by_u), expected, atol=tolerance)
    expected = numeric_gradient(lambda x: loop_sia(u, x, e, 0.3, **options), w)
    np.testing.assert_allclose(np.float32(by_w), expected, atol=tolerance)


def test_value_of_info_nce():
    """Mean of the directions, and MGCA's sum."""
    for direction, expected in (("mean", 0.3132617), ("sum", 0.6265234)):
        value, _ = sia(np.eye(2), np.eye(2), np.eye(2), temperature=1.0, mode="info_nce", direction=direction)
        assert float(value) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "own_reports"),
    [
        ({"mode": "soft", "target_temperature": 1e-3}, True),
        ({"mode": "mask", "threshold": 1.1}, False),
        ({"mode": "multi_positive", "threshold": 1.1}, False),
        ({"mode": "triage", "threshold": 1.2, "neutral": 1.1}, False),
        ({"mode": "info_nce"}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("groups", [1, 2])
def test_limits_are_info_nce(batch, options, own_reports, groups):
    """Value and gradient."""
    u, w, e = batch
    e = np.eye(6) if own_reports else e
    options = {"temperature": 0.07, "groups": groups, **options}

    @jax.jit
    def both(u, w):
        plain = jax.value_and_grad(partial(contrastive.info_nce, temperature=0.07, groups=groups), argnums=(0, 1))
        return jax.value_and_grad(lambda *x: sia(*x, e, **options)[0], argnums=(0, 1))(u, w), plain(u, w)

    (value, gradient), (expected, by_hand) = both(u, w)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), gradient, by_hand)


def test_soft_value():
    """Where softmax(ℓ) is the target, the loss is its entropy and nothing moves."""
    e = np.array([[1, 0], [0.5, np.sqrt(0.75)]], np.float32)

    def loss(scale, temperature=1.0):
        return sia(scale * np.eye(2), np.eye(2), e, temperature=temperature, mode="soft", target_temperature=0.5)

    y, kept = alignment.targets(
        alignment.likeness(jnp.asarray(e)), **{**ALL, "mode": "soft", "target_temperature": 0.5}
    )
    np.testing.assert_allclose(y, [[0.7310586, 0.2689414], [0.2689414, 0.7310586]], atol=1e-6)
    assert np.all(kept)
    value, report = loss(1.0)
    assert float(value) == pytest.approx(0.5822031, abs=1e-6)
    assert float(report["target_entropy"]) == pytest.approx(0.5822031, abs=1e-6)
    assert float(report["kl"]) == pytest.approx(0, abs=1e-6)
    assert float(report["target_own"]) == pytest.approx(0.7310586, abs=1e-6)
    gradient = jax.grad(lambda temperature: loss(1.0, temperature)[0])(1.0)
    assert float(gradient) == pytest.approx(0, abs=1e-6)  # ℓ scales with 1/τ


def test_mask_value():
    """Two of three reports alike, all logits equal."""
    u, e = np.zeros((3, 2)), np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    for mode, expected, masked in (
        ("mask", 0.8283022, 1 / 3),
        ("multi_positive", np.log(3), 0),
        ("info_nce", np.log(3), 0),
    ):
        value, report = sia(u, u, e, temperature=1.0, mode=mode)
        assert float(value) == pytest.approx(expected, abs=1e-6)
        assert float(report["masked"]) == pytest.approx(masked, abs=1e-6)


@pytest.mark.parametrize(("mode", "expected"), [("soft", np.log(4)), ("mask", 0.0), ("multi_positive", np.log(4))])
def test_all_reports_equal(mode, expected):
    """At constant logits uniform targets are met; a mask leaves each row its own pair only."""
    same, e = np.ones((4, 3), np.float32), np.tile(np.float32([0.6, 0.48, 0.64]), (4, 1))
    value, gradient = jax.value_and_grad(lambda u: sia(u, same, e, temperature=0.07, mode=mode)[0])(same)
    assert float(value) == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    spread = np.random.default_rng(0).normal(size=(4, 3))
    worse = float(sia(spread, spread, e, temperature=0.07, mode=mode)[0])
    assert worse == 0 if mode == "mask" else worse > expected + 0.1


def test_duplicates_share_the_target():
    e = np.float32([[0.6, 0.8], [0.6, 0.8], [-0.8, 0.6]])
    y, _ = alignment.targets(alignment.likeness(jnp.asarray(e)), **{**ALL, "mode": "soft", "target_temperature": 1e-3})
    np.testing.assert_allclose(y, [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]], atol=1e-3)


@pytest.mark.parametrize(("mode", "kept"), [("mask", 8), ("multi_positive", 64)])
def test_equal_reports_are_equal_at_a_threshold_of_one(mode, kept):
    """In float32 the cosine of a vector with itself may be 1 − 2⁻²³."""
    e = jnp.tile(jax.random.normal(jax.random.key(0), (1, 384)), (8, 1)).at[::2].multiply(3.7)
    y, left = alignment.targets(alignment.likeness(e), **{**ALL, "mode": mode, "threshold": 1.0})
    assert int(left.sum()) == kept and int((y > 0).sum()) == kept


@pytest.mark.parametrize("options", MODES, ids=str)
def test_order_of_the_batch(batch, options):
    u, w, e = batch
    order = np.random.default_rng(1).permutation(len(u))
    value = float(sia(u, w, e, temperature=0.3, **options)[0])
    assert float(sia(u[order], w[order], e[order], temperature=0.3, **options)[0]) == pytest.approx(value, rel=1e-5)
    assert abs(float(sia(u, w[order], e[order], temperature=0.3, **options)[0]) - value) > 1e-3


@pytest.mark.parametrize("options", [MODES[0], MODES[-1]], ids=str)
def test_targets(batch, options):
    """No gradient reaches the reports' vectors; rows sum to 1, are 0 where masked, and the own is the largest."""
    u, w, e = batch
    assert not np.any(jax.grad(lambda e: sia(u, w, e, temperature=0.3, **options)[0])(e))
    assert not np.any(jax.grad(lambda e: alignment.intra_modal(jnp.asarray(u), e, temperature=0.3))(e))
    y, kept = alignment.targets(alignment.likeness(jnp.asarray(e)), **{**ALL, **options})
    np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-6)
    assert not np.any(np.asarray(y)[~np.asarray(kept)])
    assert np.all(np.diagonal(y) >= y.max(axis=1) - 1e-6) and np.all(np.diagonal(kept))


def test_each_direction_has_rows_of_its_own(batch):
    """Yᵀ is not row-stochastic; the reports' targets are softmax rows of Sᵀ = S."""
    u, w, e = batch
    y, _ = alignment.targets(alignment.likeness(jnp.asarray(e)), **{**ALL, "mode": "soft", "target_temperature": 1.0})
    assert np.abs(np.asarray(y).sum(axis=0) - 1).max() > 0.1
    logits = pairs.pairwise(pairs.normalise(u), pairs.normalise(w))
    halves = [-jnp.mean(jnp.sum(y * jax.nn.log_softmax(x, axis=1), axis=1)) for x in (logits, logits.T)]
    value, _ = sia(u, w, e, temperature=1.0, target_temperature=1.0)
    assert float(value) == pytest.approx(float(sum(halves)) / 2, rel=1e-6)


def test_groups_are_separate_batches(batch):
    u, w, e = batch
    parts = [float(sia(u[i : i + 3], w[i : i + 3], e[i : i + 3], temperature=0.3)[0]) for i in (0, 3)]
    assert float(sia(u, w, e, temperature=0.3, groups=2)[0]) == pytest.approx(np.mean(parts), rel=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_intra_modal_is_the_loop(batch, dtype):
    u, _, e = (np.asarray(jnp.asarray(x, dtype), np.float32) for x in batch)

    def loop(u):
        u, v, total = unit(np.float64(u)), unit(np.float64(e)), 0.0
        for i in range(len(u)):
            others = [j for j in range(len(u)) if j != i]
            p, q = (np.exp([x[i] @ x[j] / t for j in others]) for x, t in ((v, 0.2), (u, 0.3)))
            p, q = p / p.sum(), q / q.sum()
            total += np.sum(p * np.log(p / q))
        return total / len(u)

    def ours(u):
        return alignment.intra_modal(u, jnp.asarray(e, dtype), temperature=0.3, target_temperature=0.2)

    value, gradient = jax.value_and_grad(ours)(jnp.asarray(u, dtype))
    assert float(value) == pytest.approx(loop(u), abs=1e-5)
    np.testing.assert_allclose(
        np.float32(gradient), numeric_gradient(loop, u), atol=1e-5 if dtype == jnp.float32 else 1e-2
    )
    same = alignment.intra_modal(jnp.asarray(e), jnp.asarray(e), temperature=0.2, target_temperature=0.2)
    assert float(same) == pytest.approx(0, abs=1e-6)
    assert float(ours(jnp.asarray(u[:1]))) == 0


@pytest.mark.parametrize(
    ("s", "sparsity", "expected"),
    [
        ((0, 2, 4, 1), 1 / 4, (0, 2 / 7, 4 / 7, 1 / 7)),  # the threshold itself is kept
        ((0, 2, 4, 1), 0.3, (0, 1 / 3, 2 / 3, 0)),
        ((0, 2, 4, 1), 0.0, (0, 2 / 7, 4 / 7, 1 / 7)),  # all but the worst
        ((0, 4, 4, 1), 1.0, (0, 1 / 2, 1 / 2, 0)),  # ties of the best share
        ((3, 3, 3, 3), 1.0, (1 / 4, 1 / 4, 1 / 4, 1 / 4)),
        ((-7,), 0.5, (1,)),
    ],
)
def test_attention_by_hand(s, sparsity, expected):
    a = weights(jnp.asarray([s], jnp.float32), jnp.ones((1, len(s)), bool), sparsity)
    np.testing.assert_allclose(a[0], expected, atol=1e-7)


def test_attention_properties():
    """A distribution, best kept, worst dropped, blind to scale and offset, to invalid keys and to their order."""
    s = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    valid = np.ones((20, 7), bool)
    a = np.asarray(weights(s, valid, 1 / 7))
    np.testing.assert_allclose(a.sum(axis=1), 1, atol=1e-6)
    rows = np.arange(20)
    assert np.all(a >= 0) and np.all(a[rows, s.argmax(1)] == a.max(1)) and not np.any(a[rows, s.argmin(1)])
    np.testing.assert_allclose(weights(3 * s - 5, valid, 1 / 7), a, atol=1e-5)
    np.testing.assert_allclose(weights(s[:, ::-1], valid, 1 / 7)[:, ::-1], a, atol=1e-6)
    longer = np.concatenate([s, np.full((20, 2), 9, np.float32)], axis=1)
    valid = np.concatenate([valid, np.zeros((20, 2), bool)], axis=1)
    np.testing.assert_allclose(weights(longer, valid, 1 / 7)[:, :7], a, atol=1e-6)
    assert not np.any(weights(s, np.zeros((20, 7), bool), 1 / 7))
    np.testing.assert_array_equal(np.argmax(weights(s, valid[:, :7], 1.0), 1), s.argmax(1))


@pytest.mark.parametrize(
    ("average", "expected"), [("reports", 0.5514447), ("all_reports", 0.2757224), ("words", 0.4135835)]
)
def test_averages(average, expected):
    """A report of one word and one of three."""
    t, mask = np.concatenate([EYE3, EYE3]), np.array([[True, False, False], [True, True, True]])
    value, _ = sta(t, t, mask, average=average)
    assert float(value) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.5514447), (0.1, 9.08e-5)])
def test_matched_words(temperature, expected):
    """ln(1 + 2 exp(−1/τ)), whether words or patches ask."""
    for both_ways in (False, True):
        value, report = sta(EYE3, EYE3, temperature=temperature, both_ways=both_ways)
        assert float(value) == pytest.approx(expected, abs=1e-6)
    assert float(report["survivors"]) == float(report["effective_patches"]) == 1


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.4220276), (0.1, 0.0016465)])
def test_full_hand_case(temperature, expected):
    t, v = np.array([[[1.0, 0], [0, 1]]]), np.array([[[1.0, 0], [0.6, 0.8], [0, 1]]])
    a = weights(jnp.einsum("bqd,bkd->bqk", t, v), jnp.ones((1, 1, 3), bool), 1 / 3)
    np.testing.assert_allclose(a[0], [[0.625, 0.375, 0], [0, 0.4444444, 0.5555556]], atol=1e-6)
    value, report = sta(t, v, temperature=temperature)
    assert float(value) == pytest.approx(expected, abs=1e-6)
    assert float(report["survivors"]) == 2
    effective = (1 / (0.625**2 + 0.375**2) + 1 / (16 / 81 + 25 / 81)) / 2
    assert float(report["effective_patches"]) == pytest.approx(effective, rel=1e-5)


@pytest.fixture(scope="module")
def tokens():
    """Three reports of 4, 2 and 1 words and one of none, with 5 patches; words 0 and 3 of the first are equal."""
    rng = np.random.default_rng(3)
    words, patches = rng.normal(size=(4, 4, 3)).astype(np.float32), rng.normal(size=(4, 5, 3)).astype(np.float32)
    equal = np.zeros((4, 4, 4), bool)
    equal[0, 0, 3] = equal[0, 3, 0] = True
    return words, patches, np.arange(4) < np.array([[4], [2], [1], [0]]), equal


WAYS = [
    ({}, False, jnp.float32),
    ({"sparsity": 0.5, "average": "words"}, True, jnp.float32),
    ({"both_ways": True, "average": "all_reports"}, False, jnp.float32),
    ({"both_ways": True, "sparsity": 0.3}, True, jnp.float32),
    ({}, False, jnp.bfloat16),
]


@pytest.mark.parametrize(("options", "masks_equal", "dtype"), WAYS, ids=str)
def test_sta_is_the_loop(tokens, options, masks_equal, dtype):
    """With a report of one word and one of none, in both precisions."""
    words, patches, mask, equal = tokens
    words, patches = (np.asarray(jnp.asarray(x, dtype), np.float32) for x in (words, patches))
    options = {**options, "equal": equal} if masks_equal else options

    @jax.jit
    def ours(words, patches):
        given = {**options, "equal": jnp.asarray(equal)} if masks_equal else options
        return alignment.sta(words, patches, jnp.asarray(mask), temperature=0.4, **given)[0]

    value, (by_word, by_patch) = jax.value_and_grad(ours, argnums=(0, 1))(
        jnp.asarray(words, dtype), jnp.asarray(patches, dtype)
    )
    tolerance = 2e-5 if dtype == jnp.float32 else 1e-2
    assert float(value) == pytest.approx(loop_sta(words, patches, mask, 0.4, **options), abs=1e-5)
    expected = numeric_gradient(lambda x: loop_sta(x, patches, mask, 0.4, **options), words)
    np.testing.assert_allclose(np.float32(by_word), expected, atol=tolerance)
    expected = numeric_gradient(lambda x: loop_sta(words, x, mask, 0.4, **options), patches)
    np.testing.assert_allclose(np.float32(by_patch), expected, atol=tolerance)


def test_sta_ignores_order_padding_and_other_reports(tokens):
    words, patches, mask, _ = tokens
    ways = {"temperature": 0.4, "both_ways": True}
    value = float(sta(words, patches, mask, **ways)[0])
    assert float(sta(words, patches[:, ::-1], mask, **ways)[0]) == pytest.approx(value, rel=1e-5)
    assert float(sta(words[:, ::-1], patches, mask[:, ::-1], **ways)[0]) == pytest.approx(value, rel=1e-5)
    longer = np.concatenate([words, np.full((4, 3, 3), 7, np.float32)], axis=1)
    padded = np.concatenate([mask, np.zeros((4, 3), bool)], axis=1)
    assert float(sta(longer, patches, padded, **ways)[0]) == pytest.approx(value, rel=1e-5)
    moved = np.concatenate([words[:1], words[1:] + 1])
    by_patch = jax.jit(jax.grad(lambda v, w: sta(w, v, mask, temperature=0.4)[0]))
    alone, other = by_patch(jnp.asarray(patches), words), by_patch(jnp.asarray(patches), moved)
    np.testing.assert_array_equal(alone[0], other[0])  # no other report's words
    assert np.any(alone[1] != other[1])


def test_one_word_costs_nothing():
    """Exactly 0 without gradient, and no batch of such reports divides by zero."""
    rng = np.random.default_rng(0)
    words, patches = (jnp.asarray(rng.normal(size=(2, n, 3)), jnp.float32) for n in (1, 4))

    for there in (True, False):
        mask = jnp.full((2, 1), there)
        assert all(float(sta(words, patches, mask, 0.4, average=a)[0]) == 0 for a in alignment.AVERAGES)
        assert not np.any(jax.grad(lambda v, mask=mask: sta(words, v, mask, 0.4)[0])(patches))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extremes_are_finite(dtype):
    """All vectors equal or zero, τ = 0.01, nothing but padding; all losses summed, so that any NaN shows."""
    modes = MODES if dtype == jnp.float32 else MODES[:1]

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def loss(x, tokens, mask):
        found = alignment.sta(tokens, tokens, mask, temperature=0.01, both_ways=True)[0]
        found += alignment.intra_modal(x, x, temperature=0.01)
        return found + sum(alignment.sia(x, x, x, temperature=0.01, **options)[0] for options in modes)

    for fill in (0.0, 1.0):
        for mask in (np.ones((4, 5), bool), np.zeros((4, 5), bool)):
            found = loss(jnp.full((4, 3), fill, dtype), jnp.full((4, 5, 3), fill, dtype), mask)
            assert all(np.all(np.isfinite(np.float32(part))) for part in jax.tree.leaves(found))


@pytest.mark.parametrize("mode", ["soft", "triage"])
def test_negatives_and_counts_are_those_of_all_devices(mode):
    """Value and gradient on 1 and on 8 devices, where the reports of most devices are of one word."""
    rng = np.random.default_rng(0)
    u, w, e = (rng.normal(size=(16, 4)).astype(np.float32) for _ in range(3))
    e[8:10] = e[:2]
    words, patches = (rng.normal(size=(16, n, 4)).astype(np.float32) for n in (3, 5))
    mask = np.arange(3) < np.where(np.arange(16) < 5, 3, 1)[:, None]

    def loss(u, w, e, words, patches, mask):
        both = alignment.sia(u, w, e, temperature=0.3, mode=mode, threshold=0.8, neutral=0.3)
        return both[0] + alignment.sta(words, patches, mask, temperature=0.3)[0]

    found = []
    for devices in (1, 8):
        shards = parallel.to_global(
            dict(enumerate((u, w, e, words, patches, mask))), parallel.make_mesh({"data": devices})
        )
        found.append(jax.device_get(jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 3, 4)))(*shards.values())))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)


def test_unknown_words_are_refused(batch):
    u, w, e = batch
    with pytest.raises(ValueError, match="mode must be one of soft, mask, .*got 'hard'"):
        sia(u, w, e, temperature=1.0, mode="hard")
    with pytest.raises(ValueError, match="neutral ≤ threshold, got 0.9 and 0.5"):
        sia(u, w, e, temperature=1.0, mode="triage", threshold=0.5)
    with pytest.raises(ValueError, match="direction must be one of mean, sum, got 'max'"):
        sia(u, w, e, temperature=1.0, direction="max")
    with pytest.raises(ValueError, match="average must be one of reports, .*got 'tokens'"):
        sta(EYE3, EYE3, average="tokens")
