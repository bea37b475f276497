"""What watching a run costs: metrics, TensorBoard, events, goodput, norms, trackers.

    python -m benchmarks.watching --rounds 40

Alternates segments of a plain loop (next batch, jitted step, loss read two steps later)
with segments of fmjax's loop, each of which writes a line of metrics, in one process.
Prints medians of the ratio to the neighbouring plain segment, by wall time and by time
of all processors, and the time of the main thread on a processor for a step. What the
main thread takes longer is the most that reporting can add to a step, as the devices
compute meanwhile; it is steady where other work makes the ratios noisy.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import statistics
import tempfile
import time

import jax
from rich.console import Console
from rich.table import Table

import fmjax
from fmjax.sharding.mesh import global_batch, local_rows, on_mesh
from fmjax.training.faults.watchdog import warn
from fmjax.training.loop import Loop
from fmjax.training.reporting.goodput import Clock
from fmjax.training.reporting.spool import Spool
from fmjax.training.reporting.step_log import LAG
from fmjax.training.setup import set_up
from fmjax.training.start import Initialized
from fmjax.training.vocab_size import with_vocab_size

LINE = 10  # steps of a segment, and of a line of metrics
WATCHED = {
    "reporting as by default": (),
    "and norms of modules": ("train.norms='modules'",),
    "and norms of layers": ("train.norms='layers'",),
    "and Prometheus": ("experiment.trackers=(@prometheus(),)",),
}


class Contender:
    """An experiment that is set up in this process."""

    def __init__(self, bindings: tuple[str, ...]):
        every = (f"train.log_every={LINE}", "train.steps=1000000", *bindings)
        found = fmjax.load_experiment("quickstart.gin", every)
        self.experiment = with_vocab_size(found)
        self.setup = set_up(self.experiment, Initialized())

    def on_mesh(self):
        """A context manager, for steps."""
        return on_mesh(self.setup.mesh, self.setup.rules)


class Plain(Contender):
    """The jitted step and its batches, without any report."""

    def __init__(self, bindings: tuple[str, ...]):
        super().__init__(bindings)
        run, sharding = self.experiment.train, self.setup.sharding
        rows = local_rows(sharding, run.batch_size)
        data = self.experiment.data
        self._batches = data.train_batches(run.batch_size, rows, run.seed)
        with self.on_mesh():
            self._state = self.setup.plan.init()

    def segment(self) -> None:
        """Trains LINE steps and waits for the last."""
        pending, size = collections.deque(), self.experiment.train.batch_size
        for _ in range(LINE):
            batch = global_batch(next(self._batches), self.setup.sharding, size)
            self._state, metrics = self.setup.step(self._state, batch, 0)
            pending.append(metrics["loss"])
            if len(pending) > LAG:
                float(pending.popleft())
        jax.block_until_ready(self._state)

    def close(self) -> None:
        """Ends the threads that read data."""
        self._batches.close()


class Watched(Contender):
    """The loop of a run, with its reports."""

    def __init__(self, bindings: tuple[str, ...], folder: pathlib.Path):
        super().__init__(bindings)
        self._stack = contextlib.ExitStack()
        clock = Clock(folder, time.time())
        self._loop = Loop(
            self.experiment, folder, "", self.setup, warn, False, clock, Spool(folder)
        )
        self._stack.callback(self._loop.close)
        self._stack.enter_context(clock)
        self._stack.enter_context(self._loop.watchdog)
        with self.on_mesh():
            self._loop.restore()

    def segment(self) -> None:
        """Trains LINE steps and waits for the last."""
        for _ in range(LINE):
            self._loop.step()
        jax.block_until_ready(self._loop.state)

    def close(self) -> None:
        """Ends the loop."""
        self._stack.close()


def measure(contender: Contender) -> tuple[float, float, float]:
    """Seconds of a step: by the wall, of all processors, of the main thread's."""
    clocks = (time.perf_counter, time.process_time, time.thread_time)
    with contender.on_mesh():
        began = [clock() for clock in clocks]
        contender.segment()
        ended = [clock() for clock in clocks]
    return tuple((end - begin) / LINE for begin, end in zip(began, ended))


def compare(
    rounds: int, bindings: tuple[str, ...], folder: pathlib.Path
) -> dict[str, list[tuple[tuple[float, ...], tuple[float, ...]]]]:
    """For each way of watching, (plain, watched) of each pair of segments."""
    plain = Plain(bindings)
    contenders = {}
    for number, (name, own) in enumerate(WATCHED.items()):
        run_dir = folder / f"run{number}"
        run_dir.mkdir()
        contenders[name] = Watched((*bindings, *own), run_dir)
    found = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            pair = [plain, contender]
            order = pair if number % 2 else pair[::-1]
            seconds = {id(c): measure(c) for c in order}
            if number:  # The first round compiles.
                found[name].append((seconds[id(plain)], seconds[id(contender)]))
    for contender in (plain, *contenders.values()):
        contender.close()
    return found


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("bindings", nargs="*", metavar="NAME=VALUE")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        found = compare(args.rounds, tuple(args.bindings), pathlib.Path(folder))
    columns = ("", "ms a step", "wall", "processors", "main thread, ms", "plain")
    table = Table(*columns, title=f"medians of {args.rounds} pairs of {LINE} steps")
    for name, pairs in found.items():
        wall, cpu = (
            statistics.median(watched[i] / plain[i] for plain, watched in pairs)
            for i in (0, 1)
        )
        alone, main_thread = (
            1e3 * statistics.median(pair[which][2] for pair in pairs)
            for which in (0, 1)
        )
        step = 1e3 * statistics.median(plain[0] for plain, _ in pairs)
        table.add_row(
            *(name, f"{step:.1f}", f"{wall:.4f}", f"{cpu:.4f}"),
            *(f"{main_thread:.2f}", f"{alone:.2f}"),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
