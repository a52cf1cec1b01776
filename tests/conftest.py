"""Eight virtual CPU devices and the small converted sets that the tests share."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_default_matmul_precision", "highest")


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
