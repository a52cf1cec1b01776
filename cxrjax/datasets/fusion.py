"""Several readers' boxes and labels to one answer: what more than half of them say."""

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

from cxrjax.datasets.manifest import Box

SAME_LESION_IOU = 0.5


def majority(votes: int, readers: int) -> bool:
    """Whether votes are more than half of the readers: two of three, one of one."""
    return 2 * votes > readers


def fuse(boxes: Sequence[Box], readers: int) -> tuple[Box, ...]:
    """The lesions that more than half of the readers drew, one box of reader "" for each.

    boxes: of one picture, each with its reader. readers: how many read the picture, with those who drew nothing.
    Boxes of one label are the same lesion if they are connected through intersections over union of at least 0.5. The
    fused box has the mean corners of the readers, so one who drew a lesion in two pieces counts no more than the
    others. Lesions of fewer readers give none. The names of the readers and the order change nothing.
    """
    fused = []
    for lesion in _lesions(boxes):
        drawn: dict[str, list[Box]] = {}
        for box in lesion:
            drawn.setdefault(box.reader, []).append(box)
        if majority(len(drawn), readers):
            corners = [_mean(map(_corners, own)) for own in drawn.values()]
            left, top, right, bottom = _mean(corners)
            fused.append(Box(lesion[0].label, left, top, right - left, bottom - top))
    return tuple(sorted(fused))


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes, 0 where neither has an area."""
    width = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    height = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    shared = max(width, 0.0) * max(height, 0.0)
    union = one.width * one.height + other.width * other.height - shared
    return shared / union if union > 0 else 0.0


def _lesions(boxes: Sequence[Box]) -> list[list[Box]]:
    """Groups of boxes of one label that overlaps connect."""
    group = list(range(len(boxes)))
    for one, other in combinations(range(len(boxes)), 2):
        if boxes[one].label == boxes[other].label and overlap(boxes[one], boxes[other]) >= SAME_LESION_IOU:
            joined, kept = group[other], group[one]
            group = [kept if number == joined else number for number in group]
    lesions: dict[int, list[Box]] = {}
    for box, number in zip(boxes, group, strict=True):
        lesions.setdefault(number, []).append(box)
    return list(lesions.values())


def _corners(box: Box) -> tuple[float, ...]:
    return box.x, box.y, box.x + box.width, box.y + box.height


def _mean(corners: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """Mean of every coordinate, rounded once, so that the order does not matter."""
    columns = list(zip(*corners, strict=True))
    return tuple(math.fsum(column) / len(column) for column in columns)
