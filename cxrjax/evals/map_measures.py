"""What a map says of a region that readers marked: does it peak there, overlap with it, stand out in it, order pixels?

    pointing       the map's highest pixel lies in the region (the pointing game; Zhang et al., ECCV 2016)
    miou           mean over thresholds of the IoU of the region with the map's pixels at or above the threshold
    cnr            (mean inside − mean outside) / √(variance inside + variance outside)
    pixel_auroc    probability that a pixel inside is higher than one outside, a tie counts half

IoU and contrast-to-noise ratio judge maps of cosines in BioViL (Boecking et al., ECCV 2022), which thresholds the
cosines themselves at 0.1, 0.2, …, 0.5. Here a map is first stretched from its lowest value, 0, to its highest, 1. So
maps of attention and of other scales are judged alike, and nothing but the map's shape counts. BioViL takes the
absolute value of the ratio; here a map that is low in the region is below 0.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import scipy.stats

from cxrjax.drawing import style
from cxrjax.evals import figures

MEASURES = ("pointing", "miou", "cnr", "pixel_auroc")
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
LUNGS = ((0.41, 0.30), (0.41, 0.70))
"""Middles of the lungs (y, x), of the side of a picture: rounded means over 70 masks of `tb_lung_masks`."""
SPREAD = (0.16, 0.08)
"""Standard deviation of a lung's pixels in y and x, from the same masks."""


def measures(found: np.ndarray, inside: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:
    """The values of MEASURES, 4 float64, of a map p q on a region, bool h w.

    The map is enlarged to h w, bilinear between the middles of its patches. A ratio without any variance, and all of
    a region that is empty or covers the picture, are NaN. Raises ValueError for a map with NaN or infinite values.
    """
    if not np.isfinite(found).all():
        raise ValueError(f"{(~np.isfinite(found)).sum()} of the {found.size} values of a map are NaN or infinite")
    if not inside.any() or inside.all():
        return np.full(len(MEASURES), np.nan)
    large = style.enlarge(found, *inside.shape).astype(np.float64)
    span = np.ptp(large)
    stretched = (large - large.min()) / span if span > 0 else np.zeros_like(large)
    overlaps = [(inside & above).sum() / (inside | above).sum() for above in (stretched >= at for at in thresholds)]
    within, without = large[inside], large[~inside]
    noise = np.sqrt(within.var() + without.var())
    contrast = (within.mean() - without.mean()) / noise if noise > 0 else np.nan
    ranks = scipy.stats.rankdata(large)[inside.ravel()]
    area = (ranks.sum() - len(within) * (len(within) + 1) / 2) / (len(within) * len(without))
    return np.array([inside[figures.peak(found, *inside.shape)], np.mean(overlaps), contrast, area], np.float64)


def centre_of_lungs(shape: tuple[int, ...], lungs: np.ndarray | None = None) -> np.ndarray:
    """A map h w of this shape that is high in the middle of the lungs, whatever the picture shows.

    lungs: bool h w; the map is then each pixel's distance to the edge of its lung. Without them the lungs are where
    they are on average (LUNGS).
    """
    if lungs is not None and lungs.any():
        return cv2.distanceTransform(lungs.astype(np.uint8), cv2.DIST_L2, 5)
    axes = [(np.arange(side) + 0.5) / side for side in shape]
    bells = [[_bell(*axis) for axis in zip(axes, one, SPREAD, strict=True)] for one in LUNGS]
    return np.sum([np.outer(*of_one) for of_one in bells], axis=0)


def _bell(at: np.ndarray, middle: float, spread: float) -> np.ndarray:
    return np.exp(-(((at - middle) / spread) ** 2) / 2)
