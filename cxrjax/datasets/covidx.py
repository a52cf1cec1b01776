"""COVIDx CXR-3 and CXR-4: 30,000 and 85,000 pictures of chests with and without COVID-19, gathered from other sets.

Source: Pavlova et al., Frontiers in Medicine 2022; Wu et al., arXiv 2311.17677 (CXR-4); Kaggle andyczhao/covidx-cxr2,
lists at github.com/lindawangg/COVID-Net.
Layout: train/, test/ and the lists train_COVIDx_CXR-3A.txt, test_COVIDx_CXR-3A.txt (3B alike), or train.txt and
test.txt of the Kaggle download, of whichever variant. Lines are `patient file class source` without a header; a file
name may hold blanks. Variant 3A: normal, pneumonia, COVID-19; 3B: negative, positive for COVID-19; 4: as 3B, with
val/ and val.txt too.

Ours: the official test list is the test split; validation is the val list of CXR-4, and else cut from the train list
by patient, 10 % of them or, as MGCA does with pictures, 20 %. Pictures of a patient who is in a later list too (train,
val, test) are left out. Every picture names the set that it comes from in `same_picture`: most normal and pneumonia
pictures are RSNA's, and so ChestX-ray14's.
"""

from collections import Counter
from pathlib import Path

from cxrjax.datasets import schema
from cxrjax.datasets.manifest import Manifest, Problem, Row, listed
from cxrjax.datasets.release import LayoutError, Release, completeness, is_validation, missing_picture

NAME = "covidx"
CLASSES = {  # the lists' words -> label, by variant
    "3A": {"normal": "Normal", "pneumonia": "Pneumonia", "COVID-19": "COVID-19"},
    "3B": {"negative": "No COVID-19", "positive": "COVID-19"},
    "4": {"negative": "No COVID-19", "positive": "COVID-19"},
}
SETS = {"rsna": "rsna_pneumonia", "cohen": "covid_chestxray"}  # the lists' words for sets that have another name here
PUBLISHED = {
    "3A": {
        "pictures": 30034,
        "pictures in test": 400,
        "label Normal": 8185,
        "label Pneumonia": 5655,
        "label COVID-19": 16194,
        "label COVID-19 in test": 200,
    },
    "3B": {
        "pictures": 30386,
        "pictures in test": 400,
        "patients": 17026,
        "label COVID-19": 16194,
        "label COVID-19 in test": 200,
    },
    "4": {"pictures": 84818, "patients": 45342},
}


def manifest(raw: Path, variant: str = "3A", val: str = "10") -> Manifest:
    """Reads the lists of a variant. val: percent of the train list's patients that become validation; not of CXR-4."""
    release = Release(NAME, raw)
    problems: list[Problem] = []
    rows: list[Row] = []
    later: set[str] = set()
    remarks = []
    for part in ("test", "val", "train") if variant == "4" else ("test", "train"):
        found = _listed(release, part, variant, problems)
        kept = [row for row in found if row.patient_id not in later]
        if len(kept) < len(found):
            patients = sorted({row.patient_id for row in found} & later)
            remarks.append(
                f"{len(patients)} patients of the {part} list are in a later one too ({listed(patients)}): their "
                f"{len(found) - len(kept)} pictures of the {part} list are left out."
            )
        later |= {row.patient_id for row in kept}
        rows = kept + rows
    if variant != "4":
        share = int(val) / 100
        rows = [
            row._replace(split="val") if row.split == "train" and is_validation(NAME, row.patient_id, share) else row
            for row in rows
        ]
    missing = sum(problem.kind == "missing" for problem in problems)
    return Manifest(
        NAME,
        tuple(CLASSES[variant].values()),
        tuple(rows),
        f"COVIDx CXR-{variant}, chest radiographs gathered from public sets. Pavlova et al., Frontiers in Medicine "
        "2022, and Wu et al., arXiv 2311.17677 (Kaggle andyczhao/covidx-cxr2, github.com/lindawangg/COVID-Net); "
        "licences of the sources.",
        tuple(problems),
        (*remarks, *completeness(len(rows), len(rows) + missing)),
        published=PUBLISHED[variant],
    )


def _listed(release: Release, part: str, variant: str, problems: list[Problem]) -> list[Row]:
    """The rows of the list of a part that have a picture, with the part as split."""
    lines, path = release.lines(f"{part}_COVIDx_CXR-{variant}.txt", f"{part}.txt")
    classes = CLASSES[variant]
    entries: dict[str, tuple[str, str, str]] = {}
    strange: Counter[str] = Counter()
    for number, line in enumerate(lines, 1):
        where = f"Line {number} of {path.name}"
        cells = line.split()
        if len(cells) < 4:
            problems.append(Problem(path.name, "row", f"{where} is {line!r}, not `patient file class source`."))
            continue
        patient, *_, label, source = cells
        name = line.split(maxsplit=1)[1].rsplit(maxsplit=2)[0]
        if label not in classes:
            strange[label] += 1
            problems.append(Problem(name, "row", f"{where} has the class {label!r}; known are {', '.join(classes)}."))
        elif name in entries:
            problems.append(Problem(name, "row", f"{where} names a picture for the second time."))
        else:
            entries[name] = patient, label, source
    if not entries:
        other = "3A" if variant != "3A" else "3B"
        hint = f"Convert it with --variant {other}, or add" if set(strange) & set(CLASSES[other]) else "Give"
        raise LayoutError(
            f"{path} has no line of variant {variant}, but the classes {listed(sorted(strange)) or 'none'}. {hint} "
            f"{part}_COVIDx_CXR-{variant}.txt from github.com/lindawangg/COVID-Net."
        )
    files = release.files(".png", ".jpg", ".jpeg", under=part)
    rows = []
    for name, (patient, label, source) in entries.items():
        if name not in files:
            problems.append(missing_picture(f"{part}/{name}"))
            continue
        origin = SETS.get(source, source)
        labels = tuple(schema.PRESENT if other == label else schema.ABSENT for other in classes)
        picture = f"{origin}:{Path(name).stem if source == 'rsna' else name}"
        rows.append(
            Row(
                files[name],
                name,
                patient,
                name,
                part,
                labels=labels,
                same_picture=(picture,),
                same_patient=(f"{origin}:{patient}",),
            )
        )
    return rows
