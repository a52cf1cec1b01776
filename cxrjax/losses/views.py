"""Agreement of two pictures of one study, word by word of its report, on global arrays."""

import jax
import jax.numpy as jnp

from cxrjax.losses.contrastive import normalise


def word_alignment(
    u: jax.Array, v: jax.Array, valid: jax.Array, *, temperature: float, studies: jax.Array | None = None
) -> jax.Array:
    """What word i hears in one view is to be told from what the study's other words hear in the other view.

    u, v: b l d, what the words of each report read from either picture, any length (rows are normalised here).
    valid: b l bool, the positions that are words. studies: b bool, those that have both pictures; None: all.
    Returns ½ Σ over both directions of the mean over a study's words, then over the studies that have both pictures
    and a word, of −log softmax_j(u_i · v_j / τ)_i; 0 where there is no such study. Float32.
    Source: F-L (Qiao, Gong et al., IEEE TMI 2026), released code, where every position is valid.
    """
    u, v = normalise(u), normalise(v)
    precision = jax.lax.Precision.HIGHEST
    logits = jnp.einsum("bid,bjd->bij", u, v, precision=precision) / temperature
    positive = jnp.sum(u * v, axis=-1) / temperature
    # A position that is no word keeps itself alone, so that its row gives 0 and no infinity.
    compared = (valid[:, :, None] & valid[:, None, :]) | jnp.eye(u.shape[1], dtype=bool)
    logits = jnp.where(compared, logits, -1e30)
    both = sum(jax.nn.logsumexp(logits, axis=axis) - positive for axis in (1, 2)) / 2  # b l
    words = valid.sum(axis=-1)
    rows = jnp.sum(jnp.where(valid, both, 0.0), axis=-1) / jnp.maximum(words, 1)
    counted = (words > 0) if studies is None else studies & (words > 0)
    return jnp.sum(jnp.where(counted, rows, 0.0)) / jnp.maximum(counted.sum(), 1)
