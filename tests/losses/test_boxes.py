"""Overlaps of boxes against hand values and a loop over pixels."""

import jax
import numpy as np
import pytest

from cxrjax.losses import boxes


def test_hand_values():
    """A box shifted by half its side: IoU 1/3; beside it with a gap of one side: IoU 0, GIoU −1/3; equal: 1 and 1."""
    one = np.float32([0, 0, 2, 2])
    others = np.float32([[0, 1, 2, 3], [0, 4, 2, 6], [0, 0, 2, 2], [0, 0, 1, 1]])
    np.testing.assert_allclose(boxes.iou(one, others), [1 / 3, 0, 1, 1 / 4], rtol=1e-6)
    np.testing.assert_allclose(boxes.giou(one, others), [1 / 3, -1 / 3, 1, 1 / 4], rtol=1e-6)


def test_iou_counts_pixels():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (20, 2, 2, 2))
    corners = np.concatenate([corners.min(axis=2), corners.max(axis=2)], axis=-1)  # 20 2 4
    found = boxes.iou(corners[:, 0].astype(np.float32), corners[:, 1].astype(np.float32))
    for pair, value in zip(corners, found, strict=True):
        filled = np.zeros((2, 12, 12), bool)
        for mask, (y0, x0, y1, x1) in zip(filled, pair, strict=True):
            mask[y0:y1, x0:x1] = True
        union = (filled[0] | filled[1]).sum()
        assert float(value) == pytest.approx((filled[0] & filled[1]).sum() / union if union else 0)


def test_gradients_are_finite_and_lead_to_the_other_box():
    """Also of empty boxes, which pad a batch; a box that misses the other still moves towards it under GIoU."""
    one = np.float32([[0, 0, 0, 0], [0.2, 0.2, 0.2, 0.4], [0.1, 0.1, 0.2, 0.2]])
    other = np.float32([[0, 0, 0, 0], [0, 0, 0, 0], [0.6, 0.1, 0.7, 0.2]])
    for measure in (boxes.iou, boxes.giou):
        assert np.isfinite(jax.grad(lambda a, f=measure: f(a, other).sum())(one)).all()
    slope = jax.grad(lambda a: boxes.giou(a, other).sum())(one)[2]
    assert slope[2] > 0 and abs(slope[3]) < 1e-3 + slope[2]
