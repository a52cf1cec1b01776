"""Position tables of a patch grid: MAE's fixed sine–cosine table, and resizing a learned one to another grid."""

import jax
import numpy as np
from einops import rearrange


def sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed 2-D sine–cosine table, the layout of MAE's code (column half first, then row half; sines before cosines).

    grid: rows p and columns q of patches. Returns float32 (p·q) d, patches in raster order.
    Raises ValueError if width is not a multiple of 4. Source: MAE, He et al. 2022, released code; MoCo v3.
    """
    if width % 4:
        raise ValueError(f"a 2-D sine–cosine table needs a width that is a multiple of 4, got {width}")
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    frequency = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4))
    halves = []
    for coordinate in (columns, rows):
        angle = coordinate.reshape(-1, 1) * frequency
        halves += [np.sin(angle), np.cos(angle)]
    return np.concatenate(halves, axis=1).astype(np.float32)


def resize(table: jax.Array, old: tuple[int, int], new: tuple[int, int]) -> jax.Array:
    """Bicubic resize of a learned patch table: (p·q) d on the `old` grid → (p·q) d on the `new` one."""
    if old == new:
        return table
    image = rearrange(table, "(p q) d -> p q d", p=old[0], q=old[1])
    image = jax.image.resize(image, (*new, table.shape[-1]), method="bicubic", antialias=False)
    return rearrange(image, "p q d -> (p q) d")
