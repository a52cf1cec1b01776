"""Resizing and pooling of maps as one constant matrix per axis, with the values of torch.nn.functional."""

import jax
import jax.numpy as jnp
import numpy as np


def resize_matrix(size: int, side: int, aligned: bool = False) -> np.ndarray:
    """Bilinear resizing of one axis, side × size; rows sum to 1. As torch's interpolate(align_corners=aligned).

    Two neighbours of each new centre and no more, also when shrinking: jax.image.resize needs antialias=False for that.
    """
    rows = np.arange(side)
    if aligned:
        place = rows * (size - 1) / max(side - 1, 1)
    else:
        place = np.maximum((rows + 0.5) * size / side - 0.5, 0)
    low = np.minimum(place.astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((side, size))
    np.add.at(matrix, (rows, low), 1 - (place - low))
    np.add.at(matrix, (rows, high), place - low)
    return matrix


def pool_matrix(size: int, cells: int) -> np.ndarray:
    """Means over `cells` parts of one axis, cells × size. As torch's AdaptiveAvgPool: parts may overlap by one."""
    matrix = np.zeros((cells, size))
    for cell in range(cells):
        start, end = cell * size // cells, -(-(cell + 1) * size // cells)
        matrix[cell, start:end] = 1 / (end - start)
    return matrix


def both_axes(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """b h w c → b p q c by matrices of rows, p h, and columns, q w."""
    of_rows, of_columns = (jnp.asarray(matrix, x.dtype) for matrix in (rows, columns))
    return jnp.einsum("qw,bpwc->bpqc", of_columns, jnp.einsum("ph,bhwc->bpwc", of_rows, x))
