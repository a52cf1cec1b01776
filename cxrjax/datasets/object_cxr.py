"""Object-CXR: 9,000 frontal radiographs with and without foreign objects, outlined by radiologists.

Source: JF Healthcare, MIDL 2020 challenge, jfhealthcare.github.io/object-CXR.
Layout: train/ and dev/ (unpacked train.zip, dev.zip), train.csv and dev.csv with `image_name,annotation`. An
annotation is objects joined by `;`, each `0 x1 y1 x2 y2` (rectangle), `1 x1 y1 x2 y2` (ellipse in that rectangle) or
`2 x1 y1 ... xn yn` (polygon); blank: no object.

Ours: the box of an object is from the least to the largest of its points (MGCA centres those of polygons otherwise);
the mask is all objects of the picture, filled, and an empty one where there is none. The challenge's test part has no
public annotations, so dev is the test split, and validation is cut from train. Neither patient nor projection is given:
every picture counts as its own patient.
"""

import math
from pathlib import Path

from cxrjax.datasets import schema
from cxrjax.datasets.manifest import Box, Manifest, Problem, Row
from cxrjax.datasets.release import Release, completeness, is_validation, missing_picture
from cxrjax.datasets.table import column
from cxrjax.imaging.masks import SHAPES, Shape

NAME = "object_cxr"
LABEL = "Foreign object"
NOTHING = Shape("rectangle", (-2.0, -2.0, -1.0, -1.0))  # outside every picture: an empty mask


def manifest(raw: Path) -> Manifest:
    """Reads train.csv and dev.csv."""
    release = Release(NAME, raw)
    problems: list[Problem] = []
    rows = [*_part(release, "train", problems), *_part(release, "dev", problems)]
    missing = sum(problem.kind == "missing" for problem in problems)
    return Manifest(
        NAME,
        (LABEL,),
        tuple(rows),
        "Object-CXR, frontal chest radiographs with outlined foreign objects. JF Healthcare, MIDL 2020 challenge "
        "(jfhealthcare.github.io/object-CXR), CC BY-NC 4.0.",
        tuple(problems),
        (
            "No patient ids are given: every picture is its own patient, so a patient may be in two splits.",
            *completeness(len(rows), len(rows) + missing),
        ),
        has_mask=True,
        has_boxes=True,
        published={"pictures": 9000, "pictures in test": 1000},
    )


def _part(release: Release, part: str, problems: list[Problem]) -> list[Row]:
    frame, path = release.table(f"{part}.csv")
    names, annotations = (column(frame, name, path) for name in ("image_name", "annotation"))
    files = release.files(".jpg", ".jpeg", ".png", under=part)
    rows = []
    for given, annotation in zip(names, annotations, strict=True):
        name = Path(given).name
        if name not in files:
            problems.append(missing_picture(f"{part}/{name}"))
            continue
        texts = [text for text in map(str.strip, annotation.split(";")) if text]
        shapes = [_shape(text) for text in texts]
        problems += [
            Problem(name, "box", f"{path.name} outlines an object by {text[:60]!r}, which is no shape.")
            for text, shape in zip(texts, shapes, strict=True)
            if shape is None
        ]
        drawn = tuple(shape for shape in shapes if shape is not None)
        masks = () if len(drawn) < len(shapes) else drawn or (NOTHING,)
        boxes = tuple(_box(shape) for shape in drawn)
        split = "test" if part == "dev" else "val" if is_validation(NAME, name) else "train"
        labels = (schema.PRESENT if texts else schema.ABSENT,)
        rows.append(Row(files[name], name, name, name, split, labels=labels, masks=masks, boxes=boxes))
    return rows


def _shape(text: str) -> Shape | None:
    """The object that a text describes, None where it describes none."""
    kind, *cells = text.split()
    if kind not in ("0", "1", "2"):
        return None
    try:
        points = tuple(float(cell) for cell in cells)
    except ValueError:
        return None
    enough = len(points) >= 6 and len(points) % 2 == 0 if kind == "2" else len(points) == 4
    return Shape(SHAPES[int(kind)], points) if enough and all(map(math.isfinite, points)) else None


def _box(shape: Shape) -> Box:
    left, top = min(shape.points[0::2]), min(shape.points[1::2])
    return Box(LABEL, left, top, max(shape.points[0::2]) - left, max(shape.points[1::2]) - top)
