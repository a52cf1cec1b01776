"""What cells of official tables mean."""

import pytest

from cxrjax.datasets import release


@pytest.mark.parametrize(
    ("cell", "age"),
    [
        *(("57", 57), ("57.0", 57), (" 057y ", 57), ("000Y", 0), ("018M", 1), ("104W", 2), ("0729D", 1), ("120", 120)),
        *(("121", -1), ("414Y", -1), ("", -1), ("-1", -1), ("57.5", -1), ("adult", -1)),
    ],
)
def test_years(cell, age):
    """Whole years of days, weeks and months; no number and no age that nobody reaches."""
    assert release.years(cell) == age


@pytest.mark.parametrize(("cell", "sex"), [("Female", "F"), ("f", "F"), ("M", "M"), ("male", "M"), ("Unknown", "")])
def test_sex(cell, sex):
    assert release.sex(cell) == sex


def test_labels_of_the_chexpert_labeller():
    assert release.labels(("1.0", "0", "0.0", "-1", "-1.0", "")) == (1, 0, 0, -1, -1, -2)
    assert release.labels(("1.0", "2")) is None and release.first_odd_label(("1.0", "2")) == "2"
