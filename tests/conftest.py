"""Eight virtual devices for every test, set before JAX starts its backend."""

import os
import pathlib
from importlib.metadata import version

# LLVM's optimizations take most of the time of tests that run each program once, and
# jaxlib 0.10's new emitters make it three times as long; later versions have no others.
# Subprocesses inherit this.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
)

# XLA's pool has a thread a core; eight devices that wait for each other want more.
os.environ.setdefault("PJRT_NPROC", "32")
os.environ.setdefault("NPROC", "32")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# One program at a time, for the same reason.
jax.config.update("jax_cpu_enable_async_dispatch", False)

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that none is left for one worker's end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    # Test runs must not fill, or profit from, the caches of whoever runs them.
    os.environ["FMJAX_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real datasets beside the checkout; skips where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("needs the datasets in ../shared/data, which are not here")
    return SHARED
