"""What a row and its encoded picture become, and what lies beside the records."""

from pathlib import Path

import pytest

from cxrjax.datasets import beside, record
from cxrjax.datasets.encode import Encoded
from cxrjax.datasets.manifest import Box, Row
from cxrjax.text import tokenizer


def encoded(**changes):
    header = {"view": "LATERAL", "sex": "F", "age": 40}
    whole = Encoded(b"picture", (b"mask",), 32, 64, 100, 200, "00", header, (), ())
    return whole._replace(**changes)


def row(number=0, split="train", **fields):
    return Row(Path(f"{number}.png"), f"picture {number}", f"patient {number}", f"study {number}", split, **fields)


def test_a_mask_that_cannot_be_used_counts_as_none():
    drawn = row(masks=(Path("mask.png"),))
    kept, _, problems = record.place(drawn, encoded())
    assert kept.masks == drawn.masks and not problems
    kept, _, problems = record.place(drawn, encoded(masks=(None,), mask_problems=("mask.png: cut",)))
    assert kept.masks == () and [(problem.kind, problem.reason) for problem in problems] == [("mask", "mask.png: cut")]


def test_a_header_says_only_what_the_table_does_not():
    unsaid, _, _ = record.place(row(), encoded())
    assert (unsaid.view, unsaid.sex, unsaid.age) == ("LATERAL", "F", 40)
    said, _, _ = record.place(row(view="PA", sex="M", age=0), encoded())
    assert (said.view, said.sex, said.age) == ("PA", "M", 0)


def test_boxes_are_cut_off_at_the_raw_picture_and_those_outside_are_problems():
    boxes = (Box("Mass", -20, 50, 60, 100), Box("Mass", 200, 0, 9, 9))
    _, (box,), (problem,) = record.place(row(boxes=boxes), encoded())
    assert (box["bbox"].xmin, box["bbox"].ymin, box["bbox"].xmax, box["bbox"].ymax) == (0, 0.5, 0.2, 1)
    assert problem.kind == "box" and "has no area inside its 200 x 100 px picture" in problem.reason


@pytest.mark.parametrize(
    ("orientation", "size", "corners"),
    [
        (1, (100, 200), (0.25, 0.5, 0.5, 0.75)),
        (6, (200, 100), (0.5, 0.5, 0.75, 0.75)),  # a quarter clockwise: stored rows are columns from the right
    ],
)
def test_boxes_of_a_frame_are_scaled_to_the_picture_as_stored(orientation, size, corners):
    box = Box("Mass", 8, 1, 4, 1, phrase="A mass.", frame=(16, 4))
    picture = encoded(header={"orientation": orientation}, source_height=size[0], source_width=size[1])
    _, (made,), problems = record.place(row(boxes=(box,)), picture)
    assert not problems and made["phrase"] == "A mass."
    found = made["bbox"]
    assert (found.ymin, found.xmin, found.ymax, found.xmax) == corners


def test_the_vocabulary_knows_the_words_of_train_alone(tmp_path):
    rows = [row(0, text="mass mass"), row(1, "val", text="zoster"), row(2, "test", text="xray")]
    beside.write(tmp_path, name="few", rows=rows)
    pieces = tokenizer.load(tmp_path).vocabulary
    assert "m" in pieces and not {"z", "x"} & set(pieces)
