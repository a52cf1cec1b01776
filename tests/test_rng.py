import subprocess
import sys

import jax
import numpy as np

from cxrjax import rng


def data(key):
    return np.asarray(jax.random.key_data(key)).tolist()


def test_streams_differ_by_name_and_step_and_repeat():
    key = jax.random.key(3)
    keys = [rng.fold(key, "mask"), rng.fold(key, "drop"), rng.fold(key, "mask", 0), rng.fold(key, "mask", 1)]
    assert len({str(data(one)) for one in keys}) == 4
    assert data(rng.fold(key, "mask", 1)) == data(rng.fold(key, "mask", 1))


def test_traced_step_is_the_same_stream():
    key = jax.random.key(3)
    assert data(jax.jit(lambda step: rng.fold(key, "mask", step))(7)) == data(rng.fold(key, "mask", 7))


def test_stable_across_processes():
    """Python's own `hash` of a string changes with the process."""
    code = (
        "import jax; from cxrjax import rng; print(jax.random.key_data(rng.fold(jax.random.key(3), 'views')).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(data(rng.fold(jax.random.key(3), "views")))
