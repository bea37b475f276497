"""Running a sweep: checked, made or found again, worked on to its end."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fmjax.config.files import find
from fmjax.config.load import SWEEP, load_experiment, load_part, part_of
from fmjax.errors import UserError, suggest
from fmjax.sweeps.config import SweepConfig
from fmjax.sweeps.folder import SweepFolder
from fmjax.sweeps.gpus import visible_gpus
from fmjax.sweeps.metric_names import metric_names
from fmjax.sweeps.space import (
    Point,
    Range,
    Space,
    bindings_of_point,
    choices_of,
    first_point,
    last_point,
)
from fmjax.training.experiment import Experiment
from fmjax.training.train_config import TrainConfig


def read_sweep(
    config: str | os.PathLike, bindings: Sequence[str] = ()
) -> tuple[SweepConfig, pathlib.Path]:
    """The sweep of a gin file, and the folder in which its config is looked up first.

    Args:
      config: a path, or a name under configs/.
      bindings: NAME=VALUE, of the sweep.

    Raises:
      UserError: as in `load_experiment`.
    """
    found = load_part(SWEEP, os.fspath(config), bindings)
    return found, find(os.fspath(config), pathlib.Path.cwd()).parent


def run_sweep(
    config: SweepConfig,
    folder: str | os.PathLike,
    near: pathlib.Path,
    *,
    trust: bool = False,
    command: Sequence[str] | None = None,
    names: Callable[..., list[str] | None] = metric_names,
):
    """Works on a sweep until all trials have ended; continues one that was ended.

    Args:
      config: of the sweep.
      folder: of the sweep, new or of the same sweep.
      near: folder in which the trials' config is looked up first.
      trust: whether the trials' config may import code.
      command: that runs fmjax; None for this Python's.
      names: finds the metrics that the trials' config will log.

    Returns:
      The rows of `fmjax.sweeps.results`, the best first.

    Raises:
      UserError: something is wrong with the config, the folder or the storage; raised
        before a trial starts. Or the trials log no such metric.
    """
    _require_optuna()
    from fmjax.sweeps.claims import Claims
    from fmjax.sweeps.display import Display
    from fmjax.sweeps.engine import Engine
    from fmjax.sweeps.study import Study
    from fmjax.sweeps.trial_run import COMMAND

    file = str(find_config(config.config, near, "sweep.config"))
    place = SweepFolder(folder)
    experiment = check_space(config, file, trust)
    first_step = _first_step(config, experiment.train)
    if config.gpus_per_run is not None:
        visible_gpus(config.gpus_per_run * config.at_once)
    if place.is_new:
        _check_metric(config, file, experiment, trust, names)
    with contextlib.ExitStack() as stack:
        with place.one_at_a_time():
            # Another process may have made it meanwhile.
            if place.is_new:
                place.make(config, experiment)
            place.check(config, experiment)
            study = Study(config, place.path, place.study, first_step)
            stack.callback(study.close)
            study.fill()
        claims = stack.enter_context(Claims(place.claims))
        display = stack.enter_context(Display(config))
        engine = Engine(
            config,
            file,
            place,
            study,
            claims,
            experiment.train.seed,
            trust,
            display.say,
            display.show,
            COMMAND if command is None else command,
        )
        rows = engine.run()
    display.finish(rows)
    return rows


def as_space(given: Mapping[str, Any]) -> Space:
    """A space written in Python: lists as tuples."""
    return {name: _tuples(values) for name, values in given.items()}


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _tuples(each) for name, each in value.items()}
    if isinstance(value, Range) or not isinstance(value, (list, tuple)):
        return value
    return tuple(_tuples(each) for each in value)


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError(
            "the package optuna is not installed; expected pip install 'fmjax[sweep]'."
        ) from None


def find_config(config: str, near: pathlib.Path, binding: str) -> pathlib.Path:
    """The file of a run's config, near the file that names it or from where we are.

    Args:
      config: a path, or a name under configs/.
      near: folder in which it is looked up first.
      binding: that names it.

    Raises:
      UserError: there is no such file.
    """
    with contextlib.suppress(UserError):
        return find(config, near)
    try:
        return find(config, pathlib.Path.cwd())
    except UserError as error:
        raise UserError(f"{binding}: {error}") from None


def check_space(config: SweepConfig, file: str, trust: bool) -> Experiment:
    """Checks each value of the space on the config; the experiment of the first point.

    A value is refused if it fails both beside the first and beside the last values of
    the other bindings. What fails only in combination fails its trials alone.
    """
    if part_of(file) is not None:
        raise UserError(
            f"sweep.config = {config.config!r}: expected the config of a run."
        )

    def load(point: Point) -> Experiment:
        bindings = bindings_of_point(config.space, point)
        return load_experiment(file, [*config.bindings, *bindings], trust)

    first, last = first_point(config.space), last_point(config.space)
    try:
        experiment = load(first)
    except UserError as error:
        raise UserError(f"the first point of sweep.space: {error}") from None
    for name, values in config.space.items():
        for text in choices_of(values)[1:]:
            if _fails(load, first | {name: text}) is None:
                continue
            error = _fails(load, last | {name: text})
            if error is not None:
                raise UserError(f"sweep.space: {name} = {text}: {error}")
    return experiment


def check_evaluation(
    config: SweepConfig,
    near: pathlib.Path,
    bindings: Sequence[str],
    trust: bool = False,
) -> None:
    """Checks bindings with which runs are to be evaluated, on the first point.

    Args:
      config: of the sweep.
      near: folder in which the trials' config is looked up first.
      bindings: NAME=VALUE.
      trust: whether the trials' config may import code.

    Raises:
      UserError: the config does not take them.
    """
    file = str(find_config(config.config, near, "sweep.config"))
    point = bindings_of_point(config.space, first_point(config.space))
    load_experiment(file, [*config.bindings, *point, *bindings], trust)


def _fails(load: Callable[[Point], Experiment], point: Point) -> UserError | None:
    try:
        load(point)
    except UserError as error:
        return error
    return None


def _first_step(config: SweepConfig, train: TrainConfig) -> int:
    """The step of ASHA's first decision.

    Raises:
      UserError: the trials have no validations to be judged by.
    """
    if config.stopping is None:
        return 1
    every = train.eval_every
    if not 0 < every < train.steps:
        raise UserError(
            f"sweep.stopping = @asha() and train.eval_every = {every}: expected "
            f"validations before the last of {train.steps} steps, by which trials are "
            "judged."
        )
    first = config.stopping.first_step or every
    if not every <= first < train.steps:
        raise UserError(
            f"asha.first_step = {first}: expected from train.eval_every = {every} to "
            f"less than train.steps = {train.steps}."
        )
    return first


def _check_metric(
    config: SweepConfig,
    file: str,
    experiment: Experiment,
    trust: bool,
    names: Callable[..., list[str] | None],
) -> None:
    """Raises a UserError if the trials will not log the metric, as far as is known."""
    if experiment.data is not None and not experiment.data.has_validation:
        raise UserError(
            f"sweep.metric = {config.metric!r}: the data of {config.config} has no "
            "validation split; expected one, since the metric is that of the last "
            "validation."
        )
    if config.metric == "loss":
        return
    point = first_point(config.space)
    bindings = bindings_of_point(config.space, point)
    known = names(file, [*config.bindings, *bindings], trust)
    if known is None or config.metric in known:
        return
    raise UserError(
        f"sweep.metric = {config.metric!r}: validation of {config.config} logs no such "
        f"metric.{suggest(config.metric, known)} Expected one of {', '.join(known)}."
    )
