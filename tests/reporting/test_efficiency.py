"""Curves over shares of the labels: a planted power law is found, and SciPy's regression agrees."""

import types

import numpy as np
import pytest
import scipy.stats

from cxrjax.evals.base import Interval
from cxrjax.reporting import efficiency, sections

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


def planted(a=0.15, b=0.2, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    values = {share: 1 - a * share**-b * np.exp(noise * rng.normal()) for share in SHARES}
    return values, {share: value + 0.01 * rng.normal(size=500) for share, value in values.items()}


def test_a_power_law_is_found():
    found = efficiency.law(*planted(), 90)
    assert found.exponent.value == pytest.approx(0.2) and found.exponent.low < 0.2 < found.exponent.high
    assert found.exponent.n == 90 and found.residual < 1e-9
    assert found.at_more.value == pytest.approx(1 - 0.15 * 2**-0.2)
    assert found.to_halve == pytest.approx(32)  # 32 to the power of 0.2 is 2
    assert found.shares == (*SHARES, 2.0) and found.fitted[3] == pytest.approx(1 - 0.15 * 0.1**-0.2)


def test_the_fit_is_scipys_regression():
    values, samples = planted(noise=0.1, seed=1)
    found = efficiency.law(values, samples, 1)
    slope = scipy.stats.linregress(np.log(SHARES), np.log([1 - values[share] for share in SHARES])).slope
    assert found.exponent.value == pytest.approx(-slope)
    drawn = [
        -scipy.stats.linregress(np.log(SHARES), np.log([1 - samples[share][r] for share in SHARES])).slope
        for r in range(500)
    ]
    assert found.exponent[1:3] == pytest.approx(np.percentile(drawn, [2.5, 97.5]))
    assert 0 < found.residual < 0.1


def test_the_page_says_what_more_labels_would_buy():
    values, samples = planted()

    def at(share):
        metrics = {"ours": {"auroc": Interval(values[share], values[share] - 0.02, values[share] + 0.02, 90)}}
        return types.SimpleNamespace(metrics=metrics, drawn={"ours": samples[share]})

    curve, laws, table = sections._over_shares({share: at(share) for share in SHARES}, "auroc")
    assert curve.svg != laws.svg and "up to 2 times the labels" in laws.caption
    ((name, exponent, more, times, _),) = table.rows
    assert (name, times) == ("ours", "32 times") and exponent.value == pytest.approx(0.2)
    assert more.value == pytest.approx(1 - 0.15 * 2**-0.2)
    assert len(sections._over_shares({share: at(share) for share in (0.1, 1.0)}, "auroc")) == 1


def test_what_has_no_curve():
    values, samples = planted()
    two = {share: values[share] for share in (0.1, 1.0)}
    assert efficiency.law(two, samples, 1) is None
    assert efficiency.law(values | {1.0: 1.0}, samples, 1) is None
    assert efficiency.law(values | {1.0: np.nan}, samples, 1) is None
    flat = efficiency.law(dict.fromkeys(SHARES, 0.7), {share: np.full(9, 0.7) for share in SHARES}, 1)
    assert flat.to_halve == np.inf and flat.exponent.value == pytest.approx(0)
    perfect = {share: np.where(np.arange(500) < 100, 1.0, one) for share, one in samples.items()}
    assert np.isnan(efficiency.law(values, perfect, 1).exponent.low)  # a fifth of the resamples has no error
