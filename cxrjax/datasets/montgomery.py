"""Montgomery County: 138 PA radiographs, 80 normal and 58 with tuberculosis, with lung masks.

Source: Jaeger et al., 2014, National Library of Medicine.
Layout: MontgomerySet/CXR_png/MCUCXR_0001_0.png, ManualMask/leftMask and rightMask of the same names,
ClinicalReadings/MCUCXR_0001_0.txt with "Patient's Sex: F", "Patient's Age: 027Y" and the reading. The last digit of
the name is the label. The mask is both lungs.

Ours: one picture is one patient, except where its reading says that it is the same patient as another ("same pt as
MCUCXR_0162_1"); the split is 80/10/10 by patient.
"""

import re
from pathlib import Path

from cxrjax.datasets import schema, tuberculosis
from cxrjax.datasets.manifest import Manifest, Problem, Row
from cxrjax.datasets.release import Release, completeness, missing_picture

NAME = "montgomery"


def manifest(raw: Path) -> Manifest:
    """Reads the folder MontgomerySet, or one above it."""
    release = Release(NAME, raw)
    pictures = tuberculosis.pictures(release, "MCUCXR", under="CXR_png")
    sides = {side: release.files(".png", under=f"{side}Mask") for side in ("left", "right")}
    readings = release.optional_files(".txt", under="ClinicalReadings")
    wanted = sorted(pictures.keys() | {Path(name).stem for files in (*sides.values(), readings) for name in files})
    problems = []
    rows = []
    for stem in wanted:
        if stem not in pictures:
            problems.append(missing_picture(f"{stem}.png"))
            continue
        lacking = [side for side, files in sides.items() if f"{stem}.png" not in files]
        if lacking:
            problems.append(Problem(f"{stem}.png", "mask", f"It has no {' and no '.join(lacking)} lung mask."))
        masks = () if lacking else tuple(files[f"{stem}.png"] for files in sides.values())
        lines = tuberculosis.lines(readings.get(f"{stem}.txt"))
        head = [line for line in lines if line.startswith("Patient's")]
        sex, age = tuberculosis.person(" ".join(line.partition(":")[2] for line in head))
        text = "\n".join(line for line in lines if line not in head)
        same = re.search(r"same p\w* as (MCUCXR_\d{4}_[01])", text)
        patient = same[1] if same else stem
        split = schema.assign_split(NAME, patient)
        labels = tuberculosis.labels(stem)
        rows.append(Row(pictures[stem], stem, patient, stem, split, "PA", labels, masks, text=text, sex=sex, age=age))
    remarks = completeness(len(rows), len(wanted))
    if not readings:
        remarks += ("There is no folder ClinicalReadings: sex, age and readings stay blank.",)
    return Manifest(
        NAME,
        tuberculosis.LABELS,
        tuple(rows),
        f"Montgomery County chest radiographs for tuberculosis, with lung masks. {tuberculosis.SOURCE}.",
        tuple(problems),
        remarks,
        has_mask=True,
        has_report=bool(readings),
        published={"pictures": 138, "label Normal": 80, "label Tuberculosis": 58, "with a mask": 138},
    )
