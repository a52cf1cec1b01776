"""DINO's loss, its targets and its balance: the double loop of the paper, hand values, collapse, the global batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import parallel
from cxrjax.losses import distill
from tests.losses.test_contrastive import DTYPES, assert_gradient, rounded

RNG = np.random.default_rng(0)
STUDENTS = RNG.normal(size=(8, 5, 7)).astype(np.float32)  # b v k
LOGITS = RNG.uniform(-1, 1, size=(8, 2, 7)).astype(np.float32)  # b t k


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_is_the_double_loop_in_value_and_gradient(dtype):
    """Eq. 3 in PyTorch, one pair of crops after the other, skipping the teacher's own."""
    torch = pytest.importorskip("torch")
    cast, (students, targets) = rounded(dtype, STUDENTS, softmax(LOGITS / 0.05))
    value, gradient = jax.value_and_grad(distill.dino)(*cast, 0.1)
    assert value.dtype == jnp.float32
    students = torch.tensor(students, requires_grad=True)
    total, pairs = 0, 0
    for t in range(2):
        for v in range(5):
            if t == v:
                continue
            p = torch.nn.functional.log_softmax(students[:, v] / 0.1, dim=-1)
            total = total - (torch.tensor(targets[:, t]) * p).sum(dim=-1).mean()
            pairs += 1
    assert pairs == 8
    (total / pairs).backward()
    assert float(value) == pytest.approx(total.item() / pairs, rel=1e-5)
    assert_gradient(gradient, students.grad, dtype, atol=1e-6)


def test_a_crop_is_not_taught_itself():
    """With one crop of the teacher the student's same crop counts for nothing; with two it learns from the other."""
    targets = softmax(LOGITS / 0.05)
    single = jax.grad(distill.dino)(STUDENTS, targets[:, :1], 0.1)
    assert not np.any(single[:, 0]) and all(np.any(single[:, v]) for v in range(1, 5))
    other = targets.copy()
    other[:, 0] = 1 / 7
    change = jax.grad(distill.dino)(STUDENTS, targets, 0.1) - jax.grad(distill.dino)(STUDENTS, other, 0.1)
    np.testing.assert_allclose(change[:, 0], 0, atol=1e-7)
    assert all(np.abs(change[:, v]).max() > 1e-3 for v in range(1, 5))


def test_what_collapse_looks_like():
    """No answer: log K, whatever the temperatures. One answer for all: 0. A uniform teacher never gives less."""
    zeros, one = jnp.zeros((4, 4, 7)), 100 * jnp.eye(7)[jnp.zeros((4, 4), int)]
    uniform = distill.centred(zeros[:, :2], jnp.zeros(7), 0.04)
    assert float(distill.dino(zeros, uniform, 0.1)) == pytest.approx(np.log(7), rel=1e-6)
    assert float(distill.dino(one, distill.centred(one[:, :2], jnp.zeros(7), 0.04), 0.1)) == pytest.approx(0, abs=1e-6)
    assert float(distill.dino(STUDENTS, jnp.full((8, 2, 7), 1 / 7), 0.1)) > np.log(7)
    assert float(distill.entropy(uniform).mean()) == pytest.approx(np.log(7), rel=1e-6)
    np.testing.assert_allclose(distill.entropy(jnp.eye(7)), 0, atol=1e-7)


def test_impossible_crops_are_explained():
    for v, t in ((1, 1), (1, 2), (2, 3)):
        with pytest.raises(ValueError, match=f"{v} crops of the student for {t} of the teacher"):
            distill.dino(jnp.zeros((2, v, 3)), jnp.zeros((2, t, 3)), 0.1)


def test_centring_and_sharpening_by_hand():
    """Equal to the centre: uniform. τ·ln 3 above it in one of two: ¾. The centre undoes what all pictures share."""
    centre = jnp.asarray([0.3, -0.2])
    np.testing.assert_allclose(distill.centred(centre, centre, 0.04), [0.5, 0.5], atol=1e-6)
    above = centre + jnp.asarray([0.04 * np.log(3), 0])
    np.testing.assert_allclose(distill.centred(above, centre, 0.04), [0.75, 0.25], rtol=1e-5)
    np.testing.assert_allclose(distill.centred(above, centre, 0.02), [0.9, 0.1], rtol=1e-5)
    shift = np.asarray([1, -2, 3, 0, 0, 5, -4], np.float32)
    shifted = distill.centred(LOGITS + shift, shift, 0.04)
    np.testing.assert_allclose(shifted, softmax(LOGITS / 0.04), atol=1e-4)


def looped_sinkhorn(logits, temperature, iterations):
    """SwAV's listing, on Q of K rows and one column per crop and picture."""
    q = np.exp(logits.reshape(-1, logits.shape[-1]).astype(np.float64) / temperature).T
    q /= q.sum()
    (k, b) = q.shape
    for _ in range(iterations):
        for i in range(k):
            q[i] /= q[i].sum() * k
        for j in range(b):
            q[:, j] /= q[:, j].sum() * b
    return (q * b).T.reshape(logits.shape)


@pytest.mark.parametrize("iterations", [1, 3, 200])
def test_sinkhorn_is_the_loop_and_its_sums_are_right(iterations):
    """Rows sum to 1; columns to rows / K in the limit, and by then a preference shared by all rows is gone."""
    found = distill.sinkhorn(LOGITS, 0.2, iterations)
    np.testing.assert_allclose(found, looped_sinkhorn(LOGITS, 0.2, iterations), atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)
    if iterations == 200:
        np.testing.assert_allclose(found.sum(axis=(0, 1)), 16 / 7, rtol=1e-4)
    favourite = LOGITS + np.asarray([0.5, 0, 0, 0, 0, 0, 0], np.float32)
    np.testing.assert_allclose(distill.sinkhorn(favourite, 0.2, iterations), found, atol=1e-5)
    assert np.abs(softmax(favourite / 0.2) - softmax(LOGITS / 0.2)).max() > 0.3


def test_sinkhorn_of_equal_rows_is_uniform_and_survives_low_temperatures():
    np.testing.assert_allclose(distill.sinkhorn(jnp.tile(LOGITS[:1, :1], (4, 2, 1)), 0.04), 1 / 7, rtol=1e-4)
    cold = distill.sinkhorn(LOGITS, 1e-3)
    np.testing.assert_allclose(cold.sum(axis=-1), 1, rtol=1e-4)


@pytest.mark.parametrize("targets", [lambda x: distill.centred(x, x.mean(axis=(0, 1)), 0.05), distill.sinkhorn])
def test_no_gradient_reaches_the_teacher(targets):
    targets = targets if targets is not distill.sinkhorn else lambda x: distill.sinkhorn(x, 0.05)
    assert not np.any(jax.grad(lambda x: distill.dino(STUDENTS, targets(x), 0.1))(LOGITS))
    assert not np.any(jax.grad(lambda x: distill.dino(STUDENTS, x, 0.1))(softmax(LOGITS)))
    assert not np.any(jax.grad(lambda x: distill.entropy(x).sum())(softmax(LOGITS)))


def test_targets_of_half_precision_are_made_in_float32():
    (half,), (exact,) = rounded(jnp.bfloat16, LOGITS)
    centre = np.linspace(-1, 1, 7, dtype=np.float32)
    centred, balanced = distill.centred(half, centre, 0.04), distill.sinkhorn(half, 0.2)
    assert centred.dtype == balanced.dtype == jnp.float32
    np.testing.assert_allclose(centred, softmax((exact - centre) / 0.04), atol=1e-5)
    np.testing.assert_allclose(balanced, looped_sinkhorn(exact, 0.2, 3), atol=1e-5)


def test_balance_and_loss_are_over_all_devices():
    """Value and gradient on 8 devices; a balance of each device's own rows would differ."""

    def both(students, logits):
        return distill.dino(students, distill.sinkhorn(logits, 0.05), 0.1)

    step = jax.jit(jax.value_and_grad(both))
    shards = parallel.to_global([STUDENTS, LOGITS], parallel.make_mesh({"data": 8}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), step(STUDENTS, LOGITS), step(*shards))
    alone = np.concatenate([distill.sinkhorn(LOGITS[i : i + 1], 0.05) for i in range(8)])
    assert np.abs(alone - distill.sinkhorn(LOGITS, 0.05)).max() > 0.2
