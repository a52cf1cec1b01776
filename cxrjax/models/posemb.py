"""Position tables of a patch grid: a fixed sine–cosine table, and resizing a learned one to another grid."""

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("sincos", "sincos_rows", "learned")


def sincos_2d(grid: tuple[int, int], width: int, rows_first: bool = False) -> np.ndarray:
    """Fixed 2-D sine–cosine table: half of the width tells columns, the other half rows, sines before cosines.

    grid: rows p and columns q of patches. rows_first: which half leads, columns as in MAE's code or rows as in MoCo
    v3's. Returns float32 (p·q) d, patches in raster order.
    Raises ValueError if width is not a multiple of 4. Source: He et al. 2022 and Chen et al. 2021, released code.
    """
    if width % 4:
        raise ValueError(f"a 2-D sine–cosine table needs a width that is a multiple of 4, got {width}")
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    frequency = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4))
    halves = []
    for coordinate in (rows, columns) if rows_first else (columns, rows):
        angle = coordinate.reshape(-1, 1) * frequency
        halves += [np.sin(angle), np.cos(angle)]
    return np.concatenate(halves, axis=1).astype(np.float32)


def fixed(positions: str, grid: tuple[int, int], width: int) -> np.ndarray | None:
    """The table (p·q) d of a ViT's `positions`: "sincos" (MAE's) or "sincos_rows" (MoCo v3's); None for "learned".

    Raises ValueError for any other word.
    """
    if positions not in KINDS:
        raise ValueError(f"positions must be one of {', '.join(KINDS)}, got {positions!r}")
    return None if positions == "learned" else sincos_2d(grid, width, rows_first=positions == "sincos_rows")


def rope(grid: tuple[int, int], width: int, base: float) -> jax.Array:
    """Angles of rotary positions, (p·q) e for heads of width e: 2π · place / base^(4i/e) of rows, then of columns.

    A place is the middle of a patch, −1 to 1 over the picture, so that grids of any size see the same picture. The
    second half of e repeats the first, see `transformer.rotate`.
    Raises ValueError if width is not a multiple of 4. Source: Siméoni et al., DINOv3, 2508.10104, released code.
    """
    if width % 4:
        raise ValueError(f"rotary positions of two axes need heads whose width is a multiple of 4, got {width}")
    places = [2 * (np.arange(side) + 0.5) / side - 1 for side in grid]
    frequency = 1 / base ** np.arange(0, 1, 4 / width)
    both = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    angles = (2 * np.pi * both * frequency).reshape(len(both), -1)
    return jnp.asarray(np.tile(angles, 2), jnp.float32)


def resize(
    table: jax.Array, old: tuple[int, int], new: tuple[int, int], offset: float = 0.0, antialias: bool = False
) -> jax.Array:
    """Bicubic resize of a learned patch table: (p·q) d on the `old` grid → (p·q) d on the `new` one.

    As torch.nn.functional.interpolate(mode="bicubic", align_corners=False) has it, so that weights from and for PyTorch
    mean the same: kernel a = −0.75 (jax.image.resize has −0.5), border repeated, no antialiasing. offset: added to the
    new sides where places are computed, as DINO's code does (0.1), which asks for a scale_factor and not for a size.
    antialias: as interpolate(antialias=True) has it instead, whose kernel is wider where it shrinks and has a = −0.5,
    as that of jax.image.resize; encoders with registers were trained with it. Raises ValueError for it with an offset.
    """
    if antialias and offset:
        raise ValueError(f"resize_offset = {offset} and resize_antialias cannot be combined: set one of them")
    if old == new:
        return table
    if antialias:
        grid = jnp.asarray(table).reshape(*old, -1)
        shape = (*new, grid.shape[-1])
        grid = jax.image.resize(grid, shape, "cubic", precision=jax.lax.Precision.HIGHEST)
        return grid.reshape(new[0] * new[1], -1)
    rows, columns = (_bicubic(o, n, offset) for o, n in zip(old, new, strict=True))
    grid = jnp.asarray(table).reshape(*old, -1)
    return jnp.einsum("pi,qj,ijd->pqd", rows, columns, grid, precision="highest").reshape(new[0] * new[1], -1)


def _bicubic(old: int, new: int, offset: float) -> np.ndarray:
    """Weights (new, old) of one axis of the resize."""
    centres = (np.arange(new) + 0.5) * old / (new + offset) - 0.5
    first = np.floor(centres).astype(int)
    matrix, a = np.zeros((new, old), np.float32), -0.75
    for offset in (-1, 0, 1, 2):
        distance = np.abs(centres - (first + offset))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        np.add.at(matrix, (np.arange(new), np.clip(first + offset, 0, old - 1)), np.where(distance <= 1, near, far))
    return matrix
