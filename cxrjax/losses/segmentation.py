"""Losses of a mask, on global arrays. Pictures whose mask is not known count for nothing; with none known all are 0.

    p = σ(logits), t the mask, 1 inside; sums over the pixels of a picture, means over the pictures with a mask

    dice           mean_i 1 − (2 Σ p t + s) / (Σ p + Σ t + s)                      picture by picture, s = 1
    log_dice       −log [(2 Σ p t + s) / (Σ p + Σ t + s)]                          sums over all pictures of the batch
    cross_entropy  mean −t log p − (1 − t) log(1 − p)
    focal          mean (1 − p_t)^γ (−log p_t),  p_t = p inside and 1 − p outside

Dice: Milletari et al., 3DV 2016, with plain sums in the denominator; smoothed by s so that an empty mask has a value.
focal: Lin et al., ICCV 2017, eq. 4, without α. MGCA (2210.06044, released code) adds 10 focal and log_dice.
"""

import jax
import jax.numpy as jnp

from cxrjax.losses.pairs import mean_where


def dice(logits: jax.Array, masks: jax.Array, known: jax.Array, *, smooth: float = 1.0) -> jax.Array:
    """1 − soft Dice, mean over the pictures that have a mask.

    logits: b h w 1. masks: b h w 1, 1 inside and 0 outside. known: b, whether a picture has a mask.
    """
    both, either = _overlap(logits, masks)
    return mean_where(1 - (2 * both + smooth) / (either + smooth), known > 0)


def log_dice(logits: jax.Array, masks: jax.Array, known: jax.Array, *, smooth: float = 1.0) -> jax.Array:
    """−log of the soft Dice of all pixels of the batch together; arguments as of `dice`."""
    both, either = (jnp.sum(part * (known > 0)) for part in _overlap(logits, masks))
    return -jnp.log((2 * both + smooth) / (either + smooth))


def cross_entropy(logits: jax.Array, masks: jax.Array, known: jax.Array) -> jax.Array:
    """Mean binary cross-entropy of the pixels; arguments as of `dice`."""
    return focal(logits, masks, known, gamma=0.0)


def focal(logits: jax.Array, masks: jax.Array, known: jax.Array, *, gamma: float = 2.0) -> jax.Array:
    """Mean focal loss of the pixels; arguments as of `dice`."""
    margin = (2.0 * masks - 1) * logits.astype(jnp.float32)
    # (1 − p_t)^γ as exp(γ log σ(−margin)): a power of 0 would have no gradient.
    loss = jnp.exp(gamma * jax.nn.log_sigmoid(-margin)) * jax.nn.softplus(-margin)
    return mean_where(loss.mean((1, 2, 3)), known > 0)


def _overlap(logits: jax.Array, masks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Σ p t and Σ p + Σ t of every picture, b each."""
    probability, inside = jax.nn.sigmoid(logits.astype(jnp.float32)), masks.astype(jnp.float32)
    return (probability * inside).sum((1, 2, 3)), (probability + inside).sum((1, 2, 3))
