"""CheXpert Plus: the radiographs of CheXpert with their reports by section, as DICOM or PNG.

Source: Chambon et al., arXiv 2405.19538; stanfordaimi.azurewebsites.net (CheXpert Plus).
Layout: df_chexpert_plus_240401.csv; PNG/train/patient42142/study5/view1_frontal.png or DICOM/..., under any folder;
chexbert_labels/impression_fixed.json, findings_fixed.json, report_fixed.json: one object a line with path_to_image and
the 14 observations (1, 0, -1 uncertain, null not mentioned). The table calls all pictures .jpg.
labels: which text CheXbert read; labels that were mined from a text say nothing about a model that reads it too.
Ours: image ids, patients and the split are those of the set chexpert, whose official valid is the test part, so that
the guard against leaks knows the pictures of one in the other; sections of the report are findings and impression, and
a backslash with n is the end of a line.
"""

import json
from pathlib import Path, PurePosixPath

from cxrjax.datasets import chexpert, release
from cxrjax.datasets.files import decoded
from cxrjax.datasets.manifest import Manifest, Problem, Row, listed
from cxrjax.datasets.schema import NOT_MENTIONED
from cxrjax.datasets.table import column

LABELS = chexpert.LABELS
PUBLISHED = {"pictures": 223462, "patients": 64725}
_COLUMNS = (
    *("path_to_image", "frontal_lateral", "ap_pa", "age", "sex", "split"),
    *("section_findings", "section_impression", "report"),
)
_SPLITS = {"train": "train", "valid": "test"}
_UNLABELLED = (NOT_MENTIONED,) * len(LABELS)


def manifest(raw: Path, labels: str = "impression") -> Manifest:
    """Reads the download; labels: "impression", "findings" or "report", the text that CheXbert read.

    Raises LayoutError for another folder, TableError for a table that cannot be read.
    """
    download = release.Release("chexpert_plus", raw)
    frame, path = download.table("df_chexpert_plus*.csv")
    table = list(zip(*(column(frame, name, path) for name in _COLUMNS), strict=True))
    tails = {_tail(cells[0]) for cells in table}
    pictures = _pictures(download, tails)
    problems: list[Problem] = []
    labels_of = _labels(download, labels, problems)
    rows = []
    for place, frontal_lateral, ap_pa, age, sex, split, findings, impression, report in table:
        tail = _tail(place)
        if split not in _SPLITS or tail.count("/") != 3:
            problems.append(Problem(place, "row", f"{path.name} has split {split!r} or a path of another form."))
        elif tail not in pictures:
            problems.append(release.missing_picture(place))
        else:
            part, patient, study, view = tail.split("/")
            val = split == "train" and release.is_validation("chexpert", patient, chexpert.VAL_SHARE)
            rows.append(
                Row(
                    pictures[tail],
                    tail,
                    patient,
                    f"{patient}/{study}",
                    "val" if val else _SPLITS[split],
                    chexpert.projection(frontal_lateral, ap_pa),
                    labels_of.get(tail, _UNLABELLED),
                    findings=_lines(findings),
                    impression=_lines(impression),
                    text=_lines(report),
                    sex=release.sex(sex),
                    age=release.years(age) or -1,
                    same_picture=(f"chexpert:{part}/{patient}/{study}/{view}.jpg",),
                    same_patient=(f"chexpert:{patient}",),
                )
            )
    remarks = [*release.completeness(len(rows), len(table))]
    unlisted = sorted(pictures.keys() - tails)
    if unlisted:
        remarks.append(f"{len(unlisted)} pictures are not in {path.name} and were left out: {listed(unlisted)}.")
    unlabelled = sum(row.image_id not in labels_of for row in rows)
    if unlabelled:
        remarks.append(f"{unlabelled} pictures have no labels in {labels}_fixed.json: they mention nothing.")
    return Manifest(
        "chexpert_plus",
        LABELS,
        tuple(rows),
        "CheXpert Plus (Stanford AIMI; Chambon et al., arXiv 2405.19538). Frontal and lateral radiographs with "
        f"reports; labels that CheXbert mined from the {labels}.",
        tuple(problems),
        tuple(remarks),
        has_report=True,
        published=PUBLISHED,
    )


def _tail(path: str) -> str:
    """Part, patient, study and view of a path, without suffix: what is the same for JPEG, PNG and DICOM."""
    return "/".join(PurePosixPath(path).with_suffix("").parts[-4:])


def _pictures(download: release.Release, named: set[str]) -> dict[str, Path]:
    """The pictures by tail, DICOM or PNG or JPEG, whichever has most of those that are named."""
    kinds = []
    for suffixes in ((".dcm",), (".png",), (".jpg", ".jpeg")):
        paths = [path for path in download.paths if path.lower().endswith(suffixes)]
        kinds.append({_tail(path): download.raw / path for path in paths})
    found = max(kinds, key=lambda pictures: len(pictures.keys() & named))
    if not found:
        download.files(".dcm", ".png", ".jpg")  # raises the sentence for a download without pictures
    return found


def _labels(download: release.Release, kind: str, problems: list[Problem]) -> dict[str, tuple[int, ...]]:
    """The 14 labels by tail; {} and a problem where the file is missing."""
    path = download.find(f"{kind}_fixed.json")
    if path is None:
        problems.append(Problem(f"{kind}_fixed.json", "missing", "The labels of CheXbert are not there."))
        return {}
    found = {}
    for number, line in enumerate(filter(str.strip, decoded(path.read_bytes())[0].splitlines()), 1):
        try:
            entry = json.loads(line)
            cells = ["" if entry.get(name) is None else str(float(entry[name])) for name in LABELS]
            labels = release.labels(["" if cell == "nan" else cell for cell in cells])
            found[_tail(entry["path_to_image"])] = labels or _UNLABELLED
            wrong = "" if labels else f"has the label {release.first_odd_label(cells)!r}"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            wrong = f"is no object with path_to_image and labels ({type(error).__name__}: {error})"
        if wrong:
            problems.append(Problem(path.name, "row", f"Its line {number} {wrong}."))
    return found


def _lines(text: str) -> str:
    return text.replace("\\n", "\n").strip()
