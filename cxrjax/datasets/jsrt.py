"""JSRT: 247 PA radiographs, 154 of them with a lung nodule, and the masks of the SCR database.

Source: Shiraishi et al., AJR 2000, db.jsrt.or.jp; masks: van Ginneken et al., Medical Image Analysis 2006.
Layout: All247images/JPCLN001.IMG (nodule) and JPCNN001.IMG (none), raw pixels without a header. The masks are a
download of their own, scratch/fold1/masks/<structure>/JPCLN001.gif and fold2 alike, of left lung, right lung, heart,
left clavicle and right clavicle. So is the clinical information: CLNDAT_EN.txt (file, subtlety, size in mm, age, sex,
x, y, words) and CNNDAT_EN.txt (file, age, sex, words).

Ours: the mask is both lungs, heart and clavicles are masks of their own; the box of a nodule is the square of its
size around its centre, at 0.175 mm per pixel; every picture is its own patient; the split is 80/10/10.
"""

import re
from pathlib import Path
from typing import NamedTuple

from cxrjax.datasets import release as releases
from cxrjax.datasets import schema
from cxrjax.datasets.files import decoded
from cxrjax.datasets.manifest import Box, Manifest, Problem, Row, listed
from cxrjax.datasets.release import Release, completeness, missing_picture

NAME = "jsrt"
STEMS = (*(f"JPCLN{number:03}" for number in range(1, 155)), *(f"JPCNN{number:03}" for number in range(1, 94)))
STRUCTURES = {  # mask -> SCR folders
    "lungs": ("left lung", "right lung"),
    "heart": ("heart",),
    "clavicles": ("left clavicle", "right clavicle"),
}
MILLIMETRES_PER_PIXEL = 0.175


class Clinical(NamedTuple):
    sex: str
    age: int
    boxes: tuple[Box, ...]


def manifest(raw: Path) -> Manifest:
    """Reads the pictures, and the masks and the clinical information where they are there."""
    release = Release(NAME, raw)
    files = {path.stem.upper(): path for path in release.files(".img").values()}
    folders = {
        folder: {Path(name).stem.upper(): path for name, path in release.optional_files(".gif", under=folder).items()}
        for group in STRUCTURES.values()
        for folder in group
    }
    with_masks = any(folders.values())
    problems: list[Problem] = []
    clinical = _clinical(release)
    rows = []
    for stem in STEMS:
        if stem not in files:
            problems.append(missing_picture(f"{stem}.IMG"))
            continue
        masks = {}
        for name, group in STRUCTURES.items():
            lacking = [folder for folder in group if stem not in folders[folder]]
            masks[name] = () if lacking else tuple(folders[folder][stem] for folder in group)
            if lacking and with_masks:
                problems.append(Problem(files[stem].name, "mask", f"It has no mask of the {' and '.join(lacking)}."))
        sex, age, boxes = clinical.get(stem, Clinical("", -1, ()))
        labels = (schema.PRESENT if stem.startswith("JPCLN") else schema.ABSENT,)
        split = schema.assign_split(NAME, stem)
        extra = (masks["heart"], masks["clavicles"]) if with_masks else ()
        row = Row(files[stem], stem, stem, stem, split, "PA", labels, masks["lungs"], boxes, sex=sex, age=age)
        rows.append(row._replace(extra_masks=extra))
    for stem in sorted(files.keys() - set(STEMS)):
        problems.append(Problem(files[stem].name, "row", "It is none of the 247 pictures of JSRT."))
    remarks = completeness(len(rows), len(STEMS))
    if not with_masks:
        remarks += ("There are no SCR masks (scratch/fold1/masks/left lung ...): the set is converted without.",)
    unplaced = [stem for stem, told in clinical.items() if stem.startswith("JPCLN") and not told.boxes]
    if unplaced:
        remarks += (f"CLNDAT_EN.txt gives {len(unplaced)} nodules no size and place: {listed(unplaced)}.",)
    if not clinical:
        remarks += ("There is no CLNDAT_EN.txt or CNNDAT_EN.txt: sex, age and nodule boxes stay blank.",)
    return Manifest(
        NAME,
        ("Nodule",),
        tuple(rows),
        "JSRT database of lung nodules, 247 PA chest radiographs. Shiraishi et al., AJR 2000 (db.jsrt.or.jp); masks of "
        "the SCR database, van Ginneken et al., Medical Image Analysis 2006; research use.",
        tuple(problems),
        remarks,
        has_mask=with_masks,
        has_boxes=any(row.boxes for row in rows),
        extra_mask_names=("heart", "clavicles") if with_masks else (),
        published={"pictures": 247, "label Nodule": 154, "with a mask": 247},
    )


def _clinical(release: Release) -> dict[str, Clinical]:
    """What the clinical tables say, by stem. Copies differ in line ends, some have none: records begin at a name."""
    told: dict[str, Clinical] = {}
    for table in ("CLNDAT_EN.txt", "CNNDAT_EN.txt"):
        path = release.find(table)
        text = decoded(path.read_bytes())[0] if path else ""
        for stem, record in re.findall(r"(JPC[LN]N\d{3})\.IMG\s+(.*?)(?=JPC[LN]N\d{3}|\Z)", text, re.DOTALL):
            words = [*record.split(), "", "", "", ""]
            has_nodule = stem.startswith("JPCLN")
            age, sex = words[2:4] if has_nodule else words[:2]
            told[stem] = Clinical(releases.sex(sex), releases.years(age), _box(words) if has_nodule else ())
    return told


def _box(words: list[str]) -> tuple[Box, ...]:
    try:
        size, x, y = float(words[1]) / MILLIMETRES_PER_PIXEL, float(words[4]), float(words[5])
    except (ValueError, IndexError):  # some cells are "?"
        return ()
    return (Box("Nodule", x - size / 2, y - size / 2, size, size),)
