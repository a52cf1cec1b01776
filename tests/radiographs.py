"""Pictures with a texture at every scale, as radiographs have it, copies of them, and sets made of them."""

import cv2
import numpy as np

from cxrjax.datasets.convert import convert_manifest
from cxrjax.datasets.manifest import Manifest, Row
from cxrjax.input import converted_sets


def radiograph(seed, height=288, width=320):
    """The same body and lungs in every picture, with a texture of its own at every scale, as h w uint8."""
    body = np.full((height, width), 170, np.float32)
    for side in (0.3, 0.7):
        cv2.ellipse(body, (round(side * width), height // 2), (width // 7, height // 3), 0, 0, 360, 60, -1)
    rng = np.random.default_rng(seed)
    for cells in (4, 8, 16, 32, 64):
        body += cv2.resize(rng.normal(0, 40 / cells**0.5, (cells, cells)), (width, height))
    return np.uint8(np.clip(body, 0, 255))


def jpeg(picture, quality):
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


def short_side(picture, px):
    scale = px / min(picture.shape)
    mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=mode)


def gamma(picture, exponent):
    return np.uint8(255 * (picture / 255) ** exponent + 0.5)


def linear(picture, contrast, brightness):
    return np.uint8(np.clip((picture.astype(float) - 128) * contrast + 128 + brightness, 0, 255))


def write(data_dir, name, rows, short_side=96):
    """Converts rows (image_id, patient, split, picture, same_picture, same_patient); the last two may be left out."""
    folder = data_dir / "raw" / f"{name}-{short_side}"
    folder.mkdir(parents=True)
    made = []
    for number, (image_id, patient, split, picture, *elsewhere) in enumerate(rows):
        cv2.imwrite(str(folder / f"{number}.png"), picture)
        pictures, patients = (*elsewhere, (), ())[:2]
        made.append(
            Row(
                folder / f"{number}.png",
                image_id,
                patient,
                image_id,
                split,
                view="PA",
                labels=(1,),
                same_picture=pictures,
                same_patient=patients,
            )
        )
    manifest = Manifest(name, ("Finding",), tuple(made), "Made for a test.")
    options = {"data_dir": data_dir, "short_side": short_side, "image_format": "png"}
    converted = convert_manifest(manifest, **options, progress=False, say=lambda line: None)
    return converted_sets.open_set(converted.directory)
