"""The compilation cache, and versions of the libraries that a run computes with."""

import importlib.metadata

import jax

from fmjax.data.folders import cache_address
from fmjax.storage.paths import as_path, is_bucket


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
