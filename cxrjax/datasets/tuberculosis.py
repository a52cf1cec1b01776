"""What the two tuberculosis sets of the National Library of Medicine share: names with the label, readings as text."""

import re
from pathlib import Path

from cxrjax.datasets import release, schema
from cxrjax.datasets.files import decoded

LABELS = ("Normal", "Tuberculosis")
SOURCE = (
    "Jaeger et al., Quantitative Imaging in Medicine and Surgery 2014 (data.lhncbc.nlm.nih.gov/public/"
    "Tuberculosis-Chest-X-ray-Datasets); free for research and education"
)


def pictures(found: release.Release, prefix: str, under: str = "") -> dict[str, Path]:
    """The pictures named `<prefix>_<four digits>_<0 or 1>.png`, by stem; raises LayoutError where there is none."""
    named = re.compile(rf"{prefix}_\d{{4}}_[01]")
    files = found.files(".png", under=under)
    named_so = {path.stem: path for path in files.values() if named.fullmatch(path.stem)}
    if not named_so:
        raise release.LayoutError(
            f"{found.raw} has {len(files)} PNG pictures, but none is named {prefix}_0001_0.png or so, such as "
            f"{next(iter(files))}: this is not the {found.name} set. {found.where()}"
        )
    return named_so


def labels(stem: str) -> tuple[int, int]:
    """The values of `LABELS`, from the last digit of a picture's name."""
    ill = stem.endswith("1")
    return (schema.ABSENT, schema.PRESENT) if ill else (schema.PRESENT, schema.ABSENT)


def person(text: str) -> tuple[str, int]:
    """Sex and years of age in "F 027Y", "male 45yrs", "female24yrs", "femal , 16month" or the like; else "" and -1."""
    sex = re.search(r"\b(f|m)(?:emale?|ale)?(?![a-z])", text, re.IGNORECASE)
    age = re.search(r"(\d+)\s*([ymwd]?)", text, re.IGNORECASE)
    return sex[1].upper() if sex else "", release.years(age[1] + age[2]) if age else -1


def lines(path: Path | None) -> list[str]:
    """The lines of a reading, stripped, without blank ones; none where there is no reading."""
    if path is None:
        return []
    text = decoded(path.read_bytes())[0]
    return [line.strip() for line in text.splitlines() if line.strip()]
