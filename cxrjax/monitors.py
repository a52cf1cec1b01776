"""What is watched but not optimised: numbers that show a collapse before a probe does. Global arrays, no gradient."""

import jax
import jax.numpy as jnp

from cxrjax.losses.pairs import diagonal, mean_where, normalise, pairwise


def embedding(u: jax.Array, v: jax.Array | None = None) -> dict[str, jax.Array]:
    """What a method reports of its vectors: u M d, and v M d of the same pictures' other view where there is one.

    Returns feature_std, effective_rank and uniformity of u, and with v also alignment and retrieval_top1.
    """
    found = {"feature_std": feature_std(u), "effective_rank": effective_rank(u), "uniformity": uniformity(u)}
    return found if v is None else found | {"alignment": alignment(u, v), "retrieval_top1": retrieval_top1(u, v)}


def feature_std(x: jax.Array) -> jax.Array:
    """Mean over d of the batch deviation of unit-length rows, times √d: 1 when spread out, 0 when collapsed."""
    x = normalise(jax.lax.stop_gradient(x))
    return jnp.std(x, axis=0).mean() * jnp.sqrt(x.shape[-1])


def effective_rank(x: jax.Array) -> jax.Array:
    """Participation ratio (Σλ)² / Σλ² of the covariance spectrum of x (M d): 1 when collapsed, at most min(M−1, d).

    Needs no eigenvalues, so it costs one small product a step: Σλ = tr C and Σλ² = ‖C‖²; the Gram matrix of the
    centred rows has the same non-zero spectrum and is used when M < d.
    """
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    x = x - x.mean(axis=0)
    gram = pairwise(x, x) if len(x) < x.shape[-1] else pairwise(x.T, x.T)
    return jnp.trace(gram) ** 2 / (jnp.sum(gram * gram) + 1e-12)


def retrieval_top1(u: jax.Array, v: jax.Array) -> jax.Array:
    """Share of rows u_i whose most similar row of v is v_i (chance: 1/M)."""
    u, v = (normalise(jax.lax.stop_gradient(x)) for x in (u, v))
    return jnp.mean(jnp.argmax(pairwise(u, v), axis=1) == jnp.arange(len(u)))


def alignment(u: jax.Array, v: jax.Array) -> jax.Array:
    """Mean ‖û_i − v̂_i‖² of unit rows: 0 when both views agree (a collapse does too), 2 when unrelated, at most 4.

    Source: Wang & Isola, ICML 2020 (2005.10242), section 4.1 with α = 2.
    """
    u, v = (normalise(jax.lax.stop_gradient(x)) for x in (u, v))
    return jnp.mean(jnp.sum((u - v) ** 2, axis=-1))


def uniformity(u: jax.Array) -> jax.Array:
    """log of the mean of exp(−2‖û_i − û_j‖²) over i ≠ j: 0 when collapsed, near −4 when spread over a wide sphere.

    Written as exp(4(s − 1)) of the cosines s, which lies in [e⁻⁸, 1] and costs one product of the rows. A single row
    gives 0. Source: Wang & Isola, ICML 2020 (2005.10242), section 4.1 with t = 2.
    """
    rows = len(u)
    if rows == 1:
        return jnp.zeros(())
    u = normalise(jax.lax.stop_gradient(u))
    potential = jnp.where(diagonal(rows), 0, jnp.exp(4 * (pairwise(u, u) - 1)))
    return jnp.log(jnp.sum(potential) / (rows * (rows - 1)))


def twins(number: jax.Array) -> jax.Array:
    """Share of the rows whose number (M int32, such as `report` of `input.paired`) another row has too."""
    return jnp.mean((number[:, None] == number[None, :]).sum(axis=1) > 1)


def own_report_first(u: jax.Array, w: jax.Array, number: jax.Array, counted: jax.Array) -> jax.Array:
    """Share of the counted rows u_i whose most similar row of w is a report with the words of their own.

    u, w: M d, pictures and reports. number: M int, equal for equal reports, as in `twins`. counted: M bool; where none
    is counted the share is 0.
    """
    u, w = (normalise(jax.lax.stop_gradient(x)) for x in (u, w))
    return mean_where(number[jnp.argmax(pairwise(u, w), axis=1)] == number, counted)


def token_accuracy(guesses: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the hidden tokens that are guessed; 0 where none is hidden.

    guesses: int b l. labels: int b l, the hidden token's id, or 0 for a token that is not hidden.
    """
    return mean_where(guesses == labels, labels > 0)


def first_choices(codes: jax.Array) -> jax.Array:
    """How many of the k prototypes are the first choice of some row of codes, M k."""
    return jnp.sum(jax.nn.one_hot(codes.argmax(axis=1), codes.shape[1]).any(axis=0))
