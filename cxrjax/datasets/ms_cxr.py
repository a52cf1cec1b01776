"""MS-CXR: phrases of MIMIC-CXR's reports with the boxes that show them, as an add-on to `mimic_cxr`.

The layout is taken from the public description and from loaders, not seen in a file.
Source: Boecking et al., ECCV 2022; physionet.org/content/ms-cxr (1.1.0), PhysioNet Credentialed Health Data License.
1,162 pairs of a sentence and its boxes, of eight findings, on frontal pictures.
Layout: MS_CXR_Local_Alignment_v1.1.0.csv, laid into the folder of MIMIC-CXR: dicom_id, category_name, label_text, path,
x, y, w, h, image_width, image_height and split, a row per box. Boxes are in pixels of image_width x image_height.
Ours: MIMIC-CXR's own split, not that of the table, so that no picture which MIMIC-CXR tests by is trained on.
"""

import math
from collections.abc import Collection

from cxrjax.datasets import release
from cxrjax.datasets.manifest import Box, Problem
from cxrjax.datasets.table import column

TABLE = "MS_CXR_Local_Alignment_*.csv"


def boxes(
    download: release.Release, known: Collection[str], problems: list[Problem], remarks: list[str]
) -> dict[str, tuple[Box, ...]] | None:
    """The boxes of every dicom_id, with their phrases; None where the table does not lie in the folder.

    known: the dicom_ids of the metadata. Raises TableError for a table that cannot be read.
    """
    found = download.optional_table(TABLE)
    if found is None:
        if download.find(TABLE.replace("csv", "json")):
            remarks.append(
                "MS-CXR is here as JSON alone, so the set is written without its boxes: lay the CSV file of that name "
                "into the folder, which the release has too or its convert_coco_json_to_csv.py makes."
            )
        return None
    frame, path = found
    names = ("dicom_id", "category_name", "label_text", "x", "y", "w", "h", "image_width", "image_height")
    made: dict[str, list[Box]] = {}
    for dicom, category, phrase, *numbers in zip(*(column(frame, name, path) for name in names), strict=True):
        box, size = release.box(category, numbers[:4]), _size(numbers[4:])
        if dicom not in known:
            problems.append(Problem(dicom, "box", f"{path.name} has a box for it, but the metadata do not name it."))
        elif box is None or size is None:
            problems.append(Problem(dicom, "box", f"A box of {path.name} is not six numbers: {numbers}."))
        else:
            made.setdefault(dicom, []).append(box._replace(phrase=phrase, frame=size))
    pairs = {(dicom, box.label, box.phrase) for dicom, several in made.items() for box in several}
    remarks.append(f"MS-CXR: {len(pairs)} pairs of a phrase and its boxes on {len(made)} pictures (1,162 published).")
    return {dicom: tuple(several) for dicom, several in made.items()}


def _size(cells: list[str]) -> tuple[float, float] | None:
    try:
        width, height = map(float, cells)
    except ValueError:
        return None
    return (width, height) if 0 < width < math.inf and 0 < height < math.inf else None
