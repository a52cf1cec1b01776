"""Shenzhen: 662 PA radiographs, 326 normal and 336 with tuberculosis, with readings.

Source: Jaeger et al., 2014, National Library of Medicine.
Layout: ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png and ClinicalReadings/CHNCXR_0001_0.txt, whose first line is like
"male 45yrs" and the rest the reading; or, instead of the readings, shenzhen_metadata.csv with
`study_id,sex,age,findings`. The last digit of the name is the label. Lung masks are a download of their own (Stirenko
et al., 2018): mask/CHNCXR_0001_0_mask.png for 566 pictures, anywhere below the folder.

Ours: one picture is one patient; the split is 80/10/10 by patient.
"""

from pathlib import Path

from cxrjax.datasets import schema, tuberculosis
from cxrjax.datasets.manifest import Manifest, Row
from cxrjax.datasets.release import Release, completeness, missing_picture
from cxrjax.datasets.table import column

NAME = "shenzhen"
MASK = "_mask.png"


def manifest(raw: Path) -> Manifest:
    """Reads the folder ChinaSet_AllFiles, or one above it that also has the masks."""
    release = Release(NAME, raw)
    pictures = tuberculosis.pictures(release, "CHNCXR")
    masks = {name.removesuffix(MASK): path for name, path in release.optional_files(MASK).items()}
    readings = _readings(release)
    wanted = sorted(pictures.keys() | masks.keys() | readings.keys())
    rows = []
    for stem in set(wanted) & pictures.keys():
        (sex, age), text = readings.get(stem, (("", -1), ""))
        split = schema.assign_split(NAME, stem)
        labels, mask = tuberculosis.labels(stem), tuple(masks[name] for name in (stem,) if name in masks)
        rows.append(Row(pictures[stem], stem, stem, stem, split, "PA", labels, mask, text=text, sex=sex, age=age))
    remarks = completeness(len(rows), len(wanted))
    if not readings:
        remarks += ("There is no ClinicalReadings folder or shenzhen_metadata.csv: sex, age and readings stay blank.",)
    if not masks:
        remarks += ("There are no lung masks (mask/CHNCXR_0001_0_mask.png): the set is converted without.",)
    return Manifest(
        NAME,
        tuberculosis.LABELS,
        tuple(sorted(rows)),
        f"Shenzhen No. 3 Hospital chest radiographs for tuberculosis. {tuberculosis.SOURCE}. Lung masks: Stirenko et "
        "al., 2018, CC BY-NC-SA 4.0.",
        tuple(missing_picture(f"{stem}.png") for stem in wanted if stem not in pictures),
        remarks,
        has_mask=bool(masks),
        has_report=bool(readings),
        published={"pictures": 662, "label Normal": 326, "label Tuberculosis": 336, "with a mask": 566},
    )


def _readings(release: Release) -> dict[str, tuple[tuple[str, int], str]]:
    """((sex, age), reading) by stem, from the folder of readings or the table."""
    readings = {}
    for name, path in release.optional_files(".txt", under="ClinicalReadings").items():
        lines = tuberculosis.lines(path)
        person = tuberculosis.person(lines[0]) if lines else ("", -1)
        told = person == ("", -1)
        readings[Path(name).stem] = person, "\n".join(lines if told else lines[1:])
    table = None if readings else release.optional_table("shenzhen_metadata.csv")
    if table is not None:
        frame, path = table
        cells = zip(*(column(frame, name, path) for name in ("study_id", "sex", "age", "findings")), strict=True)
        for name, sex, age, findings in cells:
            readings[Path(name).stem] = tuberculosis.person(f"{sex} {age}"), findings
    return readings
