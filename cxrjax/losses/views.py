"""Agreement of the pictures and the report of one study, where some studies lack a picture; on global arrays."""

import jax
import jax.numpy as jnp

from cxrjax.losses.contrastive import info_nce
from cxrjax.losses.pairs import NEVER, diagonal, mean_where, normalise, products


def word_alignment(
    u: jax.Array, v: jax.Array, valid: jax.Array, *, temperature: float, studies: jax.Array | None = None
) -> jax.Array:
    """What word i reads in one view should be told from what the study's other words read in the other view.

    u, v: b l d, what the words of each report read in either picture, of any length (rows are normalised here).
    valid: b l bool, the positions that are words. studies: b bool, those that have both pictures; None: all.
    Returns ½ Σ over both directions of the mean over a study's words, then over the studies that have both pictures
    and a word, of −log softmax_j(u_i · v_j / τ)_i; 0 where there is no such study. Float32.
    Source: F-L (Qiao, Gong et al., IEEE TMI 2026), released code, where every position is valid.
    """
    return mean_where(*word_errors(u, v, valid, temperature=temperature, studies=studies))


def word_errors(
    u: jax.Array, v: jax.Array, valid: jax.Array, *, temperature: float, studies: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """What `word_alignment` is the mean of: a number for every study, b, and which of them count, b bool."""
    u, v = normalise(u), normalise(v)
    logits = products(u, v) / temperature
    positive = jnp.sum(u * v, axis=-1) / temperature
    # A position that is no word keeps itself alone, so that its row gives 0 and no infinity.
    compared = (valid[:, :, None] & valid[:, None, :]) | diagonal(u.shape[1])
    logits = jnp.where(compared, logits, NEVER)
    both = sum(jax.nn.logsumexp(logits, axis=axis) - positive for axis in (1, 2)) / 2  # b l
    words = valid.sum(axis=-1)
    rows = jnp.sum(jnp.where(valid, both, 0.0), axis=-1) / jnp.maximum(words, 1)
    return rows, (words > 0) if studies is None else studies & (words > 0)


def counted_info_nce(
    u: jax.Array, v: jax.Array, counted: jax.Array, *, temperature: float, groups: int = 1, chunks: int = 1
) -> jax.Array:
    """Symmetric InfoNCE over the counted rows alone, as if the others were not in the batch; 0 where none is counted.

    u, v: M d, any length. counted: M bool. groups: negatives only within M/groups consecutive rows, as far as they are
    counted. chunks: as in `contrastive.info_nce`. Returns the mean over the counted rows of all groups.
    Raises ValueError where the groups do not divide M.
    """
    m = len(u)
    if m % groups:
        raise ValueError(f"a batch of {m} cannot be cut into groups={groups} of equal size")
    # A row that is not counted is made a group of its own, and 0: its loss is 0 and has no gradient.
    group = jnp.where(counted, jnp.arange(m) // (m // groups), -1 - jnp.arange(m))
    u, v = (jnp.where(counted[:, None], x, 0.0) for x in (u, v))
    total = m * info_nce(u, v, temperature=temperature, exclude=group[:, None] != group, chunks=chunks)
    return total / jnp.maximum(counted.sum(), 1)
