"""Plans from programs before machine code, each made by a process of its own."""

import dataclasses
import multiprocessing
import pathlib
from multiprocessing.connection import Connection

import jax

from fmjax.config.load import load_experiment
from fmjax.errors import UserError
from fmjax.planning.plan import Plan, make_plan
from fmjax.planning.topology import Topology, find_chip, make_topology
from fmjax.training.vocab_size import with_vocab_size


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
    """

    config: str
    bindings: tuple[str, ...]
    trust: bool
    chip: str
    chips: int
    slices: int = 1
    hlo: pathlib.Path | None = None


def quick_plan(request: Request, topology: Topology) -> Plan:
    """The plan of a step of TPUs whose machine code is not generated.

    The process that compiles is ended as soon as the program can be read, see
    `fmjax.planning.program.quick_program`.

    Args:
      request: what is to be planned.
      topology: of the same chips.

    Raises:
      UserError: as of `load_experiment` and `make_plan`.
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
        raise RuntimeError(
            f"the process that compiled for {request.chip} ended with exit code "
            f"{process.exitcode}"
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
        experiment = with_vocab_size(
            load_experiment(request.config, list(request.bindings), request.trust)
        )
        chip = find_chip(request.chip)
        topology = make_topology(chip, request.chips, request.slices)
        plan = make_plan(experiment, topology, hlo=request.hlo, quick=True)
    except UserError as error:
        answer.send(error)
        return
    # Devices cannot be sent.
    topology = dataclasses.replace(topology, devices=())
    answer.send(dataclasses.replace(plan, topology=topology))
