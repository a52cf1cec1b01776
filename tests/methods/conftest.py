"""Tiny configs and batches for the tests of the methods."""

import cv2
import numpy as np
import pytest


def smooth_pictures(count: int, px: int, seed: int = 0) -> np.ndarray:
    """b v h w 1 uint8: smooth random pictures, all of mean 128 and the same contrast."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        picture = cv2.resize(rng.normal(size=(5, 5)), (px, px), interpolation=cv2.INTER_CUBIC)
        pictures.append(128 + 45 * (picture - picture.mean()) / picture.std())
    return np.clip(pictures, 0, 255).astype(np.uint8)[:, None, :, :, None]


@pytest.fixture
def batch():
    return {"image": smooth_pictures(16, 32), "patient": np.arange(16, dtype=np.int32)}
