"""Writing a folder atomically: it appears complete or not at all."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from fmjax.errors import UserError
from fmjax.storage import objects
from fmjax.storage.access import cannot_use
from fmjax.storage.paths import as_path, is_bucket

# Files without which a folder is none of a model or a run.
_LAST = ("config.json", "config.gin")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder that becomes the target if the block succeeds.

    It is renamed, or uploaded to a bucket, where the file that makes it a model or a
    run comes last.

    Raises:
      UserError: the target exists and is not empty, or no folder can be made there.
    """
    target = as_path(path, "the new folder")
    if is_bucket(target):
        with _new_in_bucket(target) as draft:
            yield draft
        return
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise _not_empty(target)
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


@contextlib.contextmanager
def _new_in_bucket(target: pathlib.Path) -> Iterator[pathlib.Path]:
    try:
        taken = bool(objects.files_of(target))
    except FileNotFoundError:
        taken = False
    except OSError as error:
        raise cannot_use(target, "the new folder", error) from None
    if taken:
        raise _not_empty(target)
    with tempfile.TemporaryDirectory(prefix="fmjax-") as place:
        draft = pathlib.Path(place, target.name)
        draft.mkdir()
        yield draft
        files = [file for file in sorted(draft.rglob("*")) if file.is_file()]
        try:
            for file in sorted(files, key=lambda file: file.name in _LAST):
                name = file.relative_to(draft).as_posix()
                objects.upload(file, target / name)
        except OSError as error:
            raise cannot_use(target, "the new folder", error) from None


def _not_empty(target: pathlib.Path) -> UserError:
    return UserError(f"{target} exists and is not empty; expected a new directory.")
