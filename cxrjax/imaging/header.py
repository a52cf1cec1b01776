"""What a DICOM header says. A broken element counts as missing and gives a warning, never an exception."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Get = Callable[[str], Any]  # keyword -> value, or None

OLDEST = 120  # years; more is a typing error
_LATERAL = {"LATERAL", "LAT", "LL", "RL", "LLAT", "RLAT"}
_IN_A_YEAR = {"D": 365, "W": 52, "M": 12, "Y": 1}


class Facts(NamedTuple):
    """What the header tells about patient, projection and machine."""

    projection: str  # "PA", "AP", "LATERAL" or "UNKNOWN"
    laterality: str  # "L", "R", "B" or ""
    sex: str  # "F", "M" or ""
    age: int  # years; -1 unknown
    pixel_spacing: tuple[float, ...]  # mm between rows and between columns; () unknown
    manufacturer: str


class Table(NamedTuple):
    """A lookup table: the value that its first entry stands for, the n entries, and which of how many tables it is."""

    first: int
    entries: np.ndarray
    choice: str


def value(dataset: Any, warnings: list[str], keyword: str) -> Any:
    """The value of an element, None where it is absent, empty or unreadable; the last adds to `warnings`."""
    try:
        found = dataset.get(keyword)
    except Exception as error:  # whatever pydicom raises on damaged elements
        warnings.append(f"{keyword} cannot be read ({type(error).__name__}) and is ignored")
        return None
    return None if isinstance(found, str) and not found.strip() else found


def text(found: Any) -> str:
    """A value, or the first of several, as stripped text; "" for None."""
    if isinstance(found, (str, int, float)):
        return str(found).strip()
    return text(found[0]) if _is_several(found) else ""


def numbers(found: Any) -> list[float]:
    """The finite numbers among one or several values."""
    several = found if _is_several(found) else [found]
    finite = [float(each) for each in several if isinstance(each, (int, float))]
    return [each for each in finite if np.isfinite(each)]


def first_table(sequence: Any) -> Table | None:
    """The lookup table of a sequence's first item, or None where it is broken."""
    try:
        item = sequence[0]
        length, first, _ = (int(each) for each in item.LUTDescriptor)
        data, length = item.LUTData, length % 2**16 or 2**16
        if isinstance(data, bytes):  # 8-bit entries may be packed two to a word
            little = item.original_encoding[1] is not False
            kind = np.dtype(np.uint8) if len(data) < 2 * length else np.dtype("<u2" if little else ">u2")
            data = np.frombuffer(data, kind, length)
        entries = np.asarray(data, np.int64)[:length]
        choice = f"1 of {len(sequence)}"
    except Exception:  # whatever pydicom raises on damaged elements, and tables shorter than they say
        return None
    explanation = text(value(item, [], "LUTExplanation"))
    return Table(first, entries, named(choice, explanation)) if entries.shape == (length,) else None


def named(choice: str, explanation: str) -> str:
    """A choice with its explanation, if any: "1 of 2 (NORMAL)"."""
    return f"{choice} ({explanation})" if explanation else choice


def facts(get: Get) -> Facts:
    """Reads the facts; what is absent, unknown or implausible is unknown."""
    laterality = (text(get("ImageLaterality")) or text(get("Laterality"))).upper()
    sex = text(get("PatientSex")).upper()
    spacing = numbers(get("PixelSpacing")) or numbers(get("ImagerPixelSpacing"))
    codes = get("ViewCodeSequence")
    meaning = text(value(codes[0], [], "CodeMeaning")) if _is_several(codes) else ""
    return Facts(
        projection=projection(text(get("ViewPosition")), meaning),
        laterality=laterality if laterality in ("L", "R", "B") else "",
        sex=sex if sex in ("F", "M") else "",
        age=_age(get),
        pixel_spacing=tuple(spacing) if len(spacing) == 2 and min(spacing) > 0 else (),
        manufacturer=text(get("Manufacturer")),
    )


def projection(position: str, code_meaning: str) -> str:
    """PA, AP, LATERAL or UNKNOWN by ViewPosition, or where that says nothing by the meaning of the view code."""
    words = set(re.split("[^A-Z]+", position.upper()))
    named = {each for each in ("PA", "AP") if each in words} | ({"LATERAL"} if words & _LATERAL else set())
    if named:
        return named.pop() if len(named) == 1 else "UNKNOWN"
    meaning = re.sub("[^a-z]", "", code_meaning.lower()).removesuffix("projection")
    coded = {"posteroanterior": "PA", "anteroposterior": "AP", "lateral": "LATERAL"}
    return coded.get(meaning.removeprefix("left").removeprefix("right"), "UNKNOWN")


def years(age: str) -> int:
    """Whole years of a DICOM age ("057Y", "006M"), or of plain digits, which some sets have; -1 where implausible."""
    match = re.fullmatch(r"(\d{1,4})([DWMY]?)", age.upper())
    # "000Y" is what de-identification leaves behind; the age of infants is given in months or less.
    if not match or int(match[1]) == 0:
        return -1
    found = int(match[1]) // _IN_A_YEAR[match[2] or "Y"]
    return found if found <= OLDEST else -1


def _age(get: Get) -> int:
    """Whole years by PatientAge, or else between PatientBirthDate and the day of the picture; -1 where unknown."""
    found = years(text(get("PatientAge")))
    if found >= 0:
        return found
    days = ("AcquisitionDate", "ContentDate", "StudyDate")
    taken = next((day for day in (text(get(keyword)).replace(".", "") for keyword in days) if day), "")
    born = text(get("PatientBirthDate")).replace(".", "")
    if not (re.fullmatch(r"\d{8}", taken) and re.fullmatch(r"\d{8}", born)):
        return -1
    # Dates as numbers: the last four digits say whether the birthday of that year had come.
    age = (int(taken) - int(born)) // 10000
    return age if 0 <= age <= OLDEST else -1


def _is_several(found: Any) -> bool:
    return hasattr(found, "__getitem__") and not isinstance(found, (str, bytes)) and len(found) > 0
