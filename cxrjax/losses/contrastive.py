"""Contrastive losses on global arrays.

Every argument is the whole batch: under jit over a mesh the sums run over all devices' rows, with the right gradient
and without a gather in sight. Similarities and log-sum-exps are float32 at full matmul precision.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange


def normalise(x: jax.Array) -> jax.Array:
    """Rows of x (… d) scaled to unit length in float32; a zero row stays zero and has a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def tsp(s: jax.Array, kappa: float) -> jax.Array:
    """T-distributed spherical similarity φ_κ(s) = ½(1+s) / (1 + κ(1−s)) of cosines s.

    Kobayashi, T-vMF similarity, CVPR 2021, as OCL's released code has it.
    """
    return 0.5 * (1 + s) / (1 + kappa * (1 - s))


def info_nce(
    u: jax.Array,
    v: jax.Array,
    *,
    temperature: float,
    similarity: str = "cosine",
    kappa: float = 0.0,
    exclude: jax.Array | None = None,
    groups: int = 1,
) -> jax.Array:
    """Symmetric InfoNCE: mean cross-entropy of u_i against all v_j and of v_i against all u_j; M−1 negatives each.

    u, v: M d, any length (rows are normalised here). similarity: "cosine" (s) or "tsp" (φ_κ(s)).
    exclude: M M bool, pairs left out of the denominators (the diagonal is always kept).
    groups: negatives only within M/groups consecutive rows, which is what code without a gather over devices does.
    Returns the scalar −1/(2M) Σ_i [log softmax_j(a_ij)_i + log softmax_j(a_ji)_i], a = similarity / temperature.
    """
    if groups > 1:
        local = partial(info_nce, temperature=temperature, similarity=similarity, kappa=kappa)
        return _in_groups(local, u, v, exclude, groups)
    u, v = normalise(u), normalise(v)
    logits = _similarity(pairwise(u, v), similarity, kappa) / temperature
    # Not jnp.diag(logits): taking a diagonal of a sharded matrix doubles the all-gathers.
    positive = _similarity(jnp.sum(u * v, axis=-1), similarity, kappa) / temperature
    if exclude is not None:
        logits = jnp.where(exclude & ~_diagonal(len(u)), -jnp.inf, logits)
    rows = jax.nn.logsumexp(logits, axis=1) - positive
    columns = jax.nn.logsumexp(logits, axis=0) - positive
    return (rows.mean() + columns.mean()) / 2


def nt_xent(
    u: jax.Array,
    v: jax.Array,
    *,
    temperature: float,
    similarity: str = "cosine",
    kappa: float = 0.0,
    exclude: jax.Array | None = None,
    groups: int = 1,
) -> jax.Array:
    """NT-Xent, Chen et al. (SimCLR), ICML 2020, eq. 1: 2M−2 negatives, those of the own view included.

    Arguments as in `info_nce`. Returns the mean over all 2M anchors.
    """
    if groups > 1:
        local = partial(nt_xent, temperature=temperature, similarity=similarity, kappa=kappa)
        return _in_groups(local, u, v, exclude, groups)
    u, v = normalise(u), normalise(v)
    diagonal = _diagonal(len(u))
    dropped = diagonal if exclude is None else diagonal | exclude
    positive = _similarity(jnp.sum(u * v, axis=-1), similarity, kappa) / temperature

    def logits(a, b, mask):
        return jnp.where(mask, -jnp.inf, _similarity(pairwise(a, b), similarity, kappa) / temperature)

    across = logits(u, v, dropped & ~diagonal)
    within_u, within_v = logits(u, u, dropped), logits(v, v, dropped)
    of_u = jax.nn.logsumexp(jnp.concatenate([across, within_u], axis=1), axis=1) - positive
    of_v = jax.nn.logsumexp(jnp.concatenate([across.T, within_v], axis=1), axis=1) - positive
    return (of_u.mean() + of_v.mean()) / 2


def ctr(queries: jax.Array, keys: jax.Array, *, temperature: float) -> jax.Array:
    """One direction of MoCo v3's loss, Chen, Xie, He, ICCV 2021, eq. 1 and algorithm 1: 2τ · InfoNCE of q_i among k_j.

    queries, keys: M d, any length (rows are normalised here); M−1 negatives. No gradient reaches the keys.
    """
    q, k = normalise(queries), normalise(jax.lax.stop_gradient(keys))
    positive = jnp.sum(q * k, axis=-1) / temperature
    return 2 * temperature * (jax.nn.logsumexp(pairwise(q, k) / temperature, axis=1) - positive).mean()


@jax.named_scope("pairwise")
def pairwise(u: jax.Array, v: jax.Array) -> jax.Array:
    """Inner products of all rows, float32 at full precision: u M d, v M d → M M. Cost counts leave this scope out."""
    return jnp.matmul(u.astype(jnp.float32), v.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST)


def _in_groups(loss, u, v, exclude, groups):
    if exclude is not None:
        raise ValueError("exclude and groups > 1 cannot be combined: excluded pairs are pairs of the whole batch")
    split = (rearrange(x, "(g m) d -> g m d", g=groups) for x in (u, v))
    return jax.vmap(loss)(*split).mean()


def _similarity(s, kind, kappa):
    if kind == "cosine":
        return s
    if kind != "tsp":
        raise ValueError(f"similarity must be 'cosine' or 'tsp', got {kind!r}")
    return tsp(s, kappa)


def _diagonal(size):
    return jnp.arange(size)[:, None] == jnp.arange(size)
