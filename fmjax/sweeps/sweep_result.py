"""The result of a sweep for notebooks: frames, the best trial, plots."""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmjax.evaluation.compare import curves
from fmjax.evaluation.compared_runs import Over
from fmjax.evaluation.frames import literal, runs
from fmjax.sweeps import trial_run
from fmjax.sweeps.config import Asha, SweepConfig
from fmjax.sweeps.evaluation import evaluate_runs
from fmjax.sweeps.folder import SweepFolder
from fmjax.sweeps.plot import plot_sweep
from fmjax.sweeps.results import FINISHED, Row, caption
from fmjax.sweeps.sweep import as_space, read_sweep, run_sweep

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class Sweep:
    """A sweep that has come to its end.

    Attributes:
      config: of the sweep.
      folder: of the sweep; its runs are in `folder / "trials"`.
      rows: a row for each trial, the best first.
    """

    def __init__(
        self,
        config: SweepConfig,
        folder: pathlib.Path,
        rows: Sequence[Row],
        trust: bool = False,
    ):
        self.config, self.folder, self.rows = config, folder, (*rows,)
        self._trust = trust

    @property
    def frame(self) -> "pandas.DataFrame":
        """A row for each trial, the best first, with its number as index.

        Columns: each binding of the space; the metric, its mean over seeds, under its
        name; `half`, half the width of its 95% interval (Student's t), NaN for a single
        seed; `seeds` that have a result; `state` and `error`.
        """
        import pandas

        metric = self.config.metric
        columns = [*self.config.space, metric, "half", "seeds", "state", "error"]
        cells = [
            [
                *(literal(row.point.get(name)) for name in self.config.space),
                math.nan if row.metric is None else row.metric.mean,
                math.nan if row.metric is None else row.metric.half,
                sum(run.value is not None for run in row.runs),
                row.state,
                row.error,
            ]
            for row in self.rows
        ]
        index = pandas.Index([row.trial for row in self.rows], name="trial")
        found = pandas.DataFrame(cells, index=index, columns=columns)
        return found.astype({metric: float, "half": float})

    @property
    def runs(self) -> "pandas.DataFrame":
        """The frame of `fmjax.runs` of the sweep's runs."""
        return runs(self.folder)

    @property
    def best(self) -> Row | None:
        """The finished trial with the best mean; None if none has finished."""
        return next((row for row in self.rows if row.state == FINISHED), None)

    def run_dirs(self, row: Row) -> list[pathlib.Path]:
        """The run directories of a trial, one for each seed."""
        return [SweepFolder(self.folder).trials / run.name for run in row.runs]

    def evaluate(
        self, bindings: Sequence[str], rows: Sequence[Row] | None = None
    ) -> "pandas.DataFrame":
        """Evaluates the runs of trials with other bindings, such as of a test split.

        As `fmjax eval` does, `at_once` of them at a time, each in a process of its own.
        What was measured is kept in the folder, and is not measured again.

            sweep.evaluate(["tfds.validation='test'"], [sweep.best])

        Args:
          bindings: NAME=VALUE.
          rows: the trials; None for all that have finished.

        Returns:
          A row for each run, with its name as index. Columns: each binding of the
          space, `seed`, and the metrics.

        Raises:
          UserError: an evaluation failed.
        """
        import pandas

        if rows is None:
            rows = [row for row in self.rows if row.state == FINISHED]
        found = evaluate_runs(
            self.config,
            SweepFolder(self.folder),
            [run.name for row in rows for run in row.runs],
            bindings,
            trust=self._trust,
            say=print,
            command=trial_run.COMMAND,
        )
        cells = {
            run.name: {
                **{name: literal(row.point[name]) for name in self.config.space},
                "seed": run.seed,
                **found[run.name],
            }
            for row in rows
            for run in row.runs
        }
        return pandas.DataFrame.from_dict(cells, orient="index").rename_axis("run")

    def plot(self) -> "Figure":
        """Draws the metric of the trials, with intervals and seeds.

        As `fmjax sweep --plot` does, see `fmjax.sweeps.plot.plot_sweep`.
        """
        return plot_sweep(self.config, self.rows)

    def curves(self, metric: str | None = None, over: Over | None = None) -> "Figure":
        """Draws the curves of all runs, as `fmjax.curves`; None is the metric swept."""
        return curves([self.folder], metric or self.config.metric, over=over)

    def __repr__(self):
        """A summary in a line."""
        best = self.best
        text = f"Sweep({len(self.rows)} trials in {self.folder}"
        if best is None:
            return f"{text}, none finished)"
        values = ", ".join(f"{name}={text}" for name, text in best.point.items())
        return f"{text}, best {self.config.metric} {best.metric} with {values})"

    def _repr_html_(self) -> str:
        """The frame with what its figures are, for notebooks."""
        table = self.frame.reset_index().to_html(index=False)
        return f"{table}<p>{caption(self.config)}</p>"


def sweep(
    config: str | os.PathLike,
    space: Mapping[str, Any] | None = None,
    *,
    folder: str | os.PathLike,
    bindings: Sequence[str] = (),
    seeds: int = 1,
    search: str = "grid",
    trials: int | None = None,
    metric: str = "loss",
    direction: str = "minimize",
    seed: int = 0,
    stopping: Asha | None = None,
    at_once: int = 1,
    gpus_per_run: int | None = None,
    storage: str | None = None,
    trust: bool = False,
) -> Sweep:
    """Trains a config at the points of a space, each run in a process of its own.

    The same call continues a sweep that was interrupted, and returns at once if it has
    finished. Each run is an ordinary run directory in FOLDER/trials.

    Args:
      config: gin file of a run: a path, or a name under configs/. Without `space`, that
        of a sweep, as of `fmjax sweep`; `bindings` then are of the sweep.
      space: binding → values to try, as {"cosine.learning_rate": [1e-3, 3e-3]}, or a
        range, such as fmjax.LogUniform(1e-4, 1e-2). A string is read as on the command
        line.
      folder: of the sweep, new or to continue.
      bindings: NAME=VALUE of every run.
      seeds: runs of each point.
      search: "grid", "random" or "bayesian".
      trials: number of points, but of a grid.
      metric: of the last validation.
      direction: "minimize" or "maximize" the metric.
      seed: of the draws.
      stopping: fmjax.Asha() ends runs that fall behind.
      at_once: number of runs at a time.
      gpus_per_run: CUDA devices of each run.
      storage: Optuna's storage as a URL; None for SQLite in the folder.
      trust: whether the config may import code.

    Raises:
      UserError: a part of the sweep is wrong; raised before anything starts.
    """
    if space is None:
        found, near = read_sweep(config, bindings)
    else:
        near = pathlib.Path.cwd()
        found = SweepConfig(
            os.fspath(config),
            as_space(space),
            bindings=tuple(bindings),
            search=search,
            trials=trials,
            seeds=seeds,
            metric=metric,
            direction=direction,
            seed=seed,
            stopping=stopping,
            at_once=at_once,
            gpus_per_run=gpus_per_run,
            storage=storage,
        )
    rows = run_sweep(found, folder, near, trust=trust)
    return Sweep(found, SweepFolder(folder).path, rows, trust)
