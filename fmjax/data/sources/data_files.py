"""Files of data, on file systems and in buckets, by the same functions.

An object of a bucket is read through fsspec, from wherever a reader wants it. Readers
that need a file of their own, such as those that map it into memory, get a copy in the
cache's folder, which is made again when the object changes.
"""

import contextlib
import fcntl
import functools
import io
import json
import os
import pathlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from fmjax.data.folders import cache_address
from fmjax.errors import UserError
from fmjax.storage import objects
from fmjax.storage.access import cannot_use
from fmjax.storage.object_reader import (
    FIRST_BYTES,
    MOST_BYTES,
    ObjectReader,
    ReadAhead,
)
from fmjax.storage.paths import as_path, is_bucket

# What a store says of an object's version, by the store. On GCS the etag changes with
# the metadata alone, the generation with the content.
_VERSIONS = ("ETag", "generation", "etag", "LastModified", "mtime", "created")


class FileVersion(NamedTuple):
    """What tells whether a file has changed, without reading it.

    Attributes:
      size: bytes of the file.
      version: nanoseconds of its last change; of an object, what the store calls its
        version, such as an ETag.
    """

    size: int
    version: int | str


def file_version(file: pathlib.Path) -> FileVersion:
    """Size and version of a file.

    Raises:
      OSError: it cannot be read.
    """
    if is_bucket(file):
        return _object_version(os.fspath(file))
    stat = file.stat()
    return FileVersion(stat.st_size, stat.st_mtime_ns)


def file_size(file: pathlib.Path) -> int:
    """Bytes of a file; raises OSError."""
    return file_version(file).size


@contextlib.contextmanager
def open_binary(
    file: pathlib.Path, stop: int | None = None, first: int = FIRST_BYTES
) -> Iterator[BinaryIO]:
    """Opens a file for reading from some place onwards.

    Args:
      file: the file.
      stop: where the part ends that is read, beyond which nothing is fetched; None if
        it is not known. An object is fetched in larger and larger pieces then, up to
        4 MiB.
      first: bytes of the first of these pieces.

    Raises:
      OSError: it cannot be read.
      StoreFailure: a store does not answer; in the body of the `with` statement too.
    """
    if not is_bucket(file):
        with open(file, "rb") as content:
            yield content
        return
    with (
        ReadAhead(file, stop, first) as opened,
        io.BufferedReader(opened, MOST_BYTES) as content,
    ):
        yield content


@contextlib.contextmanager
def open_ranges(file: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file for a reader that knows what it needs; errors as `open_binary`.

    Each read from an object is a request, and fetches nothing else.
    """
    if is_bucket(file):
        with ObjectReader(file) as content:
            yield cast(BinaryIO, content)
        return
    with open(file, "rb") as content:
        yield content


def common_folder(files: Sequence[pathlib.Path]) -> pathlib.Path:
    """The folder that all files are below."""
    root = files[0].parent
    while not all(file.is_relative_to(root) for file in files):
        root = root.parent
    return root


def relative_name(file: pathlib.Path, root: pathlib.Path | str) -> str:
    """The name of a file relative to a folder, with slashes."""
    root = os.fspath(root)
    if is_bucket(file):
        return os.fspath(file).removeprefix(root.rstrip("/")).lstrip("/") or "."
    return os.path.relpath(file, root)


def local_file(file: pathlib.Path) -> pathlib.Path:
    """A file of this machine with the content of a file: itself, or a copy.

    Copies are below `objects` in $FMJAX_CACHE if that is local, else in ~/.cache/fmjax,
    under the names that they have in the bucket.

    Raises:
      UserError: the object cannot be read, or the copy cannot be written.
    """
    if not is_bucket(file):
        return file
    address = os.fspath(file)
    scheme, _, name = address.partition("://")
    place = _copies() / scheme / name
    note = place.with_name(f".{place.name}.version")
    try:
        known = [*file_version(file)]
        if not _is_copy(place, note, known):
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(place.with_name(f".{place.name}.lock"), "wb") as lock:
                # One process of the machine copies it, the others wait.
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_copy(place, note, known):
                    _copy(file, place)
                    note.write_text(json.dumps(known))
    except OSError as error:
        raise UserError(
            f"{address} cannot be copied to {place}: {error.strerror or error}."
        ) from error
    return place


def _copy(file: pathlib.Path, place: pathlib.Path) -> None:
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    try:
        objects.with_retries(file, lambda: objects.download(file, temporary))
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def _is_copy(place: pathlib.Path, note: pathlib.Path, version: list) -> bool:
    """Whether a local file is a copy of this version of an object, as its note says."""
    with contextlib.suppress(OSError, ValueError):
        return place.is_file() and json.loads(note.read_text()) == version
    return False


def objects_below(folder: str, binding: str) -> dict[str, Any]:
    """What a store lists below an address, as {address: description}.

    Args:
      folder: the address of a folder or an object.
      binding: gin name of the field that holds it, for messages.

    Raises:
      UserError: the bucket cannot be read.
    """
    return _listed(folder, binding, "find")


def objects_like(pattern: str, binding: str) -> dict[str, Any]:
    """What a store lists of a glob without `**`; see `objects_below`."""
    return _listed(pattern, binding, "glob")


def _listed(address: str, binding: str, how: str) -> dict[str, Any]:
    scheme, bucket = address.split("://")[0], address.split("://")[1].split("/")[0]
    # Raises for an unknown scheme, or a package that is not installed.
    root = as_path(f"{scheme}://{bucket}", binding)
    try:
        with objects.os_errors(root):
            found = objects.listing(address, how)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise cannot_use(root, binding, error) from error
    for name, about in found.items():
        _known[name] = _version_of(about)
    return found


# What listings have told of objects.
_known: dict[str, FileVersion] = {}


def _object_version(address: str) -> FileVersion:
    if address not in _known:
        about = objects.with_retries(address, lambda: objects.about(address))
        _known[address] = _version_of(about)
    return _known[address]


def _version_of(about: dict[str, Any]) -> FileVersion:
    told = next((about[name] for name in _VERSIONS if about.get(name)), "")
    return FileVersion(int(about["size"]), str(told).strip('"'))


@functools.cache
def _copies() -> pathlib.Path:
    home = cache_address(None)
    return (as_path("~/.cache/fmjax") if is_bucket(home) else home) / "objects"
