"""Small official downloads for the tests of the builders: pictures to write, and converting and reading back."""

from typing import NamedTuple

import cv2
import numpy as np

from cxrjax.datasets.convert import Conversion, convert_manifest
from cxrjax.input import converted_sets, source


class Converted(NamedTuple):
    """What a conversion gave. records: image_id -> (split, example read as training reads it)."""

    records: dict
    said: str
    conversion: Conversion


def pictures(count: int, height: int = 64, width: int = 64) -> list[np.ndarray]:
    """Different smooth grey pictures h w uint8, with dark lungs on a bright body."""
    made = []
    for seed in range(count):
        noise = np.random.default_rng(seed).integers(0, 60, (8, 8), np.uint8)
        body = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) + np.uint8(150)
        for side in (0.3, 0.7):
            centre = (round(side * width), round(0.5 * height))
            cv2.ellipse(body, centre, (width // 7, height // 4), 0, 0, 360, 40 + seed % 20, -1)
        made.append(body)
    return made


def convert(manifest, tmp_path, **options) -> Converted:
    """Converts a manifest at 32 px as PNG below tmp_path and reads every record back."""
    said = []
    options = {"data_dir": tmp_path / "data", "short_side": 32, "image_format": "png", "progress": False} | options
    made = convert_manifest(manifest, say=said.append, **options)
    records = {}
    if made.directory is not None:
        converted = converted_sets.open_set(made.directory)
        for split, size in converted.split_sizes.items():
            if size:
                examples = source.select(converted, split)
                records |= {examples[i]["image_id"]: (split, dict(examples[i])) for i in range(len(examples))}
    return Converted(records, "\n".join(said), made)


def pixels(example: dict, field: str = "image") -> np.ndarray:
    """The decoded picture or mask of an example, h w."""
    return cv2.imdecode(np.frombuffer(example[field], np.uint8), cv2.IMREAD_UNCHANGED)
