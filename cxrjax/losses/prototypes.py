"""Agreement by prototypes: what one view is assigned to, spread evenly over the prototypes, is predicted from another.

Swapped prediction of SwAV (Caron et al., NeurIPS 2020, eq. 2–4), as MGCA takes it between picture and report. Every
argument is the whole batch; codes balance over all of it. All numbers are float32.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from cxrjax.losses.pairs import NEVER, mean_where


def codes(
    scores: jax.Array,
    *,
    epsilon: float | jax.Array,
    iterations: int = 3,
    valid: jax.Array | None = None,
    shift: bool = True,
) -> jax.Array:
    """Soft assignments b k by Sinkhorn–Knopp: rows sum to 1, columns tend to b / k; float32, without gradient.

    scores: b k, products of vectors and prototypes. valid: b bool, rows to be balanced; the others' codes are 0 and
    change nothing, and with none valid all are 0. Each iteration gives every prototype the same share of the rows, then
    every row the sum 1. All is computed in logarithms, where no epsilon overflows. shift=False overflows as released
    code does, which takes exp(scores / epsilon) as it is: scores above 88.7 · epsilon give no numbers.
    """
    log_q = jax.lax.stop_gradient(scores).astype(jnp.float32) / epsilon
    if not shift:
        log_q = jnp.where(log_q > jnp.log(jnp.finfo(jnp.float32).max), jnp.inf, log_q)
    kept = jnp.ones((len(scores), 1), bool) if valid is None else valid[:, None]
    log_q = jnp.where(kept, log_q, NEVER)
    for _ in range(iterations):
        log_q = log_q - jax.nn.logsumexp(log_q, axis=0, keepdims=True)
        # A row that is left out must not come back with equal shares.
        log_q = jnp.where(kept, jax.nn.log_softmax(log_q), NEVER)
    return jnp.where(kept, jnp.exp(log_q), 0.0)


def assignment(scores: jax.Array, codes: jax.Array, temperature: float, valid: jax.Array | None = None) -> jax.Array:
    """Mean over the valid rows of −Σ_k q_k log softmax(z / τ)_k; 0 where none is valid.

    scores: b k of the view that predicts. codes: b k of the other view, taken as they are. valid: b bool.
    """
    log_p = jax.nn.log_softmax(scores.astype(jnp.float32) / temperature)
    rows = -jnp.sum(jax.lax.stop_gradient(codes) * log_p, axis=-1)
    return rows.mean() if valid is None else mean_where(rows, valid)


def swapped(
    scores: Mapping[str, jax.Array],
    pairs: Sequence[tuple[str, str]],
    *,
    epsilon: float,
    temperature: float,
    valid: Mapping[str, jax.Array] | None = None,
    iterations: int = 3,
    shift: bool = True,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean of `assignment` over pairs (who predicts, whose codes), and the codes by name.

    scores: b k by name, of views of the same b examples. valid: b bool of those views that some examples lack; a pair
    counts where both of its views are there. The others as in `codes` and `assignment`.
    """
    valid = valid or {}
    found = {
        name: codes(z, epsilon=epsilon, iterations=iterations, valid=valid.get(name), shift=shift)
        for name, z in scores.items()
    }
    terms = []
    for one, other in pairs:
        masks = [valid[name] for name in (one, other) if name in valid]
        both = masks[0] & masks[-1] if masks else None
        terms.append(assignment(scores[one], found[other], temperature, both))
    return jnp.asarray(sum(terms)) / len(terms), found
