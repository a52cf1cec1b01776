"""Eight virtual CPU devices, a folder of what was compiled, and the small converted sets that the tests share."""

import atexit
import gc
import os
import shutil
import tempfile

import jaxlib

# Where cores are shared, eight devices may wait long for each other; by default XLA then ends the process.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=600"
if jaxlib.__version__.startswith("0.10."):  # a third of the time to compile; later versions have lost the switch
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
# A device that waits for the others holds a thread of XLA's pool, and two where a loop has collectives of its own. By
# default the pool has a thread per device: on few cores all of them waited for a device that had no thread left, until
# XLA ended the process ten minutes later.
os.environ.setdefault("PJRT_NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Threads of NumPy and PyTorch that wait for work turn in circles on the cores that the other tests need.
for library in ("OMP", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # pytest's first process makes it; its workers, and the commands that tests start, find it in the environment.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="cxrjax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")


def pytest_collection_finish():
    """What is imported stays. jax makes many objects while it traces; by default Python looks at them every 700."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


def pytest_runtest_setup(item):
    """Most of a quick test's time is compilation, and most of a slow one's is what was compiled."""
    jax.config.update("jax_disable_most_optimizations", item.get_closest_marker("slow") is None)


def pytest_runtest_teardown(item, nextitem):
    """What a file has compiled serves no other, and would add up to gigabytes per process."""
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory):
    """Data folder that holds the set "phantom", 48 studies at 64 px, and later "phantom_smoke"."""
    from cxrjax.phantom import phantom_set

    data_dir = tmp_path_factory.mktemp("data")
    phantom_set.build(data_dir, studies=48, short_side=64, progress=False)
    return data_dir
