"""A batch of studies whose texts are as odd as they come."""

import numpy as np

from tests.methods.conftest import smooth_pictures

L = 48


def odd_studies():
    """Eight studies: a report of one word, one that is padding alone, one that is full, two with the same words."""
    rng = np.random.default_rng(0)
    lengths = np.array([20, 3, 0, L, 9, 9, 30, 12])
    mask = np.arange(L) < lengths[:, None]
    ids = np.where(mask, rng.integers(5, 600, (8, L)), 0).astype(np.int32)
    ids[5] = ids[4]
    inside = mask & (np.arange(L) > 0) & (np.arange(L) < lengths[:, None] - 1)
    word_index = np.where(inside, np.arange(L) - 1, -1).astype(np.int32)
    texts = {"ids": ids, "text_mask": mask, "word_index": word_index, "report": lengths.astype(np.int32)}
    return {"image": smooth_pictures(8, 32), **texts}
