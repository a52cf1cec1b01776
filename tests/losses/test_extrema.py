"""The extrema of an axis, and where their gradient goes."""

import jax
import numpy as np
import pytest

from cxrjax.losses.extrema import largest, smallest


def test_equal_values_give_their_gradient_to_the_first():
    """As PyTorch's pooling; and never 0/0, whatever a compiler computes twice."""
    torch = pytest.importorskip("torch")
    x = np.array([[3.0, 1.0, 3.0], [0.0, 0.0, 0.0]], np.float32)
    theirs = torch.tensor(x, requires_grad=True)
    torch.nn.functional.adaptive_max_pool1d(theirs[None], 1).sum().backward()
    ours = jax.grad(lambda x: largest(x, -1).sum())(x)
    np.testing.assert_array_equal(ours, theirs.grad.numpy())
    np.testing.assert_array_equal(largest(x, 1), x.max(1))
    np.testing.assert_array_equal(largest(x, 0), x.max(0))
    np.testing.assert_array_equal(smallest(x, -1), x.min(-1))
    np.testing.assert_array_equal(jax.grad(lambda x: smallest(x, 1).sum())(x), [[0, 1, 0], [1, 0, 0]])
