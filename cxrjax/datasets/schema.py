"""The one schema of every converted set: features, labels, projections, splits by patient, where sets live.

The projection of a picture (PA, AP, LATERAL) is the record's field `view`, and `--map view=COLUMN` says which column of
a table holds it. Converted sets and users' commands have the name, so it stays; everywhere else `views` are the crops
of one picture, and this is the projection.

TensorFlow is never needed. A converted set is a TFDS directory `<data_dir>/<name>/<version>/` (or
`<data_dir>/<name>/<builder config>/<version>/`) whose metadata hold `label_names`, the names of the label axis.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

PROJECTIONS = ("UNKNOWN", "PA", "AP", "LATERAL")
PRESENT, ABSENT, UNCERTAIN, NOT_MENTIONED = 1, 0, -1, -2
SPLITS = ("train", "val", "test")
TEST_SHARE = 0.1
VAL_SHARE = 0.1


def data_dir(given: str | os.PathLike | None = None) -> Path:
    """Folder of the converted sets: the given one, else $CXRJAX_DATA, by default ~/.cache/cxrjax."""
    if given is not None:
        return Path(given)
    return Path(os.environ.get("CXRJAX_DATA") or "~/.cache/cxrjax").expanduser()


def features(
    label_names: Sequence[str],
    *,
    image_format: str = "png",
    bits: int = 8,
    mask: bool = False,
    boxes: bool = False,
    report: bool = False,
    finding_mask: bool = False,
    extra_masks: Sequence[str] = (),
) -> tfds.features.FeaturesDict:
    """Features of one record, which is one picture.

    label_names: the c names of the label axis; the same list goes into the builder's metadata.
    image_format: "png" or "jpeg", how `image` is encoded; masks are always PNG. bits: 8, or 16 for PNG.
    mask: adds `mask` (0 or 255, same h w as the image) and `has_mask`. A picture without a mask stores an all-zero
        one and `has_mask` False, so every record has the same fields and shapes.
    boxes: adds `boxes`, n of them: bbox relative (y0 x0 y1 x1), a label text, the reader who drew it ("" for the box to
        judge by), and the phrase of a report that it shows ("" for none).
    report: adds `report` with findings, impression and text; a part that is not there is "".
    finding_mask: adds `finding_mask`, same h w as the image. extra_masks: adds `mask_<name>` for each.
    Every record has sex ("F", "M" or ""), age (years, -1 unknown), fingerprint (imaging.fingerprint), and same_picture
    and same_patient: its ids in other sets as "set:id", blank-separated.
    Raises ValueError for another image format or label names that repeat.
    """
    _check(label_names, image_format, bits)
    grey_png = {"shape": (None, None, 1), "dtype": np.uint8, "encoding_format": "png"}
    depth = np.uint16 if bits == 16 else np.uint8
    record = {
        "image": tfds.features.Image(shape=(None, None, 1), dtype=depth, encoding_format=image_format),
        "image_id": tfds.features.Text(),
        "patient_id": tfds.features.Text(),
        "study_id": tfds.features.Text(),
        "view": tfds.features.ClassLabel(names=list(PROJECTIONS)),
        "labels": tfds.features.Tensor(shape=(len(label_names),), dtype=np.int8),
        "sex": tfds.features.Text(),
        "age": tfds.features.Scalar(dtype=np.int32),
        "fingerprint": tfds.features.Text(),
        "same_picture": tfds.features.Text(),
        "same_patient": tfds.features.Text(),
    }
    if mask:
        record["mask"] = tfds.features.Image(**grey_png)
        record["has_mask"] = tfds.features.Scalar(dtype=np.bool_)
    if finding_mask:
        record["finding_mask"] = tfds.features.Image(**grey_png)
    for name in extra_masks:
        record[f"mask_{name}"] = tfds.features.Image(**grey_png)
    if boxes:
        said = {name: tfds.features.Text() for name in ("label", "reader", "phrase")}
        record["boxes"] = tfds.features.Sequence({"bbox": tfds.features.BBoxFeature(), **said})
    if report:
        record["report"] = {part: tfds.features.Text() for part in ("findings", "impression", "text")}
    return tfds.features.FeaturesDict(record)


def _check(label_names: Sequence[str], image_format: str, bits: int) -> None:
    if image_format not in ("png", "jpeg"):
        raise ValueError(f"Image format {image_format!r} is not known; choose 'png' or 'jpeg'.")
    if bits not in (8, 16) or (bits == 16 and image_format != "png"):
        raise ValueError(f"{bits} bits as {image_format}: choose 8 bits, or 16 bits as png.")
    repeated = sorted({name for name in label_names if list(label_names).count(name) > 1})
    if repeated:
        raise ValueError(f"Label names must be unique, but these repeat: {', '.join(repeated)}.")


def complete(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example with what it does not say about its person, origin and the readers of its boxes filled in."""
    unsaid = {"sex": "", "age": -1, "fingerprint": "", "same_picture": "", "same_patient": ""}
    full = unsaid | dict(example)
    if "boxes" in full:
        full["boxes"] = [{"reader": "", "phrase": ""} | box for box in full["boxes"]]
    return full


def assign_split(set_name: str, patient_id: str) -> str:
    """Split of a patient in a set that has no official one: train 80 %, val 10 %, test 10 %.

    Depends on the two names only (sha256), so it is the same on every machine and after pictures are added.
    """
    digest = hashlib.sha256(f"{set_name}|{patient_id}".encode()).hexdigest()
    position = int(digest[:8], 16) / 2**32
    if position < TEST_SHARE:
        return "test"
    return "val" if position < TEST_SHARE + VAL_SHARE else "train"


def share_of_patients(set_name: str, patient_ids: Iterable[str], fraction: float, seed: int = 0) -> set[str]:
    """A share of the patients, at least one; of the same seed a smaller share is contained in a larger one.

    Depends on the names only: the same for every size of a set ("chestxray14/256"), machine and order.
    """
    salt = set_name.split("/")[0] + (f"|{seed}" if seed else "")
    ordered = sorted(set(patient_ids), key=lambda patient: hashlib.sha256(f"{salt}|{patient}".encode()).digest())
    return set(ordered[: max(1, round(fraction * len(ordered)))])


def fold_of_patients(set_name: str, patient_ids: Iterable[str], folds: int) -> dict[str, int]:
    """Patient -> number of its fold, 0 … folds − 1; the folds differ by one patient at most.

    Depends on the names only: the same for every size of a set ("montgomery/256"), machine and order. Raises ValueError
    for fewer than three folds (one to test on, one to choose on, the rest to train on), or fewer patients than folds.
    """
    salt, patients = f"{set_name.split('/')[0]}|folds", set(patient_ids)
    if not 3 <= folds <= len(patients):
        raise ValueError(f"folds = {folds}: choose 3 … {len(patients)}, the number of patients in {set_name!r}")
    ordered = sorted(patients, key=lambda patient: hashlib.sha256(f"{salt}|{patient}".encode()).digest())
    return {patient: number % folds for number, patient in enumerate(ordered)}


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
