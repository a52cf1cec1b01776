"""Contrastive losses on global arrays.

Every argument is the whole batch: under jit over a mesh the sums run over all devices' rows, with the right gradient
and without a gather in sight. Similarities and log-sum-exps are float32 at full matmul precision.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange

from cxrjax.losses.pairs import NEVER, diagonal, normalise, pairwise

SIMILARITIES = ("cosine", "tsp")


def tsp(s: jax.Array, kappa: float) -> jax.Array:
    """T-distributed spherical similarity φ_κ(s) = ½(1+s) / (1 + κ(1−s)) of cosines s.

    Kobayashi, T-vMF similarity, CVPR 2021, as OCL's released code has it.
    """
    return 0.5 * (1 + s) / (1 + kappa * (1 - s))


def info_nce(
    u: jax.Array,
    v: jax.Array,
    *,
    temperature: float | jax.Array,
    similarity: str = "cosine",
    kappa: float = 0.0,
    exclude: jax.Array | None = None,
    groups: int = 1,
    share: float = 0.5,
    chunks: int = 1,
) -> jax.Array:
    """Symmetric InfoNCE: mean cross-entropy of u_i against all v_j and of v_i against all u_j; M−1 negatives each.

    u, v: M d, any length (rows are normalised here). similarity: "cosine" (s) or "tsp" (φ_κ(s)).
    exclude: M M bool, pairs left out of the denominators (the diagonal is always kept).
    groups: negatives only within M/groups consecutive rows, which is what code without a gather over devices does.
    share: of the direction u → v in the sum, ConVIRT's λ.
    chunks: the columns are compared in so many chunks, one after another, forwards and backwards. That holds M²/chunks
    numbers at a time and costs one more product of the rows; value and gradient stay.
    Returns the scalar −1/M Σ_i [λ log softmax_j(a_ij)_i + (1−λ) log softmax_j(a_ji)_i], a = similarity / temperature
    and λ = share.
    """
    measure = partial(_similarity, kind=similarity, kappa=kappa)
    if groups > 1:
        options = {"temperature": temperature, "similarity": similarity, "kappa": kappa}
        return _in_groups(partial(info_nce, **options, share=share, chunks=chunks), u, v, exclude, groups)
    u, v = normalise(u), normalise(v)
    # Not the diagonal of the logits: taking it from a sharded matrix doubles the all-gathers.
    positive = measure(jnp.sum(u * v, axis=-1)) / temperature
    rows, columns = _log_sum_exps(u, v, lambda s: measure(s) / temperature, exclude, chunks)
    return share * _cross_entropy(rows, positive) + (1 - share) * _cross_entropy(columns, positive)


def nt_xent(
    u: jax.Array,
    v: jax.Array,
    *,
    temperature: float,
    similarity: str = "cosine",
    kappa: float = 0.0,
    exclude: jax.Array | None = None,
    groups: int = 1,
    chunks: int = 1,
) -> jax.Array:
    """NT-Xent, Chen et al. (SimCLR), ICML 2020, eq. 1: 2M−2 negatives, those of the own view included.

    Arguments as in `info_nce`. Returns the mean over all 2M anchors.
    """
    measure = partial(_similarity, kind=similarity, kappa=kappa)
    if groups > 1:
        options = {"temperature": temperature, "similarity": similarity, "kappa": kappa}
        return _in_groups(partial(nt_xent, **options, chunks=chunks), u, v, exclude, groups)
    u, v = normalise(u), normalise(v)
    positive = measure(jnp.sum(u * v, axis=-1)) / temperature
    sums = partial(_log_sum_exps, logit=lambda s: measure(s) / temperature, exclude=exclude, chunks=chunks)
    of_u, of_v = sums(u, v)
    of_u = jnp.logaddexp(of_u, sums(u, u)[0])
    of_v = jnp.logaddexp(of_v, sums(v, v)[0])
    return (_cross_entropy(of_u, positive) + _cross_entropy(of_v, positive)) / 2


def sigmoid(
    u: jax.Array, v: jax.Array, *, scale: jax.Array, bias: jax.Array, positives: jax.Array | None = None
) -> jax.Array:
    """SigLIP's loss, Zhai et al., ICCV 2023, algorithm 1: −1/M Σ_ij log σ(z_ij (t s_ij + b)).

    u, v: M d, any length (rows are normalised here). scale: t itself, which the paper learns as e^t′ from t′ = log 10.
    bias: b, learned from −10. positives: M M bool, pairs with z = 1 beside the diagonal, such as equal reports; the
    paper has none. Every other pair has z = −1.
    """
    logits = pairwise(normalise(u), normalise(v)) * scale + bias
    agree = diagonal(len(u)) if positives is None else diagonal(len(u)) | positives
    return -jax.nn.log_sigmoid(jnp.where(agree, logits, -logits)).sum() / len(u)


def ctr(queries: jax.Array, keys: jax.Array, *, temperature: float, chunks: int = 1) -> jax.Array:
    """One direction of MoCo v3's loss, Chen, Xie, He, ICCV 2021, eq. 1 and algorithm 1: 2τ · InfoNCE of q_i among k_j.

    queries, keys: M d, any length (rows are normalised here); M−1 negatives. No gradient reaches the keys. chunks: of
    the keys, as in `info_nce`.
    """
    q, k = normalise(queries), normalise(jax.lax.stop_gradient(keys))
    positive = jnp.sum(q * k, axis=-1) / temperature
    rows, _ = _log_sum_exps(q, k, lambda s: s / temperature, None, chunks)
    return 2 * temperature * _cross_entropy(rows, positive)


def _cross_entropy(others: jax.Array, positive: jax.Array) -> jax.Array:
    """Mean of log(e^others + e^positive) − positive: the logit of the right answer against log-sum-exps of the rest.

    Never as that difference: both are as large as 1/τ, and below 1e-6/τ nothing would be left of it.
    """
    return jax.nn.softplus(others - positive).mean()


def _log_sum_exps(u, v, logit, exclude, chunks):
    """Log-sum-exps of logit(u vᵀ) over each row and over each column but for the diagonal, M each.

    u and v: M d of unit rows. exclude: M M bool, further pairs to leave out, or None.
    """
    m = len(u)
    if m % chunks:
        raise ValueError(f"{m} rows do not divide into chunks={chunks}; give a divisor of the batch, such as 8")
    # Chunk k holds the columns k, k + chunks, …: of a sharded v every device has its part of each chunk, so the chunks
    # together are gathered once.
    parts = rearrange(v, "(n c) d -> c n d", c=chunks)

    def logits_of(part, k):
        dropped = jnp.arange(m)[:, None] == jnp.arange(len(part)) * chunks + k
        if exclude is not None:
            dropped |= jax.lax.dynamic_index_in_dim(rearrange(exclude, "m (n c) -> m n c", c=chunks), k, 2, False)
        # Not −∞: the gradient of a row whose whole chunk is left out would be NaN.
        return jnp.where(dropped, NEVER, logit(pairwise(u, part)))

    def step(rows, chunk):
        logits = logits_of(*chunk)
        return jnp.logaddexp(rows, jax.nn.logsumexp(logits, axis=1)), jax.nn.logsumexp(logits, axis=0)

    if chunks == 1:
        logits = logits_of(parts[0], 0)
        return jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)
    scanned = (parts, jnp.arange(chunks))
    rows, columns = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), jnp.full(m, NEVER), scanned)
    return rows, rearrange(columns, "c n -> (n c)")


def _in_groups(loss, u, v, exclude, groups):
    if exclude is not None:
        raise ValueError("exclude and groups > 1 cannot be combined: excluded pairs are pairs of the whole batch")
    split = (rearrange(x, "(g m) d -> g m d", g=groups) for x in (u, v))
    return jax.vmap(loss)(*split).mean()


def _similarity(s, kind, kappa):
    if kind == "cosine":
        return s
    if kind not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {kind!r}")
    return tsp(s, kappa)
