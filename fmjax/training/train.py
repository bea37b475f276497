"""Training an experiment: set up, restored, and stepped to its end."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from fmjax.errors import explained_out_of_memory
from fmjax.sharding.mesh import on_mesh
from fmjax.training.checkpoint.reference import Reference
from fmjax.training.environment import use_compilation_cache
from fmjax.training.experiment import Experiment
from fmjax.training.faults.bad_step_log import Diverged, Rollback
from fmjax.training.faults.interruption import Interruption
from fmjax.training.loop import Loop
from fmjax.training.memory import HELP, describe_memory
from fmjax.training.outcome import Outcome
from fmjax.training.reporting.goodput import Clock
from fmjax.training.reporting.spool import Spool
from fmjax.training.setup import Setup, set_up
from fmjax.training.start import Start


def train(
    experiment: Experiment,
    run_dir: pathlib.Path,
    config_text: str,
    *,
    start: Start,
    on_checked: Callable[[Sequence[Reference]], None] = lambda references: None,
    on_hang: Callable[[str], None],
    changed_data: bool = False,
    began: float | None = None,
) -> Outcome:
    """Trains an experiment to its last step, resuming from its last checkpoint.

    Args:
      experiment: with data and an optimizer.
      run_dir: the run directory; the caller has checked that it belongs to this run.
      config_text: the whole config, stored with every checkpoint.
      start: where parameters come from that are not those of the initializer.
      on_checked: called with the parameters that checkpoints name in other runs, after
        all checks have passed, before anything is compiled.
      on_hang: called from another thread, with a message, if the run hangs.
      changed_data: resume even if the data changed since the checkpoint.
      began: when the process began, in seconds since 1970; None for now.

    Raises:
      UserError: parts of the experiment do not fit together, raised before anything is
        compiled; or the devices have too little memory.
      Diverged: a bad step, where experiment.bad_steps stops the run.
      CannotSave: saving failed train.save_attempts times in a row.
      BadDevice: a device gives wrong results.
    """
    use_compilation_cache(experiment.train.compilation_cache)
    with Spool(run_dir) as spool:
        clock = Clock(spool.folder, began or time.time(), jax.process_index() == 0)
        with clock:
            setup = set_up(experiment, start, on_checked)
        spool.begin(fetch=jax.process_index() == 0)
        loop = Loop(
            experiment, run_dir, config_text, setup, on_hang, changed_data, clock, spool
        )

        try:
            with around_steps(loop, setup, clock), Interruption() as interruption:
                loop.restore()
                loop.note_start()
                while not (loop.complete or loop.interrupted):
                    try:
                        loop.step()
                        loop.after_step(interruption)
                    except Rollback as error:
                        loop.roll_back(error)
                if loop.complete and not loop.evaluated:
                    loop.evaluate(last=True)
        except Diverged as error:
            raise loop.diverged(error) from None
        finally:
            loop.close()
        return loop.outcome()


@contextlib.contextmanager
def around_steps(loop: Loop, setup: Setup, clock: Clock) -> Iterator[None]:
    """Context manager that a loop is restored and stepped in.

    Args:
      loop: not restored yet; the caller closes it.
      setup: that it is made of.
      clock: that it is made of.
    """

    def held() -> str:
        return describe_memory(setup.plan, setup.step.activations)

    with (
        clock,
        explained_out_of_memory(HELP, held),
        on_mesh(setup.mesh, setup.rules),
        loop.watchdog,
    ):
        yield
