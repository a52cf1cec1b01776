"""Any radiograph file to one grey picture: PNG, JPEG and DICOM by their content, raw files of JSRT by their name."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from cxrjax.imaging import dicom, pixels
from cxrjax.imaging.pixels import Picture, UnreadablePicture

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".img")
BARE_SUFFIXES = ("", ".ima", ".dic", ".dc3")  # of DICOM files that only their first bytes tell; numbers are others
JSRT_SIDE, JSRT_LARGEST = 2048, 4095


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its suffix, or DICOM by its first bytes where its suffix says nothing.

    Archives of pictures export DICOM without a suffix or with the end of a UID; DICOMDIR, their index, is no picture.
    """
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    if not (suffix in BARE_SUFFIXES or suffix[1:].isdigit()) or path.name.upper() == "DICOMDIR":
        return False
    try:
        with open(path, "rb") as file:
            return dicom.is_dicom(file.read(132))
    except OSError:
        return False


def read(
    source: str | Path | bytes,
    value_range: tuple[int, int] | None = None,
    bits: int = 8,
    *,
    check_grey_range: bool = True,
    admit: Collection[str] = (),
) -> Picture:
    """Reads a radiograph file of any kind, bones white.

    source: path, or the file's bytes (not for JSRT's raw files, which nothing but their name tells).
    value_range: for PNG and raw files deeper than 8 bits, the values that become black and white (by default: of a PNG
        its robust range, of a raw file 0 to 4095). DICOM files carry their own.
    bits: 8 or 16, of the result; 8-bit values v become 257 v in 16 bits.
    check_grey_range: as `pixels.read`'s and `dicom.read`'s; admit: as `dicom.read`'s.
    Returns Picture; of a DICOM file its `header` has view (the projection), sex and age. Raises UnreadablePicture.
    """
    data, name = pixels.contents(source)
    if dicom.is_dicom(data):
        return _dicom(data, bits, check_grey_range, admit)
    if name.lower().endswith(".img"):
        return _jsrt(data, value_range, bits)
    return pixels.read(data, value_range, bits, check_grey_range=check_grey_range)


def _dicom(data: bytes, bits: int, check_grey_range: bool, admit: Collection[str]) -> Picture:
    grey, record = dicom.read(data, bits, check_grey_range=check_grey_range, admit=admit)
    header = {"view": record.projection, "sex": record.sex, "age": record.age}
    return Picture(grey, "dicom", record.rows, record.columns, record.bits_stored, record.steps, header)


def _jsrt(data: bytes, value_range: tuple[int, int] | None, bits: int) -> Picture:
    """A raw picture of the JSRT database: 2048 x 2048 big-endian words of 12 bits, low where the film is dark."""
    wanted = 2 * JSRT_SIDE**2
    if len(data) != wanted:
        raise UnreadablePicture(
            f"The .IMG file has {len(data)} bytes; a picture of the JSRT database has {wanted} (2048 x 2048 x 2)."
        )
    words = np.frombuffer(data, ">u2").reshape(JSRT_SIDE, JSRT_SIDE).astype(np.uint16)
    if words.max() > JSRT_LARGEST:
        raise UnreadablePicture(
            f"The .IMG file holds the value {words.max()}; a picture of the JSRT database has 12 bits, big-endian."
        )
    if words.min() == words.max():
        raise UnreadablePicture(f"The picture is constant: every pixel is {words.flat[0]}.")
    steps = ["inverted: raw JSRT files are low where bones are"]
    grey = pixels.to_bits(JSRT_LARGEST - words, value_range or (0, JSRT_LARGEST), bits, steps)
    return Picture(grey, "img", JSRT_SIDE, JSRT_SIDE, 12, tuple(steps))
