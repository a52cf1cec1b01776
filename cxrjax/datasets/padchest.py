"""PadChest: radiographs in several projections with 174 findings and Spanish reports, 16 bits deep.

Source: Hospital San Juan, Alicante, bimcv.cipf.es/bimcv-projects/padchest; Bustos et al., Medical Image Analysis 2020.
Layout: 0/ ... 54/<ImageID>, or all pictures in one folder; PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv(.gz).
The text is the report as published: Spanish, stemmed. MethodLabel says whether physicians or a network labelled it.
Ours: the split, by patient; age is the year of the study less the year of birth; AP_horizontal is AP; pictures of ribs
(COSTAL) and those marked EXCLUDE are left out. The labels "exclude" (nothing could be read from the report) and
"unchanged" (since an earlier picture) are no findings: where one of them stands, or no label at all, the findings that
are not named are not mentioned; else they are absent. Loaders disagree on the range of the 16 bits (65,535, or each
picture's own): we take `pixels.read`'s percentiles, which change a full picture little and leave none dark.
With PadChest-GR in the folder, pictures have its sentences with boxes, and its patients its split (padchest_gr.py).
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cxrjax.datasets import padchest_gr, release, schema
from cxrjax.datasets.manifest import Manifest, Problem, Row, listed
from cxrjax.datasets.table import column

PUBLISHED = {"pictures": 160868, "studies": 109931}
_PROJECTIONS = {"PA": "PA", "AP": "AP", "AP_HORIZONTAL": "AP", "L": "LATERAL"}
_LEFT_OUT = ("COSTAL", "EXCLUDE")
_NO_FINDINGS = {"exclude", "unchanged"}
_COLUMNS = (
    *("Projection", "PhotometricInterpretation_DICOM", "MethodLabel", "ImageID", "ImageDir", "StudyDate_DICOM"),
    *("StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM", "Report", "Labels"),
)


def manifest(raw: Path, phrases: str = "en") -> Manifest:
    """Reads the download; phrases: the language of PadChest-GR's sentences, "en" or "es".

    Raises LayoutError for another folder, TableError for a table that cannot be read.
    """
    download = release.Release("padchest", raw)
    frame, path = download.table("PADCHEST_chest_x_ray_images_labels_160K*.csv")
    files = download.files(".png")
    by_place = {"/".join(path.split("/")[-2:]): download.raw / path for path in download.paths}
    table = list(zip(*(column(frame, name, path) for name in _COLUMNS), strict=True))
    kept = [cells for cells in table if cells[0].upper() not in _LEFT_OUT]
    label_names, labels_of = _labels_of_cells({cells[-1] for cells in kept})
    unknown = (schema.NOT_MENTIONED,) * len(label_names)
    problems: list[Problem] = []
    grounded: list[str] = []
    boxes = padchest_gr.boxes(download, {cells[3] for cells in table}, phrases, problems, grounded)
    splits = {} if boxes is None else padchest_gr.splits(download, problems, grounded)
    rows = []
    for projection, _, _, name, folder, date, study, patient, birth, sex, text, labels in kept:
        if labels not in labels_of:
            problems.append(Problem(name, "row", f"Its Labels are no list of texts: {labels[:80]}"))
        if not patient:
            problems.append(Problem(name, "row", "The table has no PatientID for it."))
        elif name not in files:
            problems.append(release.missing_picture(f"{folder}/{name}"))
        else:
            rows.append(
                Row(
                    by_place.get(f"{folder}/{name}", files[name]),  # a name may be there twice
                    name,
                    patient,
                    study or name,
                    splits.get(patient) or schema.assign_split("padchest", patient),
                    _PROJECTIONS.get(projection.upper(), "UNKNOWN"),
                    labels_of.get(labels, unknown),
                    boxes=(boxes or {}).get(name, ()),
                    text=text,
                    sex=release.sex(sex),
                    age=_age(date, birth),
                )
            )
    missing = sum(problem.kind == "missing" for problem in problems)
    return Manifest(
        "padchest",
        label_names,
        tuple(rows),
        "PadChest (Hospital San Juan, Alicante, bimcv.cipf.es/bimcv-projects/padchest; Bustos et al., Medical Image "
        "Analysis 2020). Frontal and lateral radiographs; findings of the Spanish reports, by physicians or a network.",
        tuple(problems),
        (*release.completeness(len(kept) - missing, len(kept)), *_remarks(table, kept), *grounded),
        has_boxes=boxes is not None,
        has_report=True,
        published=PUBLISHED,
    )


def _remarks(table: Sequence[tuple[str, ...]], kept: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Sentences on what the table says of its pictures. table, kept: cells of _COLUMNS."""
    projections, photometrics, methods = (Counter(cells[place] for cells in table) for place in range(3))
    for said, counts in (
        ("Left out", {name: count for name, count in projections.items() if name.upper() in _LEFT_OUT}),
        ("Labelled by", methods),
        ("Without a known projection", Counter(cells[0] for cells in kept if cells[0].upper() not in _PROJECTIONS)),
    ):
        if counts:
            named = [f"{name or 'none given'} ({count})" for name, count in counts.items()]
            yield f"{said}, pictures of the table: {listed(named, 20)}."
    if photometrics["MONOCHROME1"]:
        yield (
            f"{photometrics['MONOCHROME1']} pictures of the table were MONOCHROME1 in the hospital's files, where low "
            "is bright. The release does not say whether it inverted them; they are stored as they are: look at some."
        )


def _labels_of_cells(cells: Iterable[str]) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Label names, and the labels of every cell that can be read."""
    named = {cell: _named(cell) for cell in cells}
    names = tuple(sorted(set().union(*(found for found in named.values() if found)) - _NO_FINDINGS))
    labels_of = {}
    for cell, found in named.items():
        if found is not None:
            rest = schema.ABSENT if found and not found & _NO_FINDINGS else schema.NOT_MENTIONED
            labels_of[cell] = tuple(schema.PRESENT if name in found else rest for name in names)
    return names, labels_of


def _named(cell: str) -> set[str] | None:
    """The labels in a cell such as "['infiltrates', ' pneumonia', nan]"; None where it is no such list."""
    try:
        found = ast.literal_eval(re.sub(r"(?<![\w'])nan(?![\w'])", "''", cell) or "[]")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        return None
    return {" ".join(name.split()) for name in found} - {""}


def _age(date: str, birth: str) -> int:
    studied, born = re.match(r"(\d{4})", date), re.match(r"(\d{4})", birth)
    return release.years(str(int(studied[1]) - int(born[1]))) if studied and born else -1
