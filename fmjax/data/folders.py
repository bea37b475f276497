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

from fmjax.errors import UserError, refuse_scheme


def cache_root(cache_dir: str | None) -> Path:
    """The root of all caches: `cache_dir`, else $FMJAX_CACHE, else ~/.cache/fmjax.

    Raises:
      UserError: it is an address such as gs://bucket/folder.
    """
    folder = cache_dir or os.environ.get("FMJAX_CACHE") or "~/.cache/fmjax"
    name = "data.cache_dir (images.cache_dir)" if cache_dir else "$FMJAX_CACHE"
    refuse_scheme(folder, name)
    return Path(folder).expanduser()


def digest_of(description: Any) -> str:
    """128-bit digest of a JSON value, the same on every machine."""
    text = json.dumps(description, sort_keys=True, ensure_ascii=False)
    return xxhash.xxh3_128_hexdigest(text.encode())


@contextlib.contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to `final` if the block succeeds.

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
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
