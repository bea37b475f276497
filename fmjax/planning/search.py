"""Search for the mesh, microbatches, remat policy and blocks of the fastest step."""

import dataclasses
import math
from collections.abc import Callable, Iterator

from fmjax.errors import UserError
from fmjax.planning.plan import DoesNotFit, Plan

Bindings = tuple[str, ...]
# From the least memory to the most.
REMAT = ("full", "attention", "weights", "dots", "none")
NO_NAMES = ("transformer.remat_save=()", "transformer.remat_offload=()")
MICROBATCHES = (1, 2, 4, 8)
BLOCKS = (512, 1024, 2048)
# How many of the fastest quick plans are compiled whole.
FINALISTS = 3
# Devices that share the state, where each of several groups has all of it.
SHARDED = (8, 16, 32, 64)
# Axes of the mesh beside fsdp, and the sizes that are tried, in order.
SIZES = {"tensor": (2, 4, 8), "context": (2, 4, 8), "stage": (2, 4, 8), "expert": (8,)}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One choice of bindings and what came of it.

    Attributes:
      bindings: that it adds to the config's.
      plan: None if it does not fit or is refused.
      refusal: why there is no plan.
      too_large: whether that is for lack of memory.
      state_alone: whether the parameters and the optimizer's state are too large even
        without a batch.
    """

    bindings: Bindings
    plan: Plan | None
    refusal: str = ""
    too_large: bool = False
    state_alone: bool = False

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
    """Tries meshes first, then rematerialization and attention blocks on the best.

    Each mesh is tried with full rematerialization, and with more microbatches until it
    fits. Along an axis of the mesh larger sizes are tried as long as they are faster
    than smaller ones, or these do not fit. So not every combination is compiled: what
    is fastest on one mesh is taken to be so on the others.

    Args:
      attempt: makes a trial of bindings.
      devices: their number.
      first_that_fits: whether to stop at the first plan that fits.

    Returns:
      The trials, the shortest step first; those without a plan last.
    """
    trials: list[Trial] = []

    def of_mesh(mesh: Bindings) -> Trial:
        for microbatches in MICROBATCHES:
            pieces = f"train.microbatches={microbatches}"
            trials.append(attempt((*mesh, pieces, "transformer.remat='full'")))
            if trials[-1].state_alone or not trials[-1].too_large:
                break
        return trials[-1]

    for line in meshes(devices):
        last = math.inf
        for mesh in line:
            trial = of_mesh(mesh)
            if trial.plan is not None and first_that_fits:
                return _ranked(trials)
            if trial.plan is None and not trial.too_large:
                break  # The model does not have the axis.
            if trial.plan is not None and trial.seconds >= last:
                break
            last = trial.seconds
    best = _ranked(trials)[0]
    if best.plan is not None:
        *rest, _ = best.bindings
        for policy in REMAT[1:]:
            remat = (f"transformer.remat={policy!r}",)
            # With everything kept, a config's own names to keep would be refused.
            trials.append(attempt((*rest, *remat, *NO_NAMES * (policy == "none"))))
            if trials[-1].plan is None:
                break
        best = _ranked(trials)[0]
        if any(name.startswith("splash") for name in best.plan.kernels):
            for block in BLOCKS:
                blocks = f"transformer.attention_block={block}"
                trials.append(attempt((*best.bindings, blocks)))
    return _ranked(trials)


def confirm(
    trials: list[Trial], attempt: Callable[[Bindings], Trial], number: int = FINALISTS
) -> list[Trial]:
    """Compiles the fastest of quick trials whole.

    Args:
      trials: from `search`.
      attempt: makes a trial of bindings with a whole plan.
      number: of whole plans that are wanted; a trial that turns out to have none, as
        its kernels need too much vector memory, makes way for the next.

    Returns:
      The trials, those with whole plans first, the shortest step first.
    """
    trials = _ranked(trials)
    for place, trial in enumerate(trials):
        if number == 0 or trial.plan is None:
            break
        trials[place] = attempt(trial.bindings)
        number -= trials[place].plan is not None
    return _ranked(trials)


def try_bindings(plan: Callable[[Bindings], Plan], bindings: Bindings) -> Trial:
    """Plans a step with these bindings added.

    Args:
      plan: makes the plan.
      bindings: of gin.
    """
    try:
        return Trial(bindings, plan(bindings))
    except DoesNotFit as error:
        return Trial(bindings, None, str(error), True, error.state_alone)
    except UserError as error:
        return Trial(bindings, None, str(error))


def _ranked(trials: list[Trial]) -> list[Trial]:
    # A quick plan's seconds are a lower bound, so they do not compare with others.
    return sorted(trials, key=lambda t: (t.plan is None or t.plan.quick, t.seconds))


def meshes(devices: int) -> Iterator[list[Bindings]]:
    """Bindings of the meshes that are tried, a list for each axis.

    Args:
      devices: their number.
    """
    yield [_mesh(fsdp=-1)]
    yield [_mesh(data=-1)]
    groups = [n for n in SHARDED if devices % n == 0 and n < devices]
    yield [_mesh(data=-1, fsdp=size) for size in groups]
    for axis, sizes in SIZES.items():
        fitting = [n for n in sizes if devices % n == 0 and n < devices]
        yield [_mesh(fsdp=-1, **{axis: size}) for size in fitting]


def _mesh(**sizes: int) -> Bindings:
    axes = {"data": 1, "fsdp": 1, **dict.fromkeys(SIZES, 1), **sizes}
    return tuple(f"mesh.{axis}={size}" for axis, size in axes.items())
