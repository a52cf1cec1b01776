"""Whose DICOM file it is, by its header alone."""

from pathlib import Path
from typing import NamedTuple

from cxrjax.imaging import codecs, header
from cxrjax.imaging.pixels import UnreadablePicture

NOBODY = ("", "anon", "anonymous", "anonymized", "anonymised", "deidentified", "de-identified", "unknown", "none", "na")


class Identity(NamedTuple):
    """Patient and study of a file, "" where the header does not say."""

    patient: str
    study: str


def read(path: Path, patient: str = "PatientID", study: str = "StudyInstanceUID") -> Identity:
    """Reads the elements with these keywords; a file whose header cannot be read has neither.

    Words that de-identification writes for everybody, such as ANONYMOUS, are no patient.
    Raises UnreadablePicture where pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError:
        raise UnreadablePicture(f"pydicom, which reads DICOM files, is not installed: {codecs.INSTALL}.") from None
    tags = [patient, study, "SpecificCharacterSet"]
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
    except Exception:  # whatever pydicom raises on damaged data; the conversion names the file
        return Identity("", "")
    found = (header.text(str(header.value(dataset, [], keyword) or "")) for keyword in (patient, study))
    return Identity(*("" if text.lower() in NOBODY else text for text in found))
