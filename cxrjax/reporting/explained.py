"""How much of a result the references reach that look at anything but the findings, in one sentence."""

import math
from collections.abc import Mapping

from cxrjax.evals import shortcuts
from cxrjax.evals.base import Interval

_SAID = {
    "metadata": shortcuts.SAID["metadata"],
    f"blur-{shortcuts.BLUR_PX}": shortcuts.SAID["blur"],
    "without_lungs": shortcuts.SAID["without_lungs"],
    "lungs": shortcuts.SAID["lungs"],
    "pixels-32": "a linear model of 32×32 pixels",
    "random": "the encoder before training",
}
"""Name of a reference's encoder -> what it is."""
_LOOKS_ELSEWHERE = tuple(_SAID)[:4]


def sentence(subject: str, areas: Mapping[str, Interval | None]) -> str:
    """What shortcuts explain of the AUROC of a subject; "" where none of them was judged, or nothing has an AUROC.

    areas: subject -> its AUROC; names of references as encoders have them, or behind a run's name in brackets.
    Chance is 0.5, so a reference of 0.6 reaches a third of a result of 0.8. Where several are given, they overlap.
    """
    own = areas.get(subject)
    found = {}
    for name, area in areas.items():
        kind = name.rpartition("(")[2].rstrip(")")
        if name != subject and kind in _SAID and area is not None and math.isfinite(area.value):
            found[kind] = area.value
    if own is None or not math.isfinite(own.value) or not set(found) & set(_LOOKS_ELSEWHERE):
        return ""
    gained = own.value - 0.5
    low = own.low if math.isfinite(own.low) else own.value
    if low <= 0.5:
        return f"The AUROC of {subject} is {own.value:.3f} and not clearly above chance, so shortcuts explain nothing."
    parts = [f"{_SAID[kind]} {max(0, found[kind] - 0.5) / gained:.0%}" for kind in _SAID if kind in found]
    said = f"Of the {gained:.3f} by which the AUROC of {subject} lies above chance, the same judge reaches"
    return f"{said}: {'; '.join(parts)}."
