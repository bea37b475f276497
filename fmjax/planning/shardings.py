"""How the arrays of a run's state are divided among devices, as a frame of pandas."""

from typing import TYPE_CHECKING

import jax

from fmjax.training.experiment import Experiment
from fmjax.training.memory import bytes_per_device
from fmjax.training.parametrize import resolve
from fmjax.training.setup import plan_run

if TYPE_CHECKING:
    import pandas

# Fields of the state, as the frame names them.
_PARTS = {
    "params": "parameters",
    "opt_state": "optimizer",
    "ema": "averages",
    "extra": "extra",
}


def shardings(experiment: Experiment) -> "pandas.DataFrame":
    """What each device holds of a run's state, on the devices here.

    Nothing is allocated or compiled.

    Args:
      experiment: from `fmjax.load_experiment`, with an optimizer.

    Returns:
      A row for each array of the state, with its path as index. Columns: `part`
      ("parameters", "optimizer", "averages" or "extra"), `shape`, `dtype`, `spec` (a
      `jax.sharding.PartitionSpec`: mesh axes of each axis of the array), `bytes` in
      all, `bytes_per_device`, and `sharding`, a `jax.sharding.NamedSharding`.

    Raises:
      UserError: the mesh has another number of devices, or does not divide an array.
    """
    import pandas

    mesh, rules = experiment.mesh.build(), experiment.mesh.all_rules
    state = plan_run(resolve(experiment), mesh, rules).shapes
    rows, paths = [], []
    for field, part in _PARTS.items():
        tree = getattr(state, field)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            paths.append(jax.tree_util.keystr(path, simple=True, separator="/"))
            rows.append(
                {
                    "part": part,
                    "shape": leaf.shape,
                    "dtype": leaf.dtype.name,
                    "spec": leaf.sharding.spec,
                    "bytes": leaf.size * leaf.dtype.itemsize,
                    "bytes_per_device": bytes_per_device(leaf),
                    "sharding": leaf.sharding,
                }
            )
    return pandas.DataFrame(rows, index=pandas.Index(paths, name="path"))
