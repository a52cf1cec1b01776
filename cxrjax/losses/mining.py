"""FaNe's losses: which reports mean the same, the hardest pictures and reports, and sentences of one report.

Every argument is the whole batch. Similarities are float32 at full matmul precision.
Source: Zhang et al., AAAI 2026 (2511.12215), released code.
"""

import jax
import jax.numpy as jnp

from cxrjax.losses.pairs import NEVER, diagonal, mean_where, normalise, pairwise, products


def centroid_cosine(r: jax.Array) -> jax.Array:
    """Mean cosine of the rows with their mean, r M e: how far all of them point one way. No gradient."""
    r = normalise(jax.lax.stop_gradient(r))
    return jnp.mean(r @ normalise(r.mean(axis=0)))


def same_meaning(r: jax.Array, offset: jax.Array | float, threshold: float) -> jax.Array:
    """Pairs of reports that count as the same, bool M M: (cos − o) / (1 − o + 1e-6) > θ, and the diagonal.

    r: M e, vectors of reports. offset: o, a running `centroid_cosine`. No gradient.
    """
    r = normalise(jax.lax.stop_gradient(r))
    return ((pairwise(r, r) - offset) / (1 - offset + 1e-6) > threshold) | diagonal(len(r))


def hard_negatives(x: jax.Array, positives: jax.Array, temperature: float) -> jax.Array:
    """1/M Σ_i Σ_j w_ij l_ij over the j that are no positives of i, l = cos / τ and w = softmax over these of l / τ.

    x: M d, of one kind, any length. positives: M M bool. 0 for a row without negatives. This is the logit of the
    hardest negative, more or less, and has no least value above −1/τ; it is what the released code minimises.
    """
    x = normalise(x)
    logits = pairwise(x, x) / temperature
    weights = jax.nn.softmax(jnp.where(positives, NEVER, logits / temperature), axis=1)
    return jnp.sum(jnp.where(positives, 0.0, weights * logits)) / len(x)


def own_sentence(
    sentences: jax.Array, seen: jax.Array, count: jax.Array, temperature: float, single: bool = False
) -> jax.Array:
    """Mean over reports of ½ [CE of e_k among the c, CE of c_k among the e], means over their sentences k.

    sentences, seen: e and c, b s d, any length; the first count (b) of s are there. single: a report of one sentence
    counts as 0, as in the released code; by default it does not count.
    """
    there = jnp.arange(sentences.shape[1]) < count[:, None]  # b s
    logits = products(normalise(sentences), normalise(seen)) / temperature  # b s s
    both = there[:, :, None] & there[:, None, :]
    logits = jnp.where(both, logits, NEVER)
    own = jnp.einsum("bss->bs", logits)
    surprise = (jax.nn.logsumexp(logits, axis=2) + jax.nn.logsumexp(logits, axis=1)) / 2 - own
    of_reports = jnp.sum(jnp.where(there, surprise, 0.0), axis=1) / jnp.maximum(count, 1)
    return mean_where(of_reports, count > (0 if single else 1))


def mean_of_pairs(values: jax.Array, count: jax.Array) -> jax.Array:
    """Mean over reports of the mean over their sentences and all patches. values: b s n; the first count (b) of s."""
    there = jnp.arange(values.shape[1]) < count[:, None]
    of_reports = jnp.sum(values.mean(axis=2) * there, axis=1) / jnp.maximum(count, 1)
    return mean_where(of_reports, count > 0)
