"""Charts of a results page as SVG text: curves with bands, points with whiskers, rows of intervals.

They need no library and no script. Colours are those of Okabe and Ito, which the colour-blind tell apart; every curve
has its own dashes too. What is not a finite number is not drawn.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cxrjax.drawing.style import COLOURS, DASHES
from cxrjax.evals.base import bounds

WIDTH, HEIGHT = 500, 360
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 46
_ROW = 26


Numbers = Sequence[float] | np.ndarray


class Curve(NamedTuple):
    """A named line: x, y k each, and the band or whiskers from low to high (k, or None)."""

    name: str
    x: Numbers
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None


def curves(
    found: Sequence[Curve],
    x_name: str,
    y_name: str,
    x_range: tuple[float, float] = (0.0, 1.0),
    y_range: tuple[float, float] = (0.0, 1.0),
    *,
    diagonal: bool = False,
    points: bool = False,
    log_x: bool = False,
) -> str:
    """Curves in one frame. points: marks with whiskers on the line in place of bands; log_x: a logarithmic x axis;
    diagonal: a line from corner to corner, of chance or of perfect calibration."""
    x_scale = math.log10 if log_x else float
    ends = [x_scale(end) for end in x_range]

    def place(x, y):
        across = (x_scale(x) - ends[0]) / ((ends[1] - ends[0]) or 1)
        up = (y - y_range[0]) / ((y_range[1] - y_range[0]) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    x_ticks = sorted({x for curve in found for x in curve.x}) if log_x else ticks(*x_range)
    parts = _frame(place, x_ticks, ticks(*y_range), x_range, y_range, x_name, y_name, "percent" if log_x else "plain")
    if diagonal:
        parts.append(_line([place(x_range[0], y_range[0]), place(x_range[1], y_range[1])], "#999", "3 4", 1))
    for number, curve in enumerate(found):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        low, high = (curve.y if side is None else side for side in (curve.low, curve.high))
        rows = [row for row in zip(curve.x, curve.y, low, high, strict=True) if np.isfinite(row).all()]
        if not rows:
            continue
        if points:
            for x, y, bottom, top in rows:
                at, end, start = place(x, y), place(x, top), place(x, bottom)
                parts.append(_line([start, end], colour, "", 1.2))
                note = f"<title>{_text(curve.name)}: {y:.3f}{bounds(bottom, top)}</title>"
                parts.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="3.5" fill="{colour}">{note}</circle>')
        elif curve.low is not None:
            edge = [place(x, top) for x, _, _, top in rows] + [place(x, bottom) for x, _, bottom, _ in rows[::-1]]
            parts.append(f'<polygon points="{_joined(edge)}" fill="{colour}" opacity="0.15"/>')
        parts.append(_line([place(x, y) for x, y, _, _ in rows], colour, dash, 1.8, curve.name))
    return _svg(parts, WIDTH, HEIGHT) + legend([curve.name for curve in found])


def rows(names: Sequence[str], found: Sequence[tuple[float, float, float]], x_name: str, zero: float | None) -> str:
    """One line of text and one interval (value, low, high) per row; zero: where a dashed upright line stands."""
    drawn = [row for row in found if np.isfinite(row).all()]
    if not drawn:
        return ""
    low, high = min(row[1] for row in drawn), max(row[2] for row in drawn)
    if zero is not None:
        low, high = min(low, zero), max(high, zero)
    room = 0.05 * ((high - low) or 1)
    low, high = low - room, high + room
    left = 16 + 7.6 * min(34, max(len(name) for name in names))
    height = _ROW * len(names) + BOTTOM

    def place(x, row):
        return left + (x - low) / (high - low) * (WIDTH - left - RIGHT), _ROW * (row + 0.5)

    parts = []
    for tick in ticks(low, high):
        x = place(tick, 0)[0]
        parts.append(_line([(x, 0), (x, height - BOTTOM)], "#ddd", "", 1))
        parts.append(_label(x, height - BOTTOM + 16, f"{tick:g}", "middle"))
    if zero is not None:
        parts.append(_line([place(zero, -0.5), place(zero, len(names) - 0.5)], "#555", "4 3", 1))
    for row, (name, (value, bottom, top)) in enumerate(zip(names, found, strict=True)):
        parts.append(_label(left - 8, place(low, row)[1] + 4, name if len(name) <= 34 else f"{name[:33]}…", "end"))
        if np.isfinite((value, bottom, top)).all():
            x, y = place(value, row)
            parts.append(_line([place(bottom, row), place(top, row)], COLOURS[0], "", 1.8))
            note = f"<title>{_text(name)}: {value:.3f}{bounds(bottom, top)}</title>"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[0]}">{note}</circle>')
    parts.append(_label((left + WIDTH - RIGHT) / 2, height - 8, x_name, "middle"))
    return _svg(parts, WIDTH, height)


def legend(names: Sequence[str]) -> str:
    """The names of the curves with their strokes, as HTML."""
    items = []
    for number, name in enumerate(names):
        stroke = _line([(0, 6), (26, 6)], COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)], 2.2)
        items.append(f'<li><svg width="26" height="12" aria-hidden="true">{stroke}</svg> {_text(name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from low to high: multiples of 1, 2 or 5 of a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * k, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _frame(place, x_ticks, y_ticks, x_range, y_range, x_name, y_name, x_format) -> list[str]:
    parts = []
    for tick in x_ticks:
        (x, bottom), (_, top) = place(tick, y_range[0]), place(tick, y_range[1])
        parts.append(_line([(x, bottom), (x, top)], "#e4e4e4", "", 1))
        text = f"{100 * tick:g} %" if x_format == "percent" else f"{tick:g}"
        parts.append(_label(x, bottom + 16, text, "middle"))
    for tick in y_ticks:
        (left, y), (right, _) = place(x_range[0], tick), place(x_range[1], tick)
        parts.append(_line([(left, y), (right, y)], "#e4e4e4", "", 1))
        parts.append(_label(left - 6, y + 4, f"{tick:g}", "end"))
    parts.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_name, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 14 {middle:.0f})"'
    parts.append(f'<text x="14" y="{middle:.0f}" text-anchor="middle" {turned}>{_text(y_name)}</text>')
    return parts


def _svg(parts: Sequence[str], width: float, height: float) -> str:
    shape = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {shape}>{"".join(parts)}</svg>'


def _line(points, colour: str, dash: str, width: float, title: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    note = f"<title>{_text(title)}</title>" if title else ""
    style = f'fill="none" stroke="{colour}" stroke-width="{width}"{dashes}'
    return f'<polyline points="{_joined(points)}" {style}>{note}</polyline>'


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(text)}</text>'


def _joined(points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _text(text: str) -> str:
    return html.escape(str(text))
