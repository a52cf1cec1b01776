"""Compiled programs are kept on disk, so that a run that resumes does not compile again."""

import hashlib
import platform
from pathlib import Path

import jax

from cxrjax.datasets import schema

MOST_BYTES = 4 * 2**30
"""Our choice: some hundred programs. What was not used for longest goes first."""


def folder() -> Path:
    """Where programs lie: one folder for each kind of processor, since programs for one can be wrong on another."""
    return schema.data_dir() / "compiled" / hashlib.sha256(_processor().encode()).hexdigest()[:12]


def use(wanted: bool) -> str:
    """Turns jax's own cache on, unless one is set up by JAX_COMPILATION_CACHE_DIR, and says where it is.

    To be called before anything is compiled. Values do not change: a program is found by its code, its options and the
    versions of jax and XLA.
    """
    if not wanted:
        jax.config.update("jax_enable_compilation_cache", False)
        return "compiled programs are not kept"
    if not (place := jax.config.values["jax_compilation_cache_dir"]):
        place = str(folder())
        jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
        jax.config.update("jax_compilation_cache_dir", place)
    return f"compiled programs are kept in {place}"


def _processor() -> str:
    """The processor's name and what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return "\n".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    )
