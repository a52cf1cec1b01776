"""Losses that teach one network the outputs of another, moving behind it or frozen, on global arrays.

Targets are taken as they are: no gradient reaches them. All numbers are float32.
"""

import jax
import jax.numpy as jnp
import optax

from cxrjax.losses import prototypes
from cxrjax.losses.pairs import NEVER, diagonal, normalise, pairwise, standardise


def byol(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """One direction of BYOL's loss, ‖q̄ − z̄′‖² = 2 − 2·cos(q, z′), Grill et al., NeurIPS 2020, eq. 2.

    predictions, targets: M d, any length (rows are normalised here). Returns the mean over rows, in [0, 4].
    """
    target = normalise(jax.lax.stop_gradient(targets))
    return jnp.square(normalise(predictions) - target).sum(axis=-1).mean()


def features(predictions: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How far vectors are from a frozen network's: the means of 1 − cos(ŷ, t) and of smooth L1 over all vectors.

    predictions, targets: … d. Smooth L1 is the mean over d of ½ δ² for |δ| < 1, else |δ| − ½.
    Source: AM-RADIO (Ranzinger et al., CVPR 2024, 2312.06709), which weighs them 0.9 and 0.1 for patches.
    """
    predictions, targets = (x.astype(jnp.float32) for x in (predictions, jax.lax.stop_gradient(targets)))
    cosine = jnp.sum(normalise(predictions) * normalise(targets), axis=-1)
    return jnp.mean(1 - cosine), jnp.mean(optax.losses.huber_loss(predictions, targets))


def standardised(targets: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Vectors of a frozen network, every feature with mean 0 and deviation 1 over the batch, float32.

    targets: … d, every axis but the last over pictures and places of the whole batch. epsilon: added to the variance,
    so that a feature that is the same everywhere becomes 0.
    Source: PHI-S (Ranzinger et al., 2410.01680), whose statistics are those of many batches; the batch is our choice.
    """
    return standardise(jax.lax.stop_gradient(targets), epsilon)


def dino(students: jax.Array, targets: jax.Array, temperature: float) -> jax.Array:
    """Mean over pictures and pairs (t, v) of different crops of −Σ_k P_t log softmax(s_v / τ), float32.

    students: b v k logits, of which the first crops are those that the teacher saw too. targets: b t k, as `centred`
    and `sinkhorn` give them; t·(v − 1) pairs. Source: DINO (Caron et al., ICCV 2021), eq. 2 and 3, the mean over pairs
    as in algorithm 1. As a loop:

        mean(cross_entropy(targets[:, t], students[:, v]) for t in range(T) for v in range(V) if v != t)

    Raises ValueError unless there are more students' crops than one and at least as many as targets.
    """
    (b, v), t = students.shape[:2], targets.shape[1]
    if v < max(t, 2):
        raise ValueError(
            f"{v} crops of the student for {t} of the teacher: it needs those of the teacher, and 2 or more"
        )
    log_p = jax.nn.log_softmax(students.astype(jnp.float32) / temperature)
    targets = jax.lax.stop_gradient(targets.astype(jnp.float32))
    own = jnp.pad(targets, ((0, 0), (0, v - t), (0, 0)))
    others = targets.sum(axis=1, keepdims=True) - own  # b v k: all that a crop learns, but what it is itself
    return -jnp.sum(others * log_p) / (b * t * (v - 1))


def centred(logits: jax.Array, centre: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """The teacher's probabilities softmax((g − c) / τ), float32, without gradient. logits: … k. centre: k.

    Source: DINO, section 3.1 and algorithm 1; the section's text adds c and means the same centre with the other sign.
    """
    return jax.lax.stop_gradient(jax.nn.softmax((logits.astype(jnp.float32) - centre) / temperature))


def sinkhorn(logits: jax.Array, temperature: float | jax.Array, iterations: int = 3) -> jax.Array:
    """The teacher's probabilities exp(g / τ), spread over the prototypes by Sinkhorn–Knopp; float32, without gradient.

    logits: … k, every axis but the last over pictures and crops of the whole batch. Each iteration gives every
    prototype the same share of the rows, then every row the sum 1, so that the rows sum to 1 in the end. In logarithms,
    where no temperature overflows. Source: SwAV (Caron et al., NeurIPS 2020), which takes each crop by itself; for both
    crops at once DINOv2 (Oquab et al., 2304.07193), released code.
    """
    rows = prototypes.codes(logits.reshape(-1, logits.shape[-1]), epsilon=temperature, iterations=iterations)
    return rows.reshape(logits.shape)


def entropy(probabilities: jax.Array) -> jax.Array:
    """−Σ_k p log p of … k, without gradient: 0 when one takes all, log k when all are equal."""
    return jax.scipy.special.entr(jax.lax.stop_gradient(probabilities)).sum(axis=-1)


def ibot(students: jax.Array, targets: jax.Array, weights: jax.Array, temperature: float) -> jax.Array:
    """iBOT's loss of masked tokens: Σ_j w_j H(q_j, softmax(s_j / τ_s)).

    students: … k logits of masked tokens. targets: … k probabilities of the teacher for the same tokens, unmasked.
    weights: …, 0 for what is no masked token; 1 / |m| / crops for those of a crop with |m| masked ones.
    Source: iBOT (Zhou et al., ICLR 2022), as DINOv2 (Oquab et al., 2304.07193) has it.
    """
    log_p = jax.nn.log_softmax(students.astype(jnp.float32) / temperature)
    rows = -jnp.sum(jax.lax.stop_gradient(targets.astype(jnp.float32)) * log_p, axis=-1)
    return jnp.sum(jax.lax.stop_gradient(weights) * rows)


def gram(students: jax.Array, targets: jax.Array) -> jax.Array:
    """How far the likeness of a picture's patches is from a frozen network's: mean over pairs of (cos − cos′)².

    students, targets: … n d, patches of the same crops. Returns one number for each crop, float32.
    Source: Gram anchoring of DINOv3 (Siméoni et al., 2508.10104), whose sum over pairs is a mean in the released code.
    """

    def likeness(x):
        return jnp.einsum("...nd,...md->...nm", normalise(x), normalise(x), precision=jax.lax.Precision.HIGHEST)

    return jnp.mean((likeness(students) - likeness(jax.lax.stop_gradient(targets))) ** 2, axis=(-2, -1))


def koleo(x: jax.Array, *, groups: int = 1, itself: bool = False, eps: float = 1e-8) -> tuple[jax.Array, jax.Array]:
    """−mean log of the distance of every row to its nearest other one, rows of unit length; and the least distance.

    x: M d. groups: neighbours within M/groups consecutive rows, which is what code without a gather over devices does.
    itself: a row whose others are all opposite to it is its own neighbour, as in the released code, which sets the
    cosine with itself to −1 and not aside. eps: added to lengths, differences and distances, as there, so that equal
    rows give 17 to 20 and no gradient.
    Source: KoLeo (Sablayrolles et al., ICLR 2019) as DINOv2 (Oquab et al., 2304.07193) has it, released code.
    """
    if groups > 1:
        loss, least = jax.vmap(lambda part: koleo(part, itself=itself, eps=eps))(x.reshape(groups, -1, x.shape[-1]))
        return loss.mean(), least.min()
    x = x.astype(jnp.float32)
    length = jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps**2))
    x = x / length
    cosines = jnp.where(diagonal(len(x)), -1.0 if itself else NEVER, pairwise(x, x))
    # Of equals the first: a row of −1 alone then takes itself where it comes first, as torch's maximum does.
    nearest = jnp.argmax(jax.lax.stop_gradient(cosines), axis=1)
    distance = jnp.sqrt(jnp.sum((x - x[nearest] + eps) ** 2, axis=-1))
    return -jnp.log(distance + eps).mean(), jax.lax.stop_gradient(distance).min()
