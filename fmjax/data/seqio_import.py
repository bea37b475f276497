"""Importing TensorFlow and seqio on first use, without accelerators or log lines."""

import contextlib
import functools
import os
import sys
import types
from collections.abc import Iterator

from fmjax.errors import UserError


@functools.cache
def import_seqio() -> types.ModuleType:
    """Imports seqio and keeps TensorFlow from using accelerators.

    Raises:
      UserError: TensorFlow or seqio is not installed. To read a cache that is already
        built, neither is needed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet_stderr():
        return _import()


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Suppresses standard error: TensorFlow's C++ prints lines at any log level."""
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # There is no standard error.
        yield
        return
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _import() -> types.ModuleType:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(
            "Building or streaming a dataset needs TensorFlow and seqio, which are not "
            f"installed ({error}). Install them, or build the cache on another machine "
            "with `fmjax data cache` and set data.cache_dir to it."
        ) from error
    # TensorFlow would reserve all memory of the accelerators, which JAX needs. The call
    # raises if TensorFlow is already initialized.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    try:
        import seqio
    except ImportError as error:
        raise UserError(
            f"Building or streaming a dataset needs seqio: {error}."
        ) from error
    return seqio
