"""Writing a folder atomically: it appears complete or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fmjax.errors import UserError, refuse_scheme


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to `target` if the block succeeds.

    Raises:
      UserError: the target exists and is not empty, or no folder can be made there.
    """
    refuse_scheme(path, "the new folder")
    target = Path(path).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty; expected a new directory.")
    # Renamed when complete, so that an incomplete folder is never used.
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{target} cannot be made: {error.strerror} ({error.filename}); expected "
            "a new directory on a file system that can be written."
        ) from None
    try:
        yield partial
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
