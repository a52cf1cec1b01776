"""What a config asks for, held against its sets before a step is trained: what would fail, or mislead, at the end."""

import contextlib
from collections.abc import Iterator, Sequence

from cxrjax import config as shared
from cxrjax.config import ConfigDict, names
from cxrjax.evals import run as evals
from cxrjax.input import converted_sets, overlap, record_index, source


def folds(config: ConfigDict) -> dict[str, int]:
    """The cross-validation of the config, {"folds", "fold"}.

    Raises ValueError where a judge would look at patients that are trained on: judges of the set that is trained on
    must share its folds, and without folds nothing of their val and test may be trained on.
    """
    cut = shared.folds(config)
    sets, split = names(config.data.sets), config.data.split
    if cut["folds"] and len(sets) > 1:
        raise ValueError(f"data.folds = {cut['folds']} cuts one set by patient; data.sets names {len(sets)}: {sets}")
    seen = [part for part in overlap.HELD_OUT if part in split.split(converted_sets.JOINED)]
    for name, entry in entries(config).items():
        if entry.get("set") not in sets:
            continue
        judged_in = {key: entry[key] for key in cut}
        if judged_in != cut:
            raise ValueError(
                f"evals.{name} judges with {judged_in} what is trained on with {cut}: give both the same, or patients "
                "that are trained on would be judged"
            )
        if seen and not cut["folds"] and config.data.exclude_overlap:
            raise ValueError(
                f"data.split = {split!r} trains on {' and '.join(seen)} of {entry['set']!r}, which evals.{name} judges "
                "on: train on data.split=train, judge on another set, or say that it may be with "
                "--config.data.exclude_overlap=False"
            )
    return cut


def entries(config: ConfigDict) -> dict[str, dict]:
    """The entries of config.evals by name; those of what is trained on take its folds unless they have their own."""
    sets, cut = names(config.data.sets), shared.folds(config)
    return {
        name: {**(cut if entry.get("set") in sets else {}), **entry.to_dict(), "name": name}
        for name, entry in config.evals.items()
    }


def judge_keys(config: ConfigDict) -> None:
    """Raises ValueError for a judge, or a key of its entry, that is not known, and for a metric of none of the judges.

    Opens no set.
    """
    places = []
    for name, entry in entries(config).items():
        with _named(name):
            full = evals.complete(entry)
        places.append(f"eval/{full['set']}/{full['task']['name']}/")
    best = config.checkpoint.best_metric
    if best and not best.startswith(tuple(places)):
        raise ValueError(
            f"checkpoint.best_metric = {best!r} is no metric of config.evals; theirs begin with "
            f"{', '.join(places) or 'nothing: there is no judge'}"
        )


def judges(config: ConfigDict) -> None:
    """Raises ValueError for what a judge would refuse of its set once the training is done."""
    for name, entry in entries(config).items():
        with _named(name):
            evals.check(entry)


@contextlib.contextmanager
def _named(judge: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"evals.{judge}: {error}") from error


def labels(config: ConfigDict, pictures: Sequence[source.Source]) -> None:
    """Raises ValueError for labels that no box of the pictures' sets has."""
    found = (record_index.labels_of_boxes(each.converted_set, each.split) for each in pictures)
    there = {label for records in found for boxes in records for label in boxes}
    if unknown := sorted(set(names(config.labels)) - there):
        raise ValueError(f"labels {unknown} are of no box in {config.data.sets}; its boxes are of {sorted(there)}")
