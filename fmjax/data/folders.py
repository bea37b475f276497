"""The cache root, and folders that are built completely or not at all."""

import contextlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from fmjax.data.bucket_cache import BucketCache
from fmjax.errors import UserError
from fmjax.storage.paths import as_path, is_bucket

_HOME = "~/.cache/fmjax"
# The buckets whose caches this process uses, by the local folder of their copies.
_BUCKETS: dict[Path, BucketCache] = {}


def cache_address(cache_dir: str | None) -> Path:
    """Where caches are: `cache_dir`, else $FMJAX_CACHE, else ~/.cache/fmjax.

    Raises:
      UserError: it is neither a path nor an address of a bucket.
    """
    folder = cache_dir or os.environ.get("FMJAX_CACHE") or _HOME
    return as_path(folder, _name(cache_dir))


def cache_root(cache_dir: str | None) -> Path:
    """The local root of all caches.

    It is `cache_address`, or of a bucket, a folder that `is_built` copies caches into:
    below `buckets` in $FMJAX_CACHE if that is local, else in ~/.cache/fmjax.

    Raises:
      UserError: as of `cache_address`.
    """
    address = cache_address(cache_dir)
    if not is_bucket(address):
        return address
    home = cache_address(None)
    home = as_path(_HOME) if is_bucket(home) else home
    local = home / "buckets" / digest_of(str(address))
    if local not in _BUCKETS:
        _BUCKETS[local] = BucketCache(address, local, _name(cache_dir))
    return local


def is_built(folder: Path, file: str) -> bool:
    """Whether a folder of a cache is complete; one of a bucket is copied first.

    Args:
      folder: the folder, below a `cache_root`.
      file: a file that it has if it is complete.

    Raises:
      UserError: it is in a bucket that cannot be read.
    """
    if (folder / file).is_file():
        return True
    bucket = _bucket_of(folder)
    return bucket is not None and bucket.fetch(folder) and (folder / file).is_file()


def publish(folder: Path) -> None:
    """Uploads a folder of a cache that is in a bucket, unless it is there.

    Its upload may have been interrupted after it was built.

    Raises:
      UserError: it is in a bucket that cannot be written.
    """
    if bucket := _bucket_of(folder):
        bucket.upload(folder)


def shared_place(folder: Path) -> Path:
    """Where all hosts see a folder of the cache: itself, or its address in a bucket."""
    bucket = _bucket_of(folder)
    return folder if bucket is None else bucket.place(folder)


def _name(cache_dir: str | None) -> str:
    return "data.cache_dir (images.cache_dir)" if cache_dir else "$FMJAX_CACHE"


def _bucket_of(folder: Path) -> BucketCache | None:
    roots = [root for root in _BUCKETS if folder.is_relative_to(root)]
    return _BUCKETS[roots[0]] if roots else None


def digest_of(description: Any) -> str:
    """128-bit digest of a JSON value, the same on every machine."""
    text = json.dumps(description, sort_keys=True, ensure_ascii=False)
    return xxhash.xxh3_128_hexdigest(text.encode())


@contextlib.contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to `final` if the block succeeds.

    If it belongs to a cache in a bucket, it is then uploaded.

    If two processes build the same folder, the first to finish wins and the other's
    work is discarded. A crash leaves only a temporary folder, which the next builder on
    the same machine removes.

    Raises:
      UserError: the parent folder cannot be written.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(final)
        builder = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        temporary = final.parent / f"{final.name}.tmp-{builder}"
        temporary.mkdir()
    except OSError as error:
        raise UserError(
            f"Cannot write to the cache folder {final.parent}: {error}. "
            "Set data.cache_dir (for images: images.cache_dir) or $FMJAX_CACHE to a "
            "folder that can be written."
        ) from error
    try:
        yield temporary
        try:
            os.rename(temporary, final)
        except OSError:
            if not final.is_dir():
                raise
        publish(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def wait_until(ready: Callable[[], bool], what: str, timeout_seconds: float) -> None:
    """Polls until another process has built something.

    Args:
      ready: whether it is built.
      what: its name, for the error message.
      timeout_seconds: maximum time to wait.

    Raises:
      TimeoutError: it was not built in time.
    """
    deadline = time.monotonic() + timeout_seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"Waited {timeout_seconds:.0f} s for another process to build {what}. "
                "Do all processes see the same data.cache_dir, or images.cache_dir?"
            )
        time.sleep(0.2)


def _remove_leftovers(final: Path) -> None:
    """Removes temporary folders whose process ran on this machine and has ended."""
    host = socket.gethostname()
    for folder in final.parent.glob(f"{final.name}.tmp-{host}-*"):
        pid = folder.name.removeprefix(f"{final.name}.tmp-{host}-").partition("-")[0]
        if pid.isdigit() and not is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def is_alive(pid: int) -> bool:
    """Whether this machine has a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
