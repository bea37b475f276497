"""Plans that are each made by a process of its own.

A compiler that crashes ends that process alone, and one that has told enough can be
ended before it generates machine code.
"""

import dataclasses
import multiprocessing
import pathlib
from multiprocessing.connection import Connection

import jax

from fmjax.config.load import load_experiment
from fmjax.errors import UserError
from fmjax.planning.plan import Plan, make_plan
from fmjax.planning.topology import Topology, make_topology
from fmjax.sharding.slices import find_chip
from fmjax.training.parametrize import resolve


@dataclasses.dataclass(frozen=True)
class Request:
    """What a process is asked to plan.

    Attributes:
      config: as of `load_experiment`.
      bindings: as of `load_experiment`.
      trust: as of `load_experiment`.
      chip: its name.
      chips: their number.
      slices: of TPUs.
      hlo: file that the program is written to; None for none.
      quick: as of `make_plan`.
    """

    config: str
    bindings: tuple[str, ...]
    trust: bool
    chip: str
    chips: int
    slices: int = 1
    hlo: pathlib.Path | None = None
    quick: bool = True


def plan_apart(request: Request, topology: Topology) -> Plan:
    """The plan that another process makes, which is ended as soon as it is there.

    Args:
      request: what is to be planned.
      topology: of the same chips.

    Raises:
      UserError: as of `load_experiment` and `make_plan`; or the compiler crashed.
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
    return dataclasses.replace(found, topology=topology)


def _answer(request: Request, answer: Connection) -> None:
    jax.config.update("jax_platforms", "cpu")
    try:
        experiment = resolve(
            load_experiment(request.config, list(request.bindings), request.trust)
        )
        chip = find_chip(request.chip)
        topology = make_topology(chip, request.chips, request.slices)
        plan = make_plan(experiment, topology, hlo=request.hlo, quick=request.quick)
    except UserError as error:
        answer.send(error)
        return
    # Devices cannot be sent.
    topology = dataclasses.replace(topology, devices=())
    answer.send(dataclasses.replace(plan, topology=topology))
