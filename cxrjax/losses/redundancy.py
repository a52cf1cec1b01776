"""Redundancy-reduction losses on global arrays: VICReg and Barlow Twins.

Every argument is the whole batch, so means, variances and correlations are over all devices' rows. Statistics are
float32 at full matmul precision. Matrices between dimensions (d d) are never made where those between rows (M M) are
smaller: ‖XᵀX‖² = ‖XXᵀ‖², with the same gradient.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from cxrjax.losses.pairs import pairwise, standardise

VARIANCE_EPS = 1e-4
CORRELATION_EPS = 1e-5


def vicreg(
    u: jax.Array, v: jax.Array, *, sim: float = 25.0, std: float = 25.0, cov: float = 1.0, groups: int = 1
) -> dict[str, jax.Array]:
    """VICReg's three terms, weighted; their sum is the loss.

    u, v: M d, the embeddings of two views, M ≥ 2. sim, std, cov: weights.
    groups: statistics of M/groups consecutive rows at a time, which is what code without a gather over devices does.
    Returns scalars, X̃ being X less its mean over M:
        invariance  sim · (1/Md) Σ (u − v)²
        variance    std · ½ Σ_{X∈{u,v}} (1/d) Σ_j max(0, 1 − √(Var_j + 10⁻⁴)),  Var_j = ΣX̃_j² / (M−1)
        covariance  cov · Σ_{X∈{u,v}} (1/d) Σ_{i≠j} C_ij²,  C = X̃ᵀX̃ / (M−1)
    Source: Bardes et al., ICLR 2022, section 4.1, with two factors of their code that the equations there lack: the
    mean over d in the first term and the ½ in the second.
    """
    if groups > 1:
        return _of_groups(lambda a, b: vicreg(a, b, sim=sim, std=std, cov=cov), u, v, groups)
    if len(u) < 2:
        raise ValueError(f"variances over {len(u)} row: give at least two, or fewer groups")
    u, v = u.astype(jnp.float32), v.astype(jnp.float32)
    deviations = deviation(u), deviation(v)
    return {
        "invariance": sim * jnp.mean((u - v) ** 2),
        "variance": std * jnp.asarray(sum(jnp.mean(jax.nn.relu(1 - s)) for s in deviations)) / 2,
        "covariance": cov * (_covariance(u) + _covariance(v)),
    }


def barlow(
    u: jax.Array, v: jax.Array, *, lambd: float = 0.0051, scale: float = 1.0, groups: int = 1
) -> dict[str, jax.Array]:
    """Barlow Twins' two terms, weighted; their sum is the loss.

    u, v: M d, the embeddings of two views. lambd: λ, weight of the redundancy term.
    scale: factor on everything. The published runs used 0.024 (the code's first default was 1/32); the code since has
        1 and a learning rate of its own for biases and BatchNorm, which is the same under LARS but for weight decay.
    groups: statistics of M/groups consecutive rows at a time, which is what unsynchronised code does.
    Returns scalars, Z_j = (X_j − mean) / √(ΣX̃_j²/M + 10⁻⁵) and C = Z_uᵀ Z_v / M:
        on_diagonal   scale · Σ_j (1 − C_jj)²
        off_diagonal  scale · λ · Σ_{i≠j} C_ij²
    Source: Zbontar et al., ICML 2021, eq. 1 and 2, normalised by BatchNorm as in their code.
    """
    if groups > 1:
        return _of_groups(lambda a, b: barlow(a, b, lambd=lambd, scale=scale), u, v, groups)
    u, v = (standardise(x, CORRELATION_EPS) for x in (u, v))
    diagonal = jnp.mean(u * v, axis=0)
    if len(u) < u.shape[1]:
        squares = jnp.sum(pairwise(u, u) * pairwise(v, v)) / len(u) ** 2
    else:
        squares = jnp.sum((pairwise(u.T, v.T) / len(u)) ** 2)
    return {
        "on_diagonal": scale * jnp.sum((1 - diagonal) ** 2),
        "off_diagonal": scale * lambd * (squares - jnp.sum(diagonal**2)),
    }


def deviation(x: jax.Array) -> jax.Array:
    """Deviation of each dimension over the batch, M d → d: √(Var + 10⁻⁴) with M−1, finite in gradient at zero."""
    x = x.astype(jnp.float32)
    return jnp.sqrt(jnp.sum((x - x.mean(axis=0)) ** 2, axis=0) / (len(x) - 1) + VARIANCE_EPS)


def covariance_floor(rows: int, dimensions: int) -> float:
    """The least that one view's covariance term can be, unweighted, when every variance is 1: max(0, d/(M−1) − 1).

    M centred rows have rank M−1, so d variances of 1 cannot be uncorrelated when d ≥ M: Σ C_ij² ≥ (tr C)²/(M−1).
    """
    return max(0.0, dimensions / (rows - 1) - 1)


def _covariance(x: jax.Array) -> jax.Array:
    """(1/d) Σ_{i≠j} C_ij² of M d float32."""
    x = x - x.mean(axis=0)
    product = pairwise(x, x) if len(x) < x.shape[1] else pairwise(x.T, x.T)
    diagonal = jnp.sum(x * x, axis=0)
    return (jnp.sum(product**2) - jnp.sum(diagonal**2)) / (len(x) - 1) ** 2 / x.shape[1]


def _of_groups(terms, u, v, groups):
    split = (rearrange(x, "(g m) d -> g m d", g=groups) for x in (u, v))
    return {name: value.mean() for name, value in jax.vmap(terms)(*split).items()}
