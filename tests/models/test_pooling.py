"""The pool and its gradient are the library's; that they are PyTorch's is tested with the ResNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.models import pooling


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (2, 7, 9, 3), (1, 1, 2, 1)])
def test_the_gradient_goes_to_the_first_of_the_largest(shape):
    """Half of what a ReLU gives is zero, so many windows have several largest places."""
    rng = np.random.default_rng(0)
    x = jnp.maximum(rng.standard_normal(shape, np.float32), 0)
    y, pull = jax.vjp(pooling.max_pool, x)
    expected, theirs = jax.vjp(pooling._library, x)
    np.testing.assert_array_equal(y, expected)
    gradient = rng.standard_normal(y.shape, np.float32)
    np.testing.assert_allclose(pull(gradient)[0], theirs(gradient)[0], atol=1e-6)


def test_a_nan_is_not_hidden():
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 1, 1] = np.nan
    forward = jax.vjp(pooling.max_pool, jnp.asarray(x))[0]
    np.testing.assert_array_equal(np.isnan(forward[0, :, :, 0]), [[True, True], [True, True]])


def test_other_platforms_get_the_librarys_pool():
    gradient = jax.grad(lambda x: pooling.max_pool(x).sum())
    traced = jax.jit(gradient).trace(jnp.zeros((1, 8, 8, 2)))
    found = {
        name: "select_and_scatter" in traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda")
    }
    assert found == {"cpu": False, "cuda": True}
