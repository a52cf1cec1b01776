"""Word by word agreement of two pictures: hand values, the loop, lacking pictures, bfloat16."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import parallel
from cxrjax.losses import contrastive
from cxrjax.losses.views import counted_info_nce, word_alignment

RNG = np.random.default_rng(0)
U, V = RNG.normal(size=(2, 8, 6, 12)).astype(np.float32)
VALID = np.arange(6) < np.asarray([6, 3, 1, 0, 6, 2, 5, 4])[:, None]
STUDIES = np.asarray([1, 1, 0, 1, 0, 1, 1, 1], bool)
LOSS = jax.jit(partial(word_alignment, temperature=0.07))


def torch_loop(u, v, valid, studies):
    """One study after the other on its words alone, with PyTorch's cross-entropy: value and gradients."""
    torch = pytest.importorskip("torch")
    u, v = (torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in (u, v))
    unit = partial(torch.nn.functional.normalize, dim=-1)
    found = []
    for a, b, words, counted in zip(u, v, valid, studies, strict=True):
        if counted and words.any():
            logits = unit(a[words]) @ unit(b[words]).T / 0.07
            own = torch.arange(len(logits))
            rows = [torch.nn.functional.cross_entropy(side, own) for side in (logits, logits.T)]
            found.append(sum(rows) / 2)
    value = torch.stack(found).mean()
    value.backward()
    return value.item(), u.grad.numpy(), v.grad.numpy()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_is_the_loop_in_value_and_gradient(dtype):
    u, v = jnp.asarray(U, dtype), jnp.asarray(V, dtype)
    rounded = [np.asarray(x.astype(jnp.float32)) for x in (u, v)]
    loss = partial(word_alignment, valid=VALID, temperature=0.07, studies=STUDIES)
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(u, v)
    expected, *theirs = torch_loop(*rounded, VALID, STUDIES)
    assert value.dtype == jnp.float32 and float(value) == pytest.approx(expected, rel=1e-5)
    for ours, exact in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), exact, atol=1e-5 if dtype == jnp.float32 else 5e-3)


def test_by_hand():
    """Orthogonal words with equal pictures; all words alike; one picture in both places."""
    eye, valid = jnp.eye(127, 128)[None], np.ones((1, 127), bool)
    assert float(LOSS(eye, eye, valid)) == pytest.approx(7.873e-5, abs=1e-6)
    same = jnp.ones((1, 127, 8))
    assert float(LOSS(same, same, valid)) == pytest.approx(4.8442, abs=1e-4)
    assert float(LOSS(U, U, VALID)) < 0.05 < float(LOSS(U, V, VALID))


def test_what_it_does_not_see():
    """Order of views and words, padding, length."""
    value = float(LOSS(U, V, VALID, studies=STUDIES))
    assert float(LOSS(V, U, VALID, studies=STUDIES)) == pytest.approx(value, rel=1e-6)
    order = RNG.permutation(6)
    turned = LOSS(U[:, order], 3 * V[:, order], VALID[:, order], studies=STUDIES)
    assert float(turned) == pytest.approx(value, rel=1e-5)
    longer = [np.concatenate([x, x[:, :2] + 1], axis=1) for x in (U, V)]
    padded = LOSS(*longer, np.concatenate([VALID, VALID[:, :2] & False], axis=1), studies=STUDIES)
    assert float(padded) == pytest.approx(value, rel=1e-6)


def test_lacking_pictures():
    """The loss of those that are there; which is lacking is all that matters; none is 0 without gradient."""
    value = float(LOSS(U, V, VALID, studies=STUDIES))
    alone = LOSS(U[STUDIES], V[STUDIES], VALID[STUDIES])
    assert float(alone) == pytest.approx(value, rel=1e-6)
    noise = np.where(STUDIES[:, None, None], V, 0)
    assert float(LOSS(U, noise, VALID, studies=STUDIES)) == pytest.approx(value, rel=1e-6)
    for valid, studies in ((VALID, STUDIES & False), (VALID & False, STUDIES)):
        loss = partial(word_alignment, valid=valid, temperature=0.07, studies=studies)
        found, gradient = jax.value_and_grad(loss)(U, V)
        assert float(found) == 0 and not np.any(gradient)


def test_a_report_of_one_word_has_nothing_to_tell_apart():
    assert float(LOSS(U, V, np.arange(6) < np.ones((8, 1)))) == pytest.approx(0, abs=1e-6)


def test_one_device_is_eight():
    """Studies and words are lacking on some devices only: means are of the whole batch."""
    step = jax.jit(
        jax.value_and_grad(lambda u, v, *masks: word_alignment(u, v, masks[0], temperature=0.07, studies=masks[1]))
    )
    shards = parallel.to_global([U, V, VALID, STUDIES], parallel.make_mesh({"data": 8}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), step(U, V, VALID, STUDIES), step(*shards))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_contrast_of_the_counted_is_that_of_a_smaller_batch(dtype):
    """Value and gradient; the others' rows may hold anything and get nothing."""
    u, v = (jnp.asarray(x[:, 0], dtype) for x in (U, V))
    noisy = jnp.where(STUDIES[:, None], u, 100)
    loss = partial(counted_info_nce, temperature=0.1)
    value, gradient = jax.value_and_grad(loss)(noisy, v, STUDIES)
    exact, expected = jax.value_and_grad(partial(contrastive.info_nce, temperature=0.1))(u[STUDIES], v[STUDIES])
    assert float(value) == pytest.approx(float(exact), rel=1e-5)
    np.testing.assert_allclose(gradient[STUDIES].astype(float), expected.astype(float), atol=2e-6, rtol=1e-2)
    assert not np.any(gradient[~STUDIES])
    none, gradient = jax.value_and_grad(loss)(u, v, STUDIES & False)
    assert float(none) == 0 and not np.any(gradient)


def test_local_negatives():
    """Groups of the whole batch are contrastive's; with some not counted, each group is its own smaller batch."""
    u, v, all_of_them = U[:, 0], V[:, 0], STUDIES | True
    exact = contrastive.info_nce(u, v, temperature=0.1, groups=2)
    assert float(counted_info_nce(u, v, all_of_them, temperature=0.1, groups=2)) == pytest.approx(
        float(exact), rel=1e-5
    )
    halves = [np.flatnonzero(STUDIES[:4]), 4 + np.flatnonzero(STUDIES[4:])]
    total = sum(len(rows) * float(contrastive.info_nce(u[rows], v[rows], temperature=0.1)) for rows in halves)
    found = counted_info_nce(u, v, STUDIES, temperature=0.1, groups=2)
    assert float(found) == pytest.approx(total / STUDIES.sum(), rel=1e-5)
    with pytest.raises(ValueError, match="a batch of 8 cannot be cut into groups=3"):
        counted_info_nce(u, v, STUDIES, temperature=0.1, groups=3)
