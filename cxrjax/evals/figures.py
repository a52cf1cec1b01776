"""Where on a radiograph a model sees the words of a sentence: maps of cosines, as pictures and as numbers.

maps = look(joint, params, state, picture, "Small nodule in the left upper lobe.", tokenizer)
style.write(Path("maps.png"), sheet(picture, maps, marks))
record(maps, marks)                                         what the pointing game says of them
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import cv2
import jax
import numpy as np

from cxrjax.drawing import style
from cxrjax.input import crops
from cxrjax.methods.base import Joint
from cxrjax.sizes import Px, plain, sides
from cxrjax.text.folder_tokenizer import FolderTokenizer
from cxrjax.text.tokenizer import Tokenizer

Spelling: TypeAlias = Tokenizer | FolderTokenizer
SENTENCE = "sentence"
PANEL_PX = 320  # a panel is the picture enlarged by the whole number that brings it to about this side
TYPE_PX = 15
COLUMNS = 4
STRONG = 0.65  # of colours that are all there is to see
BOX, MASK, CROSS = (255, 255, 255), style.rgb(style.COLOURS[5]), style.rgb(style.COLOURS[1])


class Maps(NamedTuple):
    """names: the w words of a sentence, and then "sentence". cosines: float32 w+1 p q, with each patch's vector."""

    names: tuple[str, ...]
    cosines: np.ndarray


class Marks(NamedTuple):
    """What a set's readers marked, in the h w that a model sees.

    boxes: (label, (y0, x0, y1, x1)) in pixels, cut off at the edge. masks: name → bool h w.
    """

    boxes: tuple[tuple[str, tuple[float, float, float, float]], ...]
    masks: Mapping[str, np.ndarray]


def look(joint: Joint, params: Any, state: Any, picture: np.ndarray, sentence: str, tokenizer: Spelling) -> Maps:
    """Cosines of every word, and of the sentence as a whole, with every patch of a picture, uint8 h w.

    Raises ValueError for a sentence in which there is no word.
    """
    tokens = joint.tokens(sentence.strip())
    if not (tokens["word_index"] >= 0).any():
        raise ValueError(f"the sentence {sentence!r} has no word to look for; give one such as 'left pleural effusion'")
    names = tokenizer.words(tokens["ids"])
    read = [tokens[name][None] for name in ("ids", "text_mask", "word_index")]
    text = jax.device_get(jax.jit(joint.text)(params, state, *read))
    patches = np.asarray(jax.jit(joint.image)(params, state, picture[None, :, :, None])["patches"][0], np.float32)
    vectors = np.concatenate([text["words"][0][: len(names)], text["pooled"]]).astype(np.float32)
    return Maps((*names, SENTENCE), np.einsum("wd,pqd->wpq", vectors, patches))


def marks(example: Mapping[str, Any], px: Px, sees: str = "image") -> Marks:
    """The boxes and masks of a record, where it has them, moved with the picture as `crops.fit_as` moves it."""
    seen = sides(px)
    height, width, *start = crops.placed(crops.decode(example["image"]).shape, px, sees)
    side = height, width
    boxes, masks = [], {}
    if "boxes" in example:
        for label, corners in zip(example["boxes"]["label"], example["boxes"]["bbox"], strict=True):
            # y0 x0 y1 x1, relative to the whole picture.
            moved = [float(np.clip(at * side[i % 2] + start[i % 2], 0, seen[i % 2])) for i, at in enumerate(corners)]
            if moved[2] > moved[0] and moved[3] > moved[1]:
                boxes.append((label, tuple(moved)))
    for name in sorted(example):
        if name.startswith(("mask", "finding_mask")):
            mask = crops.fit_as(crops.decode(example[name]), px, sees, nearest=True) > 0
            masks |= {name: mask} if mask.any() else {}
    return Marks(tuple(boxes), masks)


def peak(cosines: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """The pixel (y, x) at which a map enlarged to height width is highest; the middle of them where several are."""
    large = style.enlarge(cosines, height, width)
    ys, xs = np.nonzero(large >= large.max())
    middle = np.hypot(ys - ys.mean(), xs - xs.mean()).argmin()
    return int(ys[middle]), int(xs[middle])


def record(maps: Maps, marks: Marks, px: Px) -> dict[str, Any]:
    """What a figure shows, as JSON values: each map with its peak, and the labels and masks that the peak lies in.

    The pointing game (Zhang et al., ECCV 2016) counts the maps whose peak lies in a box; "chance" is the share of the
    picture that boxes, and that each mask, cover.
    """

    def inside(y: int, x: int) -> dict[str, list[str]]:
        hit = [label for label, (y0, x0, y1, x1) in marks.boxes if y0 <= y + 0.5 < y1 and x0 <= x + 0.5 < x1]
        return {"in_boxes": hit, "in_masks": [name for name, mask in marks.masks.items() if mask[y, x]]}

    covered = np.zeros(sides(px), bool)
    for _, (y0, x0, y1, x1) in marks.boxes:
        covered[round(y0) : round(y1), round(x0) : round(x1)] = True
    found = []
    for name, cosines in zip(maps.names, maps.cosines, strict=True):
        y, x = peak(cosines, *sides(px))
        numbers = {"lowest": float(cosines.min()), "highest": float(cosines.max()), "peak": [y, x], **inside(y, x)}
        found.append({"name": name, **numbers, "map": np.round(cosines, 5).astype(float).tolist()})
    return {
        "px": plain(px),
        "grid": list(maps.cosines.shape[1:]),
        "boxes": [{"label": label, "y0_x0_y1_x1": list(corners)} for label, corners in marks.boxes],
        "chance": {"boxes": float(covered.mean()), **{name: float(m.mean()) for name, m in marks.masks.items()}},
        "maps": found,
    }


def sheet(picture: np.ndarray, maps: Maps, marks: Marks) -> np.ndarray:
    """All maps over the picture (uint8 h w), one panel each beside the bare picture: uint8 h w 3, red green blue.

    Words share one scale of colours, from their lowest cosine to their highest; the sentence has its own. The bar below
    a panel is its scale. An orange cross is the peak.
    """
    panels = [panel(picture, "picture", marks)]
    words, sentence = maps.cosines[:-1], maps.cosines[-1:]
    for names, together in ((maps.names[-1:], sentence), (maps.names[:-1], words)):
        for name, cosines in zip(names, together, strict=True):
            caption = f"{name}: cosine {cosines.min():.2f} to {cosines.max():.2f}"
            scale = float(together.min()), float(together.max())
            panels.append(panel(picture, caption, marks, cosines, scale, cross=peak(cosines, *picture.shape)))
    return style.laid_out(panels, COLUMNS)


def panel(
    picture: np.ndarray,
    caption: str,
    marks: Marks,
    values: np.ndarray | None = None,
    scale: tuple[float, float] | None = None,
    colours: np.ndarray | None = None,
    cross: tuple[int, int] | None = None,
) -> np.ndarray:
    """A picture, uint8 h w, under its caption: uint8 h w 3, as large for any map.

    values: p q, drawn over it in colours from scale[0] to scale[1], with a bar below. colours: p q 3 from 0 to 1, drawn
    over it as they are. marks: frames with names, and lines around masks. cross: (y, x) in pixels of the picture.
    """
    times = max(1, PANEL_PX // max(picture.shape))
    height, width = (side * times for side in picture.shape)
    canvas = cv2.cvtColor(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR), cv2.COLOR_GRAY2RGB)
    bar = np.full((style.line_px(TYPE_PX), width, 3), style.PAPER, np.uint8)
    if values is not None and scale is not None:
        canvas = style.over(canvas, style.enlarge(values, height, width), *scale)
        bar = style.bar(*scale, width, TYPE_PX)
    if colours is not None:
        large = cv2.resize((255 * colours).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)
        canvas = cv2.addWeighted(large, STRONG, canvas, 1 - STRONG, 0)
    for mask in marks.masks.values():
        large = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        outlines, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, MASK, 2)
    for label, corners in marks.boxes:
        style.frame(canvas, [at * times for at in corners], BOX, label, TYPE_PX, 2)
    if cross is not None:
        y, x = (round((at + 0.5) * times) for at in cross)
        cv2.drawMarker(canvas, (x, y), CROSS, cv2.MARKER_CROSS, 15, 3)
    return np.concatenate([style.strip(caption, width, TYPE_PX), canvas, bar])
