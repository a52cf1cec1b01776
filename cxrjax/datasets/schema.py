"""The one schema of every converted set: features, label codes, views, splits by patient, where sets live.

TensorFlow is never needed. A converted set is a TFDS directory `<data_dir>/<name>/<version>/` (or
`<data_dir>/<name>/<builder config>/<version>/`) whose metadata hold `label_names`, the names of the label axis.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

VIEWS = ("UNKNOWN", "PA", "AP", "LATERAL")
PRESENT, ABSENT, UNCERTAIN, NOT_MENTIONED = 1, 0, -1, -2
SPLITS = ("train", "val", "test")
TEST_SHARE = 0.1
VAL_SHARE = 0.1


def data_dir() -> Path:
    """Folder of the converted sets: $CXRJAX_DATA, by default ~/.cache/cxrjax."""
    return Path(os.environ.get("CXRJAX_DATA") or "~/.cache/cxrjax").expanduser()


def features(
    label_names: Sequence[str],
    *,
    image_format: str = "png",
    mask: bool = False,
    boxes: bool = False,
    report: bool = False,
    finding_mask: bool = False,
) -> tfds.features.FeaturesDict:
    """Features of one record, which is one picture.

    label_names: the c names of the label axis; the same list goes into the builder's metadata.
    image_format: "png" or "jpeg", how `image` is encoded; masks are always PNG.
    mask: adds `mask` (0 or 255, same h w as the image) and `has_mask`. A picture without a mask stores an all-zero
        one and `has_mask` False, so every record has the same fields and shapes.
    boxes: adds `boxes`, n of them: bbox relative (y0 x0 y1 x1) and a label text.
    report: adds `report` with findings, impression and text; a part that is not there is "".
    finding_mask: adds `finding_mask`, same h w as the image.
    Raises ValueError for another image format or label names that repeat.
    """
    if image_format not in ("png", "jpeg"):
        raise ValueError(f"Image format {image_format!r} is not known; choose 'png' or 'jpeg'.")
    repeated = sorted({name for name in label_names if list(label_names).count(name) > 1})
    if repeated:
        raise ValueError(f"Label names must be unique, but these repeat: {', '.join(repeated)}.")
    record = {
        "image": tfds.features.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format=image_format),
        "image_id": tfds.features.Text(),
        "patient_id": tfds.features.Text(),
        "study_id": tfds.features.Text(),
        "view": tfds.features.ClassLabel(names=list(VIEWS)),
        "labels": tfds.features.Tensor(shape=(len(label_names),), dtype=np.int8),
    }
    grey_png = {"shape": (None, None, 1), "dtype": np.uint8, "encoding_format": "png"}
    if mask:
        record["mask"] = tfds.features.Image(**grey_png)
        record["has_mask"] = tfds.features.Scalar(dtype=np.bool_)
    if finding_mask:
        record["finding_mask"] = tfds.features.Image(**grey_png)
    if boxes:
        record["boxes"] = tfds.features.Sequence({"bbox": tfds.features.BBoxFeature(), "label": tfds.features.Text()})
    if report:
        record["report"] = {part: tfds.features.Text() for part in ("findings", "impression", "text")}
    return tfds.features.FeaturesDict(record)


def assign_split(set_name: str, patient_id: str) -> str:
    """Split of a patient in a set that has no official one: train 80 %, val 10 %, test 10 %.

    Depends on the two names only (sha256), so it is the same on every machine and after pictures are added.
    """
    digest = hashlib.sha256(f"{set_name}|{patient_id}".encode()).hexdigest()
    position = int(digest[:8], 16) / 2**32
    if position < TEST_SHARE:
        return "test"
    return "val" if position < TEST_SHARE + VAL_SHARE else "train"


def assert_patients_disjoint(patients: Mapping[str, Iterable[str]], set_name: str = "") -> None:
    """Raises ValueError naming the patients that are in more than one split.

    patients: split -> patient ids (repeats allowed).
    """
    splits_of: dict[str, list[str]] = {}
    for split, ids in patients.items():
        for patient in set(ids):
            splits_of.setdefault(patient, []).append(split)
    shared = sorted(patient for patient, splits in splits_of.items() if len(splits) > 1)
    if not shared:
        return
    named = ", ".join(f"{patient} ({' and '.join(sorted(splits_of[patient]))})" for patient in shared[:10])
    rest = f" and {len(shared) - 10} more" if len(shared) > 10 else ""
    place = f" of set {set_name!r}" if set_name else ""
    number = "1 patient is" if len(shared) == 1 else f"{len(shared)} patients are"
    raise ValueError(
        f"{number} in more than one split{place}: {named}{rest}. "
        "Every patient must be in one split only: correct the split column, or give none to have one made by patient."
    )
