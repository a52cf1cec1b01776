"""From an encoded picture and its row to the record of the schema."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cxrjax.datasets import schema
from cxrjax.datasets.encode import Encoded, Form
from cxrjax.datasets.manifest import Manifest, Problem, Row
from cxrjax.imaging import pixels


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
    """The row with what only its file says, its relative boxes, and what is wrong with its masks and boxes."""
    problems = [Problem(str(row.file), "mask", reason) for reason in encoded.mask_problems]
    boxes = []
    for box in row.boxes:
        left, right = (min(max(x / encoded.source_width, 0.0), 1.0) for x in (box.x, box.x + box.width))
        top, bottom = (min(max(y / encoded.source_height, 0.0), 1.0) for y in (box.y, box.y + box.height))
        if left < right and top < bottom:
            area = tfds.features.BBox(top, left, bottom, right)
            boxes.append({"bbox": area, "label": box.label, "reader": box.reader})
        else:
            size = f"{encoded.source_width} x {encoded.source_height}"
            problems.append(Problem(str(row.file), "box", f"{tuple(box)} has no area inside its {size} px picture."))
    return _with_header(row, encoded), boxes, problems


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
