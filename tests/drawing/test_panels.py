"""The sheet of what a network sees: what is painted where, and when the start stands beside it."""

import numpy as np
import pytest

from cxrjax.drawing import panels, style
from cxrjax.drawing.panels import Panel

PX, SIDE = 16, 160


@pytest.fixture
def images():
    """Two pictures of four quarters each, from black to white."""
    quarters = np.array([[[0, 50], [100, 250]], [[200, 150], [100, 0]]], np.float32)
    return np.kron(quarters, np.ones((1, PX // 2, PX // 2), np.float32))


def parts(sheet, count):
    """The pictures of a sheet whose rows have no words, rows × examples."""
    head, label = (style.line_px(px) for px in (round(1.3 * panels.TYPE_PX), panels.TYPE_PX))
    tall, wide = label + SIDE + style.GAP_PX, SIDE + style.GAP_PX
    assert sheet.shape == (head + count * tall, 2 * wide, 3)
    return [[sheet[head + r * tall + label :, c * wide :][:SIDE, :SIDE] for c in range(2)] for r in range(count)]


def test_hidden_patches_are_painted_and_greys_are_shared(images):
    hidden = np.zeros((2, 2, 2), bool)
    hidden[0, 0, 1] = True
    (whole, other), (part, _), (darker, _) = parts(
        panels.sheet([Panel("a", images), Panel("b", images, hidden=hidden), Panel("c", images / 2)], "start"), 3
    )
    centres = [(40, 40), (40, 120), (120, 40), (120, 120)]
    assert [int(whole[at][0]) for at in centres] == pytest.approx([0, 51, 102, 255], abs=1)
    assert [int(other[at][0]) for at in centres] == pytest.approx([255, 191, 128, 0], abs=1)
    assert tuple(part[centres[1]]) == style.HIDDEN and (part[:, :80] == whole[:, :80]).all()
    assert [int(darker[at][0]) for at in centres] == pytest.approx([0, 26, 51, 128], abs=1)


def test_pictures_that_are_no_squares_keep_their_aspect():
    """A row of 16 x 8, of which one patch is painted and one is hot, above a row of squares."""
    images, hidden, heat = np.zeros((2, 16, 8), np.float32), np.zeros((2, 4, 2), bool), np.zeros((2, 4, 2))
    hidden[:, 1, 0], heat[:, 3, 1] = True, 1.0
    drawn = panels.sheet([Panel("a", images, hidden=hidden, heat=heat), Panel("b", images[:, :8])], "start")
    first = style.line_px(round(1.3 * panels.TYPE_PX)) + style.line_px(panels.TYPE_PX)
    assert drawn.shape == (first + 160 + 80 + 2 * style.GAP_PX + style.line_px(panels.TYPE_PX), 2 * (80 + 6), 3)
    painted = np.all(drawn == style.HIDDEN, axis=2)[first : first + 160, :80]
    expected = np.zeros((160, 80), bool)
    expected[40:80, :40] = True
    np.testing.assert_array_equal(painted, expected)
    hot = drawn[first : first + 160, :80, 0].astype(int)
    assert hot[150, 70] > hot[10, 10] + 50


def test_colours_lie_where_a_map_is_high_and_a_line_around_an_outline(images):
    heat = np.zeros((2, 4, 4))
    heat[:, 1, 2] = 3.0
    outline = np.zeros((2, PX, PX), bool)
    outline[:, 4:8, 4:8] = True
    (mapped, _), (lined, _) = parts(
        panels.sheet([Panel("a", images, heat=heat), Panel("b", images, outline=outline)], "start"), 2
    )
    red, green, blue = (int(one) for one in mapped[60, 100])
    assert green > blue and red > blue, "yellow at the top of viridis"
    assert int(mapped[60, 20][2]) > int(mapped[60, 20][1]), "violet at its bottom"
    drawn = np.all(lined == style.rgb(style.COLOURS[4]), axis=2)
    ys, xs = np.nonzero(drawn)
    assert (ys.min() // 10, ys.max() // 10, xs.min() // 10, xs.max() // 10) == (3, 8, 3, 8) and not drawn[60, 60]


def test_words_stand_under_their_picture_and_do_not_change_its_size(images):
    def sheet(words):
        ids = np.arange(2)[:, None]
        row = Panel("a", images, ids=ids, spell=lambda one: words if one[0] else "")
        return panels.sheet([row, Panel("words alone", ids=ids, spell=lambda one: words)], "start")

    short, long = sheet("effusion"), sheet("no pneumothorax or effusion " * 20)
    assert short.shape == long.shape
    under = slice(style.line_px(17) + style.line_px(13) + SIDE, style.line_px(17) + style.line_px(13) + SIDE + 70)
    assert (short[under, :SIDE] == 255).all() and (short[under, SIDE + style.GAP_PX :] < 128).any()


def test_a_text_is_cut_to_its_lines():
    lines = style.wrapped("one two three four five six", 60, 12, 2)
    assert len(lines) == 2 and lines[0].startswith("one") and lines[1].endswith("…")
    assert all(style.font(12).getlength(line) <= 60 for line in lines)
    assert style.wrapped("pneumothorax-of-the-left-side", 60, 12, 1)[0].endswith("…")
    assert style.wrapped("one", 60, 12, 2) == ["one"]


def test_the_start_stands_beside_what_has_changed(images):
    start = panels.sheet([Panel("a", images)], "start")
    later = panels.sheet([Panel("a", images[::-1].copy())], "step 5")
    both = panels.side_by_side(start, later)
    np.testing.assert_array_equal(both, np.concatenate([start, later], axis=1))
    np.testing.assert_array_equal(panels.side_by_side(both, later), both, err_msg="the start alone is taken over")
    assert panels.side_by_side(start, panels.sheet([Panel("a", images)], "step 5")) is None
    for absent in (None, start[:40]):
        np.testing.assert_array_equal(panels.side_by_side(absent, later), later)
