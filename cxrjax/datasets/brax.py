"""BRAX: 40,967 radiographs of a Brazilian hospital with 14 observations mined from Portuguese reports.

Source: Hospital Israelita Albert Einstein; Reis et al., Scientific Data 2022; physionet.org/content/brax.
Layout: master_spreadsheet_update.csv (or master_spreadsheet.csv) with DicomPath, PngPath, PatientID, AccessionNumber,
PatientSex, PatientAge, ViewPosition and the observations; Anonymized_DICOMs/id_.../Study_.../Series_.../image-....dcm
and images/... .png. The reports are not published.
Ours: the split, by patient; DICOM where as many of them are there as PNG; L is LATERAL.
"""

from pathlib import Path

from cxrjax.datasets import chexpert, release, schema
from cxrjax.datasets.manifest import Manifest, Problem, Row
from cxrjax.datasets.table import column
from cxrjax.imaging import header

LABELS = tuple(sorted(chexpert.LABELS))
PUBLISHED = {"pictures": 40967, "patients": 19351, "studies": 24959}
_COLUMNS = ("PatientID", "AccessionNumber", "PatientSex", "PatientAge", "ViewPosition")


def manifest(raw: Path) -> Manifest:
    """Reads the download; raises LayoutError for another folder, TableError for a table that cannot be read."""
    download = release.Release("brax", raw)
    frame, path = download.table("master_spreadsheet*.csv")
    places = {kind: column(frame, f"{kind}Path", path) for kind in ("Dicom", "Png")}
    files = {_tail(found): download.raw / found for found in download.paths}
    kind = max(places, key=lambda kind: sum(_tail(place) in files for place in places[kind]))
    problems: list[Problem] = []
    rows = []
    table = zip(places[kind], *(column(frame, name, path) for name in (*_COLUMNS, *LABELS)), strict=True)
    for place, patient, study, sex, age, view, *cells in table:
        labels = release.labels(cells)
        if not patient or labels is None:
            wrong = "no PatientID" if labels else f"the label {release.first_odd_label(cells)!r}"
            problems.append(Problem(place, "row", f"{path.name} gives it {wrong}."))
        elif _tail(place) not in files:
            problems.append(release.missing_picture(place))
        else:
            rows.append(
                Row(
                    files[_tail(place)],
                    _tail(place).rsplit(".", 1)[0],
                    patient,
                    study or place,
                    schema.assign_split("brax", patient),
                    "LATERAL" if view.upper() == "L" else header.projection(view, ""),
                    labels,
                    sex=release.sex(sex),
                    age=release.years(age),
                )
            )
    missing = sum(problem.kind == "missing" for problem in problems)
    return Manifest(
        "brax",
        LABELS,
        tuple(rows),
        "BRAX (Hospital Israelita Albert Einstein, São Paulo, physionet.org/content/brax; Reis et al., Scientific Data "
        "2022). Frontal and lateral radiographs; labels mined from the reports.",
        tuple(problems),
        (f"The {kind.upper()} files were read.", *release.completeness(len(rows), len(rows) + missing)),
        published=PUBLISHED,
    )


def _tail(path: str) -> str:
    """A path from the patient's folder on, which is the same wherever the download lies."""
    return "/".join(path.split("/")[-4:])
