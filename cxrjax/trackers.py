"""Where a run is shown beside its own files: Weights & Biases, MLflow, trackio. None is needed, or imported unasked.

`config.trackers = "wandb,mlflow"` asks for them. Their own environment variables say where they keep things
(WANDB_MODE=offline, MLFLOW_TRACKING_URI, TRACKIO_DIR). The project is cxrjax, or CXRJAX_PROJECT. A resumed run goes on
under its name; a tracker that fails is told once and left out, since metrics.jsonl has everything.

A tracker of your own is a file with `open(workdir, settings) -> Shown`, named by its path, or by the name that an
installed package gives it in the group of entry points "cxrjax.trackers".
"""

import hashlib
import importlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cxrjax import named

INSTALL = {name: f"pip install 'cxrjax[{name}]'" for name in ("wandb", "mlflow", "trackio")}


class Shown(Protocol):
    """One place where a run is shown."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, path: Path) -> None: ...

    def close(self) -> None: ...


class Wandb:
    """Weights & Biases, and trackio, which has the same functions."""

    def __init__(self, module: Any, workdir: Path, settings: Mapping[str, Any], **own: Any):
        self.module = module
        self.run = module.init(project=project(), name=workdir.name, config=dict(settings), resume="allow", **own)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.module.log(dict(values), step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        self.module.log({name: self.module.Image(str(path))}, step=step)

    def close(self) -> None:
        self.module.finish()


class Mlflow:
    """MLflow, whose run is found again by its id in <workdir>/mlflow.json."""

    def __init__(self, module: Any, workdir: Path, settings: Mapping[str, Any]):
        self.module, file = module, workdir / "mlflow.json"
        module.set_experiment(project())
        known = json.loads(file.read_text()) if file.exists() else {"run_name": workdir.name}
        run = module.start_run(**known)
        file.write_text(json.dumps({"run_id": run.info.run_id}))
        if "run_id" not in known:  # parameters of a run cannot change
            given = [(key, str(value)[:500]) for key, value in settings.items()]
            for start in range(0, len(given), 100):  # as many as it takes at once
                module.log_params(dict(given[start : start + 100]))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.module.log_metrics(dict(values), step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        self.module.log_artifact(str(path), artifact_path=f"pictures/{step}")

    def close(self) -> None:
        self.module.end_run()


class Together:
    """Several trackers as one; one that fails is told once and left out."""

    def __init__(self, shown: Sequence[Shown]):
        self.shown = list(shown)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda one: one.scalars(step, values))

    def picture(self, step: int, name: str, path: Path) -> None:
        self._each(lambda one: one.picture(step, name, path))

    def close(self) -> None:
        self._each(lambda one: one.close())

    def _each(self, call: Callable[[Shown], None]) -> None:
        for one in list(self.shown):
            try:
                call(one)
            except Exception as error:  # whatever a service or its network raises
                self.shown.remove(one)
                logging.warning("%s is left out from here on: %s", type(one).__name__, error)


def together(names: Sequence[str], workdir: Path, settings: Mapping[str, Any]) -> Together:
    """Opens trackers by name. settings: the run's config by dotted key.

    Raises ValueError for a name that is none, and one that is not installed.
    """
    return Together([_opened(name, workdir, settings) for name in names])


def project() -> str:
    return os.environ.get("CXRJAX_PROJECT") or "cxrjax"


def check(names: Sequence[str]) -> None:
    """Raises ValueError for a tracker that is none, or not installed."""
    for name in names:
        _module(name)


def _opened(name: str, workdir: Path, settings: Mapping[str, Any]) -> Shown:
    module = _module(name)
    if name not in INSTALL:
        return module.open(workdir, settings)
    if name == "mlflow":
        return Mlflow(module, workdir, settings)
    if name == "trackio":
        return Wandb(module, workdir, settings)
    identity = hashlib.sha256(f"{workdir.resolve()}".encode()).hexdigest()[:12]
    return Wandb(module, workdir, settings, dir=str(workdir), id=f"{workdir.name}-{identity}")


def _module(name: str) -> Any:
    if name not in INSTALL:
        module = named.brought(name, named.TRACKERS, "trackers")
        if module is None:
            known = [*INSTALL, *named.plug_ins(named.TRACKERS)]
            raise ValueError(f"trackers: there is no {name!r}; there are {', '.join(known)}, or the file of your own")
        if not hasattr(module, "open"):
            raise ValueError(f"trackers: {name} has no open(workdir, settings), as docs/add/tracker.md shows it")
        return module
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"trackers: {name} is not installed ({error}): {INSTALL[name]}") from None
