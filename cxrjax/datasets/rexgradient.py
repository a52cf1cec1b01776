"""ReXGradient-160K: 160,000 chest radiograph studies of 79 sites with their reports, frontal and lateral.

Source: Zhang et al., arXiv 2505.00228; Hugging Face rajpurkarlab/ReXGradient-160K (deid_png.part00 ... put together and
unpacked, and metadata/).
Layout: metadata/train_metadata_view_position.json, valid_..., test_...: objects by study with PatientID,
StudyInstanceUid, PatientSex, PatientAge ("057Y"), Indication, Comparison, Findings, Impression, and the lists ImagePath
("../deid_png/<patient>/<accession>/studies/.../<instance>.png") and ImageViewPosition.
The split is the official one. There are no labels.
Ours: AP AXIAL (lordotic), DECUBITUS and the like are UNKNOWN; studies of train and val whose patient is in a later part
are left out, so that no patient is in two.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cxrjax.datasets import release
from cxrjax.datasets.manifest import Manifest, Problem, Row
from cxrjax.imaging import header

PARTS = {"test": "test", "valid": "val", "train": "train"}  # in this order patients are given to parts
PUBLISHED = {
    "pictures": 273004,
    "pictures in train": 238968,
    "pictures in val": 17007,
    "pictures in test": 17029,
    "patients": 109487,
    "studies": 160000,
    "studies in train": 140000,
    "studies in val": 10000,
    "studies in test": 10000,
}
_SECTIONS = ("Indication", "Comparison", "Findings", "Impression")


def manifest(raw: Path) -> Manifest:
    """Reads the download; raises LayoutError for another folder or metadata of another form."""
    download = release.Release("rexgradient", raw)
    below = {_tail(path): download.raw / path for path in download.paths if path.lower().endswith(".png")}
    if not below:
        download.files(".png")  # raises the sentence for a download without pictures
    problems: list[Problem] = []
    rows: list[Row] = []
    part_of: dict[str, str] = {}
    left_out, wanted = 0, 0
    for name, split in PARTS.items():
        for study, entry in _studies(download, name):
            patient = _text(entry, "PatientID")
            if not patient:
                problems.append(Problem(study, "row", f"{name}_metadata_view_position.json gives it no PatientID."))
                continue
            if part_of.setdefault(patient, split) != split:
                left_out += 1
                continue
            made = _rows(study, patient, split, entry, below, problems)
            wanted += len(entry["ImagePath"])
            rows += made
    remarks = [*release.completeness(len(rows), wanted)]
    if left_out:
        remarks.append(f"{left_out} studies of train and val were left out: their patients are in val or test.")
    return Manifest(
        "rexgradient",
        (),
        tuple(rows),
        "ReXGradient-160K (Gradient Health and Harvard Medical School; Zhang et al., arXiv 2505.00228). Frontal and "
        "lateral radiographs with reports.",
        tuple(problems),
        tuple(remarks),
        has_report=True,
        published=PUBLISHED,
    )


def _studies(download: release.Release, part: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Study id and entry of each study of a part."""
    path = download.find(f"{part}_metadata_view_position.json")
    if path is None:
        raise release.LayoutError(f"{download.raw} has no {part}_metadata_view_position.json. {download.where()}")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        for key, entry in entries.items():
            if not all(isinstance(path, str) for path in entry["ImagePath"]):
                raise TypeError("an ImagePath that is no text")
            yield str(entry.get("StudyInstanceUid") or key), entry
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise release.LayoutError(
            f"{path} is no metadata of ReXGradient, an object of studies with PatientID and ImagePath "
            f"({type(error).__name__}: {error}). {download.where()}"
        ) from None


def _rows(
    study: str,
    patient: str,
    split: str,
    entry: Mapping[str, Any],
    files: Mapping[str, Path],
    problems: list[Problem],
) -> list[Row]:
    said = {name: _text(entry, name) for name in _SECTIONS}
    text = "\n\n".join(f"{name.upper()}: {part}" for name, part in said.items() if part)
    views = entry.get("ImageViewPosition")
    views = views if isinstance(views, list) else []
    rows = []
    for index, place in enumerate(entry["ImagePath"]):
        file = files.get(_tail(place))
        if file is None:
            problems.append(release.missing_picture(place))
            continue
        rows.append(
            Row(
                file,
                _tail(place).removesuffix(".png"),
                patient,
                study,
                split,
                _projection(str(views[index] or "") if index < len(views) else ""),
                findings=said["Findings"],
                impression=said["Impression"],
                text=text,
                sex=release.sex(_text(entry, "PatientSex")),
                age=release.years(_text(entry, "PatientAge")),
            )
        )
    return rows


def _tail(path: str) -> str:
    """A path from the patient on: all that is the same wherever deid_png lies."""
    return path.rpartition("deid_png/")[2]


def _text(entry: Mapping[str, Any], key: str) -> str:
    found = entry.get(key)
    text = "" if found is None or found != found else str(found).strip()
    return "" if text.lower() in ("none", "nan") else text


def _projection(position: str) -> str:
    return "UNKNOWN" if "AXIAL" in position.upper() else header.projection(position, position)
