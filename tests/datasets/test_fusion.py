"""Box fusion: cases computed by hand, and that who is which reader does not matter."""

import itertools
import random

import pytest

from cxrjax.datasets.fusion import fuse, majority, overlap
from cxrjax.datasets.manifest import Box


def box(x, y, width, height, reader="", label="Nodule/Mass"):
    return Box(label, x, y, width, height, reader)


@pytest.mark.parametrize(
    ("votes", "readers", "won"), [(2, 3, True), (1, 3, False), (1, 1, True), (0, 1, False), (2, 4, False), (3, 5, True)]
)
def test_more_than_half_is_a_majority(votes, readers, won):
    assert majority(votes, readers) is won


def test_overlap_by_hand():
    assert overlap(box(0, 0, 10, 10), box(5, 0, 10, 10)) == pytest.approx(50 / 150)
    assert overlap(box(0, 0, 10, 10), box(0, 0, 5, 10)) == pytest.approx(0.5)
    assert overlap(box(0, 0, 10, 10), box(10, 0, 10, 10)) == 0
    assert overlap(box(0, 0, 0, 0), box(0, 0, 0, 0)) == 0


def test_three_readers_give_the_mean_corners():
    boxes = [box(10, 20, 30, 40, "R1"), box(13, 20, 30, 40, "R2"), box(10, 23, 33, 37, "R3")]
    assert fuse(boxes, 3) == (box(11, 21, 31, 39),)


def test_a_box_of_one_reader_of_three_is_not_judged_by():
    assert fuse([box(10, 20, 30, 40, "R1")], 3) == ()
    assert fuse([box(10, 20, 30, 40, "R1"), box(60, 20, 30, 40, "R2")], 3) == ()
    assert fuse([box(10, 20, 30, 40, "R1")], 1) == (box(10, 20, 30, 40),)


def test_labels_and_places_stay_apart():
    boxes = [
        box(0, 0, 10, 10, "R1"),
        box(0, 0, 10, 10, "R2", "Calcification"),
        box(0, 0, 10, 10, "R3", "Calcification"),
        box(50, 0, 10, 10, "R1"),
        box(52, 0, 10, 10, "R3"),
    ]
    assert fuse(boxes, 3) == (box(0, 0, 10, 10, label="Calcification"), box(51, 0, 10, 10))


def test_one_reader_who_draws_twice_is_one_vote_and_counts_once():
    assert fuse([box(0, 0, 10, 10, "R1"), box(0, 0, 10, 9, "R1")], 3) == ()
    boxes = [box(0, 0, 10, 8, "R1"), box(0, 0, 10, 12, "R1"), box(0, 0, 10, 12, "R2")]
    assert fuse(boxes, 3) == (box(0, 0, 10, 11),)


def test_half_of_the_union_is_enough_and_less_is_not():
    assert fuse([box(0, 0, 10, 10, "R1"), box(0, 0, 5, 10, "R2")], 3) == (box(0, 0, 7.5, 10),)
    assert fuse([box(0, 0, 10, 10, "R1"), box(0, 0, 4.9, 10, "R2")], 3) == ()


def test_overlaps_connect_in_chains():
    chain = [box(x, 0, 10, 10, reader) for x, reader in ((0, "R1"), (3, "R2"), (6, "R3"))]
    assert overlap(chain[0], chain[2]) < 0.5
    assert fuse(chain, 3) == (box(3, 0, 10, 10),)


@pytest.mark.parametrize("seed", range(20))
def test_neither_the_order_nor_the_names_of_the_readers_matter(seed):
    draw = random.Random(seed)
    boxes = [
        box(draw.uniform(0, 20), draw.uniform(0, 20), draw.uniform(5, 30), draw.uniform(5, 30), reader, label)
        for reader in ("R1", "R2", "R3")
        for label in draw.choices(["Atelectasis", "ILD"], k=draw.randint(0, 5))
    ]
    fused = fuse(boxes, 3)
    for names in itertools.permutations(("R1", "R2", "R3")):
        renamed = [one._replace(reader=dict(zip(("R1", "R2", "R3"), names, strict=True))[one.reader]) for one in boxes]
        draw.shuffle(renamed)
        assert fuse(renamed, 3) == fused
    assert all(one.reader == "" for one in fused)
    assert len(fused) <= len(boxes) / 2


def test_random_boxes_do_fuse():
    """The property above would hold for a rule that never fuses."""
    draw = random.Random(0)
    boxes = [box(draw.uniform(0, 5), draw.uniform(0, 5), 30, 30, f"R{number % 3}") for number in range(6)]
    assert len(fuse(boxes, 3)) == 1
