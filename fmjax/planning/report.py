"""A plan as a table for people and as JSON for programs."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from fmjax.planning.plan import Memory, Plan
from fmjax.planning.search import Trial

GIB = 2**30
_INSTEAD = (
    "The compiler of {chip} is not installed (extra {extra}): this step was compiled "
    "for virtual CPU devices. Memory and collectives are only near those of the chips, "
    "kernels are other ones, and dtype = 'auto' is float32."
)


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan's figures, in bytes, seconds, FLOPs and FLOP/s."""
    chip, time = plan.topology.chip, plan.step_time
    return {
        "chip": chip.name,
        "chips": plan.topology.chips,
        "slice": list(plan.topology.shape),
        "slices": plan.topology.slices,
        "compiler": plan.topology.compiler,
        "mesh": plan.mesh,
        "parameters": plan.parameters,
        "unit": plan.unit,
        "units_per_step": plan.units_per_step,
        "steps": plan.steps,
        "flops_per_unit": plan.flops_per_step / plan.units_per_step,
        "causal_flops_per_unit": plan.causal_flops_per_step / plan.units_per_step,
        "peak_flops": chip.peak_flops,
        "peak_flops_source": chip.source,
        "memory": dataclasses.asdict(plan.memory),
        "collectives": [dataclasses.asdict(traffic) for traffic in plan.traffic],
        "kernels": plan.kernels,
        "step_time": dataclasses.asdict(time),
        "xla_options": plan.xla_options,
        "bubbles": plan.bubbles,
        "unknown_loops": list(plan.unknown_loops),
        "quick": plan.quick,
        "predicted": {
            name: {
                "step_s": seconds,
                "units_per_s": plan.units_per_second(seconds),
                "mfu": plan.mfu(seconds),
                "causal_mfu": plan.mfu(seconds, causal=True),
                "days": plan.days(seconds),
                "chip_hours": plan.days(seconds) * 24 * plan.topology.chips,
            }
            for name, seconds in (("low", time.low_s), ("high", time.high_s))
        },
    }


def show(plan: Plan, console: Console) -> None:
    """Prints the plan."""
    topology = plan.topology
    if topology.compiler == "cpu":
        extra = f"plan-{topology.chip.platform}"
        console.print(_INSTEAD.format(chip=topology.chip.name, extra=extra))
    shape = " × ".join(f"{n}={size}" for n, size in plan.mesh.items() if size > 1)
    shape_of_slice = " × ".join(map(str, topology.shape))
    slices = f"{topology.slices} of " if topology.slices > 1 else ""
    table = Table(show_header=False, box=None)
    for name, value in (
        (
            "chips",
            f"{topology.chips} {topology.chip.name}, {slices}"
            f"{shape_of_slice or 'hosts of GPUs'}",
        ),
        ("mesh", shape or "1 device"),
        ("parameters", f"{plan.parameters:,}"),
        (
            "batch",
            f"{plan.units_per_step:,.0f} {plan.unit} a step, {plan.steps:,} steps",
        ),
        *_memory_rows(plan.memory, plan.quick),
        *_time_rows(plan),
        *_traffic_rows(plan),
        *(
            (f"pipeline {path}", f"each stage idles {share:.0%} of the time")
            for path, share in plan.bubbles.items()
        ),
        (
            "kernels",
            ", ".join(f"{n} × {c:,.0f}" for n, c in plan.kernels.items()) or "-",
        ),
        (
            "XLA options",
            ", ".join(f"{n}={v}" for n, v in plan.xla_options.items()) or "-",
        ),
    ):
        table.add_row(name, value)
    console.print(table)


def _memory_rows(memory: Memory, quick: bool) -> Iterator[tuple[str, str]]:
    parts = (
        ("parameters", memory.parameters),
        ("optimizer", memory.optimizer),
        ("temporaries", memory.temporaries),
        *(() if quick else (("program", memory.program),)),
    )
    listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts)
    yield (
        "memory",
        f"{memory.peak / GIB:.2f} of {memory.available / GIB:.2f} GiB a device "
        f"({listed}{', without machine code' * quick})",
    )


def _time_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    time = plan.step_time
    low, high, roofline = time.low_s, time.high_s, not time.by_cycles

    def between(value: Callable[[float], float], form: str) -> str:
        ends = [format(value(seconds), form) for seconds in (low, high)]
        return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"

    chips, chip = plan.topology.chips, plan.topology.chip
    per_second, milliseconds = plan.units_per_second, 1e3
    yield (
        "predicted step",
        f"{between(lambda s: milliseconds * s, ',.1f')} ms: "
        f"compute {milliseconds * time.compute_s:,.1f}{' (a roofline)' * roofline}, "
        f"kernels {milliseconds * time.kernels_s:,.1f}, "
        f"collectives {milliseconds * time.collectives_s:,.1f}, "
        f"asynchronous ones {milliseconds * time.async_collectives_s:,.1f}",
    )
    yield (
        "throughput",
        f"{between(per_second, ',.0f')} {plan.unit}/s, "
        f"{between(lambda s: per_second(s) / chips, ',.0f')} a chip",
    )
    full = between(lambda s: 100 * plan.mfu(s), ".1f")
    causal = between(lambda s: 100 * plan.mfu(s, causal=True), ".1f")
    yield (
        "MFU",
        f"{full}% with attention counted in full, {causal}% with visible keys alone; "
        f"peak {chip.peak_flops / 1e12:,.0f} TFLOP/s ({chip.source})",
    )
    yield (
        "to the end",
        f"{between(plan.days, ',.2f')} days, "
        f"{between(lambda s: plan.days(s) * 24 * chips, ',.0f')} chip-hours",
    )
    if time.uncounted_kernels:
        yield "no time counted for", ", ".join(time.uncounted_kernels)
    if plan.unknown_loops:
        yield "loops counted once", ", ".join(plan.unknown_loops)


def _traffic_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    for place, traffic in enumerate(plan.traffic):
        yield (
            "" if place else "collectives",
            f"{traffic.kind} over {' × '.join(traffic.axes)}: {traffic.count:,.0f} a "
            f"step, {traffic.bytes / GIB:,.3f} GiB, "
            f"{100 * traffic.asynchronous_share:.0f}% asynchronous",
        )
    if not plan.traffic:
        yield "collectives", "none"


def trials_to_json(trials: list[Trial]) -> list[dict[str, Any]]:
    """The trials of a search in their order; of those without a plan the reason."""
    return [
        {"bindings": list(trial.bindings), "refusal": trial.refusal}
        if trial.plan is None
        else {
            "bindings": list(trial.bindings),
            "low_s": trial.plan.step_time.low_s,
            "high_s": trial.plan.step_time.high_s,
            "mfu": trial.plan.mfu(trial.seconds),
            "peak": trial.plan.memory.peak,
            "quick": trial.plan.quick,
        }
        for trial in trials
    ]


def show_trials(trials: list[Trial], console: Console) -> None:
    """Prints the trials of a search, the shortest step first.

    Times of quick plans are marked as lower bounds.
    """
    table = Table("bindings", "step ms", "MFU %", "memory GiB", box=None)
    for trial in trials:
        # Axes of size 1 are left out.
        words = " ".join(
            b
            for b in trial.bindings
            if not (b.startswith("mesh.") and b.endswith("=1"))
        )
        if trial.plan is None:
            table.add_row(words, trial.refusal, "", "")
            continue
        table.add_row(
            words,
            f"{'≥ ' * trial.plan.quick}{1e3 * trial.seconds:,.1f}",
            f"{100 * trial.plan.mfu(trial.seconds):.1f}",
            f"{trial.plan.memory.peak / GIB:.2f}",
        )
    console.print(table)
