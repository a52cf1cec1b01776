"""What a judge is, and what it is given to look at. The file of each judge ends with its own `JUDGE`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cxrjax import older
from cxrjax.evals.base import Encoder, FeatureTable, Result
from cxrjax.input.source import Source

Entry = Mapping[str, Any]
"""An evaluation's keys, completed by `run.complete`."""

_PLACE = "evals.*."
RENAMED = {
    old.removeprefix(_PLACE): new.removeprefix(_PLACE) for old, new in older.RENAMED.items() if old.startswith(_PLACE)
}
"""Keys of entries of older versions, and what they are called now."""


class Opened(NamedTuple):
    """A set that was opened for a judge.

    sources: split -> the pictures that the judge looks at. features: (encoder, pictures) -> their features, which are
    kept in the workdir. pictures_bytes: fitted pictures of a split that take more are not kept beside the set. seed: of
    the resamples.
    """

    sources: Mapping[str, Source]
    features: Callable[[Encoder, Source], FeatureTable]
    pictures_bytes: float
    seed: int


def _nothing_to_refuse(entry: Entry, sources: Mapping[str, Source]) -> None:
    """The `check` of a judge that can refuse nothing before it has an encoder."""


class Judge(NamedTuple):
    """One way to judge an encoder.

    name: in entries, and that of the judge's file.
    judge: does it.
    splits: those that it looks at; () stands for the one that its own key `split` names.
    keys: its own keys of an entry with their defaults. The common ones are `run.COMMON`.
    task_name: what stands in the place of a task's name, for a judge that takes no task; "" for one that takes a task
        (see `base.make_task`). instead_of_task: says what decides what is judged then.
    prefixed: whether its name stands before its metrics in the logs.
    check: (entry, sources) -> None; raises ValueError for what the judge would refuse once the encoder is trained. It
        reads no picture.
    box_labels: encoder -> the labels of the boxes that the entry may require pictures to have, () for any.
    limits_pictures: whether the entry's limit is on pictures. A judge of other things applies the limit itself.
    judges_head: whether it judges a head that was trained with the encoder. Its share of the labels is then the run's.
    asks: those of its keys that two evaluations must share to answer the same question.
    """

    name: str
    judge: Callable[[Encoder, Entry, Opened], Result]
    splits: tuple[str, ...]
    keys: Mapping[str, Any]
    task_name: str = ""
    instead_of_task: str = ""
    prefixed: bool = True
    check: Callable[[Entry, Mapping[str, Source]], None] = _nothing_to_refuse
    box_labels: Callable[[Encoder], tuple[str, ...]] = lambda encoder: ()
    limits_pictures: bool = True
    judges_head: bool = False
    asks: tuple[str, ...] = ()
