"""How a metric grows with the labels that were trained on, and what more of them would buy.

    1 − metric = a · share^−b        least squares in logarithms, over the shares that were trained on

A power law is what errors of networks are found to follow over decades of data (Hestness et al. 2017), before they
level off at what no amount of labels repairs. So what is said of more labels than were tried is an extrapolation, and
too hopeful near such a level. The interval comes from the same resamples of test patients at every share. It covers
neither seeds, which at small shares are the larger part, nor that the law may not hold.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cxrjax.evals import metrics
from cxrjax.evals.base import Interval

FEWEST = 3
"""Shares that a curve is fitted to, at least; two would lie on every curve."""
MORE = 2
"""Times the largest share, for which the metric is told."""


class Law(NamedTuple):
    """The fitted curve of one subject.

    exponent: b. at_more: the metric at MORE times the largest share. residual: the largest distance of a value from the
    curve. to_halve: how many times the labels halve the error, infinite where more labels change nothing. shares,
    fitted: the curve's values at the shares and at MORE times the largest.
    """

    exponent: Interval
    at_more: Interval
    residual: float
    to_halve: float
    shares: tuple[float, ...]
    fitted: tuple[float, ...]


def law(values: Mapping[float, float], samples: Mapping[float, np.ndarray], n: int) -> Law | None:
    """The curve of a metric with a highest value of 1; None for fewer than FEWEST shares, and for a value of 1 or NaN.

    values: share -> metric. samples: share -> the metric of r resamples, the same ones at each share. n: pictures.
    """
    shares = sorted(values)
    if len(shares) < FEWEST:
        return None
    errors = 1 - np.array([values[share] for share in shares])  # s
    drawn = 1 - np.stack([samples[share] for share in shares], axis=1)  # r s
    if not (errors > 0).all():
        return None
    drawn = np.where((drawn > 0).all(axis=1, keepdims=True), drawn, np.nan)
    log_shares = np.log(shares)
    centred = log_shares - log_shares.mean()

    def fit(log_errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Exponents and logarithms of a, of curves … s."""
        slope = log_errors @ centred / (centred @ centred)
        return -slope, log_errors.mean(axis=-1) - slope * log_shares.mean()

    (exponent, scale), (exponents, scales) = fit(np.log(errors)), fit(np.log(drawn))
    every = (*shares, MORE * shares[-1])
    fitted = 1 - np.exp(scale - exponent * np.log(every))
    more = 1 - np.exp(scales - exponents * math.log(every[-1]))
    return Law(
        metrics.interval(float(exponent), exponents, n),
        metrics.interval(float(fitted[-1]), more, n),
        float(np.abs(1 - errors - fitted[:-1]).max()),
        float(2 ** (1 / exponent)) if exponent > 1e-3 else math.inf,
        every,
        tuple(fitted.tolist()),
    )
