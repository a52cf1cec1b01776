"""Masks given as numbers, against loops written from their definitions."""

import numpy as np
import pytest

from cxrjax.imaging import masks
from cxrjax.imaging.pixels import UnreadablePicture


def test_relative_run_lengths_as_the_challenge_decodes_them():
    numbers = [5, 2, 3, 4, 1, 1]
    expected, position = np.zeros(6 * 4, np.uint8), 0
    for gap, length in zip(numbers[0::2], numbers[1::2], strict=True):
        position += gap
        expected[position : position + length] = 255
        position += length
    drawn = masks.draw(masks.RunLengths(" ".join(map(str, numbers)), height=6, width=4), 0, 0)
    np.testing.assert_array_equal(drawn, expected.reshape(4, 6).T)


def test_run_lengths_round_trip():
    mask = (np.random.default_rng(0).random((9, 7)) > 0.6).astype(np.uint8) * 255
    np.testing.assert_array_equal(masks.draw(masks.run_lengths(mask), 0, 0), mask)


@pytest.mark.parametrize(
    "pairs, reason",
    [
        ("1 2 3", "in pairs"),
        ("", "in pairs"),
        ("a 2", "whole numbers"),
        ("5 -2", "not relative"),
        ("10 15", "reach pixel 25 of 24"),
    ],
)
def test_numbers_that_are_no_run_lengths(pairs, reason):
    with pytest.raises(UnreadablePicture, match=reason):
        masks.draw(masks.RunLengths(pairs, 6, 4), 0, 0)


def test_shapes_cover_what_they_should():
    def area(kind, *points):
        return (masks.draw(masks.Shape(kind, points), 100, 200) > 0).mean() * 100 * 200

    assert area("rectangle", 10, 20, 59, 69) == 50 * 50
    assert area("ellipse", 20, 10, 180, 90) == pytest.approx(np.pi * 80 * 40, rel=0.03)
    assert area("polygon", 0, 0, 99, 0, 0, 99) == pytest.approx(5000, rel=0.03)
    assert area("rectangle", -50, -50, 9, 9) == 100
    assert masks.draw(masks.Shape("ellipse", (20, 10, 180, 90)), 100, 200)[50, 100] == 255
    with pytest.raises(UnreadablePicture, match="'circle' is not known"):
        area("circle", 1, 2, 3, 4)
    with pytest.raises(UnreadablePicture, match="not pairs"):
        area("polygon", 1, 2, 3)
