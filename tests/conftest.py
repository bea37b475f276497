"""Eight virtual devices for every test, set before JAX starts its backend."""

import functools
import gc
import hashlib
import os
import pathlib
import platform
import shutil
from importlib.metadata import version

# MLflow's client would send statistics of its use.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# LLVM's optimizations take most of the time of tests that run each program once, and
# jaxlib 0.10's new emitters make it three times as long; later versions have no others.
# In 32 parts, for as many threads, a program takes a fifth more processor time.
# Subprocesses inherit this.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false"
    * version("jaxlib").startswith("0.10."),
)

# The Python frames of every operation are written into programs, which no test reads.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# JAX would look for chips, as the TPUs' compiler is installed.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# XLA's pool has a thread a core; eight devices that wait for each other want more.
os.environ.setdefault("PJRT_NPROC", "32")
os.environ.setdefault("NPROC", "32")

import jax
import pytest
from array_annotations import leave_others_alone
from jax._src.interpreters import mlir

from fmjax.say_once import say_once

jax.config.update("jax_num_cpu_devices", 8)
# One program at a time, for the same reason.
jax.config.update("jax_cpu_enable_async_dispatch", False)

ROOT = pathlib.Path(__file__).parents[1]


def _processor() -> str:
    """The instruction set: programs compiled for another one may not run here."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _keep_compiled_programs() -> None:
    """Keeps compiled programs from one run of the suite to the next, in .cache/xla.

    JAX's key is the program, its options, XLA_FLAGS and the version of jaxlib; the
    processor is added here. Subprocesses inherit this.
    """
    machine = f"{platform.machine()} {_processor()}".encode()
    folder = ROOT / ".cache" / "xla" / hashlib.sha256(machine).hexdigest()[:8]
    folder = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    jax.config.update("jax_compilation_cache_dir", folder)
    # Small programs are read faster than they are compiled, too.
    seconds = os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float(seconds))


_keep_compiled_programs()

# A context of MLIR, with all dialects, for each of thousands of small programs took an
# eighth of the time; JAX has no public way to share one.
mlir.make_ir_context = functools.cache(mlir.make_ir_context)

# Traced programs stay in JAX's caches: the heap grows to millions of objects, and with
# the interpreter's thresholds (700, 10, 10) collections took a tenth of the time.
gc.set_threshold(100_000, 50, 100)


def _keep_temporary_files_in_memory() -> None:
    """Lets tmp_path lie in memory where there are 2 GB: checkpoints sync every file."""
    memory = pathlib.Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2e9:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


_keep_temporary_files_in_memory()

leave_others_alone()

SHARED = ROOT.parent / "shared" / "data"


def pytest_addoption(parser):
    """`--slow`."""
    parser.addoption(
        "--slow", action="store_true", help="run the tests marked slow as well"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Leaves slow tests out without `--slow` or `-m`; files with slow ones come first.

    None is then left for one worker's end.
    """
    slow = {item for item in items if item.get_closest_marker("slow")}
    if not config.getoption("--slow") and not config.option.markexpr:
        config.hook.pytest_deselected(items=[item for item in items if item in slow])
        items[:] = [item for item in items if item not in slow]
    slow = {item.path for item in slow}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def nothing_said():
    """Lines that a process prints once are printed anew in every test."""
    say_once.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    # Test runs must not fill, or profit from, the caches of whoever runs them.
    os.environ["FMJAX_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture
def buckets(monkeypatch):
    """A store of objects in memory, which s3:// leads to."""
    from tests.storage.memory_bucket import memory_buckets

    with memory_buckets(monkeypatch) as store:
        yield store


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real datasets beside the checkout; skips where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("needs the datasets in ../shared/data, which are not here")
    return SHARED
