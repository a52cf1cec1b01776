"""CANDID-PTX: 19,237 frontal radiographs with masks of pneumothorax, acute rib fractures and chest tubes, and reports.

The layout is taken from the paper and from loaders, not seen in a file.
Source: Dunedin Hospital, New Zealand; Feng et al., Radiology: Artificial Intelligence 2021, figshare
10.17608/k6.auckland.14173982.
Layout: dataset/<SOPInstanceUID>, DICOM of 1024 x 1024 px without suffix; Pneumothorax_reports.csv (filename,
SOPInstanceUID, StudyInstanceUID, EncodedPixels, Report), a row per region; chest_tube.csv and acute_rib_fracture.csv or
Rib_fracture_mask_rle.csv (anon_SOPUID, mask_rle).
Masks: relative run lengths, as of SIIM-ACR, rows of a picture united; "-1" is an empty one. Pictures that the tables of
tubes and fractures do not name have none of them.
Ours: the patient is what stands before the first "_" of filename; the split, 80/10/10 by patient, as there is no
official one. Pictures of two patients are refused.
"""

from pathlib import Path, PurePosixPath

from cxrjax.datasets import release
from cxrjax.datasets.manifest import Manifest, Problem, Row, listed
from cxrjax.datasets.schema import ABSENT, PRESENT, assign_split
from cxrjax.datasets.table import column
from cxrjax.imaging.masks import RunLengths

LABELS = ("Pneumothorax", "Acute rib fracture", "Chest tube")
MASK_PX = 1024
EMPTY, NONE = "0 0", "-1"
PUBLISHED = {"pictures": 19237}
_COLUMNS = ("SOPInstanceUID", "StudyInstanceUID", "filename", "EncodedPixels", "Report")

Runs = dict[str, list[str]]  # picture -> run lengths


def manifest(raw: Path) -> Manifest:
    """Reads the download; raises LayoutError for another folder, TableError for a table that cannot be read."""
    download = release.Release("candid_ptx", raw)
    frame, path = download.table("Pneumothorax_reports.csv")
    fractures = _runs(download, "acute_rib_fracture.csv", "Rib_fracture_mask_rle.csv")
    tubes = _runs(download, "chest_tube.csv")
    files = {PurePosixPath(place).name.removesuffix(".dcm"): download.raw / place for place in download.paths}
    pneumothorax: Runs = {}
    told: dict[str, tuple[set[str], str, str]] = {}  # picture -> patients, study, report
    for name, study, file, pairs, report in zip(*(column(frame, name, path) for name in _COLUMNS), strict=True):
        pneumothorax.setdefault(name, []).append(pairs)
        told.setdefault(name, (set(), study, report))[0].add(file.partition("_")[0])
    problems: list[Problem] = []
    rows = []
    for name, (patients, study, report) in told.items():
        drawn = [pneumothorax[name], fractures.get(name, [NONE]), tubes.get(name, [NONE])]
        regions = [[pairs for pairs in found if pairs != NONE] for found in drawn]
        odd = "a blank mask" if any("" in found for found in drawn) else ""
        odd = odd or ("both -1 and run lengths" if 0 < len(regions[0]) < len(drawn[0]) else "")
        odd = odd or (f"several patients, {listed(sorted(patients))}" if len(patients) > 1 else "")
        odd = odd or ("no filename, which has the patient" if patients == {""} else "")
        if odd:
            problems.append(Problem(name, "row", f"The tables give it {odd}."))
        elif name not in files:
            problems.append(release.missing_picture(name))
        else:
            (patient,) = patients
            mask, *others = (
                tuple(RunLengths(pairs, MASK_PX, MASK_PX) for pairs in found or [EMPTY]) for found in regions
            )
            labels = tuple(PRESENT if found else ABSENT for found in regions)
            split = assign_split("candid_ptx", patient)
            rows.append(
                Row(
                    *(files[name], name, patient, study or name, split),
                    labels=labels,
                    masks=mask,
                    text=report,
                    extra_masks=tuple(others),
                )
            )
    problems += [
        Problem(name, "mask", "It has a mask of a fracture or tube, but no row in Pneumothorax_reports.csv.")
        for name in sorted({*fractures, *tubes} - set(told))
    ]
    missing = sum(problem.kind == "missing" for problem in problems)
    return Manifest(
        "candid_ptx",
        LABELS,
        tuple(rows),
        "CANDID-PTX (Dunedin Hospital, New Zealand, figshare 10.17608/k6.auckland.14173982; Feng et al., Radiology: "
        "Artificial Intelligence 2021). Frontal radiographs with reports, and masks drawn by physicians.",
        tuple(problems),
        release.completeness(len(told) - missing, len(told)),
        has_mask=True,
        has_report=True,
        extra_mask_names=("rib_fracture", "chest_tube"),
        published=PUBLISHED,
    )


def _runs(download: release.Release, *names: str) -> Runs:
    """The run lengths of every picture in a table of fractures or tubes."""
    frame, path = download.table(*names)
    found: Runs = {}
    for name, pairs in zip(*(column(frame, name, path) for name in ("anon_SOPUID", "mask_rle")), strict=True):
        found.setdefault(name, []).append(pairs)
    return found
