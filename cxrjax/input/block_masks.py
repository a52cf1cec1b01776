"""Rectangles of patches that are hidden from an encoder, drawn on the host, one picture at a time.

Grids are (p, q), rows and columns of patches; masks are bool p q, ids are numbers in raster order.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

TRIES = 20


class Blocks(NamedTuple):
    """I-JEPA's blocks of a picture: some to be predicted, and one to predict them from.

    targets: how many. target_scale, aspect: share of the patches of each, and height / width. context_scale: share of
    the context, a square before the targets are taken out. min_keep: cells that a context has more than.
    context_most: share of the patches that a context has at most; what is above it goes.
    inclusive: blocks reach the last row and column, and may span the whole grid. The released code's never do.
    independent_aspect: the aspect has a draw of its own; the released code takes that of the scale.
    context_cut: which cells go: "random" ones, or the last in raster order ("first" ones stay), as in the released
    code.
    """

    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    min_keep: int = 10
    context_most: float = 0.5
    inclusive: bool = True
    independent_aspect: bool = True
    context_cut: str = "random"

    def draw(self, rng: np.random.Generator, grid: tuple[int, int]) -> dict[str, np.ndarray | np.int32]:
        """ "context" int32 k with "context_count" of them in use, and "targets" int32 m t with "target_count".

        All targets of a picture have one size. The ids are in order, and zeros behind those in use.
        """
        k, t = self.capacities(grid)
        u = rng.random()
        size = self.target_size(u, rng.random() if self.independent_aspect else u, grid)
        targets = [self._place(rng, size, grid) for _ in range(self.targets)]
        context = self._context(rng, targets, grid)
        if len(context) > k:
            context = np.sort(rng.permutation(context)[:k]) if self.context_cut == "random" else context[:k]
        return {
            "context": _padded(context, k),
            "context_count": np.int32(len(context)),
            "targets": np.stack([_padded(np.flatnonzero(mask), t) for mask in targets]),
            "target_count": np.int32(size[0] * size[1]),
        }

    def capacities(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The most patches of a context and of a target."""
        # Of a config.json they are lists, which no cache takes.
        target = _most_cells(tuple(self.target_scale), tuple(self.aspect), tuple(grid), self.inclusive)
        return max(int(self.context_most * grid[0] * grid[1]), 1), target

    def target_size(self, u: float, v: float, grid: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the targets for draws u of the scale and v of the aspect, in [0, 1)."""
        return _size(_between(self.target_scale, u), _between(self.aspect, v), grid, self.inclusive)

    def context_size(self, u: float, grid: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the context for a draw u of the scale, in [0, 1)."""
        return _size(_between(self.context_scale, u), 1.0, grid, self.inclusive)

    def _place(self, rng: np.random.Generator, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
        mask = np.zeros(grid, bool)
        top, left = (int(rng.integers(side - of + self.inclusive)) for side, of in zip(grid, size, strict=True))
        mask[top : top + size[0], left : left + size[1]] = True
        return mask

    def _context(self, rng: np.random.Generator, targets: Sequence[np.ndarray], grid: tuple[int, int]) -> np.ndarray:
        """Ids of a square without the targets; after TRIES squares with too few cells, without the last target, …"""
        size = self.context_size(rng.random(), grid)
        for counted in range(len(targets), -1, -1):
            for _ in range(TRIES):
                mask = self._place(rng, size, grid)
                for target in targets[:counted]:
                    mask &= ~target
                if mask.sum() > self.min_keep:
                    return np.flatnonzero(mask)
        return np.flatnonzero(mask)


@functools.lru_cache
def _most_cells(scale: tuple[float, float], aspect: tuple[float, float], grid: tuple[int, int], inclusive: bool) -> int:
    """Cells of the largest block; it is asked for every picture, and takes 10 000 sizes to find."""
    shares = np.linspace(0, 1, 101)
    sizes = (_size(_between(scale, u), _between(aspect, v), grid, inclusive) for u in shares for v in shares)
    return max(h * w for h, w in sizes)


def _size(scale: float, aspect: float, grid: tuple[int, int], inclusive: bool) -> tuple[int, int]:
    cells = int(grid[0] * grid[1] * scale)
    height, width = round(math.sqrt(cells * aspect)), round(math.sqrt(cells / aspect))
    most = [side if inclusive else side - 1 for side in grid]
    return max(min(height, most[0]), 1), max(min(width, most[1]), 1)


def _between(ends: Sequence[float], u: float) -> float:
    return ends[0] + u * (ends[1] - ends[0])


def _padded(ids: np.ndarray, count: int) -> np.ndarray:
    return np.pad(ids, (0, count - len(ids))).astype(np.int32)


class Rectangles(NamedTuple):
    """DINOv2's masks: rectangles that are added until a share of a crop's patches is hidden.

    crops: how many of the large crops of a picture are masked, which of them by chance. ratio: share of the patches.
    aspect: least height / width, and greatest width / height. least, most: cells of a rectangle; most = 0 is half of
    the grid. A rectangle never spans the whole height or width.
    Source: BEiT and iBOT, as DINOv2's released code has it, which masks half of all crops of a batch.
    """

    crops: int = 1
    ratio: tuple[float, float] = (0.1, 0.5)
    aspect: float = 0.3
    least: int = 4
    most: int = 0

    def draw(self, rng: np.random.Generator, views: int, grid: tuple[int, int]) -> dict[str, np.ndarray]:
        """ "hidden" bool views n; "hidden_ids" int32 c, those of all views in order; "hidden_count" of views.

        The ids count through the views, view · n + patch, with zeros behind those in use.
        """
        n = grid[0] * grid[1]
        mask = np.zeros((views, n), bool)
        for view in rng.permutation(views)[: self.crops]:
            mask[view] = self.mask(rng, int(n * _between(self.ratio, rng.random())), grid).ravel()
        count = mask.sum(axis=1).astype(np.int32)
        ids = _padded(np.flatnonzero(mask), self.capacity(grid))
        return {"hidden": mask, "hidden_ids": ids, "hidden_count": count}

    def capacity(self, grid: tuple[int, int]) -> int:
        """The most patches of a picture that are hidden."""
        return max(self.crops * int(grid[0] * grid[1] * self.ratio[1]), 1)

    def mask(self, rng: np.random.Generator, wanted: int, grid: tuple[int, int]) -> np.ndarray:
        """bool p q with `wanted` hidden cells, or a few less where ten rectangles in turn do not fit."""
        mask, hidden = np.zeros(grid, bool), 0
        while hidden < wanted:
            left = min(wanted - hidden, self.most or grid[0] * grid[1] // 2)
            added = self._add(rng, mask, left)
            if not added:
                break
            hidden += added
        return mask

    def _add(self, rng: np.random.Generator, mask: np.ndarray, most: int) -> int:
        for _ in range(10):
            area = _between((self.least, most), rng.random())
            aspect = math.exp(rng.uniform(math.log(self.aspect), -math.log(self.aspect)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < mask.shape[0] and w < mask.shape[1]:
                top, left = (int(rng.integers(side - of + 1)) for side, of in zip(mask.shape, (h, w), strict=True))
                window = mask[top : top + h, left : left + w]
                if 0 < (added := int((~window).sum())) <= most:
                    window[:] = True
                    return added
        return 0
