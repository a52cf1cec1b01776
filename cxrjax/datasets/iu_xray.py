"""IU X-ray (Open-i): frontal and lateral radiographs with the reports of Indiana University, in three layouts.

Source: openi.nlm.nih.gov; Demner-Fushman et al., JAMIA 2016. Kaggle: raddar/chest-xrays-indiana-university. R2Gen:
Chen et al., EMNLP 2020.
Layouts, by what is there:
official  NLMCXR_png/CXR1_1_IM-0001-3001.png or the DICOM originals (NLMCXR_dcm/1/1_IM-0001-3001.dcm),
          ecgen-radiology/1.xml; indiana_projections.csv, if it is laid beside them, says which picture is frontal and
          which lateral; for pictures that it lacks, nlmcxr_dicom_metadata.csv of torchxrayvision does by the View
          Position of the DICOM headers, and so do DICOM originals
Kaggle    images/images_normalized/1_IM-0001-4001.dcm.png, indiana_reports.csv, indiana_projections.csv; pictures get
          their official names if ecgen-radiology is there too, and else keep Kaggle's
R2Gen     images/CXR2384_IM-0942/0.png, annotation.json with its own split; its reports are the findings
A report is a study and a patient. Reports are as published, XXXX where words were taken out.
Ours: a frontal picture is PA unless a DICOM header says AP (the collection does not say more); the split, by patient,
where it is not R2Gen's; the labels: the first words of the MeSH terms that indexers gave to the report ("Opacity" of
"Opacity/lung/left"; what follows a structure, as in "Aorta/tortuous", is lost), "normal" being No Finding; what they
did not name is absent.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from cxrjax.datasets import release, schema
from cxrjax.datasets.manifest import Manifest, Problem, Row, listed
from cxrjax.datasets.table import column
from cxrjax.imaging import header
from cxrjax.text import reports

PUBLISHED = {
    "official": {"pictures": 7470, "studies": 3851},
    "Kaggle": {"pictures": 7466, "studies": 3851},
    "R2Gen": {"studies": 2955, "studies in train": 2069, "studies in val": 296, "studies in test": 590},
}
_PROJECTIONS = {"frontal": "PA", "lateral": "LATERAL"}
_HEADERS = "nlmcxr_dicom_metadata*.csv"
_SPLITS = {"train": "train", "val": "val", "test": "test", "": "test"}  # one copy of R2Gen's list has a blank key


class _Picture(NamedTuple):
    file: str  # as the layout names it
    image_id: str
    study: str
    split: str


class _Wording(NamedTuple):
    sections: Mapping[str, str]
    mesh: tuple[str, ...] = ()


def manifest(raw: Path) -> Manifest:
    """Reads the download; raises LayoutError for another folder, TableError for a table that cannot be read."""
    download = release.Release("iu_xray", raw)
    problems: list[Problem] = []
    files = {name.lower(): file for name, file in download.files(".png", ".dcm").items()}
    originals = {_key(name): file for name, file in files.items() if name.endswith(".dcm")}
    indexed = list(_open_i(download, problems))
    named = [(name, report.uid) for report in indexed for name in report.image_ids]
    projections = _projections(download)
    by_header = _projections_by_header(download)
    other_layouts = projections or download.find("annotation.json")
    there = any(f"{name}.png".lower() in files or _key(name) in originals for name, _ in named)
    if there or (indexed and not other_layouts):
        layout = "official"
        pictures = [_picture(f"{name}.png", name, study) for name, study in named]
        wordings = {report.uid: _Wording(_sections(report._asdict()), report.mesh_major) for report in indexed}
    elif projections:
        layout = "Kaggle"
        pictures, wordings = _kaggle(download, {_key(name): name for name, _ in named})
    else:
        layout = "R2Gen"
        pictures, wordings = _r2gen(download)
        # Every study calls its pictures 0.png and 1.png: here a name is the last folder and the file.
        files = {"/".join(path.split("/")[-2:]).lower(): download.raw / path for path in download.paths}
    terms = {study: _terms(wording.mesh) for study, wording in wordings.items()}
    label_names = sorted(set().union(*(found for found in terms.values() if found)))
    rows = []
    for picture in pictures:
        file = files.get(picture.file.lower()) or originals.get(_key(picture.file))
        if file is None:
            problems.append(release.missing_picture(picture.file))
            continue
        found = terms.get(picture.study)
        if picture.study not in wordings:
            problems.append(Problem(picture.file, "report", f"There is no report {picture.study}."))
        said = wordings[picture.study].sections if picture.study in wordings else {}
        rows.append(
            Row(
                file,
                picture.image_id,
                picture.study,
                picture.study,
                picture.split,
                projections.get(_key(picture.file)) or by_header.get(_key(picture.file), "UNKNOWN"),
                tuple(schema.NOT_MENTIONED if found is None else int(name in found) for name in label_names),
                findings=said.get("findings", ""),
                impression=said.get("impression", ""),
                text=said.get("text", ""),
            )
        )
    return Manifest(
        "iu_xray",
        tuple(label_names),
        tuple(rows),
        "IU X-ray (Indiana University hospitals, openi.nlm.nih.gov; Demner-Fushman et al., JAMIA 2016), "
        f"as in the {layout} layout. Frontal and lateral radiographs with reports; labels from their MeSH index terms.",
        tuple(problems),
        tuple(_remarks(layout, pictures, rows, wordings, files, download.find(_HEADERS))),
        has_report=True,
        published=PUBLISHED[layout],
    )


def _remarks(
    layout: str,
    pictures: list[_Picture],
    rows: list[Row],
    wordings: Mapping[str, _Wording],
    files: Mapping[str, Path],
    headers: Path | None,
) -> Iterator[str]:
    yield f"The folder was read in the {layout} layout."
    yield from release.completeness(len(rows), len(pictures))
    without = len(wordings.keys() - {picture.study for picture in pictures})
    if without:
        yield f"{without} reports have no picture and were left out."
    others = files.keys() - {picture.file.lower() for picture in pictures}
    unlisted = sorted("/".join(files[name].parts[-2:]) for name in others if name.endswith(".png"))
    if unlisted:
        yield f"{len(unlisted)} pictures belong to no report and were left out: {listed(unlisted)}."
    unknown = sum(row.view == "UNKNOWN" for row in rows)
    if unknown:
        yield (
            f"{unknown} pictures have no known projection in a table. Kaggle's indiana_projections.csv, laid into the "
            "folder, gives it for pictures with official names or Kaggle's; DICOM originals may say it themselves."
        )
    if headers is not None:
        yield f"Where Kaggle's table says nothing, projections are those of {headers.name}, which err at times."
    if any(row.view == "PA" for row in rows):
        yield "Frontal pictures are called PA: the collection does not say whether they are PA or AP."


def _open_i(download: release.Release, problems: list[Problem]) -> Iterator[reports.OpenIReport]:
    for path in download.paths:
        if path.lower().endswith(".xml"):
            try:
                yield reports.open_i(download.raw / path)
            except ValueError as error:
                problems.append(Problem(path, "report", str(error)))


def _projections(download: release.Release) -> dict[tuple[str, str], str]:
    """Projections of the pictures by key; empty where there is no such table."""
    found = download.optional_table("indiana_projections.csv")
    if found is None:
        return {}
    cells = [column(found[0], name, found[1]) for name in ("filename", "projection")]
    projections = {_key(name): _PROJECTIONS.get(said.lower(), "") for name, said in zip(*cells, strict=True)}
    return {key: projection for key, projection in projections.items() if projection}


def _projections_by_header(download: release.Release) -> dict[tuple[str, str], str]:
    """View positions of the DICOM headers by key, from the table of them; empty where there is no such table."""
    found = download.optional_table(_HEADERS)
    if found is None:
        return {}
    cells = [column(found[0], name, found[1]) for name in ("imageid", "View Position")]
    return {_key(name): header.projection(position, "") for name, position in zip(*cells, strict=True)}


def _key(name: str) -> tuple[str, str]:
    """What the official and Kaggle's names of a picture share: ("1", "IM-0001-3001")."""
    match = re.match(r"(?:CXR)?(\d+)_.*?(IM-[\d-]+)", name, re.IGNORECASE)
    return (match[1], match[2].upper()) if match else ("", name)


def _picture(file: str, image_id: str, study: str) -> _Picture:
    return _Picture(file, image_id, study, schema.assign_split("iu_xray", study))


def _kaggle(
    download: release.Release, official_names: Mapping[tuple[str, str], str]
) -> tuple[list[_Picture], dict[str, _Wording]]:
    frame, path = download.table("indiana_projections.csv")
    cells = [column(frame, name, path) for name in ("uid", "filename")]
    pictures = [
        _picture(file, official_names.get(_key(file), file.removesuffix(".png").removesuffix(".dcm")), f"CXR{uid}")
        for uid, file in zip(*cells, strict=True)
    ]
    frame, path = download.table("indiana_reports.csv")
    parts = ("comparison", "indication", "findings", "impression")
    wordings = {}
    for uid, mesh, *texts in zip(*(column(frame, name, path) for name in ("uid", "MeSH", *parts)), strict=True):
        sections = _sections(dict(zip(parts, texts, strict=True)))
        wordings[f"CXR{uid}"] = _Wording(sections, tuple(mesh.split(";")))
    return pictures, wordings


def _r2gen(download: release.Release) -> tuple[list[_Picture], dict[str, _Wording]]:
    path = download.find("annotation.json")
    if path is None:
        raise release.LayoutError(
            f"{download.raw} has no ecgen-radiology/*.xml, indiana_projections.csv or annotation.json. "
            f"{download.where()}"
        )
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
        entries = [
            (_SPLITS[split.strip()], entry["id"].split("_")[0], entry["report"].strip(), entry["image_path"])
            for split, part in listing.items()
            for entry in part
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise release.LayoutError(
            f"{path} is no annotation of R2Gen, splits train, val and test of reports with id, report and image_path "
            f"({type(error).__name__}: {error}). {download.where()}"
        ) from None
    pictures = [
        _Picture(file, file.removesuffix(".png"), study, split) for split, study, _, names in entries for file in names
    ]
    return pictures, {study: _Wording({"findings": text, "text": text}) for _, study, text, _ in entries}


def _sections(parts: Mapping[str, str]) -> dict[str, str]:
    named = ((name, parts[name]) for name in ("comparison", "indication", "findings", "impression"))
    text = "\n\n".join(f"{name.upper()}: {said}" for name, said in named if said)
    return {"findings": parts["findings"], "impression": parts["impression"], "text": text}


def _terms(mesh: tuple[str, ...]) -> set[str] | None:
    """The labels of a report; None where it is not indexed."""
    heads = {term.split("/")[0].strip() for term in mesh} - {"", "No Indexing"}
    return {"No Finding" if head.lower() == "normal" else head for head in heads} or None
