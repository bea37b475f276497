"""Few operations on files that differ between file systems and buckets.

Errors of s3fs, gcsfs and their clients that are no OSError are raised as one, so that a
caller handles a bucket as it handles a disk.
"""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from fmjax.storage.paths import is_bucket

_T = TypeVar("_T")
# What fails is tried again after these pauses. Nothing else tells a store that is away
# for a while from an object that cannot be read.
PAUSES_SECONDS = (2.0, 10.0, 30.0)
# What another try does not change.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

# Two writes at the same moment; the object exists; no conditional writes. Of stores
# other than Amazon's, s3fs does not tell the second from other errors.
_CONFLICT, _PRECONDITION_FAILED, _NOT_IMPLEMENTED = 409, 412, 501


class StoreFailure(RuntimeError):
    """A store did not answer for so long that what needs it ends.

    It is no error of a config or a file: another start may succeed.
    """


@contextlib.contextmanager
def os_errors(path: os.PathLike) -> Iterator[None]:
    """Context manager: exceptions of a bucket's clients are raised as OSErrors."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if not is_bucket(path):
            raise
        text = f"{type(error).__name__}: {error}"
        raise OSError(errno.EIO, text, os.fspath(path)) from error


def with_retries(path: os.PathLike | str, act: Callable[[], _T]) -> _T:
    """What a function returns that reads from a store.

    Raises:
      OSError: there is no such object, or the credentials do not allow to read it.
      StoreFailure: it has failed in another way, at each of several tries.
    """
    for pause in (*PAUSES_SECONDS, None):
        try:
            with os_errors(path):
                return act()
        except _FINAL as error:
            if error.errno is not None:
                raise
            # Clients leave out the number, which tells errors of files from others.
            is_refused = isinstance(error, PermissionError)
            number = errno.EACCES if is_refused else errno.ENOENT
            raise OSError(number, os.strerror(number), os.fspath(path)) from error
        except OSError as error:
            if error.errno == errno.ENOSPC:  # of the copy that is made
                raise
            if pause is None:
                why = " ".join(str(error.strerror or error).split())
                raise StoreFailure(
                    f"{os.fspath(path)} could not be read in {len(PAUSES_SECONDS) + 1} "
                    f"tries within {sum(PAUSES_SECONDS):.0f} s: {why}. Is the store "
                    "away? The same command goes on from the last checkpoint."
                ) from error
            time.sleep(pause)
    raise AssertionError("unreachable")


def create(path: os.PathLike, content: bytes) -> bool:
    """Makes an object of a bucket; returns False if it exists.

    Only one of several processes that do it at a time gets True, if the store has
    conditional writes, as S3 and GCS do. In one without them it is just written.
    """
    pauses = iter((0.1, 0.5, 2.0))
    while True:
        try:
            with os_errors(path):
                _files(path).pipe_file(os.fspath(path), content, mode="create")
            return True
        except OSError as error:
            status = _http_status(error)
            if isinstance(error, FileExistsError) or status == _PRECONDITION_FAILED:
                # A client tries again if the answer to its first try was lost.
                return read_or_none(path) == content
            if status == _NOT_IMPLEMENTED:
                write(path, content)
                return True
            pause = next(pauses, None)
            if status != _CONFLICT or pause is None:
                raise
            time.sleep(pause)


def write(path: pathlib.Path, content: bytes, sync: bool = False) -> None:
    """Writes a file whole: at any time it has its old or its new content.

    Args:
      path: the file; its folder must exist.
      content: new content.
      sync: also forces it to the disk; an object of a bucket always is.
    """
    if is_bucket(path):
        with os_errors(path):
            _files(path).pipe_file(os.fspath(path), content)
        return
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)


def read_or_none(path: pathlib.Path) -> bytes | None:
    """The content of a file; None if there is no such file."""
    try:
        with os_errors(path):
            return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def modified(path: pathlib.Path) -> float:
    """When a file was last written, in seconds since 1970, by the store's clock."""
    if not is_bucket(path):
        return path.stat().st_mtime
    with os_errors(path):
        return _files(path).modified(os.fspath(path)).timestamp()


def size_of(folder: pathlib.Path) -> int:
    """Bytes of all files of a folder of a bucket."""
    with os_errors(folder):
        return int(_files(folder).du(os.fspath(folder)))


def remove(path: pathlib.Path) -> None:
    """Deletes an object of a bucket, if it exists."""
    with os_errors(path):
        path.unlink(missing_ok=True)


def remove_folder(folder: pathlib.Path) -> None:
    """Deletes all objects of a folder of a bucket."""
    with os_errors(folder), contextlib.suppress(FileNotFoundError):
        _files(folder).rm(os.fspath(folder), recursive=True)


def copy(source: os.PathLike, target: os.PathLike) -> None:
    """Copies an object to another name, within the store."""
    with os_errors(source):
        _files(source).cp_file(os.fspath(source), os.fspath(target))


def files_of(folder: pathlib.Path) -> list[str]:
    """Paths of all objects of a bucket's folder, relative to it, in order."""
    with os_errors(folder):
        files = _files(folder)
        root = files._strip_protocol(os.fspath(folder)).rstrip("/") + "/"
        found = files.find(os.fspath(folder))
    return sorted(file.removeprefix(root) for file in found)


def listing(address: str, how: str) -> dict[str, dict]:
    """What a store says of objects, by their addresses.

    Args:
      address: a folder, for `how` = "find"; or a glob, for "glob".
      how: fsspec's method.
    """
    files, scheme = _files(address), address.partition("://")[0]
    found = getattr(files, how)(address, detail=True)
    return {
        f"{scheme}://{name.lstrip('/')}": about
        for name, about in found.items()
        # Stores show empty objects for folders that were made by hand.
        if about["type"] == "file" and not name.endswith("/")
    }


def about(address: str) -> dict:
    """What a store says of an object; raises FileNotFoundError."""
    return _files(address).info(address)


def open_object(path: os.PathLike):
    """An object as a file to read from anywhere, of which each read is a request."""
    return _files(path).open(os.fspath(path), "rb", cache_type="none")


def upload(file: pathlib.Path, target: os.PathLike) -> None:
    """Copies a local file into a bucket; the object appears when it is complete."""
    with os_errors(target):
        _files(target).put_file(os.fspath(file), os.fspath(target))


def download(path: os.PathLike, target: pathlib.Path) -> None:
    """Copies an object of a bucket into a local file, whose folder must exist."""
    with os_errors(path):
        _files(path).get_file(os.fspath(path), os.fspath(target))


@contextlib.contextmanager
def local_copy(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder to read: itself if it is local, else a temporary copy."""
    if not is_bucket(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="fmjax-") as place:
        for name in files_of(folder):
            file = pathlib.Path(place, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            download(folder / name, file)
        yield pathlib.Path(place)


@contextlib.contextmanager
def local_draft(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder to write: itself if it is local, else one that is then uploaded.

    It is uploaded file by file, if the block succeeds.
    """
    if not is_bucket(folder):
        yield folder
        return
    place = pathlib.Path(tempfile.mkdtemp(prefix="fmjax-"))
    try:
        yield place
        for file in sorted(place.rglob("*")):
            if file.is_file():
                upload(file, folder / file.relative_to(place).as_posix())
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _http_status(error: OSError) -> int | None:
    """The status that a store of S3 answered with; None if it is not known."""
    answer = getattr(error.__cause__, "response", None) or {}
    return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")


def _files(path: os.PathLike):
    """fsspec's file system of a bucket."""
    import fsspec

    return fsspec.filesystem(os.fspath(path).partition("://")[0])
