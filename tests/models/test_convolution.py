"""Both forms of a convolution against each other; that they are PyTorch's is tested with the ResNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cxrjax import parallel
from cxrjax.accelerators import aot
from cxrjax.models import convolution


@pytest.mark.parametrize(("height", "side", "stride"), [(9, 3, 2), (8, 3, 1), (8, 1, 2), (12, 3, 1)])
def test_the_product_is_the_librarys_convolution(height, side, stride):
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(shape, np.float32) for shape in ((2, height, 6, 3), (side, side, 3, 5)))
    args = (stride, side // 2)
    expected = convolution._library(x, kernel, *args)
    gradient = rng.standard_normal(expected.shape, np.float32)
    for form in (convolution._product, convolution.convolve):
        y, pull = jax.vjp(lambda x, kernel, form=form: form(x, kernel, *args), x, kernel)
        np.testing.assert_allclose(y, expected, atol=1e-5)
        _, theirs = jax.vjp(lambda x, kernel: convolution._library(x, kernel, *args), x, kernel)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), pull(gradient), theirs(gradient))


def test_the_gradient_by_taps_is_exchanged_once():
    """A sum over pictures in the loop over taps would be exchanged nine times."""
    mesh = parallel.make_mesh({"data": 8})
    x = jax.device_put(np.ones((8, 16, 16, 4), np.float32), NamedSharding(mesh, PartitionSpec("data")))
    kernel = jax.device_put(np.ones((3, 3, 4, 4), np.float32), NamedSharding(mesh, PartitionSpec()))
    gradient = jax.jit(jax.grad(lambda kernel, x: convolution.convolve(x, kernel, 1, 1).sum()))
    text = gradient.lower(kernel, x).compile().as_text()
    assert "while(" in text and [each.count for each in aot.collectives(text).values()] == [1]


def test_large_maps_are_the_librarys_everywhere():
    for shape, kernel, stride in (((1, 16, 16, 3), 3, 1), ((1, 32, 32, 1), 7, 2)):
        traced = str(
            jax.make_jaxpr(lambda *args, s=stride: convolution.convolve(*args, s, 1))(
                jnp.zeros(shape), jnp.zeros((kernel, kernel, shape[-1], 5))
            )
        )
        assert "conv_general_dilated" in traced and "dot_general" not in traced


def test_other_platforms_get_the_librarys_convolution():
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))
    traced = jax.jit(lambda x, kernel: convolution.convolve(x, kernel, 1, 1)).trace(x, kernel)
    found = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")}
    assert {name: "stablehlo.convolution" in text for name, text in found.items()} == {
        "cpu": False,
        "cuda": True,
        "tpu": True,
    }
