"""The curves of one run's metrics.jsonl as one SVG: the loss and its terms, monitors, what judges found, rates."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from cxrjax.drawing import style
from cxrjax.reporting import charts

COLUMNS = 3
SHOWN = ("train/loss", "train/term/", "train/monitor/", "eval/", "train/norm/", "train/lr")
"""Beginnings of the names that are drawn, in this order."""
HEAD = 26  # pixels above a chart, for its name


def read(file: Path) -> dict[str, list[tuple[float, float]]]:
    """Name -> (step, value), all that is finite and not of one label alone; raises ValueError where nothing is."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        record = json.loads(line)
        for name, value in record.items():
            of_one_label = name.startswith("eval/") and name.count("/") > 3
            if name.startswith(SHOWN) and not of_one_label and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append((record["step"], value))
    if not found:
        raise ValueError(f"{file} has no record of a step; give the workdir of a run that has trained")
    order = {name: next(k for k, start in enumerate(SHOWN) if name.startswith(start)) for name in found}
    return {name: found[name] for name in sorted(found, key=lambda name: (order[name], name))}


def svg(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """All curves over the steps, a chart each, COLUMNS in a row: a file that prints at any size."""
    wide, tall = charts.WIDTH, charts.HEIGHT + HEAD
    rows = -(-len(curves) // COLUMNS)
    parts = []
    for number, (name, points) in enumerate(curves.items()):
        x, y = zip(*points, strict=True)
        low, high = min(y), max(y)
        room = 0.05 * (high - low) or max(abs(low), 1.0) * 0.05
        ends = min(0.0, *x), max(x)
        drawn = charts.curves([charts.Curve(name, x, y)], "step", "", ends, (low - room, high + room))
        drawn = drawn[: drawn.index("</svg>") + len("</svg>")]  # its name stands above it, so it needs no legend
        left, top = (number % COLUMNS) * wide, (number // COLUMNS) * tall
        title = f'<text x="{charts.LEFT}" y="18" font-weight="600">{name}</text>'
        parts.append(
            f'<g transform="translate({left} {top})">{title}<g transform="translate(0 {HEAD})">{drawn}</g></g>'
        )
    width, height = wide * min(COLUMNS, len(curves)), tall * rows
    paper = f'<rect width="{width}" height="{height}" fill="rgb{style.PAPER}"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="13">{paper}{"".join(parts)}</svg>\n'
    )
