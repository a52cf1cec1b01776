"""Configs by name, from anywhere: those that come with cxrjax, those in ./configs, files, and config.json of a run."""

import difflib
import importlib
import importlib.util
import re
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parent
COME_WITH = (PACKAGE / "configs", PACKAGE.parent / "configs")
"""In an installed package, and in a clone."""
HERE = Path("configs")
METHODS, JUDGES, TRACKERS = "cxrjax.methods", "cxrjax.judges", "cxrjax.trackers"
"""Groups of entry points, name = module, by which other installed packages bring theirs.

A method has make(config), and get_config(words) to be trained by its name; a judge has JUDGE; a tracker has open.
"""


def available() -> dict[str, Path]:
    """Configs by name: those that come with cxrjax; one of the same name in ./configs takes its place."""
    return {file.stem: file for folder in (*COME_WITH, HERE) for file in sorted(folder.glob("*.py"))}


def find(given: str) -> tuple[Path, str]:
    """ "spcl:smoke" → the file spcl.py, "smoke": what its get_config takes. A config.json is read by saved_config.py.

    given: NAME, configs/NAME.py, or a path, with words after a colon; "probe" is also eval_probe. Or a config.json.
    Raises ValueError with the nearest name.
    """
    if given.endswith(".json"):
        if not Path(given).is_file():
            raise ValueError(f"there is no file {given!r}; a run has its config.json in its workdir")
        return PACKAGE / "saved_config.py", given
    name, _, words = given.partition(":")
    known, plugins = available(), plug_ins()
    if Path(name).is_file():
        file = Path(name).resolve()  # a method in the same file is `config.method = __file__`
    elif name in plugins:
        file = origin(plugins[name])
    else:
        stem = Path(name).stem if Path(name).parent in (HERE, Path()) else name
        file = known.get(stem) or known.get(f"eval_{stem}")
    if file is None:
        near = difflib.get_close_matches(Path(name).stem, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        listing = ", ".join(sorted({*known, *plugins}))
        raise ValueError(f"there is no config {name!r}; available: {listing}, or the path of a file.{hint}")
    return file, words


def plug_ins(group: str = METHODS) -> dict[str, str]:
    """What other installed packages bring: name → module."""
    return {point.name: point.module for point in metadata.entry_points(group=group)}


def brought(given: str, group: str, setting: str) -> ModuleType | None:
    """The module of a file "mine.py", or of a plug-in of that name; None where there is neither.

    Raises ValueError naming the setting for a file that is not there.
    """
    if given.endswith(".py"):
        if not Path(given).is_file():
            raise ValueError(f"{setting} is {given!r}, and there is no such file")
        return load(Path(given))
    module = plug_ins(group).get(given)
    return importlib.import_module(module) if module else None


def origin(module: str) -> Path:
    """The file of a module, which is not run."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"the plug-in {module} is announced by a package, and not there: install that package again")
    return Path(spec.origin)


def load(file: Path) -> ModuleType:
    """The module in a file, run once in a process."""
    name = re.sub(r"\W", "_", f"file{file.resolve()}")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None  # as every file .py has
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses, such as networks of Flax, look themselves up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
