"""Caches in a bucket: folders that one host builds and uploads, and others copy.

Caches are read by memory mapping, so every host has a local copy of those that it
uses. A folder's name has a digest of everything that its content depends on, so a copy
never gets stale.
"""

import json
import os
import pathlib
import shutil
import time
import uuid
from typing import Any

import xxhash

from fmjax.storage import objects
from fmjax.storage.access import cannot_use

# Uploaded last: sizes and digests of the other files of a folder.
INDEX = "files.json"
_ASK_SECONDS = 5.0


class BucketCache:
    """The local copy of a root of caches in a bucket.

    Args:
      address: of the root, in the bucket.
      local: the local folder that has the copies.
      name: the gin field or environment variable that holds the address, for errors.
    """

    def __init__(self, address: pathlib.Path, local: pathlib.Path, name: str):
        self._address, self._local, self._name = address, local, name
        self._asked: dict[pathlib.Path, float] = {}
        self._uploaded: set[pathlib.Path] = set()

    def fetch(self, folder: pathlib.Path) -> bool:
        """Copies a folder of the local root from the bucket; returns whether it could.

        The bucket is asked for the same folder every few seconds at most.

        Raises:
          UserError: the bucket cannot be read.
        """
        now = time.monotonic()
        if now - self._asked.get(folder, -1e9) < _ASK_SECONDS:
            return False
        self._asked[folder] = now
        try:
            return self._fetch(folder)
        except OSError as error:
            raise cannot_use(self._address, self._name, error) from error

    def upload(self, folder: pathlib.Path) -> None:
        """Copies a folder of the local root into the bucket, unless it is there.

        Raises:
          UserError: the bucket cannot be written.
        """
        if folder in self._uploaded:
            return
        try:
            self._upload(folder)
        except OSError as error:
            raise cannot_use(self._address, self._name, error) from error
        self._uploaded.add(folder)

    def place(self, folder: pathlib.Path) -> pathlib.Path:
        """Where a folder of the local root is in the bucket."""
        return self._address / folder.relative_to(self._local).as_posix()

    def _fetch(self, folder: pathlib.Path) -> bool:
        place = self.place(folder)
        index = _parsed(objects.read_or_none(place / INDEX))
        if index is None:
            return False
        remedy = f"delete {place / INDEX} to build it again"
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f"{folder.name}.copy-{uuid.uuid4().hex[:8]}")
        try:
            for name, known in index.items():
                file = temporary / name
                file.parent.mkdir(parents=True, exist_ok=True)
                try:
                    objects.download(place / name, file)
                except FileNotFoundError:
                    raise OSError(f"{place / name} is missing; {remedy}") from None
                if _digest(file) != known:
                    raise OSError(f"{place / name} is not what was uploaded; {remedy}")
            try:
                os.rename(temporary, folder)
            except OSError:
                # Another process of this host was first.
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._uploaded.add(folder)
        return True

    def _upload(self, folder: pathlib.Path) -> None:
        place = self.place(folder)
        if objects.read_or_none(place / INDEX) is not None:
            return
        index = {}
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                name = file.relative_to(folder).as_posix()
                objects.upload(file, place / name)
                index[name] = _digest(file)
        objects.write(place / INDEX, json.dumps(index, indent=1).encode())


def _digest(file: pathlib.Path) -> list:
    """Size and digest of a file, as in the index."""
    found = xxhash.xxh3_128()
    with file.open("rb") as content:
        while part := content.read(1 << 24):
            found.update(part)
    return [file.stat().st_size, found.hexdigest()]


def _parsed(index: bytes | None) -> dict[str, Any] | None:
    """The index of a folder; None without one that is whole.

    Raises:
      OSError: a name leads out of the folder.
    """
    try:
        files = json.loads(index) if index is not None else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(files, dict):
        return None
    for name in files:
        parts = pathlib.PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/"):
            raise OSError(f"{INDEX} names {name!r}; expected a file of the folder")
    return files
