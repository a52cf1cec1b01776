"""TBX11K: radiographs of healthy people, of sick ones without and with tuberculosis, with boxes of the latter.

Source: Liu et al., CVPR 2020 and TPAMI 2023; mmcheng.net/tb.
Layout: imgs/health, imgs/sick, imgs/tb with PNG of 512 px; annotations/json/TBX11K_train.json and TBX11K_val.json in
the form of COCO: images (file_name "tb/tb0003.png"), annotations (bbox x y width height) and categories
ActiveTuberculosis, ObsoletePulmonaryTuberculosis (latent) and PulmonaryTuberculosis (not known which). The labels of
imgs/test are kept by the authors; imgs/extra are pictures of other sets. Both are left out.
Ours: the official val is the test part and val is cut from train; where no box says which kind of tuberculosis it is,
active and latent are not mentioned. Patients are not given: every picture counts as its own.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from cxrjax.datasets import release
from cxrjax.datasets.manifest import Box, Manifest, Problem, Row
from cxrjax.datasets.schema import ABSENT, NOT_MENTIONED, PRESENT

LABELS = ("Healthy", "Sick without tuberculosis", "Tuberculosis", "Active tuberculosis", "Latent tuberculosis")
PUBLISHED = {"pictures": 8400, "pictures in test": 1800}
ACTIVE, LATENT = "ActiveTuberculosis", "ObsoletePulmonaryTuberculosis"
_PARTS = {"train": "train", "val": "test"}
_FOLDERS = {"health": 0, "sick": 1, "tb": 2}
OWN_PATIENT = "No patient ids are given: every picture is its own patient, so a patient may be in two splits."


def manifest(raw: Path) -> Manifest:
    """Reads the download; raises LayoutError for another folder or annotations of another form."""
    download = release.Release("tbx11k", raw)
    files = {"/".join(path.split("/")[-2:]): download.raw / path for path in download.paths}
    problems: list[Problem] = []
    rows = []
    for part, split in _PARTS.items():
        for name, boxes in _pictures(download, part):
            folder = name.split("/")[0]
            if name not in files:
                problems.append(release.missing_picture(name))
            elif folder not in _FOLDERS:
                problems.append(Problem(name, "row", f"Its folder is none of {', '.join(_FOLDERS)}."))
            else:
                val = split == "train" and release.is_validation("tbx11k", name)
                labels = _labels(folder, {box.label for box in boxes})
                rows.append(Row(files[name], name, name, name, "val" if val else split, labels=labels, boxes=boxes))
    missing = sum(problem.kind == "missing" for problem in problems)
    return Manifest(
        "tbx11k",
        LABELS,
        tuple(rows),
        "TBX11K (Nankai University and hospitals; Liu et al., Rethinking Computer-Aided Tuberculosis Diagnosis, CVPR "
        "2020). Frontal radiographs, healthy, sick or with tuberculosis, and boxes of tuberculosis.",
        tuple(problems),
        (OWN_PATIENT, *release.completeness(len(rows), len(rows) + missing)),
        has_boxes=True,
        published=PUBLISHED,
    )


def _pictures(download: release.Release, part: str) -> Iterator[tuple[str, tuple[Box, ...]]]:
    """Name and boxes of each picture of a part."""
    path = download.find(f"TBX11K_{part}.json")
    if path is None:
        raise release.LayoutError(f"{download.raw} has no TBX11K_{part}.json. {download.where()}")
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
        names = {entry["id"]: str(entry["name"]) for entry in listing["categories"]}
        boxes: dict[object, list[Box]] = {}
        for entry in listing["annotations"]:
            x, y, width, height = map(float, entry["bbox"])
            box = Box(names[entry["category_id"]], x, y, width, height)
            boxes.setdefault(entry["image_id"], []).append(box)
        found: Mapping[str, tuple[Box, ...]] = {
            str(entry["file_name"]): tuple(boxes.get(entry["id"], ())) for entry in listing["images"]
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise release.LayoutError(
            f"{path} is no list of pictures in the form of COCO ({type(error).__name__}: {error}). {download.where()}"
        ) from None
    yield from found.items()


def _labels(folder: str, kinds: set[str]) -> tuple[int, ...]:
    labels = [ABSENT] * len(LABELS)
    labels[_FOLDERS[folder]] = PRESENT
    if folder == "tb":
        known = bool(kinds & {ACTIVE, LATENT})
        labels[3:] = [int(kind in kinds) if known else NOT_MENTIONED for kind in (ACTIVE, LATENT)]
    return tuple(labels)
