"""Losses that teach an online network the outputs of a slowly moving target network, on global arrays.

Targets are taken as they are: no gradient reaches them. All numbers are float32.
"""

import jax
import jax.numpy as jnp

from cxrjax.losses.contrastive import normalise


def byol(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """One direction of BYOL's loss, ‖q̄ − z̄′‖² = 2 − 2·cos(q, z′), Grill et al., NeurIPS 2020, eq. 2.

    predictions, targets: M d, any length (rows are normalised here). Returns the mean over rows, in [0, 4].
    """
    target = normalise(jax.lax.stop_gradient(targets))
    return jnp.square(normalise(predictions) - target).sum(axis=-1).mean()
