"""Copies of a picture are found whatever was done to their grey values and size; other pictures are not."""

import csv
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxrjax.imaging import fingerprint as fingerprints
from cxrjax.imaging.fingerprint import THRESHOLD, distance, fingerprint, pairs
from tests.radiographs import gamma, jpeg, linear, radiograph, short_side

COPIES = {
    "JPEG 30": lambda p: jpeg(p, 30),
    "JPEG 40 at 200 px, dark": lambda p: jpeg(short_side(gamma(p, 1.5), 200), 40),
    "JPEG 40 at 200 px, bright": lambda p: jpeg(short_side(gamma(p, 0.7), 200), 40),
    "64 px": lambda p: short_side(p, 64),
    "1024 px": lambda p: short_side(p, 1024),
    "squeezed": lambda p: cv2.resize(p, (256, 256), interpolation=cv2.INTER_AREA),
    "clipped contrast": lambda p: linear(p, 1.3, 20),
    "low contrast": lambda p: linear(p, 0.3, -50),
    "equalised": cv2.equalizeHist,
    "CLAHE": lambda p: cv2.createCLAHE(2, (8, 8)).apply(p),
    "12 bits": lambda p: p.astype(np.uint16) * 16 + 5,
    "negative": lambda p: 255 - p,
    "2 % cut off": lambda p: p[len(p) // 100 : -len(p) // 100, p.shape[1] // 100 : -p.shape[1] // 100],
}


@pytest.fixture(scope="module")
def originals():
    return [radiograph(seed) for seed in range(12)]


@pytest.mark.parametrize("change", COPIES)
def test_a_copy_is_found(originals, change):
    codes = [fingerprint(picture) for picture in originals]
    copies = [fingerprint(COPIES[change](picture)) for picture in originals]
    assert [(i, j) for i, j, _ in pairs(codes, copies)] == [(i, i) for i in range(len(originals))]


def test_different_pictures_are_far_apart(originals):
    codes = [fingerprint(picture) for picture in originals]
    assert all(len(code) == fingerprints.BITS // 4 for code in codes)
    assert min(distance(a, b) for i, a in enumerate(codes) for b in codes[:i]) > THRESHOLD + 50


def test_pairs_are_those_of_the_distances():
    """Blocks that do not divide the lists, every distance, and a negative."""
    rng = np.random.default_rng(0)
    codes = [rng.bytes(128).hex() for _ in range(3000)]
    near = int(codes[2500], 16) ^ ((1 << 100) - 1)
    others = [codes[0], f"{near:0256x}", f"{near ^ ((1 << 1024) - 1):0256x}", codes[7]]
    found = pairs(codes, others, threshold=100)
    assert found == [(0, 0, 0), (7, 3, 0), (2500, 1, 100), (2500, 2, 100)]
    assert [distance(codes[i], others[j]) for i, j, _ in found] == [0, 0, 100, 100]
    assert pairs(codes, others, threshold=99) == found[:2] and pairs([], others) == [] == pairs(codes, [])


@pytest.mark.slow
def test_real_pictures():
    """Sixty of every set are found again in four disguises; no two pictures of different patients are taken for one."""
    folder = Path(os.environ.get("CXRJAX_REAL_DATA") or pytest.skip("needs the real pictures"))
    patients, codes, copies = [], [], []
    disguises = [
        *(COPIES[name] for name in ("JPEG 40 at 200 px, dark", "JPEG 40 at 200 px, bright", "clipped contrast")),
        lambda p: jpeg(linear(p, 0.6, 20), 40),
    ]
    for table in sorted(folder.glob("*/labels.csv")):
        with open(table, encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                picture = cv2.imread(str(table.parent / row["file"]), cv2.IMREAD_GRAYSCALE)
                if number < 60:
                    copies += [(len(codes), fingerprint(disguise(picture))) for disguise in disguises]
                patients.append((table.parent.name, row["patient_id"]))
                codes.append(fingerprint(picture))
    assert len(codes) > 2500 and len(copies) > 1200
    found = pairs([code for _, code in copies], codes)
    assert {(number, i) for number, (i, _) in enumerate(copies)} <= {(number, j) for number, j, _ in found}
    assert all(patients[copies[number][0]] == patients[j] for number, j, _ in found)
    assert all(patients[i] == patients[j] for i, j, _ in pairs(codes, codes))
