"""A run that resumes compiles nothing again; one key turns that off; a cache of one's own stays."""

import shutil
from collections import Counter

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from cxrjax import train
from cxrjax.accelerators import compile_cache
from tests import runs

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def counted(phantom_dir, monkeypatch):
    """jax with no cache folder set, keeping programs of any compile time; what its cache counts: hits and misses."""
    monkeypatch.setenv("CXRJAX_DATA", str(phantom_dir))
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    found = Counter()
    jax.monitoring.register_event_listener(lambda event, **_: found.update([event.rpartition("/")[2]]))
    yield found
    jax.monitoring.clear_event_listeners()
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    jax.clear_caches()


def test_a_resumed_run_compiles_no_step_again(counted, tmp_path):
    said = compile_cache.use(True)
    assert str(compile_cache.folder()) in said
    jax.clear_caches()
    config = runs.config(evals={}, checkpoint__every_steps=3)
    train.fit(config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    assert counted["cache_misses"] > 0 and counted["cache_hits"] == 0
    counted.clear()
    jax.clear_caches()
    train.fit(config, tmp_path)
    assert counted["cache_misses"] == 0 and counted["cache_hits"] > 0


def test_one_key_turns_it_off(counted):
    assert compile_cache.use(False) == "compiled programs are not kept"
    assert not jax.config.jax_enable_compilation_cache


def test_a_folder_that_is_set_up_already_stays(counted, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert compile_cache.use(True) == f"compiled programs are kept in {tmp_path}"


def test_another_processor_has_another_folder(counted, monkeypatch):
    here = compile_cache.folder()
    monkeypatch.setattr(compile_cache, "_processor", lambda: "another")
    assert compile_cache.folder() != here
