"""MIMIC-CXR-JPG: frontal and lateral radiographs with 14 observations mined from reports, and the reports themselves.

Source: Beth Israel Deaconess Medical Center, physionet.org/content/mimic-cxr-jpg (2.0.0 or 2.1.0) and, for the reports
and the DICOM originals, physionet.org/content/mimic-cxr; Johnson et al., Scientific Data 2019 and arXiv 1901.07042.
Layout: files/p10/p10000032/s50414267/<dicom_id>.jpg, or .dcm where no JPEG is there; mimic-cxr-2.0.0-metadata,
-split and -chexpert or -negbio as .csv.gz or .csv; mimic-cxr-reports.zip as it is, or files/p10/.../s50414267.txt.
The split is the official one, by patient. Labels and reports are of studies: all pictures of a study share them.
labels "radiologist": mimic-cxr-2.1.0-test-set-labeled.csv, the 687 reports that a radiologist labelled, whose Airspace
Opacity is Lung Opacity; other studies of the test part then mention nothing, those of train and val have CheXpert's.
Ours: LL (left lateral) is LATERAL; a blank ViewPosition is what ViewCodeSequence_CodeMeaning says; a rare one (AP
AXIAL, SWIMMERS ...) is UNKNOWN. With MS-CXR in the folder, pictures have its phrases with boxes (ms_cxr.py).
"""

import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import IO

import pandas

from cxrjax.datasets import ms_cxr, release
from cxrjax.datasets.files import decoded
from cxrjax.datasets.manifest import Manifest, Problem, Row, listed
from cxrjax.datasets.schema import NOT_MENTIONED
from cxrjax.datasets.table import column
from cxrjax.imaging import header
from cxrjax.text import reports

LABELS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture"),
    *("Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia"),
    *("Pneumothorax", "Support Devices"),
)
PUBLISHED = {
    "pictures": 377110,
    "pictures in train": 368960,
    "pictures in val": 2991,
    "pictures in test": 5159,
    "patients": 65379,
    "patients in train": 64586,
    "patients in val": 500,
    "patients in test": 293,
    "studies": 227835,
    "studies in train": 222758,
    "studies in val": 1808,
    "studies in test": 3269,
}
_REPORT_BYTES = 2**22
_SPLITS = {"train": "train", "validate": "val", "test": "test"}
_PROJECTIONS = {"PA": "PA", "AP": "AP", "LATERAL": "LATERAL", "LL": "LATERAL"}
_VIEW_CODE = "ViewCodeSequence_CodeMeaning"
_UNLABELLED = (NOT_MENTIONED,) * len(LABELS)


def manifest(raw: Path, labels: str = "chexpert") -> Manifest:
    """Reads the download; labels: "chexpert" or "negbio", the tool that read the reports, or "radiologist".

    Raises LayoutError for another folder, TableError for a table that cannot be read.
    """
    download = release.Release("mimic_cxr", raw)
    frame, path = download.table("mimic-cxr-*-metadata.csv")
    cells = [column(frame, name, path) for name in ("dicom_id", "subject_id", "study_id", "ViewPosition")]
    split_frame, split_path = download.table("mimic-cxr-*-split.csv")
    splits = dict(zip(*(column(split_frame, name, split_path) for name in ("dicom_id", "split")), strict=True))
    problems: list[Problem] = []
    labels_of = _labels_of_studies(download, f"*-{'negbio' if labels == 'negbio' else 'chexpert'}.csv", problems)
    read_by_radiologist: dict[str, tuple[int, ...]] = {}
    if labels == "radiologist":
        read_by_radiologist = _labels_of_studies(download, "*-test-set-labeled.csv", problems)
    files, suffix = _pictures(download, set(cells[0]))
    codes = _view_codes(frame, path)
    rows = []
    for (dicom, patient, study, position), code in zip(zip(*cells, strict=True), codes, strict=True):
        split = splits.pop(dicom, "")
        if split not in _SPLITS:
            problems.append(Problem(dicom, "row", f"{split_path.name} gives it no split of {', '.join(_SPLITS)}."))
        elif dicom not in files:
            problems.append(release.missing_picture(f"files/p{patient[:2]}/p{patient}/s{study}/{dicom}{suffix}"))
        else:
            projection = _projection(position, code)
            labelled = labels_of.get(study, _UNLABELLED)
            if labels == "radiologist" and (split == "test" or study in read_by_radiologist):
                labelled = read_by_radiologist.get(study, _UNLABELLED)
            rows.append(Row(files[dicom], dicom, patient, study, _SPLITS[split], projection, labelled))
    problems += [Problem(dicom, "row", f"{split_path.name} names it, but not {path.name}.") for dicom in splits]
    remarks = [*release.completeness(sum(dicom in files for dicom in cells[0]), len(frame))]
    unlisted = sorted(files.keys() - set(cells[0]))
    if unlisted:
        remarks.append(f"{len(unlisted)} pictures are not in {path.name} and were left out: {listed(unlisted)}.")
    unknown = Counter(
        position or "none given"
        for position, code in zip(cells[3], codes, strict=True)
        if _projection(position, code) == "UNKNOWN"
    )
    if unknown:
        said = listed([f"{position} ({count})" for position, count in unknown.most_common()], 20)
        remarks.append(f"{unknown.total()} pictures of the table have no known projection: {said}.")
    studies = dict.fromkeys(row.study_id for row in rows)
    unlabelled = sum(study not in labels_of for study in studies)
    if unlabelled:
        remarks.append(f"{unlabelled} studies have no labels of {labels}: they mention nothing.")
    if read_by_radiologist:
        in_test = len({row.study_id for row in rows if row.split == "test"} & read_by_radiologist.keys())
        remarks.append(
            f"A radiologist labelled the reports of {len(read_by_radiologist)} studies, {in_test} of them here in the "
            "test part, whose other studies mention nothing."
        )
    boxes = ms_cxr.boxes(download, set(cells[0]), problems, remarks)
    rows = [row._replace(boxes=(boxes or {}).get(row.image_id, ())) for row in rows]
    texts = _reports(download, studies, problems)
    if texts is None:
        remarks.append(
            "There are no reports, so the set is written without them. They are mimic-cxr-reports.zip of "
            "physionet.org/content/mimic-cxr; lay it, as it is, into the folder of the download."
        )
    else:
        rows = [row._replace(**texts.get(row.study_id, {})) for row in rows]
    return Manifest(
        "mimic_cxr",
        LABELS,
        tuple(rows),
        "MIMIC-CXR-JPG (Beth Israel Deaconess Medical Center, physionet.org/content/mimic-cxr-jpg; Johnson et al., "
        f"arXiv 1901.07042). Frontal and lateral radiographs; labels mined from the reports by {labels}.",
        tuple(problems),
        tuple(remarks),
        has_boxes=boxes is not None,
        has_report=texts is not None,
        published=PUBLISHED,
    )


def _pictures(download: release.Release, named: Collection[str]) -> tuple[dict[str, Path], str]:
    """The picture of each dicom_id, and the suffix that all of them have: of JPEG or DICOM whichever names more.

    Never both: the JPEG are equalised, so they look different from the DICOM originals.
    """
    kinds = {}
    for suffix in (".jpg", ".dcm"):
        found = download.optional_files(suffix)
        kinds[suffix] = {PurePosixPath(name).stem: file for name, file in found.items()}
    suffix = max(kinds, key=lambda each: (len(kinds[each].keys() & named), len(kinds[each])))
    if not kinds[suffix]:
        download.files(*kinds)  # raises the sentence for a download without pictures
    return kinds[suffix], suffix


def _view_codes(frame: pandas.DataFrame, path: Path) -> list[str]:
    """The meanings of the view codes, which copies of the metadata may lack."""
    there = any(name.lower() == _VIEW_CODE.lower() for name in frame.columns)
    return column(frame, _VIEW_CODE, path) if there else [""] * len(frame)


def _projection(position: str, code: str) -> str:
    return _PROJECTIONS.get(position, "UNKNOWN") if position else header.projection("", code)


def _labels_of_studies(download: release.Release, name: str, problems: list[Problem]) -> dict[str, tuple[int, ...]]:
    """The labels of every study in the table of that name."""
    frame, path = download.table(f"mimic-cxr-{name}")
    frame = frame.rename(columns={"Airspace Opacity": "Lung Opacity"})
    studies = column(frame, "study_id", path)
    table = [column(frame, name, path) for name in LABELS]
    labels_of = {}
    for study, *cells in zip(studies, *table, strict=True):
        labels = release.labels(cells)
        if labels is None:
            odd = release.first_odd_label(cells)
            problems.append(Problem(f"s{study}", "row", f"{path.name} has the label {odd!r}."))
        else:
            labels_of[study] = labels
    return labels_of


def _reports(
    download: release.Release, studies: Iterable[str], problems: list[Problem]
) -> dict[str, dict[str, str]] | None:
    """Reads findings, impression and text of the studies; None where the download has no reports at all."""
    path = download.find("mimic-cxr-reports.zip")
    if path is None:
        members = [name for name in download.paths if re.search(r"(^|/)s\d+\.txt$", name)]
        if not members:
            return None
        return _sections(members, lambda name: _bounded((download.raw / name).open("rb")), studies, problems)
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise release.LayoutError(f"{path} is no whole zip archive: fetch it again, or take it away.") from None
    with archive:
        return _sections(archive.namelist(), lambda name: _bounded(archive.open(name)), studies, problems)


def _bounded(file: IO[bytes]) -> bytes:
    """A report's bytes. Raises OSError where there are more than a report can have, packed small or not."""
    with file:
        data = file.read(_REPORT_BYTES + 1)
    if len(data) > _REPORT_BYTES:
        raise OSError(f"it has more than {_REPORT_BYTES // 2**20} MiB, which no report has")
    return data


def _sections(
    members: Iterable[str], read: Callable[[str], bytes], studies: Iterable[str], problems: list[Problem]
) -> dict[str, dict[str, str]]:
    places = {PurePosixPath(name).stem: name for name in members if name.endswith(".txt")}
    found = {}
    for study in studies:
        place = places.get(f"s{study}")
        if place is None:
            problems.append(Problem(f"s{study}.txt", "report", "There is no such file among the reports."))
            continue
        try:
            text = decoded(read(place))[0].strip()
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            problems.append(Problem(place, "report", f"It cannot be read: {error}."))
            continue
        report = reports.sections(text)
        found[study] = {"findings": report.findings, "impression": report.impression, "text": text}
    return found
