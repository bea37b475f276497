"""Where the time of traced steps went: modules, collectives and idle devices."""

import collections
import dataclasses
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import jax
from rich.table import Column, Table

from fmjax.errors import UserError
from fmjax.run.trace import trace_steps
from fmjax.sharding.collective_kinds import KINDS
from fmjax.storage.objects import local_copy
from fmjax.storage.paths import as_path
from fmjax.training.experiment import Experiment
from fmjax.training.reporting.profile import ABOUT, FOLDER

if TYPE_CHECKING:
    import pandas

COLLECTIVES, REST = "collectives", "(loss and rest)"
_WRAPPED = re.compile(r"^[\w\-]+\((.*)\)$")
# Parts of a path that are JAX's, not modules'.
_OF_JAX = re.compile(
    r"^(while|cond|body|closed_call|checkpoint|remat\w*|shard_map|pjit|scan|"
    r"custom_[jv][vj]p\w*|branch_\d+_fun)$|->"
)


@dataclasses.dataclass(frozen=True)
class Event:
    """An instruction that a device executed.

    Attributes:
      line: of the trace: a device's stream, or a thread of a CPU.
      device: that it belongs to.
      op: name of the instruction.
      op_name: JAX's path to it; "" if unknown.
      start: ns.
      duration: ns, with what it calls.
    """

    line: str
    device: str
    op: str
    op_name: str
    start: float
    duration: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """What traced steps spent their time on.

    Attributes:
      first: first of the steps.
      last: last of them.
      modules: (module, whether in the backward pass) → ms a step, of one device or
        thread after the other.
      busy_ms: of a step, their sum.
      idle: share of the time in which a device executed nothing, mean of the devices.
    """

    first: int
    last: int
    modules: Mapping[tuple[str, bool], float]
    busy_ms: float
    idle: float

    @property
    def frame(self) -> "pandas.DataFrame":
        """A row for each module, the heaviest first.

        Columns: `forward` and `backward` in ms a step, their sum `ms`, and its `share`
        of all modules.
        """
        import pandas

        names = sorted({module for module, _ in self.modules})
        ways = {
            way: [self.modules.get((name, backward), 0.0) for name in names]
            for way, backward in (("forward", False), ("backward", True))
        }
        frame = pandas.DataFrame(ways, index=pandas.Index(names, name="module"))
        frame["ms"] = frame.forward + frame.backward
        frame["share"] = frame.ms / self.busy_ms
        return frame.sort_values("ms", ascending=False)

    def _repr_html_(self) -> str:
        """The frame, for notebooks."""
        return self.frame.style.format("{:.2f}").format("{:.1%}", ["share"]).to_html()


def profile(
    traced: Experiment | str | os.PathLike,
    steps: int = 5,
    out: str | os.PathLike | None = None,
) -> Profile:
    """Where the time of train steps goes, by module, as `fmjax profile`.

    Args:
      traced: an experiment, of which the first steps are trained here; or a run
        directory with a trace, that of a run with `train.profile = (FIRST, LAST)`.
      steps: of an experiment, to trace after those that compile.
      out: empty or new folder that keeps the trace of an experiment; None for none.

    Raises:
      UserError: the run has no trace, or as of `fmjax.run.trace.trace_steps`.
    """
    if not isinstance(traced, Experiment):
        return read_profile(traced)
    with tempfile.TemporaryDirectory() as kept_no_longer:
        folder = pathlib.Path(kept_no_longer if out is None else out)
        folder.mkdir(parents=True, exist_ok=True)
        trace_steps(traced, folder, steps)
        return read_profile(folder)


def read_profile(run_dir: str | os.PathLike) -> Profile:
    """The profile of a run's newest trace, as the first process wrote it.

    Raises:
      UserError: there is none.
    """
    with local_copy(as_path(run_dir) / FOLDER) as folder:
        return _read(folder, run_dir)


def _read(folder: pathlib.Path, run_dir: str | os.PathLike) -> Profile:
    traces = sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
    about = folder / ABOUT
    if not traces or not about.is_file():
        raise UserError(
            f"{run_dir} has no trace: expected a run with train.profile = (FIRST, "
            "LAST), which traces these steps."
        )
    told = json.loads(about.read_text(encoding="utf-8"))
    events = list(_events(traces[-1], told["op_names"]))
    return summarize(events, told["first"], told["last"])


def summarize(events: Iterable[Event], first: int, last: int) -> Profile:
    """Adds up events by module.

    Args:
      events: of the steps.
      first: of the steps.
      last: of the steps.

    Raises:
      UserError: there are none.
    """
    lines = collections.defaultdict(list)
    for event in events:
        lines[event.line].append(event)
    devices = collections.defaultdict(list)
    modules: collections.Counter = collections.Counter()
    for line in lines.values():
        for event, alone in _alone(line):
            modules[_module_of(event)] += alone
            end = event.start + event.duration
            devices[event.device].append((event.start, end))
    if not devices:
        raise UserError("the trace has no instructions of a device.")
    steps = last - first + 1
    scale = 1e-6 / (steps * len(devices))
    idle = [1 - _covered(spans) for spans in devices.values()]
    return Profile(
        first,
        last,
        {name: scale * ns for name, ns in modules.items()},
        scale * modules.total(),
        sum(idle) / len(idle),
    )


def table(profile: Profile, rows: int = 10) -> Table:
    """The heaviest modules, and what the devices did besides.

    Args:
      profile: from `read_profile`.
      rows: modules that are shown.
    """
    both: collections.Counter = collections.Counter()
    for (module, _), ms in profile.modules.items():
        both[module] += ms
    numbers = ("ms a step", "share", "forward", "backward")
    shown = Table(
        Column("module", overflow="fold"),
        *(Column(name, justify="right", no_wrap=True) for name in numbers),
    )

    def add(name, ms, *parts):
        share = f"{ms / profile.busy_ms:.1%}" if profile.busy_ms else ""
        shown.add_row(name, f"{ms:,.2f}", share, *(f"{part:,.2f}" for part in parts))

    heaviest = both.most_common(rows)
    for module, ms in heaviest:
        ways = (profile.modules.get((module, backward), 0.0) for backward in (0, 1))
        add(module, ms, *ways)
    rest = profile.busy_ms - sum(ms for _, ms in heaviest)
    if len(both) > rows:
        add(f"{len(both) - rows} others", rest)
    shown.add_section()
    add("all", profile.busy_ms)
    shown.add_row("idle", "", f"{profile.idle:.1%}")
    return shown


def module_of(op_name: str) -> tuple[str, bool]:
    """The module of JAX's path to an operation, and whether it is of its gradient.

    Layers that are not scanned count as one: layer_0, layer_1, … as layer_*.
    """
    parts = []
    # Of several operations that the compiler joined, the first.
    op_name = op_name.partition(";")[0]
    *path, _ = ("", *op_name.split("/"))
    for part in path:
        bare, jitted = part, False
        while found := _WRAPPED.match(bare):
            jitted |= bare.startswith(("jit(", "pjit("))
            bare = found[1]
        # A jitted function has its own name, which is no module's.
        if jitted or not bare or _OF_JAX.search(bare):
            continue
        # A method of the module before it.
        name = bare.partition(".")[0]
        if not (parts and "." in bare and name == parts[-1]):
            parts.append(name)
    names = [re.sub(r"_\d+$", "_*", part) for part in parts]
    kept = [n for n, before in zip(names, ["", *names]) if n != before]
    return "/".join(kept) or REST, "transpose(" in op_name


def _module_of(event: Event) -> tuple[str, bool]:
    if event.op.startswith(KINDS):
        return COLLECTIVES, "transpose(" in event.op_name
    return module_of(event.op_name)


def _alone(line: list[Event]) -> list[tuple[Event, float]]:
    """Each event of a line with its ns without those inside it."""
    line = sorted(line, key=lambda e: (e.start, -e.duration))
    alone = [event.duration for event in line]
    open_events: list[int] = []
    for place, event in enumerate(line):
        while open_events:
            outer = line[open_events[-1]]
            if event.start < outer.start + outer.duration:
                alone[open_events[-1]] -= event.duration
                break
            open_events.pop()
        open_events.append(place)
    return [(event, max(0.0, ns)) for event, ns in zip(line, alone)]


def _covered(spans: list[tuple[float, float]]) -> float:
    """Share of the time from the first start to the last end that is in a span."""
    spans = sorted(spans)
    covered, reached = 0.0, spans[0][0]
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    whole = reached - spans[0][0]
    return covered / whole if whole else 1.0


def _events(trace: pathlib.Path, op_names: Mapping[str, str]) -> Iterable[Event]:
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                op = stats.get("hlo_op")
                if op is None and line.name == "XLA Ops":
                    op = event.name.partition(" = ")[0].lstrip("%")
                if op is None:
                    continue
                device = f"{plane.name} {stats.get('device_ordinal', '')}"
                yield Event(
                    f"{plane.name} {line.name}",
                    device,
                    op,
                    op_names.get(op) or str(stats.get("tf_op", "")),
                    event.start_ns,
                    event.duration_ns,
                )
