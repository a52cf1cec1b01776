"""The brightness that the header of a DICOM radiograph gives to its stored values.

All of it is one table from stored value to brightness, built in the order of the standard (PS3.4 N.2): modality LUT or
rescaling, padding set aside, VOI LUT or window, scaling, inversion.
"""

from typing import NamedTuple

import cv2
import numpy as np

from cxrjax.imaging import codecs, header, pixels
from cxrjax.imaging.pixels import UnreadablePicture

FULL = 2**16 - 1
LEAST_INSIDE = 0.01  # share of the pixels that a usable window leaves between black and white
LEAST_SPAN = 1 / 32  # share of black to white that they take up then, where the grey range is not checked


class Meaning(NamedTuple):
    """The brightness of each stored value, and each step to it as a sentence, "" where there was none."""

    table: np.ndarray  # n uint16; of a negative value at its place in two's complement
    rescaling: str
    window: str
    scaling: str
    inversion: str
    padding: str
    passed_over: tuple[str, ...]  # windows and percentiles that would have left too few grey levels
    deep: bool  # more than 8 bits

    def steps(self) -> list[str]:
        """What changed values, in order."""
        scaled = self.scaling if self.deep else ""
        inverted = f"inverted: {self.inversion}" if self.inversion else ""
        padded = f"padding made black: {self.padding}" if self.padding else ""
        return [step for step in (self.rescaling, *self.passed_over, self.window, scaled, inverted, padded) if step]


class _Mapping(NamedTuple):
    """What each of the n stored values stands for, the values that become black and white, and what was applied."""

    values: np.ndarray
    low: float
    high: float
    said: str


def meaning(
    get: header.Get,
    stored: np.ndarray,
    layout: codecs.Layout,
    warnings: list[str],
    check_grey_range: bool = True,
) -> Meaning:
    """Builds the table for stored values h w, of which negative ones are in two's complement; adds to `warnings`.

    check_grey_range: passes over a window, and over the percentiles of deep pictures, that leave the middle 98 % of the
        pixels less than pixels.LEAST_SPREAD of the grey levels.
    Raises UnreadablePicture for constant pictures.
    """
    bits = layout.bits_stored
    counts = cv2.calcHist([stored], [0], None, [2**bits], [0, 2**bits]).ravel().astype(np.float64)
    possible = np.arange(2**bits)
    if layout.signed:
        possible = np.where(possible >= 2 ** (bits - 1), possible - 2**bits, possible)
    padded, padding = _padding(get, possible, counts, layout, warnings)
    seen = (counts > 0) & ~padded
    if not seen.any():
        raise UnreadablePicture("The picture is constant: every pixel is padding.")
    if np.count_nonzero(seen) == 1:
        raise UnreadablePicture(f"The picture is constant: every pixel is {possible[seen][0]}.")
    values, rescaling = _rescaled(get, possible, warnings)
    if np.ptp(values[seen]) == 0:
        raise UnreadablePicture(f"The picture is constant after the {rescaling}.")
    shares = np.where(seen, counts, 0) / counts[seen].sum()
    passed_over: list[str] = []
    window = _window(get, values, shares, warnings, passed_over if check_grey_range else None)
    mapping = window or _range(values, shares, bits, passed_over if check_grey_range else None)
    brightness = _brightness(mapping)
    inversion = _inversion(get, layout.photometric)
    table = np.round((1 - brightness if inversion else brightness) * FULL).astype(np.uint16)
    table[padded] = 0
    if np.ptp(table[seen] >> 8) == 0:
        raise UnreadablePicture("The picture is constant: its pixels differ by less than one of 256 grey levels.")
    return Meaning(
        table=table,
        rescaling=rescaling,
        window=window.said if window else "",
        scaling="" if window else mapping.said,
        inversion=inversion,
        padding=padding,
        passed_over=tuple(passed_over),
        deep=bits > 8,
    )


def _padding(
    get: header.Get, stored: np.ndarray, counts: np.ndarray, layout: codecs.Layout, warnings: list[str]
) -> tuple[np.ndarray, str]:
    """Which stored values are padding, n bool, and a sentence where any pixel is."""
    value, limit = get("PixelPaddingValue"), get("PixelPaddingRangeLimit")
    ends = [end for end in (value, value if limit is None else limit) if isinstance(end, int)]
    if len(ends) < 2:
        return np.zeros(len(stored), bool), ""
    # Written as unsigned although the pixels are signed, or the other way round.
    ends = [end % 2**layout.bits_allocated for end in ends]
    if layout.signed:
        ends = [end - 2**layout.bits_allocated * (end >= 2 ** (layout.bits_allocated - 1)) for end in ends]
    if min(ends) < stored.min() or max(ends) > stored.max():
        warnings.append(f"padding value {' to '.join(map(str, dict.fromkeys(ends)))} is outside the stored bits")
    padded = (stored >= min(ends)) & (stored <= max(ends))
    share = counts[padded].sum() / counts.sum()
    values = " to ".join(map(str, dict.fromkeys(sorted(ends))))
    return padded, f"{share:.1%} of the pixels (stored value {values})" if share else ""


def _rescaled(get: header.Get, stored: np.ndarray, warnings: list[str]) -> tuple[np.ndarray, str]:
    """Stored values in the units that windows refer to, n float64, and what was applied."""
    if luts := get("ModalityLUTSequence"):
        lookup = header.first_table(luts)
        if lookup is None:
            raise UnreadablePicture("The modality LUT is broken, so the stored values have no meaning.")
        return _look_up(stored, lookup), f"modality LUT of {len(lookup.entries)} entries"
    slope, intercept = ([*header.numbers(get(keyword)), None][0] for keyword in ("RescaleSlope", "RescaleIntercept"))
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    if (slope, intercept) == (1, 0):
        return stored.astype(np.float64), ""
    if not 1e-6 < abs(slope) < 1e6 or abs(intercept) > 1e9:
        warnings.append(f"rescale slope {slope:g} and intercept {intercept:g} are absurd and ignored")
        return stored.astype(np.float64), ""
    return stored * slope + intercept, f"rescaled: slope {slope:g}, intercept {intercept:g}"


def _window(
    get: header.Get, values: np.ndarray, shares: np.ndarray, warnings: list[str], passed_over: list[str] | None
) -> _Mapping | None:
    """The first VOI LUT, or else the first window, if the pixels can be seen through it.

    passed_over: gets those that leave too few grey levels; None: they are taken.
    """
    for find in (_voi_lut, _first_window):
        choice = find(get, values, warnings)
        if choice is None:
            continue
        shown = _brightness(choice)
        inside = shares[(shown > 0.002) & (shown < 0.998)].sum()
        spread = _spread(shown, shares)
        if inside < LEAST_INSIDE or np.ptp(shown[shares > 0]) < LEAST_SPAN:
            warnings.append(f"{choice.said} is ignored: it leaves almost no contrast")
        elif passed_over is not None and spread < pixels.LEAST_SPREAD:
            passed_over.append(
                f"{pixels.GREY_RANGE}: {choice.said} left the middle 98 % of the pixels {spread:.1%} of the grey levels"
            )
        else:
            return choice
    return None


def _voi_lut(get: header.Get, values: np.ndarray, warnings: list[str]) -> _Mapping | None:
    luts = get("VOILUTSequence")
    if not luts:
        return None
    lookup = header.first_table(luts)
    if lookup is None or np.ptp(lookup.entries) == 0:
        warnings.append("the VOI LUT is broken and ignored")
        return None
    said = f"VOI LUT {lookup.choice}: {len(lookup.entries)} entries"
    return _Mapping(_look_up(values, lookup), lookup.entries.min(), lookup.entries.max(), said)


def _first_window(get: header.Get, values: np.ndarray, warnings: list[str]) -> _Mapping | None:
    """The first window as values that become black at 0 and white at 1 (PS3.3 C.11.2.1)."""
    centres, widths = header.numbers(get("WindowCenter")), header.numbers(get("WindowWidth"))
    if not centres or not widths:
        return None
    centre, width = centres[0], widths[0]
    function = header.text(get("VOILUTFunction")).upper() or "LINEAR"
    choice = header.named(f"1 of {len(centres)}", header.text(get("WindowCenterWidthExplanation")))
    said = f"window {choice}: centre {centre:g}, width {width:g}, {function}"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        warnings.append(f"VOILUTFunction {function} is not known; LINEAR is taken")
        function = "LINEAR"
    if width < 1e-6 or (function == "LINEAR" and width <= 1):
        warnings.append(f"{said} is ignored: the width is too small")
        return None
    if function == "SIGMOID":
        shown = 0.5 + 0.5 * np.tanh(2 * (values - centre) / width)
    elif function == "LINEAR_EXACT":
        shown = (values - centre) / width + 0.5
    else:
        shown = (values - (centre - 0.5)) / (width - 1) + 0.5
    return _Mapping(shown, 0, 1, said)


def _spread(brightness: np.ndarray, shares: np.ndarray) -> float:
    """The share of black to white that the middle 98 % of the pixels take up."""
    order = np.argsort(brightness, kind="stable")
    low, high = np.searchsorted(np.cumsum(shares[order]), pixels.MIDDLE)
    return float(brightness[order[min(high, len(order) - 1)]] - brightness[order[low]])


def _range(values: np.ndarray, shares: np.ndarray, bits: int, passed_over: list[str] | None) -> _Mapping:
    """Without a window: the declared depth of up to 8 bits, the fitted or (passed_over is None) robust one of more."""
    if bits <= 8:
        low, high = values.min(), values.max()
        return _Mapping(values, low, high, f"declared depth: values {low:g} to {high:g} became black to white")
    order = np.argsort(values, kind="stable")
    counted = shares[order], values[order]
    robust = passed_over is None
    low, high, kind = pixels.robust_range(*counted) if robust else pixels.fitted_range(*counted, passed_over)
    said = f"more than 8 bits: values {low:g} to {high:g} ({kind}) became black to white"
    return _Mapping(values, low, high, said)


def _brightness(mapping: _Mapping) -> np.ndarray:
    """Brightness of each stored value, 0 to 1, before inversion."""
    return np.clip((mapping.values - mapping.low) / (mapping.high - mapping.low), 0, 1)


def _look_up(values: np.ndarray, lookup: header.Table) -> np.ndarray:
    """Values through a lookup table; those before its first and after its last entry become those."""
    first = lookup.first
    if first >= 2**15 and values.min() < 0:  # written as unsigned although the values are signed
        first -= 2**16
    return lookup.entries[np.clip(np.round(values) - first, 0, len(lookup.entries) - 1).astype(int)].astype(np.float64)


def _inversion(get: header.Get, photometric: str) -> str:
    """Why low values are bright, or "". Both reasons together invert it once."""
    shape = header.text(get("PresentationLUTShape")).upper()
    reasons = [photometric] * (photometric == "MONOCHROME1") + ["PresentationLUTShape INVERSE"] * (shape == "INVERSE")
    return " and ".join(reasons)
