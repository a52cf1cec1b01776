"""All pictures of a table as dots on the first two principal components of their features, coloured by a column."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from cxrjax.drawing import style
from cxrjax.embedding.asking import features

SIDE_PX, EDGE_PX, TYPE_PX = 900, 30, 15
OTHERS = "others"


def components(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components of a table's features, n 2, and the share of the variance of each.

    Features are centred and not scaled. A component points to where its largest weight is positive.
    """
    count, total, products = 0, 0.0, 0.0
    for part in features(file):
        wide = part.astype(np.float64)
        count, total, products = count + len(wide), total + wide.sum(axis=0), products + wide.T @ wide
    if count < 2:
        raise ValueError(f"{file} has {count} rows; principal components take two at least.")
    middle = np.asarray(total) / count
    variances, axes = np.linalg.eigh(np.asarray(products) / count - np.outer(middle, middle))
    axes = axes[:, :-3:-1]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    places = np.concatenate([(part - middle) @ axes for part in features(file)])
    return places, variances[:-3:-1] / max(variances.sum(), 1e-12)


def draw(file: Path, colour: str = "") -> np.ndarray:
    """The picture, uint8 h w 3. colour: a column; numbers of more than eight values get the colours of a map.

    Other columns are taken as names: the eight most frequent have colours, and the rest are grey.
    Raises ValueError for a column that the table has not, or of lists.
    """
    places, shares = components(file)
    low, span = places.min(axis=0), np.maximum(np.ptp(places, axis=0), 1e-12)
    at = EDGE_PX + np.round((places - low) / span * (SIDE_PX - 2 * EDGE_PX)).astype(int)
    colours, legend = _coloured(file, colour, len(places))
    canvas = np.full((SIDE_PX, SIDE_PX, 3), 255, np.uint8)
    size = 2 if len(places) < 5000 else 1
    for number in np.random.default_rng(0).permutation(len(places)):  # so that no colour lies on top of all others
        x, y = at[number, 0], SIDE_PX - at[number, 1]
        canvas[y - size : y + size, x - size : x + size] = colours[number]
    across, up = (f"component {i + 1}: {share:.1%} of the variance" for i, share in enumerate(shares))
    title = f"{len(places):,} pictures; across {across}, up {up}"
    return np.concatenate([style.strip(title, SIDE_PX, TYPE_PX), canvas, *legend])


def _coloured(file: Path, colour: str, count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The colour of every row, n 3, and the lines that say what colours mean."""
    if not colour:
        return np.broadcast_to(style.rgb(style.COLOURS[0]), (count, 3)), []
    schema = parquet.read_schema(file)
    if colour not in schema.names or pyarrow.types.is_list(schema.field(colour).type):
        plain = [field.name for field in schema if not pyarrow.types.is_list(field.type)]
        raise ValueError(f"{file} has no column {colour!r} to colour by; it has {', '.join(plain)}.")
    values = parquet.read_table(file, columns=[colour])[colour].to_pylist()
    known = Counter(values)
    if len(known) > len(style.COLOURS) and (numbers := _numbers(values)) is not None:
        low, high = numbers.min(), numbers.max()
        named = [style.strip(f"colours: {colour}", SIDE_PX, TYPE_PX), style.bar(low, high, SIDE_PX, TYPE_PX)]
        return style.viridis((numbers - low)[None] / (high - low))[0], named
    frequent = sorted((value for value, _ in known.most_common(len(style.COLOURS))), key=str)
    of_value = {value: style.rgb(style.COLOURS[i]) for i, value in enumerate(frequent)}
    lines = [style.strip(f"colours: {colour}", SIDE_PX, TYPE_PX)]
    for value in frequent:
        lines.append(style.strip(f"■ {value} ({known[value]:,})", SIDE_PX, TYPE_PX, colour=of_value[value]))
    if rest := count - sum(known[value] for value in frequent):
        lines.append(style.strip(f"■ {OTHERS} ({rest:,})", SIDE_PX, TYPE_PX, colour=style.FAINT))
    return np.array([of_value.get(value, style.FAINT) for value in values], np.uint8), lines


def _numbers(values: Sequence[Any]) -> np.ndarray | None:
    try:
        return np.array(values, float)
    except (TypeError, ValueError):
        return None
