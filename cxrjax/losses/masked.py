"""Reconstruction losses that look at the hidden part of a picture or report only, on global arrays.

Sums run over the whole batch before the division: Σ / Σ, so that a picture with much hidden counts for more than one
with little, and the value does not depend on the number of devices.
"""

import jax
import jax.numpy as jnp


def l1(prediction: jax.Array, target: jax.Array, mask: jax.Array, groups: int = 1) -> jax.Array:
    """Mean absolute error over what is masked: Σ m·|x̂ − x| / Σ m; 0 where nothing is masked.

    prediction, target: b … c. mask: b … 1, bool or numbers; the same for every channel.
    groups: the mean of the quotients of `groups` consecutive slices of the batch, which is what code that averages
    over devices does; b must be a multiple.
    Source: GMML (Atito et al., arXiv 2205.14986), released code, which has one group per GPU.
    """
    return quotient(*l1_errors(prediction, target, mask), groups)


def l1_errors(prediction: jax.Array, target: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Σ m·|x̂ − x| and Σ m of every picture, b each: what `l1` is the quotient of."""
    error = jnp.abs(prediction.astype(jnp.float32) - target.astype(jnp.float32))
    hidden = jnp.broadcast_to(mask, error.shape).astype(jnp.float32)
    return _rows(error * hidden), _rows(hidden)


def patch_mse(prediction: jax.Array, pixels: jax.Array, mask: jax.Array, normalise: bool = True) -> jax.Array:
    """Mean over the masked patches of the mean squared error within a patch; 0 where nothing is masked.

    Arguments as of `patch_errors`. Source: MAE (He et al., CVPR 2022), section 3 and released code.
    """
    return quotient(*patch_errors(prediction, pixels, mask, normalise))


def patch_errors(
    prediction: jax.Array, pixels: jax.Array, mask: jax.Array, normalise: bool = True
) -> tuple[jax.Array, jax.Array]:
    """The sum over the masked patches of every picture, and how many they are: what `patch_mse` is the quotient of.

    prediction, pixels: b n (P·P·c), the values of each patch. mask: b n, bool or numbers.
    normalise: the target is each patch less its mean, over √(variance + 1e-6), the variance with n − 1.
    Returns b and b.
    """
    target = pixels.astype(jnp.float32)
    if normalise:
        centred = target - target.mean(axis=-1, keepdims=True)
        target = centred * jax.lax.rsqrt(target.var(axis=-1, keepdims=True, ddof=1) + 1e-6)
    hidden = mask.astype(jnp.float32)
    error = jnp.mean((prediction.astype(jnp.float32) - target) ** 2, axis=-1)
    return _rows(error * hidden), _rows(hidden)


REGRESSIONS = ("smooth_l1", "l2")


def regression_errors(
    prediction: jax.Array, target: jax.Array, there: jax.Array, kind: str = "smooth_l1"
) -> tuple[jax.Array, jax.Array]:
    """The sum of errors of predicted tokens over those of every picture that are there, and how many these are.

    prediction, target: b m t d; the target is taken as it is after `standardised`, without gradient. there: bool, of a
    shape that broadcasts to b m t. kind: the mean over d of ½ δ² for |δ| < 1 and |δ| − ½ beyond ("smooth_l1"), or of δ²
    ("l2"). Returns b and b. Source: I-JEPA (Assran et al., CVPR 2023), released code; l2 is its paper's.
    """
    delta = prediction.astype(jnp.float32) - jax.lax.stop_gradient(standardised(target))
    if kind == "l2":
        each = delta**2
    else:
        size = jnp.abs(delta)
        each = jnp.where(size < 1, 0.5 * delta**2, size - 0.5)
    counted = jnp.broadcast_to(there, each.shape[:-1]).astype(jnp.float32)
    return _rows(each.mean(axis=-1) * counted), _rows(counted)


def standardised(x: jax.Array, eps: float = 1e-5) -> jax.Array:
    """A LayerNorm over the last axis without parameters, float32: x less its mean, over √(variance + eps)."""
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


def masked_tokens(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy over the labelled tokens of all texts, in nats; 0 where nothing is labelled.

    Arguments as of `token_errors`. Source: BERT (Devlin et al., NAACL 2019), section 3.1.
    """
    return quotient(*token_errors(logits, labels))


def token_errors(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum over the labelled tokens of every text, and how many they are: what `masked_tokens` is the quotient of.

    logits: b l v. labels: int b l, the hidden token's id, or 0 ([PAD]) for a token that is not predicted.
    Returns b and b.
    """
    logits = logits.astype(jnp.float32)
    labelled = (labels != 0).astype(jnp.float32)
    own = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    # Both less the largest logit: far from 0 their difference would lose digits.
    peak = jax.lax.stop_gradient(logits.max(axis=-1))
    error = jnp.log(jnp.exp(logits - peak[..., None]).sum(axis=-1)) - (own - peak)
    return _rows(error * labelled), _rows(labelled)


def _rows(x: jax.Array) -> jax.Array:
    return x.sum(axis=tuple(range(1, x.ndim)))


def quotient(numerator: jax.Array, denominator: jax.Array, groups: int = 1) -> jax.Array:
    """b, b → Σ / Σ within each of the groups, and their mean; 0 where the denominator is.

    Raises ValueError where the groups do not divide b.
    """
    if len(numerator) % groups:
        raise ValueError(f"a batch of {len(numerator)} cannot be cut into {groups} groups of equal size")
    total, hidden = (x.reshape(groups, -1).sum(axis=1) for x in (numerator, denominator))
    # An empty sum is 0 over 1; a sum of weights below 1 is still divided by itself.
    return jnp.mean(total / jnp.where(hidden > 0, hidden, 1))
