"""Boxes of one example on the host, and crops that move them with their picture.

Boxes are float32 n 4, relative y0 x0 y1 x1, with classes int32 n. Detection sees the whole picture, resized
without regard to its aspect (`whole`), so that no box is cut off and relative boxes stay as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cxrjax.input import crops
from cxrjax.sizes import Px, sides

ANY = "any"


class Boxes(NamedTuple):
    """Boxes n 4 and classes n, numbers into the names that were asked for."""

    boxes: np.ndarray
    classes: np.ndarray


def of_example(example: Mapping[str, Any], labels: Sequence[str]) -> Boxes:
    """The boxes to judge by whose label is one of `labels`. With no label named: all of them, as class 0.

    Boxes that single readers drew are left out. Always copies, so that no change reaches the stored example.
    Raises ValueError for a set whose records have no boxes.
    """
    if not example["set"]:  # a picture of no set, as `methods.blank_batch` makes it
        return Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    stored, judged = _to_judge_by(example)
    wanted = [i for i in judged if not labels or stored["label"][i] in labels]
    classes = [labels.index(stored["label"][i]) if labels else 0 for i in wanted]
    return Boxes(np.array(stored["bbox"], np.float32).reshape(-1, 4)[wanted], np.array(classes, np.int32))


def labels(example: Mapping[str, Any]) -> list[str]:
    """The labels of the boxes to judge by; raises ValueError for a set whose records have no boxes."""
    stored, judged = _to_judge_by(example)
    return [stored["label"][i] for i in judged]


def phrases(example: Mapping[str, Any]) -> list[str]:
    """The phrase of a report that each box to judge by was drawn for, in the order of `labels`; "" for none."""
    stored, judged = _to_judge_by(example)
    said = stored.get("phrase") or [""] * len(stored["label"])  # sets that were converted before have none
    return [said[i] for i in judged]


def _to_judge_by(example: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[int]]:
    """The stored boxes, and the numbers of those that no single reader drew."""
    if "boxes" not in example:
        raise ValueError(f"the set {example['set']!r} has no boxes, so that nothing can be detected in it")
    stored = example["boxes"]
    # Sets that were converted before readers were kept hold the answer alone.
    readers = stored.get("reader") or [""] * len(stored["label"])
    return stored, [i for i, who in enumerate(readers) if not who]


def whole(image: np.ndarray, px: Px) -> np.ndarray:
    """The whole picture h w as px px, without its aspect: how detectors see what they are judged on."""
    return crops.resize(image, *sides(px))


def crop(
    image: np.ndarray, found: Boxes, rng: np.random.Generator, spec: crops.Crop, min_visible: float
) -> tuple[np.ndarray, Boxes]:
    """A random window of a picture, resized to px px and perhaps mirrored, with the boxes as they lie in it.

    Draws what `crops.crop` draws, and so cuts the same window. A box is cut off at the window's edge, and left out
    where less than min_visible of its area is inside. At scale (1, 1) it is the whole picture, `whole`.
    Raises ValueError for a spec that turns the picture: the box of a turned box is too large.
    """
    if spec.rotation_degrees:
        raise ValueError(f"views.rotation_degrees is {spec.rotation_degrees}, and boxes cannot be turned; set it to 0")
    height, width = image.shape[:2]
    if tuple(spec.scale) == (1, 1):
        window = 0, 0, height, width
    else:
        window = crops.random_window(height, width, rng, spec.scale, crops.relative(spec.ratio, spec.px))
    top, left, high, wide = window
    cut = crops.resize(image[top : top + high, left : left + wide], *sides(spec.px))
    boxes = (found.boxes * (height, width, height, width) - (top, left, top, left)) / (high, wide, high, wide)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    boxes = np.clip(boxes, 0, 1)
    inside = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    seen = (inside > 0) & (inside >= min_visible * area)
    if spec.flip and rng.random() < spec.flip:
        cut, boxes = cut[:, ::-1], np.stack([boxes[:, 0], 1 - boxes[:, 3], boxes[:, 2], 1 - boxes[:, 1]], axis=1)
    return np.ascontiguousarray(cut), Boxes(boxes[seen].astype(np.float32), found.classes[seen])


def pad(found: Boxes, most: int, image_id: str = "") -> dict[str, np.ndarray]:
    """{"boxes": most 4, "classes": most}, filled up with zeros and class −1.

    Raises ValueError for more boxes than that, with the picture's id.
    """
    count = len(found.classes)
    if count > most:
        raise ValueError(
            f"picture {image_id!r} has {count} boxes and boxes.most is {most}: none may be left out silently, so set "
            "boxes.most to the largest number that a picture has"
        )
    boxes, classes = np.zeros((most, 4), np.float32), np.full(most, -1, np.int32)
    boxes[:count], classes[:count] = found
    return {"boxes": boxes, "classes": classes}
