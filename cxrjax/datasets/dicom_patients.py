"""Patients and studies of DICOM files by their headers, for folders whose table does not name them."""

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from cxrjax.datasets import mapping as mappings
from cxrjax.datasets.files import BAR_AFTER
from cxrjax.imaging import identity

PICTURES_OF_OTHER_KINDS = (".png", ".jpg", ".jpeg", ".img")
SUSPICIOUS_SHARE, SUSPICIOUS_COUNT = 0.5, 20  # pictures of one patient in a folder of that many or more
HASH_DIGITS = 20


def of(raw: Path, pictures: Sequence[str], mapping: mappings.Mapping) -> dict[str, tuple[str, str]]:
    """(patient, study) of those pictures, paths below raw, that are DICOM; "" where the header does not say.

    With mapping.hash_ids both are keyed hashes. Raises UnreadablePicture where pydicom is not installed.
    """
    wanted = [path for path in pictures if not path.lower().endswith(PICTURES_OF_OTHER_KINDS)]
    if not wanted:
        return {}

    def read(path: str) -> tuple[str, str]:
        found = identity.read(raw / path, mapping.dicom_patient, mapping.dicom_study)
        secret = mapping.hash_ids
        if secret:
            return hashed(found.patient, secret), hashed(found.study, secret)
        return found.patient, found.study

    with ThreadPoolExecutor() as pool:
        found = tqdm(pool.map(read, wanted), "reading DICOM headers", len(wanted), unit="file", delay=BAR_AFTER)
        return dict(zip(wanted, found, strict=True))


def hashed(text: str, secret: str) -> str:
    """The keyed hash (HMAC-SHA256) of an id; "" stays "". Without the secret nobody can try out ids."""
    if not text:
        return ""
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()[:HASH_DIGITS]


def remarks(persons: Mapping[str, tuple[str, str]], pictures: Sequence[str], keyword: str) -> Iterator[str]:
    """Sentences on where patients come from. pictures: all of the set; persons: of those that are DICOM."""
    counts = Counter(patient or study for patient, study in persons.values() if patient or study)
    if counts:
        studies = len({study for _, study in persons.values() if study})
        by_study = sum(bool(study and not patient) for patient, study in persons.values())
        yield (
            f"Patients are those of the DICOM headers ({keyword}): {len(counts)} patients and {studies} studies of "
            f"{counts.total()} pictures; the split was made by patient."
        )
        if by_study:
            yield f"{by_study} pictures have a study but no patient in their header: the study stands for the patient."
        patient, most = counts.most_common(1)[0]
        if most >= SUSPICIOUS_COUNT and most > SUSPICIOUS_SHARE * counts.total():
            yield (
                f"{most} of {counts.total()} pictures are of the patient {patient!r}. If de-identification wrote that "
                "for everybody, name another element: --map dicom_patient=StudyInstanceUID."
            )
    others = len(pictures) - counts.total()
    if others and counts:
        yield f"{others} pictures have neither patient nor study in a DICOM header: each is its own patient."
    elif others:
        yield "Every picture is its own patient; the split was made by picture."
