"""Losses that align pictures with reports and know which reports are alike: SIA of reports, STA of words and patches.

Only the abstract of the paper (Bui et al., 2601.08165) is public to us. It names a contrast that is modified by the
similarity between reports, and an alignment of patches with the words that are relevant. The formulas are reconstructed
from the methods named beside them. Arguments are whole batches, as in `contrastive`; everything is computed in float32.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange

from cxrjax.losses.extrema import largest, smallest
from cxrjax.losses.pairs import NEVER, diagonal, mean_where, normalise, pairwise, products

MODES = ("soft", "mask", "multi_positive", "triage", "info_nce")
DIRECTIONS = ("mean", "sum")
AVERAGES = ("reports", "all_reports", "words")
_EPSILON = 1e-6  # of cosines: similarities that vary by less say nothing


def sia(
    u: jax.Array,
    w: jax.Array,
    e: jax.Array,
    *,
    temperature: float | jax.Array,
    mode: str = "soft",
    target_temperature: float = 0.1,
    threshold: float = 0.95,
    neutral: float = 0.9,
    direction: str = "mean",
    groups: int = 1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of u_i among all w_j, and of w_i among all u_j, against targets from the similarity of reports.

    u, w: pictures and their reports, M d; e: M e, whose cosines say how alike the reports are, without gradient. Rows
    may be of any length. A row of e that is zero is like no other. temperature: τ. mode, target_temperature, threshold,
    neutral: see `targets`. direction: "mean" of both, or their "sum", as MGCA has it. groups: as in
    `contrastive.info_nce`.

        ℓ_ij = û_i·ŵ_j / τ
        L_i2t = −1/M Σ_i Σ_j Y_ij [ℓ_ij − log Σ_k K_ik exp ℓ_ik];   L_t2i is the same on ℓᵀ, with Y and not Yᵀ

    Returns (scalar, report): target_entropy H(Y), the floor of the mean of both directions; kl, that mean less H(Y);
    target_own, mean Y_ii; masked, the share of pairs of two studies that are left out of the denominators.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    chosen = {"mode": mode, "target_temperature": target_temperature, "threshold": threshold, "neutral": neutral}
    if groups > 1:
        local = partial(sia, temperature=temperature, direction=direction, **chosen)
        values, reports = jax.vmap(local)(*(rearrange(x, "(g m) d -> g m d", g=groups) for x in (u, w, e)))
        return values.mean(), jax.tree.map(jnp.mean, reports)
    y, kept = targets(likeness(e), **chosen)
    logits = pairwise(normalise(u), normalise(w)) / temperature

    def one_way(logits):
        # Σ_j Y_ij = 1 and Y = 0 where K = 0, so what is left out adds nothing. The diagonal is kept: no row is empty.
        return jax.nn.logsumexp(jnp.where(kept, logits, NEVER), axis=1).mean() - jnp.sum(y * logits) / len(y)

    value = (one_way(logits) + one_way(logits.T)) / 2
    entropy = jnp.sum(jax.scipy.special.entr(y)) / len(y)
    report = {
        "target_entropy": entropy,
        "kl": value - entropy,
        "target_own": jnp.sum(jnp.where(diagonal(len(y)), y, 0)) / len(y),
        "masked": jnp.sum(~kept) / max(len(y) * (len(y) - 1), 1),
    }
    return value * (2 if direction == "sum" else 1), jax.lax.stop_gradient(report)


def likeness(e: jax.Array) -> jax.Array:
    """S, M M: cosines of the rows of e (M e) in [−1, 1] with 1 on the diagonal, without gradient."""
    e = normalise(jax.lax.stop_gradient(e))
    return jnp.where(diagonal(len(e)), 1.0, jnp.clip(pairwise(e, e), -1, 1))


def targets(
    s: jax.Array, *, mode: str, target_temperature: float, threshold: float, neutral: float
) -> tuple[jax.Array, jax.Array]:
    """What u_i should choose, Y M M with rows that sum to 1, and what it chooses from, K M M bool.

    s: similarity of reports, M M, 1 on the diagonal. mode:
        "soft"            Y_i = softmax_j(s_ij / target_temperature), all kept: MedCLIP's
        "mask"            the own report; others of s ≥ threshold are left out
        "multi_positive"  equal shares for the own report and all of s ≥ threshold: FaNe's positives in a softmax
        "triage"          as that, and those of neutral ≤ s < threshold are left out: SAT's three kinds
        "info_nce"        the own report among all, the baseline
    Raises ValueError for another mode, and for a neutral above the threshold in triage.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    if mode == "triage" and neutral > threshold:
        raise ValueError(f"triage needs neutral ≤ threshold, got {neutral} and {threshold}")
    s = s + 1e-6  # the cosine of two equal texts may be 1 − 2⁻²³, and must not be below a threshold of 1
    if mode == "soft":
        return jax.nn.softmax(s / target_temperature, axis=1), jnp.ones(s.shape, bool)
    positive = diagonal(len(s)) | ((s >= threshold) & (mode in ("multi_positive", "triage")))
    negative = s < {"mask": threshold, "triage": neutral}.get(mode, jnp.inf)
    return positive / positive.sum(axis=1, keepdims=True), positive | negative


def intra_modal(
    u: jax.Array, e: jax.Array, *, temperature: float | jax.Array, target_temperature: float = 0.1
) -> jax.Array:
    """KL(softmax_j≠i(s_ij / target_temperature) ‖ softmax_j≠i(û_i·û_j / τ)), mean over i.

    Two pictures should be as alike as their reports. u: M d, e: M e as in `sia`. 0 for a single row. Our reading of a
    summary that mentions intra-modal alignment.
    """
    if len(u) == 1:
        return jnp.zeros(())
    u, others = normalise(u), ~diagonal(len(u))

    def log_shares(logits):
        return jnp.where(others, jax.nn.log_softmax(jnp.where(others, logits, NEVER), axis=1), 0)

    p, q = log_shares(likeness(e) / target_temperature), log_shares(pairwise(u, u) / temperature)
    return jnp.sum(jnp.exp(p) * (p - q)) / len(u)


def sta(
    words: jax.Array,
    patches: jax.Array,
    word_mask: jax.Array,
    *,
    temperature: float | jax.Array,
    sparsity: float | None = None,
    average: str = "reports",
    both_ways: bool = False,
    equal: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Each word against the patches it attends to, among the words of its own report. SPARC, ICML 2024, section 3.

    words: b w d, word_mask: b w bool, patches: b n d; rows of any length. temperature: τ_l. sparsity: σ of `weights`;
    None is 1/n. average: over "reports" of two words or more (one word has nothing to be told from); "all_reports" with
    a word, as SPARC's equation; or "words", as its pseudo-code. equal: b w w bool, words that are no negatives.
    both_ways: also each patch against the words it attends to (σ = 1 / words), among the patches; the mean of the two.

        a_lp from s_lp = t̂_l·v̂_p by `weights`;  c_l = normalise(Σ_p a_lp v̂_p)
        L_i = 1/(2 L) Σ_l [CE_l over k of (c_l·t̂_k / τ_l) + CE_l over k of (t̂_l·c_k / τ_l)]

    Patches are normalised, as MGCA's. Returns (scalar, 0 where no report counts; report: means over all words of the
    survivors, patches with a > 0, and of the effective_patches, 1 / Σ_p a²).
    """
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {', '.join(AVERAGES)}; got {average!r}")
    t, v, n = normalise(words), normalise(patches), patches.shape[1]
    length, everywhere = word_mask.sum(axis=1), jnp.ones(v.shape[:2], bool)
    of_words, a = _one_way(t, v, word_mask, everywhere, 1 / n if sparsity is None else sparsity, temperature, equal)
    of_report = of_words.sum(axis=1) / jnp.maximum(length, 1)
    if both_ways:
        least = (1 / jnp.maximum(length, 1))[:, None, None]
        of_report = (of_report + _one_way(v, t, everywhere, word_mask, least, temperature)[0].mean(axis=1)) / 2
    weight = {"reports": length >= 2, "all_reports": length >= 1, "words": length}[average].astype(jnp.float32)
    value = jnp.sum(weight * of_report) / jnp.maximum(weight.sum(), 1)
    found = {"survivors": jnp.sum(a > 0, axis=-1), "effective_patches": 1 / jnp.sum(a * a, axis=-1)}
    report = {name: mean_where(x, word_mask) for name, x in found.items()}
    return value, jax.lax.stop_gradient(report)


def weights(s: jax.Array, valid: jax.Array, sparsity: float | jax.Array) -> jax.Array:
    """Sparse attention of similarities, … l n → … l n; rows sum to 1 where anything is valid.

    s: similarity of a query and each key; valid: bool, broadcast to s.
    ŝ = s from 0 (worst) to 1 (best) per row; a = ŝ·1[ŝ ≥ sparsity] / their sum. The best key is always kept and the
    worst never; a row that varies by less than 1e-6 attends to all alike. At sparsity 1 only the best is left.
    """
    valid = jnp.broadcast_to(valid, s.shape)
    low = smallest(jnp.where(valid, s, jnp.inf), -1)[..., None]
    high = largest(jnp.where(valid, s, -jnp.inf), -1)[..., None]
    alike = high - low < _EPSILON  # as well where nothing is valid
    low, span = jnp.where(alike, 0, low), jnp.where(alike, 1, high - low)
    scaled = jnp.where(alike, 1, (s - low) / span)
    # Compiled division may round (high − low) / span to less than 1.
    kept = jnp.where(valid & ((scaled >= sparsity) | (s == high) | alike), scaled, 0)
    return kept / jnp.maximum(kept.sum(axis=-1, keepdims=True), _EPSILON)


def _one_way(queries, keys, query_mask, key_mask, sparsity, temperature, equal=None):
    """Loss of every query among those of its example, b q (0 for padding), and what it attends to, b q k."""
    s = products(queries, keys)
    a = weights(s, key_mask[:, None, :], sparsity)
    seen = normalise(jnp.einsum("bqk,bkd->bqd", a, keys, precision="highest"))
    logits = products(seen, queries) / temperature
    against = query_mask[:, :, None] & query_mask[:, None, :]
    if equal is not None:
        against &= ~equal
    # Padding sees itself only, which costs nothing.
    logits = jnp.where(against | diagonal(logits.shape[-1]), logits, NEVER)
    rows, columns = jax.nn.logsumexp(logits, axis=2), jax.nn.logsumexp(logits, axis=1)
    positive = jnp.sum(seen * queries, axis=-1) / temperature
    return jnp.where(query_mask, (rows + columns) / 2 - positive, 0), a
