"""InfoNCE and NT-Xent in chunks: the plain value and gradient, over devices too, in a fraction of the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import parallel
from cxrjax.losses import contrastive

M, D = 16, 5


def pair(m=M, d=D):
    keys = jax.random.split(jax.random.key(0), 2)
    # Of one direction mostly, so that rows of the softmax are spread and a lost column shows.
    return tuple(jax.random.normal(key, (m, d)) + 0.5 for key in keys)


def same_patient():
    """Row 0 excludes all of some chunk: with chunks=8 chunk 1 is columns 1 and 9, with 4 it is 1, 5, 9 and 13."""
    exclude = np.arange(M)[:, None] // 3 == np.arange(M) // 3
    exclude[0, [1, 5, 9, 13]] = True
    return jnp.asarray(exclude)


def value_and_gradient(loss, chunks, **options):
    def of(u, v, temperature):
        return loss(u, v, temperature=temperature, chunks=chunks, **options)

    return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2)))(*pair(), 0.2)


@pytest.mark.parametrize(
    ("loss", "chunks", "options"),
    [
        (contrastive.info_nce, 4, {"share": 0.75, "exclude": same_patient()}),
        (contrastive.info_nce, M, {"similarity": "tsp", "kappa": 1 / 64}),
        (contrastive.nt_xent, 4, {"exclude": same_patient()}),
        (contrastive.ctr, 4, {}),
    ],
    ids=["exclude", "tsp", "nt_xent", "ctr"],
)
def test_chunks_change_neither_value_nor_gradient(loss, chunks, options):
    expected, gradients = value_and_gradient(loss, 1, **options)
    found, ours = value_and_gradient(loss, chunks, **options)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    for one, other in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * float(jnp.abs(other).max()))


def test_exclusion_of_a_chunk_is_the_loop():
    """Against float64 NumPy, with a symmetric and an asymmetric exclusion."""
    u, v = (np.float64(x) / np.linalg.norm(np.float64(x), axis=1, keepdims=True) for x in pair())
    kept = ~np.asarray(same_patient()) | np.eye(M, dtype=bool)
    logits = np.where(kept, u @ v.T / 0.2, -np.inf)
    rows, columns = (np.log(np.exp(logits).sum(axis)) - np.diag(logits) for axis in (1, 0))
    found = contrastive.info_nce(*pair(), temperature=0.2, exclude=same_patient(), share=0.75, chunks=8)
    assert float(found) == pytest.approx(0.75 * rows.mean() + 0.25 * columns.mean(), rel=1e-5)


def test_groups_and_bfloat16():
    u, v = (x.astype(jnp.bfloat16) for x in pair())
    expected = contrastive.info_nce(u, v, temperature=0.2, groups=2)
    found = contrastive.info_nce(u, v, temperature=0.2, groups=2, chunks=4)
    assert found.dtype == jnp.float32 and float(found) == pytest.approx(float(expected), rel=1e-6)


def test_chunks_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="16 rows do not divide into chunks=3"):
        contrastive.info_nce(*pair(), temperature=0.2, chunks=3)


def compiled(m, d, chunks):
    """value_and_grad over 8 devices, of rows that are divided among them."""
    mesh = parallel.make_mesh()
    rows = jax.ShapeDtypeStruct((m, d), jnp.float32, sharding=parallel.batch_sharding(mesh))
    temperature = jax.ShapeDtypeStruct((), jnp.float32, sharding=parallel.replicated(mesh))

    def loss(u, v, temperature):
        return contrastive.info_nce(u, v, temperature=temperature, chunks=chunks)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(rows, rows, temperature).compile()


def test_eight_devices_give_what_one_gives():
    mesh = parallel.make_mesh()
    u, v = pair(64, 8)
    exclude = jnp.asarray(np.arange(64)[:, None] // 3 == np.arange(64) // 3)

    def loss(u, v, exclude):
        return contrastive.info_nce(u, v, temperature=0.2, exclude=exclude, chunks=4)

    one = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(u, v, exclude)
    spread = jax.device_put((u, v, exclude), parallel.batch_sharding(mesh))
    eight = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*spread)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_chunks_take_a_fraction_of_the_memory():
    """Compiled only: logits of 2048 × 2048 are 16 MiB, 2 MiB on each of 8 devices."""
    plain, chunked = (compiled(2048, 32, chunks).memory_analysis().temp_size_in_bytes for chunks in (1, 16))
    assert plain > 2 * 2**20
    assert chunked < plain / 4
