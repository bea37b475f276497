"""The folder of a cache that is being built: its plan, finished units, and claims.

It is beside the cache, on a file system or in a bucket, so that all hosts see it. A
unit is some parts of the split. It is claimed by one process at a time; if two work on
one all the same, they write the same, so claims only save work.
"""

import contextlib
import json
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from fmjax.data.folders import is_alive
from fmjax.data.sources.data_files import relative_name
from fmjax.data.sources.division import FilePart
from fmjax.errors import UserError
from fmjax.storage import objects
from fmjax.storage.paths import is_bucket

# Increased whenever plans or the files of units change.
_VERSION = 2
_PLAN = "plan.json"
_UNIT = re.compile(r"unit-(\d+)\.json")
# A claim is written again so often; one that stays unchanged for longer is stale.
_BEAT_SECONDS, _BUCKET_BEAT_SECONDS = 2.0, 10.0
STALE_SECONDS = 60.0

Unit = tuple[FilePart, ...]


class BuildFolder:
    """The folder of a build; several processes may use it at once."""

    def __init__(self, place: Path):
        """Reads nothing yet.

        Args:
          place: the folder, or its address in a bucket.
        """
        self.place = place
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._finished: dict[int, dict] = {}

    @property
    def pause_seconds(self) -> float:
        """How long to wait before looking for changes again."""
        return 5.0 if is_bucket(self.place) else 0.3

    def has_plan(self) -> bool:
        """Whether a process has begun the build."""
        return _PLAN in self._names()

    def units(self, root: Path) -> list[Unit] | None:
        """The units of the plan, in order; None if there is no plan.

        Args:
          root: the folder that the data's files are below, on this host.
        """
        content = objects.read_or_none(self.place / _PLAN)
        plan = json.loads(content) if content is not None else {}
        if plan.get("version") != _VERSION:
            return None
        return [
            tuple(FilePart(root / file, *rest) for file, *rest in unit)
            for unit in plan["units"]
        ]

    def write_plan(self, units: Sequence[Unit], root: Path) -> None:
        """Writes the plan; all processes make the same of the same data."""
        rows = [
            [[relative_name(part.file, root), *part[1:]] for part in unit]
            for unit in units
        ]
        if not is_bucket(self.place):
            self.place.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"version": _VERSION, "units": rows}).encode()
        _write(self.place / _PLAN, content)

    def finished(self) -> dict[int, dict]:
        """What `UnitWriter.finish` noted of finished units, by their numbers."""
        for name in self._names():
            found = _UNIT.fullmatch(name)
            if found and int(found[1]) not in self._finished:
                content = objects.read_or_none(self.place / name)
                # One that a crash of the machine has torn is made again.
                with contextlib.suppress(ValueError):
                    self._finished[int(found[1])] = json.loads(content or b"")
        return self._finished

    def pieces(self, number: int) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of a finished unit, in pieces.

        Raises:
          UserError: a piece is damaged.
        """
        for piece in range(self.finished()[number]["pieces"]):
            place = self.place / _piece(number, piece)
            try:
                with _local(place) as file:
                    arrays = safetensors.numpy.load_file(file)
            except (OSError, safetensors.SafetensorError) as error:
                raise UserError(
                    f"{place} is damaged ({error}). Delete {self.place} to read the "
                    "data again."
                ) from error
            yield arrays

    def claim(self, name: str) -> "Claim | None":
        """Claims something, such as "unit-00003"; None if another process has it."""
        file = self.place / f"{name}.claim"
        if (content := objects.read_or_none(file)) is not None:
            if not self._is_stale(file.name, content):
                return None
            objects.remove(file)
        claim = Claim(file)
        return claim if claim.take() else None

    def in_progress(self) -> list[dict[str, Any]]:
        """What the living claims of units say of their progress."""
        found = []
        for name in self._names():
            number = re.fullmatch(r"unit-(\d+)\.claim", name)
            if number is None or int(number[1]) in self._finished:
                continue
            content = objects.read_or_none(self.place / name)
            if content and not self._is_stale(name, content):
                found.append(json.loads(content))
        return found

    def remove(self) -> None:
        """Deletes the folder, once the cache is complete."""
        with contextlib.suppress(OSError):
            if is_bucket(self.place):
                objects.remove_folder(self.place)
                return
            for file in self.place.iterdir():
                file.unlink(missing_ok=True)
            self.place.rmdir()

    def _names(self) -> list[str]:
        if is_bucket(self.place):
            return objects.files_of(self.place)
        try:
            return sorted(os.listdir(self.place))
        except FileNotFoundError:
            return []

    def _is_stale(self, name: str, content: bytes) -> bool:
        """Whether the process of a claim has ended, or cannot be heard of any more."""
        known, since = self._seen.get(name, (None, 0.0))
        if known != content:
            self._seen[name] = (content, time.monotonic())
        elif time.monotonic() - since > STALE_SECONDS:
            return True
        try:
            owner = json.loads(content)
            return owner["host"] == socket.gethostname() and not is_alive(owner["pid"])
        except (ValueError, KeyError, TypeError):
            return False  # Its content is not there yet.


class Claim:
    """A claim of this process; a thread writes it again now and then.

    Attributes:
      progress: numbers that other processes may read in it.
    """

    def __init__(self, file: Path):
        """Claims nothing yet."""
        self._file = file
        self.progress: dict[str, int] = {}
        self._beat = 0
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def take(self) -> bool:
        """Writes the claim, unless there is one; returns whether it did."""
        if not _create(self._file, self._content()):
            return False
        self._thread.start()
        return True

    def release(self) -> None:
        """Deletes the claim."""
        self._ended.set()
        with self._writing, contextlib.suppress(OSError):
            objects.remove(self._file)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error) -> None:
        self.release()

    def _content(self) -> bytes:
        self._beat += 1
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "beat": self._beat}
        return json.dumps(owner | self.progress).encode()

    def _refresh(self) -> None:
        pause = _BUCKET_BEAT_SECONDS if is_bucket(self._file) else _BEAT_SECONDS
        while not self._ended.wait(pause):
            with self._writing:
                if self._ended.is_set():
                    return
                # It may be back before the claim counts as stale.
                with contextlib.suppress(OSError):
                    _write(self._file, self._content())


class UnitWriter:
    """Writes the arrays of a unit, a piece at a time."""

    def __init__(self, folder: BuildFolder, number: int):
        """Writes nothing yet."""
        self._place, self._number = folder.place, number
        self._pieces = 0

    def write(self, arrays: dict[str, np.ndarray]) -> None:
        """Writes a piece."""
        content = safetensors.numpy.save(arrays)
        _write(self._place / _piece(self._number, self._pieces), content)
        self._pieces += 1

    def finish(self, known: dict[str, Any]) -> None:
        """Marks the unit as finished.

        Args:
          known: what is to be known of it, in JSON.
        """
        content = json.dumps(known | {"pieces": self._pieces}).encode()
        _write(self._place / f"unit-{self._number:05d}.json", content)


def _piece(number: int, piece: int) -> str:
    return f"unit-{number:05d}-{piece:04d}.safetensors"


def _create(file: Path, content: bytes) -> bool:
    """Makes a file; False if it exists, or its folder does not any more."""
    if is_bucket(file):
        return objects.create(file, content)
    try:
        with file.open("xb") as handle:
            handle.write(content)
    except (FileExistsError, FileNotFoundError):
        return False
    return True


def _write(file: Path, content: bytes) -> None:
    """Writes a file whole; several processes may do it at once."""
    if is_bucket(file):
        objects.write(file, content)
        return
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _local(file: Path) -> Iterator[Path]:
    """A file to read; of a bucket a temporary copy."""
    if not is_bucket(file):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="fmjax-") as folder:
        objects.download(file, Path(folder, file.name))
        yield Path(folder, file.name)
