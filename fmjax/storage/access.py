"""Whether a bucket can be written, asked before anything is compiled."""

import os
import pathlib
import sys
import uuid

from fmjax.errors import UserError
from fmjax.storage import objects


def check_bucket(folder: pathlib.Path, name: str, prefix: str) -> None:
    """Writes, lists, reads and deletes a small object of a bucket's folder.

    Args:
      folder: the folder; need not exist.
      name: the option or field that holds it, for errors.
      prefix: of the object's name.

    Raises:
      UserError: the bucket does not exist, or the credentials are missing or do not
        allow it.
    """
    probe = folder / f"{prefix}{uuid.uuid4().hex}"
    try:
        with objects.os_errors(folder):
            objects.create(probe, b"1")
            found = any(path.name == probe.name for path in folder.iterdir())
            again = objects.create(probe, b"2")
            content = probe.read_bytes()
            objects.remove(probe)
    except OSError as error:
        raise cannot_use(folder, name, error) from error
    if not found or content not in (b"1", b"2"):
        raise UserError(
            f"{name} = {os.fspath(folder)!r}: an object that was written is not listed "
            "or differs; expected a store that shows at once what was written."
        )
    if again:
        print(
            f"{folder}: the store has no conditional writes, so two runs that start at "
            "the same moment would not notice each other",
            file=sys.stderr,
        )


def cannot_use(folder: pathlib.Path, name: str, error: OSError) -> UserError:
    """The error for a folder of a bucket that cannot be read or written."""
    text = " ".join(str(error.strerror or error).split())
    if isinstance(error, FileNotFoundError):
        why = f"there is no such bucket ({text})"
    elif isinstance(error, PermissionError):
        why = f"the credentials do not allow it ({text})"
    else:
        why = text
    return UserError(
        f"{name} {folder} cannot be used: {why}. Expected a bucket that exists, and "
        "credentials that may list, read, write and delete in it: those of the AWS "
        "command line for s3://, of gcloud for gs://. Use another folder, or see "
        "docs/tasks/buckets.md."
    )
