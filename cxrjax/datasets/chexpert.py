"""CheXpert: frontal and lateral radiographs, 14 observations mined from reports, some of them uncertain.

Source: Stanford ML Group, stanfordmlgroup.github.io/competitions/chexpert; Irvin et al., CheXpert, AAAI 2019.
Layout: train.csv, valid.csv, train/ and valid/, at full size (CheXpert-v1.0) or small (CheXpert-v1.0-small), as the
folder itself or in the folder given. Pictures are found by patient, study and name, so that the several folders of the
full download may stay as they are.
With CheXlocalize's download laid beside: test_labels.csv and test/, the 500 patients of the competition's test.
Ours: the official valid (expert labels, 200 patients), which most papers report on, is "test"; "val" is 2.5 % of the
patients of train.csv, about 5,000 pictures. With test="radiologist" the 500 patients are "test" and the official valid
is "val"; of that test sex, age, and whether a frontal is PA or AP are not published. Labels stay as they are, -1
(uncertain) and blank (not mentioned) included: what they count as is chosen when they are read (input.policies).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas

from cxrjax.datasets import release
from cxrjax.datasets.manifest import Manifest, Problem, Row, listed
from cxrjax.datasets.schema import PRESENT, UNCERTAIN
from cxrjax.datasets.table import column

LABELS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
)
COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
VAL_SHARE = 0.025
PUBLISHED = {
    "valid": {"pictures": 223648, "pictures in test": 234, "patients": 64740, "patients in test": 200},
    "radiologist": {"pictures": 224316, "pictures in test": 668, "patients": 65240, "patients in test": 500},
}
_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS)


def manifest(raw: Path, test: str = "valid") -> Manifest:
    """Reads the download; test: which part is the test, "valid", or "radiologist" of CheXlocalize.

    Raises LayoutError for another folder, TableError for a table that cannot be read.
    """
    download = release.Release("chexpert", raw)
    roots = [path for path in download.paths if PurePosixPath(path).name == "train.csv"]
    if len(roots) > 1:
        raise release.LayoutError(f"{raw} holds {len(roots)} train.csv ({listed(roots)}); give one of their folders.")
    train, valid = download.table("train.csv"), download.table("valid.csv")
    pictures = {_tail(path): download.raw / path for path in download.paths if path.lower().endswith(".jpg")}
    if not pictures:
        raise release.LayoutError(f"{raw} has no .jpg file: unpack the pictures beside {train[1].name}.")
    problems: list[Problem] = []
    named: set[str] = set()
    rows = []
    own = test == "radiologist"
    parts = [(*_cells(*train), "train"), (*_cells(*valid), "val" if own else "test")]
    if own:
        parts.append((*_cells(*download.table("test_labels.csv"), told=("Path", *LABELS)), "test"))
    for cells, path, official in parts:
        for place, sex, age, frontal_lateral, ap_pa, *observed in zip(*cells, strict=True):
            tail = _tail(place)
            named.add(tail)
            labels = release.labels(observed)
            if tail not in pictures:
                problems.append(release.missing_picture(place))
                continue
            if labels is None or tail.count("/") != 2:
                odd = f"the path {place!r}" if labels else f"the label {release.first_odd_label(observed)!r}"
                problems.append(Problem(place, "row", f"{path.name} has {odd}, which is not of CheXpert's form."))
                continue
            patient, study, _ = tail.split("/")
            val = official == "train" and not own and release.is_validation("chexpert", patient, VAL_SHARE)
            rows.append(
                Row(
                    pictures[tail],
                    f"{path.name.split('.')[0].removesuffix('_labels')}/{tail}",
                    patient,
                    f"{patient}/{study}",
                    "val" if val else official,
                    projection(frontal_lateral or tail, ap_pa),
                    labels,
                    sex=release.sex(sex),
                    age=release.years(age) or -1,
                )
            )
    remarks = release.completeness(len(named & set(pictures)), len(named))
    unlisted = sorted(set(pictures) - named)
    if unlisted:
        remarks += (f"{len(unlisted)} pictures are in no table and were left out: {listed(unlisted)}.",)
    return Manifest(
        "chexpert",
        LABELS,
        tuple(rows),
        "CheXpert (Stanford ML Group; Irvin et al., AAAI 2019). Frontal and lateral radiographs; labels of train and "
        "val mined from reports, those of the official valid"
        f"{' (val) and of test' if own else ' (test)'} by radiologists.",
        tuple(problems),
        remarks,
        published=PUBLISHED[test],
    )


def _cells(frame: pandas.DataFrame, path: Path, told: Sequence[str] = _COLUMNS) -> tuple[list[list[str]], Path]:
    """The columns of a table, blank where it is not told, and the table's path."""
    return [column(frame, name, path) if name in told else [""] * len(frame) for name in _COLUMNS], path


def five_by_200(
    index: pandas.DataFrame, label_names: Sequence[str], seed: int = 0, per_class: int = 200
) -> dict[str, tuple[str, ...]]:
    """Draws CheXpert 5x200: for each competition class, frontals that are positive for it and for nothing else.

    index: columns image_id, view (the projection) and labels (c values in each cell), as `input.record_index.index` has
        them. label_names: c.
    Every other label must be absent or not mentioned; a picture with an uncertain one is not drawn, as in MGCA. The
    draw depends on the seed and the image ids only; published papers each made their own. It is usually made from the
    train part: keep what is drawn out of the training.
    Returns class -> image ids. Raises ValueError where a class has fewer than per_class.
    """
    labels = np.stack(index["labels"].tolist())
    frontal = (index["view"] != "LATERAL").to_numpy()
    alone = (np.isin(labels, (PRESENT, UNCERTAIN)).sum(axis=1) == 1) & frontal
    drawn, few = {}, []
    for name in COMPETITION:
        ids = index["image_id"][alone & (labels[:, list(label_names).index(name)] == PRESENT)]
        if len(ids) < per_class:
            few.append(f"{name} {len(ids)}")
        ordered = sorted(ids, key=lambda image_id: hashlib.sha256(f"5x200|{seed}|{image_id}".encode()).digest())
        drawn[name] = tuple(ordered[:per_class])
    if few:
        raise ValueError(
            f"CheXpert 5x200 needs {per_class} frontals of each class that are positive for it alone, but there are "
            f"too few of: {', '.join(few)}. Draw from the whole train part, or lower per_class."
        )
    return drawn


def _tail(path: str) -> str:
    """Patient, study and picture of a path: all that is the same in every download."""
    return "/".join(PurePosixPath(path).parts[-3:])


def projection(frontal_lateral: str, ap_pa: str) -> str:
    """The projection by the columns Frontal/Lateral (or, where it is blank, the picture's name) and AP/PA."""
    if frontal_lateral.lower().removesuffix(".jpg").endswith("lateral"):
        return "LATERAL"
    return ap_pa if ap_pa in ("PA", "AP") else "UNKNOWN"  # a few frontals say LL or RL
