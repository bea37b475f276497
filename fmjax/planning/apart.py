"""Plans that are each made by a process of its own.

A compiler that crashes ends that process alone, and one that has told enough can be
ended before it generates machine code.
"""

import dataclasses
import importlib
import multiprocessing
import pathlib
from multiprocessing.connection import Connection

import jax

from fmjax.errors import UserError
from fmjax.planning.plan import Plan, make_plan
from fmjax.planning.topology import compiler_of, make_topology
from fmjax.sharding.processes import use_virtual_devices
from fmjax.sharding.slices import find_chip
from fmjax.training.experiment import Experiment
from fmjax.training.parametrize import resolve


@dataclasses.dataclass(frozen=True)
class Request:
    """What a process is asked to plan.

    Attributes:
      experiment: with data and an optimizer.
      chip: its name.
      chips: their number.
      slices: of TPUs.
      hlo: file that the program is written to; None for none.
      quick: as of `make_plan`.
    """

    experiment: Experiment
    chip: str
    chips: int
    slices: int = 1
    hlo: pathlib.Path | None = None
    quick: bool = True


def plan(
    experiment: Experiment,
    chip: str = "v5e",
    chips: int = 8,
    *,
    slices: int = 1,
    quick: bool = True,
) -> Plan:
    """What a train step needs on chips that need not be here, and how long it takes.

    As `fmjax plan`: the step is compiled by the chips' own compiler, or for virtual CPU
    devices where that is not installed; `plan.topology.compiler` says which. It runs in
    another process, whatever devices this one uses; a script that calls it needs
    `if __name__ == "__main__":`, as that process imports it.

    Args:
      experiment: from `fmjax.load_experiment`, with data and an optimizer.
      chip: as `fmjax plan --chip` takes it.
      chips: how many, in all slices.
      slices: of TPUs.
      quick: whether to read the program of TPUs before machine code is generated, which
        takes seconds instead of minutes; for other compilers it makes no difference.

    Raises:
      UserError: there are no such chips, the mesh or the batch does not fit them, or
        the step needs more memory than they have.
    """
    quick = quick and compiler_of(find_chip(chip)) == "tpu"
    return plan_apart(Request(experiment, chip, chips, slices, quick=quick))


def plan_apart(request: Request) -> Plan:
    """The plan that another process makes, which is ended as soon as it is there.

    Args:
      request: what is to be planned.

    Returns:
      The plan; its topology has no devices, as they are of the other process.

    Raises:
      UserError: as of `make_topology` and `make_plan`; or the compiler crashed.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(request, there), daemon=True)
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        if code < 0:
            # A failed check of the compiler: it ends the whole process.
            raise UserError(
                f"the compiler for {request.chip} crashed (signal {-code})"
            ) from None
        raise RuntimeError(
            f"the process that compiled for {request.chip} ended with exit code {code}"
        ) from None
    finally:
        process.kill()
        process.join()
    if isinstance(found, UserError):
        raise found
    return found


def _answer(request: Request, answer: Connection) -> None:
    jax.config.update("jax_platforms", "cpu")
    # For what they register, such as tasks of seqio; classes are imported already.
    for module in request.experiment.modules:
        importlib.import_module(module)
    try:
        chip = find_chip(request.chip)
        if compiler_of(chip) == "cpu":
            use_virtual_devices(max(1, request.chips) * chip.devices_per_chip)
        experiment = resolve(request.experiment)
        topology = make_topology(chip, request.chips, request.slices)
        made = make_plan(experiment, topology, hlo=request.hlo, quick=request.quick)
    except UserError as error:
        answer.send(error)
        return
    # Devices cannot be sent.
    topology = dataclasses.replace(topology, devices=())
    answer.send(dataclasses.replace(made, topology=topology))
