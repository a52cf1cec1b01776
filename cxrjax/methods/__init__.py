"""One file per published system or baseline; each exposes `make(config) -> Method`.

A method of your own is a file that does the same: config.method is its path, or the name that an installed package
gives it in the group of entry points "cxrjax.methods".
"""

import difflib
import importlib
import pkgutil
from types import ModuleType

import numpy as np

from cxrjax import named, sizes
from cxrjax.imaging import pixels
from cxrjax.input import device
from cxrjax.methods import settings
from cxrjax.methods.base import Aux, Config, Method

SHARED = ("base", "settings", "towers", "trunk")
"""Modules of this package that are no method."""

__all__ = ["Aux", "Method", "available", "blank_batch", "make"]


def available() -> list[str]:
    """Names of all methods."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in SHARED)


def make(config: Config, total_steps: int | None = None) -> Method:
    """Builds the method that config.method names; raises ValueError listing what exists.

    total_steps: of the run, where the trainer worked them out: some methods change over the whole run (`base.ramp`).
    """
    module = _module(config.method)
    if total_steps is not None:
        config = config.copy_and_resolve_references()
        config.duration = {"total_steps": total_steps}
    settings.one_of(config, "standardise.mode", device.MODES)
    return module.make(config)


def _module(name: str) -> ModuleType:
    ours = available()
    if name in ours:
        return importlib.import_module(f"cxrjax.methods.{name}")
    if (module := named.brought(name, named.METHODS, "config.method")) is not None:
        return module
    known = [*ours, *named.plug_ins(named.METHODS)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"there is no method {name!r}; available: {', '.join(known)}, or a file.{hint}")


def blank_batch(method: Method) -> dict[str, np.ndarray]:
    """What the method's own `views` make of one black picture, or of a study of two without a report.

    For `init`, which reads shapes and no values.
    """
    names = {"set": "", "image_id": "", "patient_id": "", "study_id": ""}
    black = np.zeros(sizes.sides(method.image_px), np.uint8)
    picture = {"image": pixels.encode(black, "png"), **names}
    parts = {"frontals": [picture], "laterals": [picture], "others": [], "has_frontal": True, "has_lateral": True}
    example = {**picture, **parts, "report": {"findings": "", "impression": "", "text": ""}}
    return {key: np.asarray(value)[None] for key, value in method.views(example, np.random.default_rng(0)).items()}
