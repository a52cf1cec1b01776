"""Two small converted sets, and what was written into them."""

from typing import NamedTuple

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cxrjax.datasets import schema, writer


class Written(NamedTuple):
    data_dir: str
    records: dict  # set -> split -> image_id -> record


def _record(number, split, label_count, image_format, rich):
    rng = np.random.default_rng((number, label_count))
    image = cv2.GaussianBlur(rng.integers(0, 256, (48 + number % 5, 60), np.uint8), (0, 0), 2)
    record = {
        "image": cv2.imencode(f".{image_format}", image)[1].tobytes(),
        "image_id": f"{split}-{number}",
        "patient_id": f"patient {split} {number // 3}",
        "study_id": f"study {split} {number // 2}",
        "view": schema.PROJECTIONS[number % 4],
        "labels": rng.integers(-2, 2, label_count).astype(np.int8),
    }
    if rich:
        boxes = [{"bbox": tfds.features.BBox(0.1, 0.2, 0.5, 0.25 + 0.25 * n), "label": f"box {n}"} for n in range(2)]
        record |= {
            "mask": cv2.imencode(".png", np.where(image > 128, 255, 0).astype(np.uint8))[1].tobytes(),
            "has_mask": number % 2 == 0,
            "boxes": boxes[: number % 3],
            "report": {"findings": f"Findings {number}.", "impression": "", "text": "Ergüsse links."},
        }
    return record


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Sets "rich" (26 train, 7 val) and "plain" (17 train; in test, one picture of three is cut)."""
    data_dir = tmp_path_factory.mktemp("converted")
    rich = {
        split: {i: _record(i, split, 5, "png", True) for i in range(count)}
        for split, count in (("train", 26), ("val", 7))
    }
    plain = {
        split: {i: _record(i, split, 3, "jpeg", False) for i in range(count)}
        for split, count in (("train", 17), ("test", 3))
    }
    plain["test"][1]["image"] = plain["test"][1]["image"][:-100]
    for name, splits, label_count, image_format in (("rich", rich, 5, "png"), ("plain", plain, 3, "jpeg")):
        is_rich = name == "rich"
        label_names = [f"finding {number}" for number in range(label_count)]
        writer.write(
            data_dir,
            name,
            features=schema.features(
                label_names, image_format=image_format, mask=is_rich, boxes=is_rich, report=is_rich
            ),
            examples={split: lambda records=records: iter(records.items()) for split, records in splits.items()},
            metadata={"label_names": label_names, "short_side": 48},
            description="Noise.",
        )
    by_id = {
        name: {split: {r["image_id"]: r for r in records.values()} for split, records in splits.items()}
        for name, splits in (("rich", rich), ("plain", plain))
    }
    return Written(str(data_dir), by_id)
