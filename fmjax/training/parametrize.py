"""The parametrization of an experiment: multipliers of its model, factors of its rates.

`experiment.parametrization` is resolved once, before a run begins: the multipliers
become fields of the model, with which it is stored and loaded, and the factors of each
parameter go to the initializer and the optimizer.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
from flax import traverse_util

from fmjax.optim.base_shape import compare
from fmjax.optim.scaling import Scaling
from fmjax.training.experiment import Experiment
from fmjax.training.labels import with_labels
from fmjax.training.state import abstract_variables
from fmjax.training.vocab_size import with_vocab_size

if TYPE_CHECKING:
    import pandas


def resolve(experiment: Experiment) -> Experiment:
    """The experiment with what follows from its data and its parametrization.

    It has the vocabulary size, see `with_vocab_size`, the classes, see `with_labels`,
    and the model's multipliers. The result of a resolved experiment is equal to it.

    Raises:
      UserError: a size is missing; or see `fmjax.optim.mup`.
    """
    experiment = with_labels(with_vocab_size(experiment))
    if experiment.parametrization is None:
        return experiment
    return _with_multipliers(experiment, *_sizes(experiment))


def plan_scaling(experiment: Experiment) -> Any:
    """A `Scaling` per parameter of a resolved experiment; None for no factors.

    Raises:
      UserError: see `fmjax.optim.mup`.
    """
    if experiment.parametrization is None:
        return None
    base, sizes = _sizes(experiment)
    if _with_multipliers(experiment, base, sizes).objective != experiment.objective:
        raise ValueError("expected an experiment from `resolve`")
    return experiment.parametrization.scaling(sizes, experiment.optimizer)


def parameter_factors(experiment: Experiment) -> "pandas.DataFrame":
    """What a parametrization does to each parameter, a row for each.

    Returns:
      A frame by path with the columns "shape", "initial values", "rate", "weight decay"
      and "epsilon"; all but the shape are the factors of a `Scaling`, 1 without a
      parametrization.

    Raises:
      UserError: see `fmjax.optim.mup`.
    """
    import pandas

    experiment = resolve(experiment)
    _, shapes = abstract_variables(experiment.objective)
    params = traverse_util.flatten_dict(shapes["params"], sep="/")
    scaling = plan_scaling(experiment) or jax.tree.map(
        lambda _: Scaling(), shapes["params"]
    )
    factors = traverse_util.flatten_dict(scaling, sep="/")
    rows = {
        path: {
            "shape": leaf.shape,
            "initial values": factors[path].init,
            "rate": factors[path].rate,
            "weight decay": factors[path].decay,
            "epsilon": factors[path].epsilon,
        }
        for path, leaf in params.items()
    }
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("parameter")


def _sizes(experiment: Experiment) -> tuple[Any, Any]:
    """The base model, and a `Sizes` per parameter."""
    objective, how = experiment.objective, experiment.parametrization
    base = how.base_of(objective.model)
    found = []
    for each in (objective, dataclasses.replace(objective, model=base)):
        axes, shapes = abstract_variables(each)
        found.append((axes["params"], shapes["params"]))
    return base, compare(*found, how.binding)


def _with_multipliers(experiment: Experiment, base: Any, sizes: Any) -> Experiment:
    objective, how = experiment.objective, experiment.parametrization
    model = how.with_multipliers(objective.model, base, sizes)
    return dataclasses.replace(
        experiment, objective=dataclasses.replace(objective, model=model)
    )
