"""How all figures look: colours, type and the parts of a panel, on white paper.

Colours of lines are those of Okabe and Ito, which the colour-blind tell apart; those of maps are viridis, which is even
to the eye and tells as much in grey. Pictures are uint8 h w 3, red green blue.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2", "12 4", "6 2 2 2")
PAPER, INK, FAINT = (255, 255, 255), (26, 26, 26), (110, 110, 110)
HIDDEN = (206, 214, 228)
"""What stands for a patch that a network is not given: no radiograph is blue."""
OPACITY = 0.45  # of a map over a picture
GAP_PX = 6  # between panels


@functools.lru_cache
def font(px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The face of all figures: the one that comes with Pillow."""
    return ImageFont.load_default(size=px)


def rgb(colour: str) -> tuple[int, int, int]:
    """ "#0072b2" → (0, 114, 178)."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def viridis(values: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 1, h w → their colours, h w 3."""
    grey = np.clip(255 * np.nan_to_num(values) + 0.5, 0, 255).astype(np.uint8)
    return cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS)[..., ::-1]


def over(picture: np.ndarray, values: np.ndarray, low: float, high: float) -> np.ndarray:
    """A map h w in its colours from `low` to `high` over a picture h w 3."""
    colours = viridis((values - low) / max(high - low, 1e-6))
    return cv2.addWeighted(np.ascontiguousarray(colours), OPACITY, picture, 1 - OPACITY, 0)


def enlarge(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """p q → height width, bilinear between the patches' middles."""
    return cv2.resize(np.asarray(values, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def wrapped(text: str, width: int, px: int, most: int) -> list[str]:
    """The words of a text in at most `most` lines no wider than `width`; what is cut off ends in an ellipsis."""
    face, lines = font(px), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if face.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    lines, cut = lines[:most], len(lines) > most
    for number, line in enumerate(lines):
        ends = "…" if cut and number == most - 1 else ""
        while line and face.getlength(line + ends) > width:
            line, ends = line[:-1], "…"
        lines[number] = line + ends
    return lines


def strip(text: str, width: int, px: int, lines: int = 1, colour: tuple[int, int, int] = INK) -> np.ndarray:
    """A text on paper, lines·line_px(px) × width × 3, cut where it does not fit."""
    step = line_px(px)
    canvas = Image.new("RGB", (width, step * lines), PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(wrapped(text, width, px, lines)):
        draw.text((0, step * number), line, fill=colour, font=font(px))
    return np.array(canvas)


def line_px(px: int) -> int:
    """The height of a line of type of this size."""
    return round(1.35 * px)


def frame(
    canvas: np.ndarray,
    corners: Sequence[float],
    colour: tuple[int, int, int],
    name: str = "",
    px: int = 12,
    thickness: int = 1,
) -> None:
    """Draws a box and its name on a picture, in place; the name stands above the box, or below where there is no room.

    corners: y0 x0 y1 x1 in pixels. colour: in the order of the picture's channels, which does not matter here.
    """
    y0, x0, y1, x1 = (round(at) for at in corners)
    cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), colour, thickness)
    if not name:
        return
    room = min(canvas.shape[1], math.ceil(font(px).getlength(name)) + 4)
    drawn = Image.new("RGB", (room, line_px(px)), colour)
    bright = 0.5 * colour[1] + 0.25 * (colour[0] + colour[2]) > 128
    ImageDraw.Draw(drawn).text((2, 0), name, fill=INK if bright else PAPER, font=font(px))
    tall = line_px(px)
    top = y0 - tall if y0 >= tall else min(y1, canvas.shape[0] - tall)
    left = min(max(x0, 0), canvas.shape[1] - room)
    canvas[top : top + tall, left : left + room] = np.array(drawn)


def bar(low: float, high: float, width: int, px: int) -> np.ndarray:
    """The colours of a map with the numbers at their ends, line_px(px) × width × 3."""
    canvas = strip(f"{low:.2g}", width, px)
    last = f"{high:.2g}"
    ends = [math.ceil(font(px).getlength(text)) + 6 for text in (f"{low:.2g}", last)]
    canvas[:, width - ends[1] :] = strip(last, width, px)[:, : ends[1]]
    inner = max(1, width - sum(ends) - 6)
    colours = viridis(np.linspace(0, 1, inner)[None])
    canvas[3:-3, ends[0] : ends[0] + inner] = colours
    return canvas


def laid_out(panels: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Panels of one size in rows of at most `columns`, on paper."""
    columns = min(columns, len(panels))
    around = ((GAP_PX, 0), (GAP_PX, 0), (0, 0))
    wide = [np.pad(one, around, constant_values=255) for one in panels]
    wide += [np.full_like(wide[0], 255)] * (-len(wide) % columns)
    drawn = [np.concatenate(wide[i : i + columns], axis=1) for i in range(0, len(wide), columns)]
    return np.pad(np.concatenate(drawn), ((0, GAP_PX), (0, GAP_PX), (0, 0)), constant_values=255)


def write(path: Path, picture: np.ndarray) -> None:
    """Writes a picture h w 3 as PNG."""
    path.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
