"""The compilation cache, and versions of the libraries that a run computes with."""

import importlib.metadata

import jax

from fmjax.data.folders import cache_root
from fmjax.errors import refuse_scheme


def use_compilation_cache(folder: str | None) -> None:
    """Keeps compiled programs on disk, so that a restart does not compile again.

    A folder that JAX is already configured with, as by JAX_COMPILATION_CACHE_DIR, is
    kept unless `folder` names another.

    Raises:
      UserError: the folder is an address such as gs://bucket/folder.
    """
    if folder == "" or (folder is None and jax.config.jax_compilation_cache_dir):
        return
    if folder is not None:
        refuse_scheme(folder, "train.compilation_cache")
    place = folder or cache_root(None) / "xla"
    jax.config.update("jax_compilation_cache_dir", str(place))


def versions() -> dict[str, str]:
    """Versions, by name, of the libraries that a run's results depend on."""
    names = ("fmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: importlib.metadata.version(name) for name in names}
