"""What a question's comparison comes to, in words: which differences are real, what the references reach, of how many.

A difference is called real where its 95 % interval leaves out zero: that over patients and seeds where several runs
tell what seeds add, else that over patients. No correction is made for their number, so of many differences one in
twenty is called real by chance.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from cxrjax.evals.base import Interval, bounds
from cxrjax.reporting import collect, compare
from cxrjax.reporting.compare import Comparison

MOST = 6  # differences of one kind that are told one by one


def paragraph(question: collect.Question, found: Comparison, reference: str) -> str:
    """The differences to `reference` by the first metric, and what pixels and its own untrained encoder reach.

    References that look at anything but the findings are left to `explained`.
    """
    metric = next(name for name in found.metrics[reference] if "/" not in name)
    beside = {run.subject: run for run in question.runs if collect.is_reference(run.results)}
    trained = [run for run in question.runs if run.subject in found.metrics and run.subject not in beside]
    encoders = len({run.subject for run in trained})
    said = [
        f"{question.name}: {_count(len(trained), 'run')} of {_count(encoders, 'encoder')}, judged on "
        f"{_count(found.pictures, 'picture')} of {_count(found.patients, 'patient')}."
    ]
    own = found.with_seeds.get(reference, {}).get(metric) or found.metrics[reference][metric]
    said.append(f"By {metric}, {reference} reaches {own.value:.3f}{bounds(own.low, own.high)}.")
    with_seeds = {name: row.get(metric) for name, row in found.differences_with_seeds.items()}
    gains = {name: with_seeds.get(name) or row[metric] for name, row in found.differences.items()}
    gains = {name: gain for name, gain in gains.items() if math.isfinite(gain.value)}
    others = {name: gain for name, gain in gains.items() if name not in beside}
    if others:
        said += _differences(others, reference)
    places = {run.workdir for run in question.runs if run.subject == reference}
    for kind in _REFERENCES:
        near = [name for name, run in beside.items() if kind in name and (kind == "pixels" or run.workdir in places)]
        told = [name for name in near if name in gains]
        said += [_of_reference(name, gains[name], found.metrics[name][metric], reference) for name in told]
    judge = question.entry.get("judge", "probe")
    expected = [what for kind, what in _REFERENCES.items() if judge in _JUDGED_BY[kind]]
    lacking = [what for what in expected if not any(_kind(name) == what for name in beside)]
    said += [f"{what} was not judged, so what training adds to it is not known." for what in lacking]
    return " ".join(said)


def of_run(workdir: Path, name: str, resamples: int = 1000, seed: int = 0) -> list[str]:
    """A paragraph for every question that a run and its references were judged on; see `collect.in_folder`.

    name: what the run is called. Questions whose evaluations cannot be compared are left out.
    """
    said = []
    for question in collect.in_folder(workdir, name).questions:
        tables: dict[str, list] = {}
        for run in question.runs:
            tables.setdefault(run.subject, []).append(run.predictions())
        if name in tables and len(tables) > 1:
            with contextlib.suppress(ValueError):
                found = compare.compare(question.kind, tables, name, resamples, seed)
                said.append(paragraph(question, found, name))
    return said


_REFERENCES = {"pixels": "A linear model of the pixels", "random": "The encoder before training"}
"""The references that every comparison should have, by a word in their names."""
_JUDGED_BY = {
    "pixels": ("probe", "knn", "transfer"),
    "random": ("probe", "knn", "transfer", "attentive", "zeroshot", "retrieve", "sentences", "ground"),
}
"""Which judges can judge them."""


def _kind(name: str) -> str:
    """What a reference of this name is, "" for one of shortcuts."""
    return next((said for kind, said in _REFERENCES.items() if kind in name), "")


def _differences(gains: Mapping[str, Interval], reference: str) -> list[str]:
    """Sentences on what lies above, below and within chance of the reference."""
    kinds: dict[str, Callable[[Interval], bool]] = {
        f"Above {reference}, and that is real": lambda gain: gain.low > 0,
        f"Below {reference}, and that is real": lambda gain: gain.high < 0,
        f"Not told apart from {reference}": lambda gain: not (gain.low > 0 or gain.high < 0),
    }
    said = []
    for kind, belongs in kinds.items():
        names = [name for name, gain in gains.items() if belongs(gain)]
        told = [f"{name} by {_by(gains[name])}" for name in names[:MOST]]
        more = [f"{len(names) - MOST} more"] if len(names) > MOST else []
        said += [f"{kind}: {'; '.join([*told, *more])}."] if names else []
    return said


def _of_reference(name: str, gain: Interval, area: Interval, subject: str) -> str:
    verdict = "that is real" if gain.low > 0 or gain.high < 0 else "the two are not told apart"
    # The difference is the reference's to the subject; the reader wants it the other way round.
    turned = Interval(-gain.value, -gain.high, -gain.low, gain.n)
    return f"{_kind(name)} reaches {area.value:.3f}; {subject} differs from it by {_by(turned)}, and {verdict}."


def _by(gain: Interval) -> str:
    return f"{gain.value:+.3f}{bounds(gain.low, gain.high, '+.3f')}"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
