"""SIIM-ACR Pneumothorax Segmentation: frontal radiographs of ChestX-ray14 with masks of the pneumothorax.

Source: kaggle.com/c/siim-acr-pneumothorax-segmentation.
Layout: dicom-images-train/<study>/<series>/<ImageId>.dcm (and dicom-images-test, for rows of the later tables) with
train-rle.csv or stage_2_train.csv. The pictures may also lie in one folder.
Masks: relative run lengths on 1024 x 1024, several rows of a picture united; runs that do not fit, as absolute ones
would not, are reported as bad masks. A picture of "-1" has a mask, an empty one.
Ours: 80/10/10 by study, the folder's name; there is no official split and the tables name no patient. Which pictures of
ChestX-ray14 these are was never published.
"""

from pathlib import Path

from cxrjax.datasets import release
from cxrjax.datasets.manifest import Manifest, Problem, Row, listed
from cxrjax.datasets.schema import ABSENT, PRESENT, assign_split
from cxrjax.datasets.table import column
from cxrjax.imaging.masks import RunLengths

MASK_PX = 1024
EMPTY = "0 0"
PUBLISHED = {"pictures": 12047, "label Pneumothorax": 2669}


def manifest(raw: Path) -> Manifest:
    """Reads the download; raises LayoutError for another folder, TableError for a table that cannot be read."""
    download = release.Release("siim_acr", raw)
    frame, path = download.table("stage_2_train.csv", "train-rle.csv")
    files = download.files(".dcm")
    runs: dict[str, list[str]] = {}
    for name, pairs in zip(*(column(frame, name, path) for name in ("ImageId", "EncodedPixels")), strict=True):
        runs.setdefault(name, []).append(pairs)
    problems: list[Problem] = []
    rows = []
    for name, said in runs.items():
        file = files.get(f"{name}.dcm")
        drawn = [pairs for pairs in said if pairs != "-1"]
        if file is None:
            problems.append(release.missing_picture(f"{name}.dcm"))
            continue
        if "" in drawn or 0 < len(drawn) < len(said):
            odd = "a blank cell" if "" in drawn else "both -1 and run lengths"
            problems.append(Problem(file.name, "row", f"{path.name} has {odd} for it, so its label is not known."))
            continue
        study = _study(file, download.raw)
        rows.append(
            Row(
                file,
                name,
                study,
                study,
                assign_split("siim_acr", study),
                labels=(PRESENT if drawn else ABSENT,),
                masks=tuple(RunLengths(pairs, MASK_PX, MASK_PX) for pairs in drawn or [EMPTY]),
            )
        )
    named = {f"{name}.dcm" for name in runs}
    remarks = list(release.completeness(len(named & set(files)), len(named)))
    unlisted = sorted(set(files) - named)
    if unlisted:
        remarks.append(f"{len(unlisted)} pictures have no row in {path.name} and were left out: {listed(unlisted)}.")
    return Manifest(
        "siim_acr",
        ("Pneumothorax",),
        tuple(rows),
        "SIIM-ACR Pneumothorax Segmentation (Kaggle 2019): frontal radiographs of NIH ChestX-ray14 with pneumothorax "
        "masks drawn by radiologists.",
        tuple(problems),
        tuple(remarks),
        has_mask=True,
        published=PUBLISHED,
    )


def _study(file: Path, raw: Path) -> str:
    """The study's folder of <study>/<series>/<ImageId>.dcm; of a picture that does not lie so, the picture itself."""
    study = file.parent.parent.name
    in_folders = len(file.relative_to(raw).parts) >= 3 and study.count(".") > 1  # a DICOM UID
    return study if in_folders else file.stem
