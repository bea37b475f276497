"""What programs are compiled with and kept in, and the versions of what computes."""

import importlib.metadata
import os
import pathlib

import jax


def use_compilation_cache(folder: str | None) -> None:
    """Keeps compiled programs on disk, so that a restart does not compile again.

    A folder that JAX was already told, as by JAX_COMPILATION_CACHE_DIR, stays unless
    `folder` names another.
    """
    if folder == "" or (folder is None and jax.config.jax_compilation_cache_dir):
        return
    home = os.environ.get("FMJAX_CACHE") or pathlib.Path.home() / ".cache" / "fmjax"
    jax.config.update("jax_compilation_cache_dir", str(folder or f"{home}/xla"))


def versions() -> dict[str, str]:
    """Versions of the libraries that a run's numbers depend on."""
    names = ("fmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: importlib.metadata.version(name) for name in names}
