"""The compilation cache, and the programs and libraries that a run computes with."""

import importlib.metadata
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax

from fmjax.data.folders import cache_address
from fmjax.storage.paths import as_path, is_bucket

_GIT_SECONDS = 3.0  # a network file system may be slow, and a run can do without


def use_compilation_cache(folder: str | None) -> None:
    """Keeps compiled programs on disk, so that a restart does not compile again.

    A folder that JAX is already configured with, as by JAX_COMPILATION_CACHE_DIR, is
    kept unless `folder` names another.

    Raises:
      UserError: the folder is neither a path nor an address of a bucket.
    """
    if folder == "" or (folder is None and jax.config.jax_compilation_cache_dir):
        return
    if folder is not None:
        place = as_path(folder, "train.compilation_cache")
    else:
        place = cache_address(None) / "xla"
    if is_bucket(place):
        # Those are files that XLA itself writes, and it knows no buckets.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", str(place))


def versions() -> dict[str, str]:
    """Versions, by name, of the libraries that a run's results depend on."""
    names = ("fmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def program() -> dict[str, Any]:
    """What runs here, for the record of a run.

    Returns:
      "command": the command line; "python": its version; "versions" of libraries;
      "checkouts": by folder, the git revision of fmjax's own checkout and that of the
      working directory, with "-dirty" if tracked files differ; none where there is no
      checkout.
    """
    name = pathlib.Path(sys.argv[0]).name
    name = "fmjax" if name == "__main__.py" else name  # python -m fmjax
    return {
        "command": shlex.join([name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "versions": versions(),
        "checkouts": _checkouts(),
    }


def _checkouts() -> dict[str, str]:
    package = pathlib.Path(__file__).parents[1]
    found = {}
    # A package that pip installed may lie in an ignored folder of another checkout.
    if _git(package, "ls-files", "__init__.py"):
        found[_git(package, "rev-parse", "--show-toplevel")] = _revision(package)
    here = pathlib.Path.cwd()
    if (top := _git(here, "rev-parse", "--show-toplevel")) and top not in found:
        found[top] = _revision(here)
    return {folder: revision for folder, revision in found.items() if revision}


def _revision(folder: pathlib.Path) -> str:
    name_no_tags = ("--always", "--dirty", "--abbrev=40", "--exclude=*")
    return _git(folder, "describe", *name_no_tags)


def _git(folder: pathlib.Path, *words: str) -> str:
    """The output of git in a folder; "" where it fails or takes too long."""
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
