"""Importance of hyperparameters: how much a metric depends on each binding."""

import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from fmjax.errors import UserError
from fmjax.evaluation.compared_runs import SEED, ComparedRun, changes_results

_FEWEST_RUNS = 4
_ABSENT = "—"


def importance_of_runs(runs: Sequence[ComparedRun], metric: str) -> dict[str, float]:
    """The `importance` of the bindings in which runs differ, but for the seed.

    Args:
      runs: those whose last validation has no finite value are left out.
      metric: of the last validation.

    Raises:
      UserError: as in `importance`.
    """
    points, values = [], []
    for run in runs:
        found = run.series("validation", metric)[1]
        if len(found) and math.isfinite(found[-1]):
            points.append(run.bindings)
            values.append(float(found[-1]))
    names = {name for point in points for name in point}
    names = {n for n in names if n != SEED and changes_results(n)}
    return importance([{n: p.get(n, _ABSENT) for n in names} for p in points], values)


def importance(
    points: Sequence[Mapping[str, str]], values: Sequence[float]
) -> dict[str, float]:
    """The share of each binding in the variance of a metric, by functional ANOVA.

    A random forest is fitted to the results; a share is that of a binding alone, in the
    forest's variance over the box of all values (fANOVA, Hutter et al. 2014). With few
    or unevenly spread points it tells about these points more than about the bindings.

    Args:
      points: gin text of each binding, by name; the same names in each.
      values: of the metric.

    Returns:
      Shares that add up to 1 by name, the largest first.

    Raises:
      UserError: there are too few points, nothing differs, or Optuna is missing.
    """
    known = points[0] if points else ()
    names = [name for name in known if len({point[name] for point in points}) > 1]
    if len(points) < _FEWEST_RUNS or not names or len({*values}) < 2:
        raise UserError(
            f"importance: {len(points)} runs with this metric, in which "
            f"{len(names)} bindings differ; expected at least {_FEWEST_RUNS} runs with "
            "different results, and a binding that differs besides the seed."
        )
    try:
        import optuna
    except ImportError:
        raise UserError(
            "importance needs the package optuna; expected pip install 'fmjax[sweep]'."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    columns = {name: [point[name] for point in points] for name in names}
    numbers = {name: _numbers(texts) for name, texts in columns.items()}
    distributions = {
        name: optuna.distributions.CategoricalDistribution([*dict.fromkeys(texts)])
        if numbers[name] is None
        else optuna.distributions.FloatDistribution(
            min(numbers[name]), max(numbers[name]), log=_is_logarithmic(numbers[name])
        )
        for name, texts in columns.items()
    }
    study = optuna.create_study()
    for index, value in enumerate(values):
        params = {name: (numbers[name] or columns[name])[index] for name in names}
        study.add_trial(
            optuna.create_trial(params=params, distributions=distributions, value=value)
        )
    return optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )


def importance_table(shares: Mapping[str, float], metric: str) -> Table:
    """The shares as a table."""
    table = Table(title=f"importance for the last {metric} of validation (fANOVA)")
    table.add_column("binding", overflow="fold")
    table.add_column("share of the variance", justify="right")
    for name, share in shares.items():
        table.add_row(name, f"{share:.0%}")
    return table


def _numbers(texts: Sequence[str]) -> list[float] | None:
    """The numbers that the texts are; None if one is none."""
    try:
        found = [float(text) for text in texts]
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None


def _is_logarithmic(numbers: Sequence[float]) -> bool:
    """Whether positive numbers span a factor of ten, as learning rates do."""
    return min(numbers) > 0 and max(numbers) >= 10 * min(numbers)
