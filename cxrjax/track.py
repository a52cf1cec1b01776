"""What a run says of itself: metrics.jsonl, TensorBoard, a progress line. It does not wait for the device.

`log` keeps the arrays and starts their copy; they are read when the next record comes, by which time they are done.
Before a checkpoint everything is written out (`check_finite`), so the lines of a resumed run's file are those of a run
that was never interrupted, fields under "time/" excepted.
"""

import datetime
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from tensorboard.compat.proto import event_pb2 as _event_pb2
from tensorboard.compat.proto import histogram_pb2 as _histogram_pb2
from tensorboard.compat.proto import summary_pb2 as _summary_pb2
from tensorboard.compat.proto import tensor_pb2 as _tensor_pb2
from tensorboard.compat.proto import types_pb2 as _types_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams import plugin_data_pb2 as _plugin_data_pb2
from tensorboard.plugins.text import metadata as texts
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tqdm import tqdm

from cxrjax import trackers
from cxrjax.runtime import hosts
from cxrjax.runtime.goodput import Goodput

# Protocol buffers make their classes when they are imported, which type checkers cannot follow.
event_pb2: Any = _event_pb2
histogram_pb2: Any = _histogram_pb2
summary_pb2: Any = _summary_pb2
tensor_pb2: Any = _tensor_pb2
types_pb2: Any = _types_pb2
plugin_data_pb2: Any = _plugin_data_pb2

_SECONDS_BETWEEN_LINES = 10
_SECONDS = "time/seconds/"
# What the progress line shows of the newest records, by the end of the name: a collapse is seen before the run is over.
_SHOWN = {
    "train/loss": "loss",
    "train/monitor/feature_std": "std",
    "train/monitor/effective_rank": "rank",
    "/knn_auroc": "knn",
    "/auroc": "probe",
}


class NonFinite(FloatingPointError):
    """A logged or saved training value is NaN or infinite."""


class Tracker:
    """Records of one run, for `with Tracker(...) as tracker`; process 0 writes, every process checks.

    start: the step resumed from; records of later steps, and a line cut off by a kill, are taken out of metrics.jsonl.
    every: steps between records, see `due`. batch_size is global. time_of: where the run's time goes, which the records
    tell in seconds of all starts. settings: of the run, by dotted key, for TensorBoard and other trackers. others: the
    names of those, see `trackers`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        total_steps: int,
        batch_size: int,
        every: int = 50,
        start: int = 0,
        time_of: Goodput | None = None,
        settings: Mapping[str, Any] | None = None,
        others: Sequence[str] = (),
    ):
        self.workdir = Path(workdir)
        self.total_steps, self.batch_size, self.every = total_steps, batch_size, every
        self._pending: tuple[int, dict, float] | None = None
        self._window: tuple[int, float] | None = None  # step and time of the record before
        self._began: tuple[int, float] | None = None  # of the first record: what came before was mostly compiling
        self._printed = -math.inf
        self._latest: dict[str, float] = {}  # of what the progress line shows
        self.time_of = time_of or Goodput()
        self.judged = False  # whether the file has what judges found at `start`
        self._writes = hosts.is_first()
        self._bar = None
        if self._writes:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._file, last, dropped = _reopen(self.workdir / "metrics.jsonl", start)
            self.time_of.resume(_seconds(last), _seconds(dropped))
            last = last if last.get("step") == start else {}
            self.judged = any(name.startswith("eval/") for name in last)
            if start == 0:  # what was shown by a session that was killed before its first checkpoint
                for events in (self.workdir / "tensorboard").glob("events.out.tfevents.*"):
                    events.unlink()
            self._tensorboard = EventFileWriter(str(self.workdir / "tensorboard"))
            self._others = trackers.together(others, self.workdir, settings or {})
            if start:
                # TensorBoard forgets what an earlier session wrote from this step on.
                session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._tensorboard.add_event(event_pb2.Event(step=start + 1, wall_time=time.time(), session_log=session))
            if settings and start == 0:
                self._show(0, _settings(settings))
            if sys.stderr.isatty():
                self._bar = tqdm(total=total_steps, initial=start, unit="step", dynamic_ncols=True)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            self._write_pending(check=error is None)
        finally:
            if self._writes:
                self._file.close()
                self._tensorboard.close()
                self._others.close()
            if self._bar is not None:
                self._bar.close()

    def due(self, step: int) -> bool:
        """Whether a record of `step` (1 after the first update) is wanted: every `every` steps, and the last."""
        return step % self.every == 0 or step == self.total_steps

    def log(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Takes one record: {"train/loss": device array or number, …}. Writes the record before this one.

        Raises NonFinite if that one has a "train/" value that is NaN or infinite.
        """
        self._write_pending(check=True)
        for value in scalars.values():
            if isinstance(value, jax.Array):
                value.copy_to_host_async()
        self._pending = (step, dict(scalars), time.monotonic())

    def flush(self) -> None:
        """Writes what is pending, to the disk; raises NonFinite as `log` does."""
        self._write_pending(check=True)
        if self._writes:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._tensorboard.flush()

    def check_finite(self, step: int, scalars: Mapping[str, Any]) -> None:
        """To be called before the state of `step` is saved: waits for the device, writes what is pending.

        Raises NonFinite naming the step and the values that are not finite.
        """
        self.flush()
        _check(step, _fetch(scalars))

    def picture(self, name: str, image: np.ndarray, step: int = 0) -> None:
        """Writes <workdir>/<name>.png and shows it in TensorBoard. image: uint8 h w, h w 1 or h w 3 (RGB)."""
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,)):
            raise ValueError(
                f"picture '{name}' is {image.dtype} {image.shape}; give uint8 (h, w), (h, w, 1) or (h, w, 3)"
            )
        if not self._writes:
            return
        encoded = cv2.imencode(".png", image[..., ::-1] if image.shape[2:] == (3,) else image)[1].tobytes()
        path = self.workdir / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
        shown = summary_pb2.Summary.Image(height=image.shape[0], width=image.shape[1], encoded_image_string=encoded)
        self._show(step, [summary_pb2.Summary.Value(tag=name, image=shown)])
        self._others.picture(step, name, path)

    def histogram(
        self, step: int, name: str, counts: np.ndarray, edges: np.ndarray, total: float, squares: float
    ) -> None:
        """Shows in TensorBoard how numbers are spread. counts: k; edges: k+1; total, squares: sums over the numbers."""
        if not self._writes:
            return
        ends = {"min": float(edges[0]), "max": float(edges[-1]), "bucket_limit": [float(edge) for edge in edges[1:]]}
        counted = {"num": float(counts.sum()), "bucket": [float(count) for count in counts]}
        spread = histogram_pb2.HistogramProto(**ends, **counted, sum=float(total), sum_squares=float(squares))
        self._show(step, [summary_pb2.Summary.Value(tag=name, histo=spread)])

    def _write_pending(self, check: bool) -> None:
        if self._pending is None:
            return
        (step, scalars, when), self._pending = self._pending, None
        values = _fetch(scalars)
        rate = self._images_per_second(step, when)
        if self._writes:
            timed = values | ({"time/images_per_second": rate} if rate else {}) | {"time/unix_s": time.time()}
            timed |= {f"{_SECONDS}{kind}": round(seconds, 3) for kind, seconds in self.time_of.seconds().items()}
            finite = {name: value if math.isfinite(value) else None for name, value in timed.items()}
            self._append(json.dumps({"step": step, **finite}))
            self._show(step, [summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in timed.items()])
            self._others.scalars(step, {name: value for name, value in finite.items() if value is not None})
            self._latest |= {name: value for name, value in values.items() if name.endswith(tuple(_SHOWN))}
            self._progress(step, "train/loss" in values, rate, when)
        if check:
            _check(step, values)

    def _images_per_second(self, step: int, when: float) -> float | None:
        """Over the steps since the record before. A second record of a step (evaluation) only restarts the clock."""
        before, self._window = self._window, (step, when)
        if before is None:
            self._began = (step, when)
        if before is None or step <= before[0]:
            return None
        return (step - before[0]) * self.batch_size / max(when - before[1], 1e-9)

    def _append(self, line: str) -> None:
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"{self._file.name} cannot be written: {error.strerror}; free some space and resume"
            ) from None

    def _show(self, step: int, values: list) -> None:
        summary = summary_pb2.Summary(value=values)
        self._tensorboard.add_event(event_pb2.Event(step=step, wall_time=time.time(), summary=summary))

    def _progress(self, step: int, trained: bool, rate: float | None, when: float) -> None:
        said = _words(self._latest) + ([f"{rate:.4g} images/s"] if rate else [])
        said += [f"input {self.time_of.waiting():.0%}"] if rate else []
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(said), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if not trained or (now - self._printed < _SECONDS_BETWEEN_LINES and step < self.total_steps):
            return
        self._printed = now
        first, began = self._began or (step, when)
        steps, seconds = step - first, when - began
        left = round((self.total_steps - step) * seconds / steps) if steps else None
        said += [f"ETA {datetime.timedelta(seconds=left)}"] if left else []
        print(f"step {step}/{self.total_steps} ({step / self.total_steps:.0%})  {'  '.join(said)}", flush=True)


def _settings(settings: Mapping[str, Any]) -> list:
    """The config as TensorBoard's text, and for its page of hyper-parameters."""
    table = "\n".join(["| setting | value |", "|---|---|", *(f"| {k} | `{v!r}` |" for k, v in settings.items())])
    text = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[table.encode()])
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for key, value in settings.items():
        if isinstance(value, bool):
            start.hparams[key].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[key].number_value = value
        elif value not in (None, "", ()):
            start.hparams[key].string_value = str(value)
    begins = hparams.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_start_info=start))
    return [
        summary_pb2.Summary.Value(tag="config", metadata=texts.create_summary_metadata("", ""), tensor=text),
        summary_pb2.Summary.Value(tag=hparams.SESSION_START_INFO_TAG, metadata=begins, tensor=hparams.NULL_TENSOR),
    ]


def _words(latest: Mapping[str, float]) -> list[str]:
    """["loss 2.5", "knn phantom 0.71 clinic 0.64"]: what was judged has its set before it."""
    found = []
    for end, word in _SHOWN.items():
        numbers = [
            f"{name.split('/')[1]} {latest[name]:.4g}" if name.startswith("eval/") else f"{latest[name]:.4g}"
            for name in sorted(latest)
            if name.endswith(end)
        ]
        found += [" ".join([word, *numbers])] if numbers else []
    return found


def _fetch(scalars: Mapping[str, Any]) -> dict[str, float]:
    values = jax.device_get(dict(scalars))
    wide = {name: np.shape(value) for name, value in values.items() if np.size(value) != 1}
    if wide:
        raise ValueError(f"only single numbers can be logged; of {len(values)} these are arrays: {wide}")
    return {name: float(np.asarray(value).reshape(())) for name, value in values.items()}


def _check(step: int, values: dict[str, float]) -> None:
    train = {name: value for name, value in values.items() if name.startswith("train/")}
    bad = {name: value for name, value in train.items() if not math.isfinite(value)}
    if bad:
        # The term that started it says more than the loss and the norms that it took along.
        first = sorted(bad, key=lambda name: (not name.startswith("train/term/"), name))
        found = ", ".join(f"{name} = {bad[name]}" for name in first)
        raise NonFinite(
            f"step {step}: {found}; {len(train) - len(bad)} of {len(train)} logged training values are finite. "
            "Nothing of it was saved: lower the rate, lengthen the warm-up or set grad_clip, and choose a new --workdir"
        )


def _reopen(path: Path, start: int):
    """The file for appending, holding whole lines of steps up to `start`; the last one of these, and of the others."""
    kept, dropped = [], []
    if path.exists():
        for line in path.read_text(errors="replace").splitlines(keepends=True):
            (kept if _step(line) <= start else dropped).append(line)
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.replace(path)
    ends = [next((json.loads(one) for one in reversed(part) if _step(one) < math.inf), {}) for part in (kept, dropped)]
    return path.open("a"), *ends


def _seconds(record: Mapping[str, Any]) -> dict[str, float]:
    """What a record says of the time of the run, by kind."""
    return {name.removeprefix(_SECONDS): value for name, value in record.items() if name.startswith(_SECONDS)}


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
