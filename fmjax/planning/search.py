"""Search for the mesh, microbatches and rematerialization with the shortest step."""

import dataclasses
import math
from collections.abc import Callable, Iterator

from fmjax.errors import UserError
from fmjax.planning.plan import DoesNotFit, Plan, make_plan
from fmjax.planning.topology import Topology
from fmjax.training.experiment import Experiment

Bindings = tuple[str, ...]
# From the least memory to the most.
REMAT = ("full", "attention", "weights", "none")
MICROBATCHES = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One choice of bindings and what came of it.

    Attributes:
      bindings: that it adds to the config's.
      plan: None if it does not fit or is refused.
      refusal: why there is no plan.
      too_large: whether that is for lack of memory.
    """

    bindings: Bindings
    plan: Plan | None
    refusal: str = ""
    too_large: bool = False

    @property
    def seconds(self) -> float:
        """Middle of the predicted step time; infinite if there is no plan."""
        if self.plan is None:
            return math.inf
        time = self.plan.step_time
        return (time.low_s + time.high_s) / 2


def search(
    attempt: Callable[[Bindings], Trial],
    devices: int,
    *,
    first_that_fits: bool = False,
) -> list[Trial]:
    """Tries meshes first, then rematerialization on the best of them.

    Each mesh is tried with full rematerialization, and with more microbatches until it
    fits. Not every combination is compiled: what is fastest on one mesh is taken to be
    so on the others.

    Args:
      attempt: makes a trial of bindings.
      devices: their number.
      first_that_fits: whether to stop at the first plan that fits.

    Returns:
      The trials, the shortest step first; those without a plan last.
    """
    trials: list[Trial] = []
    for mesh in meshes(devices):
        for microbatches in MICROBATCHES:
            pieces = f"train.microbatches={microbatches}"
            trials.append(attempt((*mesh, pieces, "transformer.remat='full'")))
            if trials[-1].plan is not None and first_that_fits:
                return _ranked(trials)
            if not trials[-1].too_large:
                break
    best = _ranked(trials)[0]
    if best.plan is not None:
        for policy in REMAT[1:]:
            rest = best.bindings[:-1]
            trials.append(attempt((*rest, f"transformer.remat={policy!r}")))
            if trials[-1].plan is None:
                break
    return _ranked(trials)


def try_bindings(
    load: Callable[[Bindings], Experiment], topology: Topology, bindings: Bindings
) -> Trial:
    """Plans an experiment with these bindings added.

    Args:
      load: makes the experiment.
      topology: that is planned for.
      bindings: of gin.
    """
    try:
        return Trial(bindings, make_plan(load(bindings), topology))
    except DoesNotFit as error:
        return Trial(bindings, None, str(error), too_large=True)
    except UserError as error:
        return Trial(bindings, None, str(error))


def _ranked(trials: list[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda trial: trial.seconds)


def meshes(devices: int) -> Iterator[Bindings]:
    """Bindings of the meshes that are tried.

    Args:
      devices: their number.
    """
    yield _mesh(fsdp=-1)
    yield _mesh(data=-1)
    for size in (2, 4, 8):
        if devices % size == 0 and size < devices:
            yield _mesh(fsdp=-1, tensor=size)
    if devices % 8 == 0 and devices > 8:
        yield _mesh(fsdp=-1, expert=8)


def _mesh(data: int = 1, fsdp: int = 1, expert: int = 1, tensor: int = 1) -> Bindings:
    sizes = {"data": data, "fsdp": fsdp, "expert": expert, "tensor": tensor}
    return tuple(f"mesh.{axis}={size}" for axis, size in sizes.items())
