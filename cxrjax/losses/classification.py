"""Cross-entropies where some answers are not known, on global arrays. A picture or label without an answer counts for
nothing: every loss is a mean over the known ones, and 0 where there are none.
"""

import jax
import jax.numpy as jnp


def binary(
    logits: jax.Array, labels: jax.Array, *, positive_weights: jax.Array | None = None, smoothing: float = 0.0
) -> jax.Array:
    """Mean binary cross-entropy over all known labels of all pictures: each label is a question of its own.

    logits: b c. labels: b c, 1 present, 0 absent, below 0 not known. positive_weights: c factors on the loss of present
    labels, as `pos_weight` of PyTorch's BCEWithLogitsLoss. smoothing: targets are 1 − s/2 and s/2 in place of 1 and 0.
    """
    logits, known = logits.astype(jnp.float32), labels >= 0
    target = (1 - smoothing) * (labels == 1) + smoothing / 2
    weight = 1.0 if positive_weights is None else positive_weights
    loss = weight * target * jax.nn.softplus(-logits) + (1 - target) * jax.nn.softplus(logits)
    return _mean(loss, known)


def known_answers(labels: jax.Array) -> jax.Array:
    """How many labels b c are known: what `binary` divides by."""
    return jnp.sum(labels >= 0)


def multiclass(
    logits: jax.Array, labels: jax.Array, *, class_weights: jax.Array | None = None, smoothing: float = 0.0
) -> jax.Array:
    """Mean softmax cross-entropy over the pictures that have exactly one of the classes; the others do not count.

    logits: b c. labels: b c, 1 for the picture's class and not 1 for the others. class_weights: c factors on the terms
    of the classes; the mean divides by those of the pictures' classes. smoothing: share of the target that all c get
    evenly. Both as PyTorch's CrossEntropyLoss has them.
    """
    present = labels == 1
    weights = jnp.ones(labels.shape[-1]) if class_weights is None else class_weights
    target = (1 - smoothing) * present + smoothing / labels.shape[-1]
    loss = -jnp.sum(weights * target * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
    known = present.sum(axis=-1) == 1
    return _mean(loss, known, present @ weights)


def known_classes(labels: jax.Array, class_weights: jax.Array) -> jax.Array:
    """The sum of the weights (c) of the pictures' classes, of labels b c: what `multiclass` divides by."""
    present = labels == 1
    return jnp.sum((present.sum(axis=-1) == 1) * (present @ class_weights))


def _mean(loss: jax.Array, known: jax.Array, weight: jax.Array | float = 1.0) -> jax.Array:
    """Sum of the known losses by the sum of their weights, 0 where that is 0."""
    total = jnp.sum(known * weight)
    return jnp.sum(loss * known) / jnp.where(total > 0, total, 1)
