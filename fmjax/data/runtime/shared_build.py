"""Building a cache by several processes of this host, and of others, at once.

Processes tokenize, or check the images of, units of the split into a folder beside the
cache, and one writes the rows, in the order of the units. So the rows, and their bytes,
are those of a build by one process, whatever the number of processes, and a process
that is killed loses only the unit that it works on.
"""

import contextlib
import dataclasses
import functools
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fmjax.data.folders import shared_place
from fmjax.data.runtime.build_folder import BuildFolder, Unit
from fmjax.data.runtime.build_progress import build_progress, say
from fmjax.data.runtime.build_worker import USER_ERROR, Work
from fmjax.data.runtime.cache import (
    Cache,
    CacheKey,
    Example,
    build_cache,
    is_built,
    open_cache,
)
from fmjax.data.runtime.unit_coding import UnitCoding
from fmjax.data.sources.division import Divisible, Division, FilePart, same_division
from fmjax.data.sources.examples import Skipped
from fmjax.data.sources.record_formats.file_parts import joined_parts
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError
from fmjax.storage.paths import is_bucket

# Data of fewer bytes are read by one process faster than several start.
LARGE_BYTES = 64 << 20
# Bytes of the files that a unit takes and of the parts that it is made of, unless there
# would be too many units.
_UNIT_BYTES, _MAX_UNITS, _PART_BYTES = 8 << 20, 4_000, 2 << 20


class SharedBuild:
    """The build of one cache of a source that can be divided."""

    def __init__(
        self,
        root: Path,
        key: CacheKey,
        source: Divisible,
        listing: str,
        coding: UnitCoding,
        tokenizer: Tokenizer | None,
        processes: int | None,
    ):
        """Reads nothing yet.

        Args:
          root: root of all caches.
          key: key of the cache.
          source: the source of its texts or images.
          listing: `listing_of` its split when the key was computed.
          coding: makes units of its examples.
          tokenizer: of the texts; None without text.
          processes: number of processes of this host; one a core if None.
        """
        self._root, self._key, self._source = root, key, source
        self._listing = listing
        self._coding, self._tokenizer = coding, tokenizer
        self._processes = processes or _cores()
        self._name = f"{key.task} {key.split}"
        self._folder = BuildFolder(_place(root, key))
        self._planned: list[Unit] = []
        self._looked = -1e9

    @functools.cached_property
    def _division(self) -> Division:
        return same_division(self._source, self._key.split, self._listing)

    def _units(self) -> list[Unit]:
        """The units of the plan, which is read once; empty if there is none yet."""
        self._planned = self._planned or self._folder.units(self._division.root) or []
        return self._planned

    def build(
        self, total_bytes: int | None = None, max_corrupt_fraction: float = 1.0
    ) -> Cache:
        """Builds the cache, with all processes that help, and opens it.

        Args:
          total_bytes: approximate bytes of text or images, for the progress.
          max_corrupt_fraction: as in `build_cache`.

        Raises:
          UserError: as of `build_cache` and `same_division`.
        """
        began = time.monotonic()
        if not self._units():
            if self._folder.has_plan():  # of another version of fmjax
                self._folder.remove()
            say(f"Dividing {self._name} into units")
            self._folder.write_plan(_units(self._division), self._division.root)
        with self._making_units(total_bytes) as watch:
            while not is_built(self._root, self._key):
                claim = self._folder.claim("rows")
                if claim is None:
                    watch()
                    time.sleep(self._folder.pause_seconds)
                    continue
                with claim, contextlib.suppress(_BuiltElsewhereError):
                    build_cache(
                        self._root,
                        self._key,
                        functools.partial(self._documents, watch),
                        self._tokenizer,
                        max_corrupt_fraction=max_corrupt_fraction,
                        began=began,
                        shows_progress=False,
                    )
        self._folder.remove()
        return open_cache(self._root, self._key)

    def help(self) -> bool:
        """Makes units of a build that another process has begun.

        Of the processes of a host one starts workers, and the others wait.

        Returns:
          Whether there was something to do.
        """
        if time.monotonic() - self._looked < self._folder.pause_seconds:
            return False
        self._looked = time.monotonic()
        if not self._folder.has_plan():
            return False
        count = len(self._units())
        if len(self._folder.finished()) >= count:
            return False
        with self._making_units(None) as watch:
            while len(self._folder.finished()) < count:
                if is_built(self._root, self._key):
                    break
                watch()
                time.sleep(self._folder.pause_seconds)
        return True

    def progress(self) -> tuple[int, int]:
        """Bytes and examples of which all processes have made units so far."""
        done = [*self._folder.finished().values(), *self._folder.in_progress()]
        return (
            sum(each.get("bytes", 0) for each in done),
            sum(each.get("documents", 0) for each in done),
        )

    @contextlib.contextmanager
    def _making_units(self, total_bytes: int | None) -> Iterator[Callable[[], None]]:
        """Yields a function to call again and again while units are made.

        It starts the workers of this host, unless another process of it has, looks
        after them and shows the progress.
        """
        count, title = len(self._units()), f"Caching {self._name}"
        claim, workers, known = None, None, 0
        with (
            contextlib.ExitStack() as stack,
            build_progress(title, total_bytes, self.progress()) as update,
        ):

            def watch() -> None:
                nonlocal claim, workers, known
                left = count - len(self._folder.finished())
                if claim is None and left:
                    claim = self._folder.claim(f"host-{socket.gethostname()}")
                    if claim is not None:
                        stack.enter_context(claim)
                        number, known = min(self._processes, left), count - left
                        workers = stack.enter_context(
                            _Workers(self._work, self._tokenizer, number)
                        )
                if workers is not None and left:
                    # Processes that die again and again without a unit end the build.
                    done = count - left
                    known = done if workers.check(may_restart=done > known) else known
                update(*self.progress())

            yield watch

    @property
    def _work(self) -> Work:
        place = os.fspath(self._folder.place)
        return Work(
            place,
            self._source,
            self._listing,
            self._key.split,
            self._name,
            self._coding,
        )

    def _documents(
        self, watch: Callable[[], None], skipped: Skipped
    ) -> Iterator[Example]:
        """The examples of all units in order, each unit as soon as it is finished.

        Raises:
          _BuiltElsewhereError: another process has built the cache meanwhile, and
            deleted the folder.
        """
        for number in range(len(self._units())):
            watch()
            while number not in self._folder.finished():
                if is_built(self._root, self._key):
                    raise _BuiltElsewhereError
                watch()
                time.sleep(self._folder.pause_seconds)
            known = self._folder.finished()[number]
            skipped.merge(Skipped(**known["skipped"]))
            try:
                for piece in self._folder.pieces(number):
                    yield from self._coding.unpack(piece)
            except UserError:
                # A bucket answers only every few seconds whether it has the cache.
                time.sleep(self._folder.pause_seconds)
                if is_built(self._root, self._key):
                    raise _BuiltElsewhereError from None
                raise


class _BuiltElsewhereError(Exception):
    """The cache that is being built is there: two processes had claimed its rows."""


def forget_build(root: Path, key: CacheKey) -> None:
    """Deletes what is left of the build of a complete cache, if it is on this host."""
    place = _place(root, key)
    if not is_bucket(place) and place.is_dir():
        BuildFolder(place).remove()


class _Workers:
    """Processes that make units; when some die, the others go on."""

    def __init__(self, work: Work, tokenizer: Tokenizer | None, count: int):
        """Starts nothing yet.

        Args:
          work: what they do, but for the folder of the tokenizer.
          tokenizer: the tokenizer, which is saved for them; None without text.
          count: number of processes.
        """
        self._work, self._tokenizer, self._count = work, tokenizer, max(count, 1)
        self._stack = contextlib.ExitStack()
        self._running: list[subprocess.Popen] = []
        self._logs: dict[int, Path] = {}

    def __enter__(self) -> "_Workers":
        folder = tempfile.TemporaryDirectory(prefix="fmjax-")
        self._folder = Path(self._stack.enter_context(folder))
        self._stack.callback(self._end)
        if self._tokenizer is not None:
            saved = self._folder / "tokenizer"
            self._tokenizer.save(saved)
            self._work = dataclasses.replace(self._work, tokenizer=os.fspath(saved))
        for _ in range(self._count):
            self._start()
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()

    def check(self, may_restart: bool) -> bool:
        """Looks after the processes, of which at least one has to run.

        Args:
          may_restart: whether to start another if all have died.

        Returns:
          Whether it has started another.

        Raises:
          UserError: one ended with a UserError.
          RuntimeError: all have died.
        """
        for process in [each for each in self._running if each.poll() is not None]:
            self._running.remove(process)
            output, log = process.stdout.read(), self._logs[process.pid].read_text()
            process.stdout.close()
            if process.returncode == USER_ERROR:
                raise UserError(output.decode().strip())
            if process.returncode == 0:
                continue
            sys.stderr.write(log)
            how = _ended(process.returncode)
            say(f"a process that reads the data ended with {how}; the others go on")
            if not self._running and not may_restart:
                raise RuntimeError(
                    f"all processes that read the data have died, the last with {how}. "
                    "The same command goes on from what they finished."
                )
        if self._running:
            return False
        self._start()
        return True

    def _start(self) -> None:
        log = self._folder / f"{len(self._logs)}.log"
        # Of modules that this process found by other ways than its own PYTHONPATH.
        found = os.pathsep.join(filter(None, sys.path))
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "fmjax.data.runtime.build_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"PYTHONPATH": found},
            )
        self._logs[process.pid] = log
        self._running.append(process)
        # It may have ended already; `check` tells why.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(pickle.dumps(self._work))
            process.stdin.flush()

    def _end(self) -> None:
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def _place(root: Path, key: CacheKey) -> Path:
    final = key.folder(root)
    return shared_place(final.with_name(f"{final.name}.build"))


def _units(division: Division) -> list[Unit]:
    units: list[Unit] = []
    unit: list[FilePart] = []
    size = 0
    total = sum(part.size for part in division.parts(numbered=False))
    limit = max(_UNIT_BYTES, total // _MAX_UNITS)
    # Of units that are larger than usual, parts are too.
    for part in division.parts(_PART_BYTES * limit // _UNIT_BYTES):
        unit.append(part)
        size += part.size
        if size >= limit:
            units.append(tuple(joined_parts(unit)))
            unit, size = [], 0
    return [*units, tuple(joined_parts(unit))] if unit else units


def _ended(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
