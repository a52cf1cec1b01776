"""Example pictures of a results page: the best, median and worst judged ones, with what is marked on them.

Green: what readers marked. Orange: what the model marked, where its predictions say so, in these columns:

    boxes           n × (y0 x0 y1 x1), relative to the whole picture, with scores n
    overlay/mask    PNG, above zero inside, of the square middle of the picture as `crops.fit` cuts it
    overlay/map     p × q numbers over the same square, or None, such as `attention`: colours over the picture, from its
                    lowest number to its highest, which is bright
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas

from cxrjax.drawing import style
from cxrjax.evals import figures
from cxrjax.evals.predictions import LEAST_SCORE, choose, quality
from cxrjax.input import crops
from cxrjax.input.converted_sets import ConvertedSet
from cxrjax.input.source import select
from cxrjax.reporting.page import Picture

PX = 320
TRUE, FOUND = (115, 158, 0), (0, 159, 230)  # blue, green, red


class Examples(NamedTuple):
    """quality: what the pictures were chosen by; items: PNGs with their captions."""

    quality: str
    items: list[Picture]


def pictures(converted_set: ConvertedSet, table: pandas.DataFrame, count: int = 2) -> Examples:
    """The `count` best, median and worst pictures of a table of predictions."""
    found = quality(table)
    chosen = choose(found.values, count)
    wanted = {table["image_id"].iloc[row]: (kind, row) for kind, rows in chosen.items() for row in rows}
    examples = _examples(converted_set, set(wanted))
    items = []
    for image_id, (kind, row) in wanted.items():
        if image_id in examples:
            png = draw(examples[image_id], table.iloc[row])
            said = caption(table.iloc[row].to_dict(), found.values[row])
            items.append(Picture(png, f"{kind}: {image_id}. {said}{_range(table.iloc[row])}"))
    return Examples(found.what, items)


def caption(row: Mapping[str, Any], value: float) -> str:
    """What a picture is, and what was said of it; row: of a table of predictions."""
    names = [column.removeprefix("target/") for column in row if column.startswith("target/")]
    if names:
        true = [name for name in names if row[f"target/{name}"] == 1] or ["none"]
        said = sorted(((row[f"score/{name}"], name) for name in names), reverse=True)[:3]
        return f"True: {', '.join(true)}. Scores: {', '.join(f'{name} {score:.2f}' for score, name in said)}"
    return f"Value {value:.3f}"


def draw(example: Mapping[str, Any], row: Mapping[str, Any], px: int = PX) -> bytes:
    """The picture as PNG, px px, with what is marked on it."""
    picture = crops.fit(crops.decode(example["image"]), px)
    canvas = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    grid = _map(row)
    if grid is not None:
        canvas = style.over(canvas[..., ::-1], style.enlarge(grid, px, px), float(grid.min()), float(grid.max()))[
            ..., ::-1
        ]
        canvas = np.ascontiguousarray(canvas)
    true = figures.marks(example, px)
    for mask in true.masks.values():
        _outline(canvas, mask, TRUE)
    for label, corners in true.boxes:
        style.frame(canvas, corners, TRUE, label)
    if "overlay/mask" in row:
        mask = crops.decode(row["overlay/mask"])
        _outline(canvas, cv2.resize(mask, (px, px), interpolation=cv2.INTER_NEAREST) > 0, FOUND)
    if "boxes" in row:
        names = row["labels"] if "labels" in row else [""] * len(row["boxes"])
        found = zip(row["boxes"], row["scores"], names, strict=True)
        kept = [
            (list(map(float, box)), f"{name} {score:.2f}" if name else "")
            for box, score, name in found
            if score >= LEAST_SCORE
        ]
        named = {"bbox": [box for box, _ in kept], "label": [name for _, name in kept]}
        for label, corners in figures.marks({"image": example["image"], "boxes": named}, px).boxes:
            style.frame(canvas, corners, FOUND, label)
    return cv2.imencode(".png", canvas)[1].tobytes()


def _examples(converted_set: ConvertedSet, wanted: set[str]) -> dict[str, Mapping[str, Any]]:
    found = {}
    for split, size in converted_set.split_sizes.items():
        if size and len(found) < len(wanted):
            every = select(converted_set, split)
            places = np.flatnonzero(every.table["image_id"].isin(list(wanted)))
            found |= {every[int(place)]["image_id"]: every[int(place)] for place in places}
    return found


def _map(row: Mapping[str, Any]) -> np.ndarray | None:
    found = row.get("overlay/map")
    return None if found is None else np.stack([np.asarray(line, np.float32) for line in found])


def _range(row: Mapping[str, Any]) -> str:
    grid = _map(row)
    return "" if grid is None else f". Colours: {grid.min():.2g} to {grid.max():.2g}"


def _outline(canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, lines, -1, colour, 1)
