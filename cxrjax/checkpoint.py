"""Checkpoints: written by Orbax in the background, restored bit for bit onto whatever mesh is at hand.

A step's folder is complete or not there: Orbax writes next to it and renames at the end, and a numbered folder without
its record of having been committed (half copied, half deleted) is never picked. What is stored is compared with what
is expected, by name, before a byte of it is read.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from cxrjax import parallel
from cxrjax.config import nearest_folder
from cxrjax.runtime import hosts, integrity
from cxrjax.runtime.disk import CheckpointNotWritten as CheckpointNotWritten
from cxrjax.runtime.disk import Reporting, not_written, quieten_orbax
from cxrjax.runtime.leaves import CheckpointMismatch as CheckpointMismatch
from cxrjax.runtime.leaves import compare, shapes

_ITEM = "train_state"
_RECORD = "_CHECKPOINT_METADATA"


class CheckpointNotFound(FileNotFoundError):
    """There is no complete checkpoint where one was asked for."""


class CheckpointDamaged(ValueError):
    """A checkpoint that was complete once cannot be read."""


def open(
    directory: str | os.PathLike,
    *,
    keep_latest: int = 2,
    keep_best: int = 0,
    metric: str | None = None,
    mode: str = "max",
) -> "Checkpoints":
    """The checkpoints of one run in `directory` (made if missing), for writing: `with open(...) as checkpoints`.

    keep_latest: newest steps that stay on disk. keep_best: steps that stay because they are best by `metric`, a key of
    the metrics given to `save`, in the sense of `mode` ("max" or "min"). Removes what a killed run left half-written.
    Raises CheckpointNotWritten where the folder cannot be written to.
    """
    if keep_latest < 1:
        raise ValueError(f"keep_latest = {keep_latest}: a run resumes from its newest checkpoint, keep at least 1")
    if keep_best and (metric is None or mode not in ("max", "min")):
        raise ValueError(f"keep_best = {keep_best} needs a metric and mode 'max' or 'min'; got {metric!r}, {mode!r}")
    return Checkpoints(_absolute(directory), keep_latest, keep_best, metric, mode)


class Checkpoints:
    """A run's checkpoints, open for writing; leaving the `with` block waits for what is still being written."""

    def __init__(self, directory: epath.Path, keep_latest: int, keep_best: int, metric: str | None, mode: str):
        self.directory = directory
        self._ranking = {"metric": metric, "mode": mode}
        self._last: int | None = None
        self._commit: Future | None = None
        self._told = False  # that the last save has failed
        self._background = ThreadPoolExecutor(1, "digests")
        self._scores: dict[int, float] = {}
        quieten_orbax()
        policies = ocp.training.preservation_policies
        keep: list[Any] = [policies.LatestN(keep_latest)]
        if keep_best:
            keep.append(_Best(self._scores, keep_best))
        try:
            if hosts.is_first():
                directory.mkdir(parents=True, exist_ok=True)
                _set_broken_aside(directory)
                integrity.name_run(directory)
            policy: Any = policies.AnyPreservationPolicy(keep)
            self._checkpointer = ocp.training.Checkpointer(
                directory, preservation_policy=policy, cleanup_tmp_directories=True
            )
            self._scores |= {
                step: _score(_custom(directory / str(step))["metrics"], self._ranking) for step in self.steps()
            }
        except OSError as error:
            raise not_written(f"checkpoints cannot be kept in {directory}", error) from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"and while closing the checkpoints: {failure}")

    def save(
        self, step: int, train_state: Any, meta: dict, metrics: dict[str, float] | None = None, force: bool = False
    ) -> bool:
        """Starts writing `train_state` (arrays on any mesh; may be donated right after) and returns.

        meta: JSON, kept in the same folder. metrics: numbers to rank by. A step that is there already is left as it
        is and False returned, unless `force` replaces it. Waits for the save before, and raises what that one met:
        CheckpointNotWritten where the disk refused it.
        """
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        if not force and any(found.step == step for found in self._checkpointer.checkpoints):
            return False
        record = {"meta": {"step": step, **meta}, "metrics": metrics, "ranking": self._ranking}
        ranked: Any = metrics or None
        json.dumps(record)  # a value that is not JSON fails here, not in a background thread
        self.wait()  # as Orbax would, but so that a failure is told of the step that met it
        self._last = step
        self._scores[step] = _score(metrics, self._ranking)
        with self._reporting():
            response = self._checkpointer.save_checkpointables_async(
                step,
                {_ITEM: train_state},
                force=True,
                overwrite=force,
                metrics=ranked,
                custom_metadata=record,
            )
        self._commit = self._background.submit(_finish, response, self.directory / str(step))
        return True

    def rank(self, step: int, metrics: Mapping[str, float]) -> None:
        """Notes what a step came to, for the ranking, if it is kept: judges look at it after it is safe on disk."""
        self.wait()
        if step not in self.steps():
            return
        metrics = {name: float(value) for name, value in metrics.items()}
        self._scores[step] = _score(metrics, self._ranking)
        if hosts.is_first():
            with self._reporting():
                integrity.replace(self.directory / str(step) / integrity.SCORES, metrics)

    def wait(self) -> None:
        """Blocks until the last save is on disk with its digests; raises what it met."""
        self._told = True
        with self._reporting():
            commit, self._commit = self._commit, None
            if commit is not None:
                commit.result()
            self._checkpointer.wait()
        self._told = False

    def close(self) -> None:
        """Waits, and lets go of the folder; raises what the last save met."""
        try:
            if not self._told:
                self.wait()
        finally:
            self._background.shutdown()
            with contextlib.suppress(Exception) if self._told else self._reporting():
                self._checkpointer.close()  # which raises once more what `wait` has raised

    def steps(self) -> list[int]:
        """The complete steps on disk, ascending."""
        return steps(self.directory)

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return max(self.steps(), default=None)

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The train state of `step` in the structure of `abstract_state`, each leaf on its own sharding.

        abstract_state: ShapeDtypeStructs with shardings of the mesh at hand (`parallel.abstract`), whatever mesh the
        checkpoint was made on. Raises CheckpointNotFound with the steps that exist, CheckpointMismatch with the leaves.
        """
        found = find(self.directory, step)
        state = _load(found, abstract_state, partial=False)
        if hosts.is_first() and not integrity.is_known(found):
            integrity.write(found)
        return state

    def _reporting(self) -> Reporting:
        return Reporting(lambda: f"the checkpoint of step {self._last} could not be written to {self.directory}")


def steps(directory: str | os.PathLike) -> list[int]:
    """The complete steps of a checkpoints folder or of a work folder, ascending; empty where there is none."""
    root = _root(_absolute(directory))
    if not root.is_dir():
        return []
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit() and _record(path) is not None)


def find(directory: str | os.PathLike, step: int | str = "latest") -> epath.Path:
    """The folder of one step below a work folder, its checkpoints folder, or that step's folder itself.

    step: a number, "latest", or "best" (by the metric the run kept its best checkpoints with).
    Raises CheckpointNotFound with what is there.
    """
    step = int(step) if str(step).isdecimal() else step  # a number of the command line is a word
    directory = _absolute(directory)
    if not directory.is_dir():
        raise CheckpointNotFound(
            f"no folder {directory}; give a work folder, its 'checkpoints', or one step in it"
            + nearest_folder(str(directory))
        )
    if directory.name.isdigit() and _record(directory) is not None:
        if step not in ("latest", "best", int(directory.name)):
            raise CheckpointNotFound(f"{directory} is one checkpoint, not step {step}; give the folder above it")
        return directory
    there = steps(directory)
    if not there:
        raise CheckpointNotFound(f"no complete checkpoint in {directory}; give a work folder that has trained a while")
    root = _root(directory)
    if step == "best":
        return root / str(_best(root, there))
    chosen = there[-1] if step == "latest" else step
    if chosen not in there:
        raise CheckpointNotFound(f"no step {step} in {root}; there are {there}, 'latest' and 'best'")
    return root / str(chosen)


def load_params(directory: str | os.PathLike, step: int | str, abstract: Any) -> Any:
    """Only what `abstract` asks for, e.g. {"params": …, "state": …}. The optimizer's moments are not read.

    directory, step: as in `find`. abstract: ShapeDtypeStructs; a leaf that names no sharding goes whole onto every
    device at hand. Raises CheckpointNotFound and CheckpointMismatch.
    """
    return _load(find(directory, step), abstract, partial=True)


def names(directory: str | os.PathLike, step: int | str = "latest") -> list[str]:
    """Paths "params/encoder/cls" of the arrays that one step holds; directory and step as in `find`."""
    return sorted(_stored(find(directory, step)))


def read_meta(directory: str | os.PathLike, step: int | str = "latest") -> dict:
    """The `meta` that was given to `save`, with "step"; directory and step as in `find`."""
    return _custom(find(directory, step))["meta"]


def digest(directory: str | os.PathLike, step: int | str = "latest") -> str:
    """Sixteen hexadecimal digits that no other save shares, and that a copy keeps: a key for caches."""
    return hashlib.sha256((find(directory, step) / _RECORD).read_bytes()).hexdigest()[:16]


def _load(path: epath.Path, abstract: Any, partial: bool) -> Any:
    abstract = _placed(abstract)
    _verify(path, integrity.foreign, "not of this run")
    compare(path, _stored(path), shapes(abstract), partial)
    _verify(path, integrity.faults, "damaged")
    if hosts.is_first() and not integrity.is_known(path):
        integrity.remark(path)
    context = ocp.Context()
    context.pytree_options.loading.partial_load = partial
    with context:
        try:
            return ocp.load_checkpointables(path, {_ITEM: abstract})[_ITEM]
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(path, error) from error


def _stored(path: epath.Path) -> dict[str, tuple]:
    try:
        found = shapes(ocp.checkpointables_metadata(path).metadata[_ITEM])
    except Exception as error:  # Orbax raises whatever its readers meet
        raise _damaged(path, error) from error
    if not found:
        raise _damaged(path, ValueError("its list of arrays is empty"))
    return found


def _verify(path: epath.Path, look: Callable[[epath.Path], list[str]], what: str) -> None:
    """Raises CheckpointDamaged on all hosts where the first one finds a fault: they read the same disk."""
    said = look(path) if hosts.is_first() else []
    if parallel.any_process(bool(said)):
        raise _refused(path, said or ["as the first host says"], what)


def _damaged(path: epath.Path, error: Exception) -> CheckpointDamaged:
    first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return _refused(path, integrity.faults(path) or [first], "damaged")


def _refused(path: epath.Path, said: Sequence[str], what: str, most: int = 3) -> CheckpointDamaged:
    more = f" and {len(said) - most} more" if len(said) > most else ""
    others = [step for step in steps(path.parent) if step != int(path.name)]
    whole = next((step for step in reversed(others) if not _wrong(path.parent / str(step))), None)
    rest = f"rename it, and step {whole} is whole and left to go on from" if whole is not None else _no_other(others)
    return CheckpointDamaged(f"the checkpoint {path} is {what} ({'; '.join(said[:most])}{more}); {rest}")


def _wrong(path: epath.Path) -> list[str]:
    return integrity.foreign(path) or integrity.faults(path)


def _no_other(others: list[int]) -> str:
    return f"the other steps {others} are damaged as well" if others else "there is no other step"


def _placed(abstract: Any) -> Any:
    everywhere = parallel.replicated(parallel.make_mesh())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or everywhere
        ),
        abstract,
    )


def _best(root: epath.Path, there: list[int]) -> int:
    records = {step: _custom(root / str(step)) for step in there}
    ranking = records[there[-1]]["ranking"]
    if ranking["metric"] is None:
        raise CheckpointNotFound(
            f"no best checkpoint in {root}: the run named no checkpoint.best_metric to choose it by; give 'latest' or "
            f"one of the steps {there}"
        )
    scored = {step: _score(record["metrics"], ranking) for step, record in records.items()}
    if max(scored.values()) == -math.inf:
        names = sorted({name for record in records.values() for name in record["metrics"]})
        raise CheckpointNotFound(
            f"no best checkpoint in {root}: none of the steps {there} has the metric {ranking['metric']!r} "
            f"(stored: {names}); give 'latest' or a step"
        )
    return max(there, key=lambda step: (scored[step], step))


class _Best:
    """Orbax's policy of what to keep, by scores that may come after the save that they are of."""

    def __init__(self, scores: Mapping[int, float], most: int):
        self.scores, self.most = scores, most

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        scored = [one.step for one in checkpoints if self.scores.get(one.step, -math.inf) > -math.inf]
        best = sorted(scored, key=lambda step: (self.scores[step], step))[-self.most :]
        return [one.step in best for one in checkpoints]


def _finish(response: Any, path: epath.Path) -> None:
    """In the background: ends Orbax's own thread, which waits for the commit, and writes the digests of the step."""
    response.result()
    if hosts.is_first():
        integrity.write(path)


def _score(metrics: dict, ranking: dict) -> float:
    """Larger is better; what has no number ranks last."""
    value = (metrics or {}).get(ranking["metric"], math.nan)
    if math.isnan(value):
        return -math.inf
    return value if ranking["mode"] == "max" else -value


def _custom(path: epath.Path) -> dict[str, Any]:
    """What `save` recorded in a committed folder: "meta", "metrics" and "ranking"."""
    record = _record(path)
    if record is None:
        raise CheckpointNotFound(f"the checkpoint {path} is gone or was not written to its end")
    found = record["custom_metadata"]
    return found | {"metrics": found["metrics"] | integrity.scores(path)}


def _record(path: epath.Path) -> dict | None:
    """Orbax's own record of a folder, or None unless the folder was committed."""
    try:
        record = json.loads((path / _RECORD).read_text())
    except (OSError, ValueError):
        return None
    complete = record.get("commit_timestamp_nsecs") and _ITEM in record.get("item_handlers", {})
    return record if complete and (path / _ITEM / "_METADATA").exists() else None


def _set_broken_aside(directory: epath.Path) -> None:
    """Orbax takes any folder with a number for a checkpoint, even an empty one, and would keep it as the latest."""
    for found in ocp.path.step.standard_name_format().find_all(directory):
        if _record(found.path) is None:
            aside = directory / f"{found.path.name}.incomplete"
            logging.warning("%s is not a complete checkpoint: renamed to %s", found.path, aside.name)
            if aside.exists():
                aside.rmtree()
            found.path.rename(aside)


def _root(directory: epath.Path) -> epath.Path:
    below = directory / "checkpoints"
    return below if below.is_dir() else directory


def _absolute(directory: str | os.PathLike) -> epath.Path:
    return epath.Path(directory).expanduser().resolve()
