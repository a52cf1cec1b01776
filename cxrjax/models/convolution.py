"""Convolution of pictures, in the form that is fastest where it runs.

On a CPU, XLA's strided convolutions and those of small maps take up to four times as long as one matrix product of the
shifted pictures, and its gradient of a kernel on large maps up to twice as long as a product for each tap. Which one
runs is decided by the platform that a program is lowered for.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

SMALL = 8
"""Places on a side, up to which a map is small."""


def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """x b h w c, kernel i j c d → b h' w' d, with `padding` zeros on every edge."""
    if kernel.shape[0] > 3:  # a stem's 7 × 7 product is larger than what it saves
        return _library(x, kernel, stride, padding)
    return _by_platform(x, kernel, stride, padding)


# Differentiated here, since the gradient of a choice would keep what either form needs.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _by_platform(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    library, cpu = (partial(form, stride=stride, padding=padding) for form in (_library, _on_cpu(x, stride)))
    return _choose(library, cpu, x, kernel)


def _on_cpu(x: jax.Array, stride: int) -> Callable:
    return _product if stride > 1 or max(x.shape[1:3]) <= SMALL else _library


def _forward(x: jax.Array, kernel: jax.Array, stride: int, padding: int):
    return _by_platform(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: int, kept: tuple[jax.Array, jax.Array], gradient: jax.Array):
    def pull(form: Callable, taps: bool = False) -> Callable:
        def both(x, kernel, gradient):
            (of_x,) = jax.linear_transpose(lambda x: form(x, kernel, stride, padding), x)(gradient)
            if taps:
                return of_x, _kernel_by_taps(x, kernel, padding, gradient)
            return of_x, *jax.linear_transpose(lambda kernel: form(x, kernel, stride, padding), kernel)(gradient)

        return both

    x, kernel = kept
    cpu = _on_cpu(x, stride)
    # The products are kept for each picture, so they should be smaller than its map.
    taps = cpu is _library and kernel.shape[0] > 1 and kernel[..., 0, :].size <= gradient[0, ..., 0].size
    return _choose(pull(_library), pull(cpu, taps), x, kernel, gradient)


_by_platform.defvjp(_forward, _backward)


def _choose(default: Callable, cpu: Callable, *args: jax.Array):
    return jax.lax.platform_dependent(*args, cpu=cpu, default=default)


def _library(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    edges, numbers = [(padding, padding)] * 2, ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), edges, dimension_numbers=numbers)


def _product(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Rows (b·h'·w') (i·j·c) of shifted pictures times the kernel as a matrix."""
    rows, columns, _, features = kernel.shape
    height, width = (
        (side + 2 * padding - taps) // stride + 1 for side, taps in zip(x.shape[1:3], (rows, columns), strict=True)
    )
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    shifted = [
        x[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        for i in range(rows)
        for j in range(columns)
    ]
    patches = jnp.concatenate(shifted, axis=-1)
    y = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, features)
    return y.reshape(len(x), height, width, features)


def _kernel_by_taps(x: jax.Array, kernel: jax.Array, padding: int, gradient: jax.Array) -> jax.Array:
    """Gradient of the kernel of a convolution without stride: for each tap, gradient d (h·w) times shifted x (h·w) c.

    Pictures are summed at the end: the sum in the loop would be exchanged between devices once per tap.
    """
    rows, columns, c, d = kernel.shape
    b, height, width, _ = gradient.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    # Turned once and ahead: a product is three times as fast where its left side is contracted over the inner axis.
    turned = jax.lax.optimization_barrier(gradient.reshape(b, -1, d).swapaxes(1, 2))

    def tap(n: jax.Array) -> jax.Array:
        shifted = jax.lax.dynamic_slice(x, (0, n // columns, n % columns, 0), (b, height, width, c))
        return turned @ shifted.reshape(b, -1, c)

    taps = jax.lax.map(tap, jnp.arange(rows * columns)).sum(1)
    return taps.reshape(rows, columns, d, c).swapaxes(2, 3)
