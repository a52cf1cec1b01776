"""SIGReg: how far a batch of vectors is from an isotropic standard Gaussian, along random directions; global arrays.

Every argument is the whole batch, so that the means below are over all devices' rows. All numbers are float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.losses.pairs import normalise


def knots(t_max: float = 3.0, count: int = 17) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """t_j from 0 to t_max, φ(t_j) = e^(−t²/2), and the weights of the trapezoid rule over [−t_max, t_max].

    φ is the characteristic function of N(0, 1) and even, so half of the interval is enough, doubled.
    """
    t = np.linspace(0, t_max, count)
    weights = np.full(count, 2 * t_max / (count - 1))
    weights[[0, -1]] /= 2
    return t, np.exp(-(t**2) / 2), weights


def epps_pulley(x: jax.Array, *, t_max: float = 3.0, count: int = 17, rows: float | None = None) -> jax.Array:
    """The statistic of Epps and Pulley of samples along the first axis: b … → …

        b · Σ_j ω_j φ(t_j) [(C_j − φ(t_j))² + S_j²],   C_j = mean cos(t_j x),  S_j = mean sin(t_j x)

    rows: the factor in the place of b. Of samples of N(0, 1) its mean is `floor`, for any b.
    Source: LeJEPA (Balestriero and LeCun, 2511.08544), released code.
    """
    x = x.astype(jnp.float32)
    each = [jnp.asarray(values, jnp.float32) for values in knots(t_max, count)]

    # One knot after another, computed again for the gradient: all at once they would be `count` copies of x, twice.
    @jax.checkpoint
    def add(total, knot):
        t, phi, weight = knot
        c, s = jnp.cos(t * x).mean(axis=0), jnp.sin(t * x).mean(axis=0)
        return total + weight * phi * ((c - phi) ** 2 + s**2), None

    total, _ = jax.lax.scan(add, jnp.zeros(x.shape[1:], jnp.float32), each)
    return (len(x) if rows is None else rows) * total


def floor(t_max: float = 3.0, count: int = 17) -> float:
    """The mean of `epps_pulley` for samples of N(0, 1): Σ ω φ (1 − φ²), 1.0524642 for 3 and 17."""
    _, phi, weights = knots(t_max, count)
    return float(np.sum(weights * phi * (1 - phi**2)))


def directions(key: jax.Array, width: int, count: int) -> jax.Array:
    """`count` random directions, d k with columns of length 1: the same on any number of devices."""
    return normalise(jax.random.normal(key, (width, count)), axis=0)


def sigreg(
    z: jax.Array,
    slices: jax.Array,
    *,
    t_max: float = 3.0,
    count: int = 17,
    rows: float | None = None,
    per_view: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Mean over views and directions of `epps_pulley`, and the largest |z · a|, without gradient.

    z: b v d, not normalised. slices: d k, without gradient. per_view: each view is a sample by itself, of b; else all
    are one, of b·v, as stable-pretraining has it. Beyond |z · a| of some 10 the gradient is noise, and near
    2π (count − 1) / t_max, 33.5, a value looks like 0 again.
    """
    z = z if per_view else z.reshape(-1, 1, z.shape[-1])
    a = jax.lax.stop_gradient(slices)
    x = jnp.einsum("bvd,dk->bvk", z.astype(jnp.float32), a, precision=jax.lax.Precision.HIGHEST)
    largest = jax.lax.stop_gradient(jnp.abs(x).max())
    return epps_pulley(x, t_max=t_max, count=count, rows=rows).mean(), largest


def to_centre(z: jax.Array, large: int) -> jax.Array:
    """Mean over pictures, views and dimensions of (z̄ − z)², z̄ the mean of a picture's first `large` views.

    z: b v d. The gradient flows through z̄ as well. Source: LeJEPA; its MINIMAL.md takes the mean of all views.
    """
    z = z.astype(jnp.float32)
    return jnp.mean((z[:, :large].mean(axis=1, keepdims=True) - z) ** 2)
