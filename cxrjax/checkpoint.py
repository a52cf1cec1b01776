"""Checkpoints: written by Orbax in the background, restored bit for bit onto whatever mesh is at hand.

A step's folder is complete or not there: Orbax writes next to it and renames at the end, and a numbered folder without
its record of having been committed (half copied, half deleted) is never picked. What is stored is compared with what
is expected, by name, before a byte of it is read.
"""

import errno
import functools
import hashlib
import json
import logging
import math
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from orbax.checkpoint import v1 as ocp

from cxrjax import parallel

_ITEM = "train_state"
_RECORD = "_CHECKPOINT_METADATA"


class CheckpointNotFound(FileNotFoundError):
    """There is no complete checkpoint where one was asked for."""


class CheckpointNotWritten(OSError):
    """The disk refused a checkpoint: full, read-only, no permission."""


class CheckpointDamaged(ValueError):
    """A checkpoint that was complete once cannot be read."""


class CheckpointMismatch(ValueError):
    """What is stored and what is expected differ; the message names the leaves."""


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
        self._last = None
        _quieten_orbax()
        policies = ocp.training.preservation_policies
        keep: list[Any] = [policies.LatestN(keep_latest)]
        if keep_best:
            # Orbax keeps checkpoints without metrics for ever unless told otherwise.
            score = functools.partial(_score, ranking=self._ranking)
            keep.append(policies.BestN(get_metric_fn=score, n=keep_best, keep_checkpoints_without_metrics=False))
        try:
            if jax.process_index() == 0:
                directory.mkdir(parents=True, exist_ok=True)
                _set_broken_aside(directory)
            policy: Any = policies.AnyPreservationPolicy(keep)
            self._checkpointer = ocp.training.Checkpointer(
                directory, preservation_policy=policy, cleanup_tmp_directories=True
            )
        except OSError as error:
            raise _not_written(f"checkpoints cannot be kept in {directory}", error) from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
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
        with self._reporting():
            self._checkpointer.save_checkpointables_async(
                step,
                {_ITEM: train_state},
                force=True,
                overwrite=force,
                metrics=ranked,
                custom_metadata=record,
            )
        return True

    def wait(self) -> None:
        """Blocks until the last save is on disk; raises what it met."""
        with self._reporting():
            self._checkpointer.wait()

    def close(self) -> None:
        """Waits, and lets go of the folder; raises what the last save met."""
        with self._reporting():
            self._checkpointer.close()

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
        return _load(find(self.directory, step), abstract_state, partial=False)

    def _reporting(self):
        return _Reporting(lambda: f"the checkpoint of step {self._last} could not be written to {self.directory}")


class _Reporting:
    """Turns what the file system refused, in this thread or Orbax's, into one sentence."""

    def __init__(self, said):
        self.said = said

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is not None and _error_number(error) is not None:
            raise _not_written(self.said(), error) from None


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
        raise CheckpointNotFound(f"no folder {directory}; give a work folder, its 'checkpoints', or one step in it")
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
    _compare(path, _stored(path), _shapes(abstract), partial)
    context = ocp.Context()
    context.pytree_options.loading.partial_load = partial
    with context:
        try:
            return ocp.load_checkpointables(path, {_ITEM: abstract})[_ITEM]
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(path, error) from error


def _stored(path: epath.Path) -> dict[str, tuple]:
    try:
        found = _shapes(ocp.checkpointables_metadata(path).metadata[_ITEM])
    except Exception as error:  # Orbax raises whatever its readers meet
        raise _damaged(path, error) from error
    if not found:
        raise _damaged(path, ValueError("its list of arrays is empty"))
    return found


def _damaged(path: epath.Path, error: Exception) -> CheckpointDamaged:
    others = [step for step in steps(path.parent) if step != int(path.name)]
    rest = f"rename it, and the steps {others} are left to go on from" if others else "there is no other step"
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return CheckpointDamaged(f"the checkpoint {path} is damaged ({said}); {rest}")


def _placed(abstract: Any) -> Any:
    everywhere = parallel.replicated(parallel.make_mesh())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or everywhere
        ),
        abstract,
    )


def _shapes(tree: Any) -> dict[str, tuple]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): (tuple(leaf.shape), jnp.dtype(leaf.dtype).name)
        for keys, leaf in leaves
    }


def _compare(path: epath.Path, stored: dict, expected: dict, partial: bool, most: int = 20) -> None:
    missing = [name for name in expected if name not in stored]
    unexpected = [] if partial else [name for name in stored if name not in expected]
    different = [name for name in expected if name in stored and stored[name] != expected[name]]
    lines = [f"missing     {name} {_shape(expected[name])}" for name in missing]
    lines += [f"unexpected  {name} {_shape(stored[name])}" for name in unexpected]
    lines += [f"different   {name} {_shape(stored[name])} != {_shape(expected[name])} expected" for name in different]
    if not lines:
        return
    more = [f"… and {len(lines) - most} more"] if len(lines) > most else []
    raise CheckpointMismatch(
        "\n  ".join(
            [
                f"{path} does not hold what this config expects: of {len(expected)} arrays {len(missing)} missing and "
                f"{len(different)} different, {len(unexpected)} unexpected; use the config.json it was made with",
                *lines[:most],
                *more,
            ]
        )
    )


def _shape(leaf: tuple) -> str:
    shape, dtype = leaf
    return f"{dtype}[{','.join(map(str, shape))}]"


def _best(root: epath.Path, there: list[int]) -> int:
    records = {step: _custom(root / str(step)) for step in there}
    ranking = records[there[-1]]["ranking"]
    scored = {step: _score(record["metrics"], ranking) for step, record in records.items()}
    if max(scored.values()) == -math.inf:
        names = sorted({name for record in records.values() for name in record["metrics"]})
        raise CheckpointNotFound(
            f"no best checkpoint in {root}: none of the steps {there} has the metric {ranking['metric']!r} "
            f"(stored: {names}); give 'latest' or a step"
        )
    return max(there, key=lambda step: (scored[step], step))


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
    return record["custom_metadata"]


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


def _error_number(error: BaseException) -> int | None:
    """The errno of an OSError, or of a TensorStore error, which is a ValueError with the number in its text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None


def _not_written(said: str, error: BaseException) -> CheckpointNotWritten:
    advice = {
        errno.ENOSPC: "free some space, or keep fewer checkpoints, and start again",
        errno.EDQUOT: "free some space, or keep fewer checkpoints, and start again",
    }
    number = _error_number(error) or errno.EIO
    what = advice.get(number, "give a work folder that can be written to")
    return CheckpointNotWritten(f"{said}: {os.strerror(number)}; {what}")


def _quieten_orbax() -> None:
    """Orbax logs an exception of its threads a dozen times with full tracebacks, and then raises it as well."""
    logger = logging.getLogger("absl")
    if not any(isinstance(one, _OrbaxTracebacks) for one in logger.filters):
        logger.addFilter(_OrbaxTracebacks())


class _OrbaxTracebacks(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)
