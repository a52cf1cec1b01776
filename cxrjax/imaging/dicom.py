"""DICOM radiographs to one grey picture, bones white, with a record of everything that was applied to their values.

codecs.py decodes the stored cells, header.py reads the facts, greyscale.py gives values their brightness. Whatever is
broken, or is no single grey picture of a chest, raises UnreadablePicture.
"""

import io
import unicodedata
import zlib
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from cxrjax.imaging import codecs, greyscale, header, pixels
from cxrjax.imaging.pixels import UnreadablePicture

LARGEST_PIXELS = 2**26  # refused above, before memory is taken
LARGEST_INFLATED = 2**28  # bytes of a deflated file
MODALITIES = ("CR", "DX", "DR", "RG", "OT")  # and none at all, as in de-identified files
CHEST_WORDS = ("CHEST", "THORA", "TORAX", "LUNG", "PULM", "CXR", "CHST", "POITRINE", "PECHO")
NO_BODY_PART = ("", "UNKNOWN", "UNDEFINED", "UNSPECIFIED", "OTHER", "NONE", "NA", "N/A")

_DEFLATED = b"1.2.840.10008.1.2.1.99"


class Record(NamedTuple):
    """What the header says and what was done: plain values, so that `_asdict()` can be written as JSON."""

    transfer_syntax: str
    photometric: str
    bits_stored: int
    rows: int
    columns: int
    rescaling: str  # "" or the modality LUT or rescaling that was applied
    window: str  # "" or the VOI LUT or window that was applied, and which of how many
    scaling: str  # which values became black and white
    inversion: str  # "" or why the picture was inverted
    padding: str  # "" or which stored values were padding, and how many pixels
    warnings: tuple[str, ...]
    steps: tuple[str, ...]  # all of it as sentences, in the style of pixels.Picture
    projection: str  # "PA", "AP", "LATERAL" or "UNKNOWN"
    laterality: str  # "L", "R", "B" or ""
    sex: str  # "F", "M" or ""
    age: int  # years; -1 unknown
    pixel_spacing: tuple[float, ...]  # mm between rows and between columns; () unknown
    manufacturer: str


class Radiograph(NamedTuple):
    """A picture on the full 16-bit scale, or the 8-bit one where that was asked for, and how it came about."""

    pixels: np.ndarray  # h w uint16 or uint8, bones white
    record: Record


def is_dicom(data: bytes) -> bool:
    """Whether a file is DICOM, by its mark or, in old files, by a header that starts at once."""
    return data[128:132] == b"DICM" or (data[:2] in (b"\x02\0", b"\x08\0") and data[3:4] == b"\0")


def read(
    source: str | Path | bytes, bits: int = 16, *, check_grey_range: bool = True, admit: Collection[str] = ()
) -> Radiograph:
    """Reads a single-frame grey DICOM radiograph as the header says it is to be shown, bones white.

    source: path or the file's bytes. bits: 16 or 8, of the result. admit: modalities and body parts that are taken for
        a radiograph of the chest although the header calls them otherwise.
    Without a usable window, pictures of up to 8 bits are scaled by their declared depth (v becomes 257 v) and deeper
    ones by the 0.1 and 99.9 percentiles of their pixels; padding is left out of that and becomes black.
    check_grey_range: passes over windows and percentiles that leave the middle 98 % of the pixels less than
        pixels.LEAST_SPREAD of the grey levels (`pixels.fitted_range`); the record says so.
    Raises UnreadablePicture for everything else, with the reason.
    """
    data, _ = pixels.contents(source)
    dataset = _parsed(data)
    warnings: list[str] = []
    get = partial(header.value, dataset, warnings)
    _refuse_other_kinds(get, {_plain(word) for word in admit})
    pixel_data, representation = _pixel_data(dataset)
    layout, high_bit = _layout(get)
    declared = layout.bits_stored
    syntax = _syntax(dataset, warnings)
    cells = codecs.cells(syntax, pixel_data, representation, layout)
    if syntax in codecs.WHOLE_CELLS:
        cells, layout = _widened(cells, layout, high_bit, _has_overlay_bits(dataset), warnings)
    stored = _stored_values(cells, layout, syntax in codecs.WHOLE_CELLS, warnings)
    meaning = greyscale.meaning(get, stored, layout, warnings, check_grey_range)
    facts = header.facts(get)
    if "FOR PROCESSING" in header.text(get("PresentationIntentType")).upper():
        warnings.append("the header says FOR PROCESSING: raw values, not yet prepared for viewing")
    if (aspect := header.numbers(get("PixelAspectRatio"))) and len(aspect) == 2 and aspect[0] != aspect[1]:
        warnings.append(
            f"pixels are not square (PixelAspectRatio {aspect[0]:g}:{aspect[1]:g}); they are kept as they are"
        )
    warnings = list(dict.fromkeys(warnings))
    steps = meaning.steps()
    if header.text(get("BurnedInAnnotation")).upper() == "YES":
        steps.append("burned-in annotation: the header says YES")
    record = Record(
        transfer_syntax=codecs.name(syntax),
        photometric=layout.photometric,
        bits_stored=declared,
        rows=layout.rows,
        columns=layout.columns,
        rescaling=meaning.rescaling,
        window=meaning.window,
        scaling=meaning.scaling,
        inversion=meaning.inversion,
        padding=meaning.padding,
        warnings=tuple(warnings),
        steps=(*steps, *(f"warning: {warning}" for warning in warnings)),
        **facts._asdict(),
    )
    # OpenCV looks up 256 entries three times faster than NumPy, and not more than those in all its versions.
    by_opencv = stored.dtype == np.uint8 and len(meaning.table) == 256
    table = meaning.table if bits == 16 else np.round(meaning.table / 257).astype(np.uint8)
    return Radiograph(cv2.LUT(stored, table) if by_opencv else np.take(table, stored), record)


def _parsed(data: bytes) -> Any:
    """The data set; elements are read from their bytes only when they are asked for."""
    try:
        import pydicom
        from pydicom.dataelem import RawDataElement
    except ImportError:
        raise UnreadablePicture(
            f"This is a DICOM file, and pydicom, which reads them, is not installed: {codecs.INSTALL}."
        ) from None
    _refuse_inflation(data)
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        elements = [dataset.get_item(tag) for tag in dataset.keys()]
    except Exception as error:  # whatever pydicom raises on damaged data
        raise UnreadablePicture(f"The DICOM data are broken ({str(error) or type(error).__name__}).") from None
    if not elements:
        raise UnreadablePicture("The DICOM data are truncated or broken: no element can be read to its end.")
    for element in elements:
        if isinstance(element, RawDataElement) and _is_cut(element, data):
            raise UnreadablePicture(f"The DICOM data are truncated: they end inside element {element.tag}.")
    return dataset


def _is_cut(element: Any, data: bytes) -> bool:
    """Whether the file ends before the element does, which pydicom does not mind."""
    size = len(element.value or b"")
    if element.length != 2**32 - 1:
        return size < element.length
    end = element.value_tell + size
    return element.tag == 0x7FE00010 and data[end : end + 8] != b"\xfe\xff\xdd\xe0\0\0\0\0"


def _refuse_inflation(data: bytes) -> None:
    """A deflated file of a megabyte can become a gigabyte: refused before pydicom inflates it."""
    start = 144 + int.from_bytes(data[140:144], "little")  # after the file meta group, whose length this is
    if _DEFLATED not in data[:start]:
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflate.decompress(data[start:], LARGEST_INFLATED)
    except zlib.error:
        return  # pydicom tells
    if inflate.unconsumed_tail:
        raise UnreadablePicture(f"The deflated DICOM data hold more than {LARGEST_INFLATED} bytes.")


def _plain(text: str) -> str:
    """Text in capitals without accents and outer blanks."""
    letters = unicodedata.normalize("NFKD", text.strip().upper())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _refuse_other_kinds(get: header.Get, admitted: Collection[str]) -> None:
    """Raises UnreadablePicture for what is no single grey picture of a chest."""
    modality, part = (_plain(header.text(get(keyword))) for keyword in ("Modality", "BodyPartExamined"))
    if modality and modality not in (*MODALITIES, *admitted):
        raise UnreadablePicture(
            f"Modality is {modality}; radiographs have {', '.join(MODALITIES)} or none. Where {modality} are chest "
            f"radiographs, take them by --admit {modality}."
        )
    if part not in (*NO_BODY_PART, *admitted) and not any(word in part for word in CHEST_WORDS):
        named = f"'{part}'" if " " in part else part
        raise UnreadablePicture(
            f"BodyPartExamined is {part}, not the chest. Where it means the chest, take it by --admit {named}."
        )
    photometric = header.text(get("PhotometricInterpretation")).upper()
    samples = get("SamplesPerPixel")
    if samples not in (None, 1) or photometric not in ("", "MONOCHROME1", "MONOCHROME2"):
        raise UnreadablePicture(
            f"The picture has colour (PhotometricInterpretation {photometric}, SamplesPerPixel {samples}); only "
            "MONOCHROME1 and MONOCHROME2 are read."
        )
    frames = get("NumberOfFrames")
    if frames not in (None, 0, 1):
        raise UnreadablePicture(f"The file has several frames (NumberOfFrames {frames}); a radiograph has one.")


def _layout(get: header.Get) -> tuple[codecs.Layout, int]:
    """How pixels are stored, and HighBit."""
    keywords = "SamplesPerPixel Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation".split()
    found = {keyword: get(keyword) for keyword in (*keywords, "PhotometricInterpretation")}
    if missing := [keyword for keyword, value in found.items() if value is None]:
        raise UnreadablePicture(f"The DICOM header lacks {', '.join(missing)}; without it the pixels mean nothing.")
    for keyword in keywords:
        if not isinstance(found[keyword], int):
            raise UnreadablePicture(f"{keyword} is {found[keyword]!r}, not a whole number.")
    _, rows, columns, allocated, stored, high_bit, representation = (int(found[keyword]) for keyword in keywords)
    if rows * columns > LARGEST_PIXELS:
        raise UnreadablePicture(f"The header declares {columns} x {rows} px (width x height), too many to be true.")
    pixels.refuse_shape(rows, columns)
    if allocated not in (8, 16):
        raise UnreadablePicture(f"BitsAllocated is {allocated}; 8 and 16 are read.")
    if not 1 < stored <= high_bit + 1 <= allocated or representation not in (0, 1):
        raise UnreadablePicture(
            f"The header contradicts itself: BitsAllocated {allocated}, BitsStored {stored}, HighBit {high_bit}, "
            f"PixelRepresentation {representation}."
        )
    photometric = header.text(found["PhotometricInterpretation"]).upper()
    return codecs.Layout(rows, columns, allocated, stored, representation == 1, photometric), high_bit


def _syntax(dataset: Any, warnings: list[str]) -> str:
    given = header.text(header.value(dataset.file_meta, warnings, "TransferSyntaxUID"))
    if given:
        return given
    implicit, little = dataset.original_encoding
    warnings.append("TransferSyntaxUID is missing; taken from the form of the header")
    return codecs.IMPLICIT if implicit else codecs.EXPLICIT if little else codecs.BIG_ENDIAN


def _pixel_data(dataset: Any) -> tuple[bytes, str]:
    """The value of PixelData and its value representation."""
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise UnreadablePicture("The file stores floating-point pixels, which radiographs do not have.")
    try:
        element = dataset["PixelData"]
        data, representation = element.value, element.VR
    except Exception:  # whatever pydicom raises on damaged data
        data, representation = None, ""
    if not isinstance(data, bytes) or not data:
        raise UnreadablePicture("The file has no pixel data: it is cut short, or it is no picture.")
    return data, representation


def _has_overlay_bits(dataset: Any) -> bool:
    """Whether the header says that overlays lie in bits of the pixels, as old files have them."""
    return any(
        (group, 0x0010) in dataset and (group, 0x3000) not in dataset and (group, 0x0102) in dataset
        for group in range(0x6000, 0x6020, 2)
    )


def _widened(
    cells: np.ndarray, layout: codecs.Layout, high_bit: int, has_overlay_bits: bool, warnings: list[str]
) -> tuple[np.ndarray, codecs.Layout]:
    """Cells h w with the stored bits lowest, and the layout with all allocated bits where values need them.

    Without that, values beyond the stored bits would wrap round. Bits far above the stored ones, and those where the
    header says that overlays lie, are no part of the values.
    """
    bits, signed_type = layout.bits_stored, np.dtype(f"i{cells.dtype.itemsize}")
    if shift := high_bit + 1 - bits:
        cells = (cells.view(signed_type) >> shift).view(cells.dtype) if layout.signed else cells >> shift
    if has_overlay_bits or bits == layout.bits_allocated:
        return cells, layout
    beyond = (_extended(cells, layout) ^ cells) & cells.dtype.type(2**bits) > 0
    if layout.signed:
        beyond &= cells >> bits > 0  # some machines leave zeros above the stored bits of negative values
    if not beyond.any():
        return cells, layout
    warnings.append(
        f"values of {beyond.mean():.1%} of the pixels need more than the {bits} bits of BitsStored; all "
        f"{layout.bits_allocated} allocated bits are taken"
    )
    return cells, layout._replace(bits_stored=layout.bits_allocated)


def _extended(cells: np.ndarray, layout: codecs.Layout) -> np.ndarray:
    """What cells h w would be if their stored bits were all: negative values extended, the other bits 0."""
    sign = cells.dtype.type(2 ** (layout.bits_stored - 1) if layout.signed else 0)
    return ((cells & cells.dtype.type(2**layout.bits_stored - 1)) ^ sign) - sign


def _stored_values(cells: np.ndarray, layout: codecs.Layout, whole_cells: bool, warnings: list[str]) -> np.ndarray:
    """The stored values, h w unsigned: the stored bits alone, negative values as two's complement of that many bits.

    whole_cells: whether the data hold the unused bits too, where overlays were once kept. Compressed data without them
        that need more bits contradict their header; their decoders extend the sign, or do not.
    """
    bits = layout.bits_stored
    if bits == 8 * cells.dtype.itemsize:
        return cells
    stored = cells & cells.dtype.type(2**bits - 1)
    other = (_extended(cells, layout) != cells) & (stored != cells)
    if whole_cells and other.any():
        warnings.append(f"bits above the {bits} stored ones, set in {other.mean():.1%} of the pixels, are ignored")
    elif other.any():
        raise UnreadablePicture(f"Pixels need more than the {bits} bits that BitsStored declares.")
    return stored
