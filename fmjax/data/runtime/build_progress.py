"""The progress of a cache's build on standard error: how far, how fast, how long."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

# Seconds between two lines if standard error is not a terminal.
_LINE_SECONDS = 10.0

# Takes all bytes and all documents so far.
Update = Callable[[int, int], None]


@contextlib.contextmanager
def build_progress(
    title: str, total_bytes: int | None, begin: tuple[int, int] = (0, 0)
) -> Iterator[Update]:
    """Yields a function that shows the progress.

    It draws a bar on a terminal, and prints a line every ten seconds elsewhere.

    Args:
      title: what is being done.
      total_bytes: bytes of text of all documents, approximately; None if unknown.
      begin: bytes and documents of earlier processes, which do not count in the rates.
    """
    with _shown(title, total_bytes, begin[0], _Rate(begin)) as update:
        yield update


@contextlib.contextmanager
def text_progress(
    title: str, total: int, begin: int = 0
) -> Iterator[Callable[[int], None]]:
    """The same by numbers of texts, for what takes long for each of them.

    Args:
      title: what is being done.
      total: number of texts.
      begin: number of those of earlier processes.
    """
    with _shown(title, total, begin, _TextRate((begin, begin))) as update:
        yield lambda done: update(done, done)


@contextlib.contextmanager
def _shown(
    title: str, total_bytes: int | None, begin: int, rate: "_Rate"
) -> Iterator[Update]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(title, total_bytes, rate)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task(title, total=total_bytes, completed=begin, state="")

        def update(size: int, documents: int) -> None:
            state = rate.describe(size, documents, total_bytes)
            bar.update(task, completed=size, state=state)

        yield update
        bar.update(task, total=max(bar.tasks[0].completed, 1))


def say(line: str) -> None:
    """Prints a line on standard error."""
    print(line, file=sys.stderr, flush=True)


class _Rate:
    """Rates since the beginning of a process."""

    def __init__(self, begin: tuple[int, int]):
        self._begin, self._started = begin, time.monotonic()

    def per_second(self, size: int, documents: int) -> tuple[float, float]:
        seconds = max(time.monotonic() - self._started, 1e-3)
        return (size - self._begin[0]) / seconds, (documents - self._begin[1]) / seconds

    def describe(self, size: int, documents: int, total: int | None) -> str:
        """ "12 of about 100 MB, 3.4 MB/s, 1,234 examples/s"."""
        of = f" of about {max(total, size) / 1e6:,.0f}" if total else ""
        bytes_per_second, per_second = self.per_second(size, documents)
        return (
            f"{size / 1e6:,.0f}{of} MB, {bytes_per_second / 1e6:,.1f} MB/s, "
            f"{per_second:,.0f} examples/s"
        )


class _TextRate(_Rate):
    """Rates in texts, which are both numbers."""

    def describe(self, size: int, documents: int, total: int | None) -> str:
        """ "1,234 of 6,920 texts, 3.4 texts/s"."""
        per_second, _ = self.per_second(size, documents)
        return f"{size:,} of {total:,} texts, {per_second:,.1f} texts/s"


def _lines(title: str, total_bytes: int | None, rate: _Rate) -> Update:
    printed = time.monotonic()
    say(title)

    def update(size: int, documents: int) -> None:
        nonlocal printed
        if time.monotonic() - printed < _LINE_SECONDS:
            return
        printed = time.monotonic()
        line = f"{title}: {rate.describe(size, documents, total_bytes)}"
        per_second, _ = rate.per_second(size, documents)
        if total_bytes and per_second > 0:
            left = max(total_bytes - size, 0) / per_second
            line += f", about {_duration(left)} left"
        say(line)

    return update


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )
