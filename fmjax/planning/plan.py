"""The plan of a run: its real train step, compiled for chips that need not be here."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from fmjax.errors import UserError
from fmjax.models.layers.pipeline import bubble
from fmjax.objectives.terms import RowShapes
from fmjax.planning.attention_kernels import kernel_calls
from fmjax.planning.collectives import Traffic, collectives, summarize
from fmjax.planning.hlo_module import parse_module
from fmjax.planning.program import Program, quick_program, whole_program
from fmjax.planning.step_time import StepTime, predict
from fmjax.planning.topology import Topology
from fmjax.sharding.torus import coordinates
from fmjax.sharding.xla_options import xla_options
from fmjax.training.activations import StackInputs, kept_bytes
from fmjax.training.checks import check_divisible
from fmjax.training.experiment import Experiment
from fmjax.training.memory import bytes_per_device
from fmjax.training.reporting.step_flops import StepFlops
from fmjax.training.setup import plan_run
from fmjax.training.state import StatePlan
from fmjax.training.traced_step import TracedStep

SECONDS_PER_DAY = 86400


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of each device in a train step.

    Attributes:
      parameters: of the model.
      optimizer: state of the optimizer, averages and guards.
      gradients: of the parameters that are trained at step 0, in the parameters' shapes
        and shardings; most of them are in `temporaries`.
      activations: lower bound of those that are kept for the backward pass, see
        `fmjax.training.activations`; they are in `temporaries`.
      temporaries: of the compiled step: gradients, activations, gathered weights.
      program: the compiled code.
      peak: all of these and the batch at once, as XLA assigns them.
      available: of the device.
    """

    parameters: int
    optimizer: int
    gradients: int
    activations: float
    temporaries: int
    program: int
    peak: int
    available: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a train step needs and is predicted to take.

    Attributes:
      topology: that it was compiled for.
      mesh: size of every axis, by name.
      parameters: their number.
      unit: that the objective counts, such as "tokens".
      units_per_step: how many of them a global batch has, padding included.
      steps: of the run.
      flops_per_step: of the model by the paper's formula, attention counted in full;
        less where parameters are frozen.
      causal_flops_per_step: the same, but with only the keys that a query may see.
      memory: of a device.
      traffic: collectives by kind and axes.
      kernels: how often each kernel beside XLA's own is called in a step.
      step_time: predicted.
      xla_options: that the step was compiled with.
      bubbles: share of the time that a stage of the mesh idles, for each stack of
        layers that is a pipeline, by its path.
      unknown_loops: names of loops that are counted as one execution, since their
        number could not be read.
      quick: whether machine code was not generated, so that compute is a roofline and
        memory lacks the code and the scratch memory of collectives.
    """

    topology: Topology
    mesh: dict[str, int]
    parameters: int
    unit: str
    units_per_step: float
    steps: int
    flops_per_step: float
    causal_flops_per_step: float
    memory: Memory
    traffic: list[Traffic]
    kernels: dict[str, float]
    step_time: StepTime
    xla_options: dict[str, Any]
    bubbles: dict[str, float]
    unknown_loops: tuple[str, ...]
    quick: bool = False

    def mfu(self, seconds: float, causal: bool = False) -> float:
        """Model FLOPs utilization at a step time, in one of both conventions."""
        flops = self.causal_flops_per_step if causal else self.flops_per_step
        topology = self.topology
        return flops / (seconds * topology.chip.peak_flops * topology.chips)

    def units_per_second(self, seconds: float) -> float:
        """Throughput of all chips at a step time."""
        return self.units_per_step / seconds

    def days(self, seconds: float) -> float:
        """Days until the last step at a step time."""
        return self.steps * seconds / SECONDS_PER_DAY


class DoesNotFit(UserError):
    """The step does not fit the memory of a device.

    Attributes:
      state_alone: whether the parameters and the optimizer's state are too large even
        without a batch.
    """

    state_alone = False


def make_plan(
    experiment: Experiment,
    topology: Topology,
    say: Callable[[str], None] = lambda text: None,
    hlo: pathlib.Path | None = None,
    quick: bool = False,
) -> Plan:
    """Compiles the train step of an experiment for a topology and reads the result.

    Args:
      experiment: with data and an optimizer; its caches need not be built.
      topology: from `fmjax.planning.topology.make_topology`.
      say: told what is being done.
      hlo: file that the compiled program is written to.
      quick: whether to read the program of TPUs before machine code is generated; see
        `fmjax.planning.apart.plan_apart`, which ends the compiler then.

    Raises:
      UserError: the mesh or the batch does not fit the chips.
      DoesNotFit: a device has too little memory, by the compiler's own account.
    """
    run, data, objective = experiment.train, experiment.data, experiment.objective
    mesh, rules = experiment.mesh.build(topology.devices), experiment.mesh.all_rules
    check_divisible("train.batch_size", run.batch_size, run.microbatches, mesh, rules)
    state = plan_run(experiment, mesh, rules)
    step = TracedStep(experiment, state, mesh, rules)
    rows = data.row_shapes()
    say(state.describe(mesh))
    _check_state(state, topology)
    say("tracing the train step")
    try:
        traced, stacks = step.trace()
        lowered = traced.lower()
    except RuntimeError as error:
        raise _without_cudnn(error) or error from None
    say(f"compiling it for {topology.chips} {topology.chip.name}")
    try:
        program = quick_program(lowered) if quick else whole_program(lowered)
    except jax.errors.JaxRuntimeError as error:
        raise _refused_for_memory(error, topology) or error from None
    say("reading the program")
    kept = kept_bytes(stacks, state.freezing.trained(0), mesh, rules)
    memory = _memory(program, state, kept, topology)
    if memory.peak > memory.available:
        raise _too_large(memory.peak, memory.available, topology)
    if hlo is not None:
        hlo.write_text(program.text, encoding="utf-8")
    module = parse_module(program.text)
    shape = dict(mesh.shape)
    positions, torus = None, topology.shape
    if topology.compiler == "tpu":
        positions = coordinates(list(mesh.devices.flat))
    if positions is not None:
        torus = tuple(positions.max(0) + 1)
    elif topology.chip.devices_per_chip > 1:
        # Of devices, not of chips: as even as can be.
        torus = ()
    slices = {experiment.mesh.across_slices: topology.slices}
    params = state.decoded_shapes
    sizes = (objective, state, rows, run.batch_size)
    flops = StepFlops(*sizes)(0, step.batch)
    causal = StepFlops(*sizes, causal=True)(0, step.batch)
    return Plan(
        topology=topology,
        mesh=shape,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        unit=objective.unit,
        units_per_step=run.batch_size * units_per_row(objective.unit, rows),
        steps=run.steps,
        flops_per_step=flops,
        causal_flops_per_step=causal,
        memory=memory,
        traffic=summarize(collectives(module, shape)),
        kernels=kernel_calls(module),
        step_time=predict(
            module,
            topology.chip.of_device(),
            shape,
            torus=torus,
            positions=positions,
            slices=slices,
        ),
        xla_options=xla_options(topology.devices[0], run.xla_options),
        bubbles=_bubbles(stacks, shape["stage"]),
        unknown_loops=module.unknown_loops,
        quick=program.quick,
    )


def _bubbles(
    stacks: Mapping[tuple[str, ...], StackInputs], stages: int
) -> dict[str, float]:
    if stages == 1:
        return {}
    found = {}
    for path, stack in stacks.items():
        c = stack.config
        pieces = c.pipeline_microbatches or stages
        found["/".join(path)] = bubble(stages, c.pipeline_rounds, pieces)
    return found


def units_per_row(unit: str, rows: RowShapes) -> int:
    """What a row adds to an objective's unit: its targets, or one image or pair."""
    if unit != "tokens":
        return 1
    return math.prod(rows["targets"] if "targets" in rows else rows["tokens"])


def _check_state(state: StatePlan, topology: Topology) -> None:
    """Raises DoesNotFit if the state is too large, before anything is compiled."""
    needed, available = bytes_per_device(state.shapes), _available(topology)
    if needed > available:
        error = _too_large(needed, available, topology)
        error.state_alone = True
        raise error


def _available(topology: Topology) -> int:
    return int(topology.chip.memory_bytes / topology.chip.devices_per_chip)


def _memory(
    program: Program, state: StatePlan, activations: float, topology: Topology
) -> Memory:
    parameters = bytes_per_device(state.shapes.params)
    trained = state.freezing.partition(state.shapes.params, 0)
    return Memory(
        parameters=parameters,
        optimizer=bytes_per_device(state.shapes) - parameters,
        gradients=bytes_per_device(trained),
        activations=activations,
        temporaries=program.temporaries,
        program=program.code,
        peak=program.arguments + program.temporaries + program.code,
        available=_available(topology),
    )


def _without_cudnn(error: RuntimeError) -> UserError | None:
    """What to do where JAX does not find cuDNN; None for any other error."""
    if "cuDNN" not in str(error):
        return None
    return UserError(
        f"{str(error).rstrip('.')}: a plan with cuDNN's attention needs its libraries "
        "(extra plan-gpu) on LD_LIBRARY_PATH; transformer.attention = 'triton' does "
        "not."
    )


def _refused_for_memory(error: Exception, topology: Topology) -> UserError | None:
    """The compiler's out-of-memory error in words; None for any other error."""
    # libtpu: "Used 17.30G of 15.75G hbm.", of a kernel's blocks "… 63.94M vmem.", or
    # "… for HLO temporaries (25.02G) exceeds available HBM (15.75G)."
    size = r"([\d.]+)([KMGT])\w*"
    found = re.search(
        rf"(?:Used {size} of {size} |\({size}\) exceeds available \w+ \({size}\))(\w*)",
        str(error),
    )
    if "RESOURCE_EXHAUSTED" not in str(error) or not found:
        return None
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    *sizes, memory = (group for group in found.groups() if group is not None)
    needed, available = (
        float(number) * scale[unit] for number, unit in zip(sizes[::2], sizes[1::2])
    )
    if memory == "vmem":
        return UserError(
            f"a kernel needs {needed / 2**20:,.1f} MiB of vector memory, of which a "
            f"{topology.chip.name} has {available / 2**20:,.1f}; a smaller "
            "transformer.attention_block, or None, needs less."
        )
    return _too_large(needed, available, topology)


def _too_large(needed: float, available: float, topology: Topology) -> DoesNotFit:
    return DoesNotFit(
        f"the step needs {needed / 2**30:,.2f} GiB on each of {topology.chips} "
        f"{topology.chip.name}, which have {available / 2**30:,.2f} GiB"
    )
