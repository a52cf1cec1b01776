"""From an encoded picture and its row to the record of the schema."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cxrjax.datasets import schema
from cxrjax.datasets.encode import Encoded, Form
from cxrjax.datasets.files import shown
from cxrjax.datasets.manifest import Box, Manifest, Problem, Row
from cxrjax.imaging import pixels
from cxrjax.imaging.orientation import AS_STORED, turn_box


def features(manifest: Manifest, form: Form) -> tfds.features.FeaturesDict:
    """The fields of the records of a manifest."""
    return schema.features(
        manifest.label_names,
        image_format=form.image_format,
        bits=form.bits,
        mask=manifest.has_mask,
        boxes=manifest.has_boxes,
        report=manifest.has_report,
        extra_masks=manifest.extra_mask_names,
    )


def place(row: Row, encoded: Encoded) -> tuple[Row, list[dict[str, Any]], list[Problem]]:
    """The row with what only its file says and without what is wrong with its masks and boxes, which comes last.

    Between them: the boxes, relative to the picture. Boxes are of the picture as stored, and turned with it.
    """
    file = shown(row.file)
    problems = [Problem(file, "mask", reason) for reason in encoded.mask_problems]
    size = (encoded.source_height, encoded.source_width)
    orientation = encoded.header.get("orientation", AS_STORED)
    boxes, kept = [], []
    for box in row.boxes:
        stored_size = (size[1], size[0]) if orientation > 4 else size
        x, y, width, height = turn_box(*_in_pixels(box, stored_size), size, orientation)
        left, right = (min(max(end / size[1], 0.0), 1.0) for end in (x, x + width))
        top, bottom = (min(max(end / size[0], 0.0), 1.0) for end in (y, y + height))
        if left < right and top < bottom:
            area = tfds.features.BBox(top, left, bottom, right)
            boxes.append({"bbox": area, "label": box.label, "reader": box.reader, "phrase": box.phrase})
            kept.append(box)
        else:
            reason = f"{tuple(box[:5])} has no area inside its {size[1]} x {size[0]} px picture."
            problems.append(Problem(file, "box", reason))
    return _with_header(row._replace(boxes=tuple(kept)), encoded), boxes, problems


def _in_pixels(box: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """x, y, width and height in pixels of the picture as stored; size: its height and width."""
    across, down = (1.0, 1.0) if box.frame is None else (size[1] / box.frame[0], size[0] / box.frame[1])
    return box.x * across, box.y * down, box.width * across, box.height * down


def example(
    row: Row, encoded: Encoded, boxes: list, extra_mask_names: Sequence[str], fields: Collection[str]
) -> dict[str, Any]:
    """The record of a picture in the form of the schema, with those of its parts that the set's fields name."""
    mask_fields = ("mask", *(f"mask_{name}" for name in extra_mask_names))
    found = dict(zip(mask_fields, encoded.masks, strict=False))
    parts = {
        "image": encoded.image,
        "image_id": row.image_id,
        "patient_id": row.patient_id,
        "study_id": row.study_id,
        "view": row.view,
        "labels": np.array(row.labels, np.int8),
        "sex": row.sex,
        "age": row.age,
        "fingerprint": encoded.fingerprint,
        "same_picture": " ".join(row.same_picture),
        "same_patient": " ".join(row.same_patient),
        "has_mask": encoded.masks[0] is not None,
        **{field: found.get(field) or _blank(encoded) for field in mask_fields if field in fields},
        "boxes": boxes,
        "report": {"findings": row.findings, "impression": row.impression, "text": row.text},
    }
    return {field: value for field, value in parts.items() if field in fields}


def _blank(encoded: Encoded) -> bytes:
    return pixels.encode(np.zeros((encoded.height, encoded.width), np.uint8), "png")


def _with_header(row: Row, encoded: Encoded) -> Row:
    """The row with what only the DICOM header says, and without masks that could not be used."""
    header = encoded.header
    return row._replace(
        view=header.get("view", row.view) if row.view == "UNKNOWN" else row.view,
        sex=row.sex or header.get("sex", ""),
        age=header.get("age", -1) if row.age < 0 else row.age,
        masks=row.masks if encoded.masks[0] is not None else (),
    )
