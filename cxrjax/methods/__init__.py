"""One file per published system or baseline; each exposes `make(config) -> Method`."""

import difflib
import importlib
import pkgutil

from cxrjax.methods.base import Aux, Method

__all__ = ["Aux", "Method", "available", "make"]


def available() -> list[str]:
    """Names of all methods: the modules of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def make(config) -> Method:
    """Builds the method that config.method names; raises ValueError listing what exists."""
    names = available()
    if config.method not in names:
        near = difflib.get_close_matches(config.method, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no method {config.method!r}; available: {', '.join(names)}.{hint}")
    return importlib.import_module(f"cxrjax.methods.{config.method}").make(config)
