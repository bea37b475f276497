"""Training a few steps of a config to trace them, without a run directory to keep."""

import dataclasses
import pathlib
import time

from fmjax.errors import UserError
from fmjax.training.environment import use_compilation_cache
from fmjax.training.experiment import Experiment
from fmjax.training.faults.bad_step_log import Diverged, Rollback
from fmjax.training.faults.watchdog import warn
from fmjax.training.loop import Loop
from fmjax.training.parametrize import resolve
from fmjax.training.reporting.goodput import Clock
from fmjax.training.reporting.spool import Spool
from fmjax.training.setup import set_up
from fmjax.training.start import Initialized
from fmjax.training.train import around_steps

WARM_UP = 3  # steps before the first one that is traced; they compile


def trace_steps(experiment: Experiment, folder: pathlib.Path, steps: int) -> None:
    """Trains the first steps of an experiment, of which the last `steps` are traced.

    Parameters are those of the initializer, and nothing is saved, evaluated or reported
    elsewhere.

    Args:
      experiment: from `fmjax.load_experiment`.
      folder: an empty folder, for the trace and logs.
      steps: to trace, in addition to WARM_UP steps before them.

    Raises:
      UserError: the config is wrong, has too few steps, or a loss is not finite.
    """
    last = WARM_UP + steps
    if steps < 1 or last > experiment.train.steps:
        raise UserError(
            f"--steps {steps}: expected 1 or more, and at most train.steps - {WARM_UP} "
            f"= {experiment.train.steps - WARM_UP}, as {WARM_UP} steps come before."
        )
    experiment = dataclasses.replace(
        resolve(experiment),
        train=dataclasses.replace(experiment.train, profile=(WARM_UP + 1, last)),
        trackers=(),
        init_from=(),
    )
    use_compilation_cache(experiment.train.compilation_cache)
    clock, spool = Clock(folder, time.time()), Spool(folder)
    with clock:
        setup = set_up(experiment, Initialized())
    loop = Loop(experiment, folder, "", setup, warn, False, clock, spool)
    try:
        with around_steps(loop, setup, clock):
            loop.restore()
            while loop.done < last:
                loop.step()
    except (Diverged, Rollback) as error:
        raise UserError(f"{error}: nothing was traced.") from None
    finally:
        loop.close()
