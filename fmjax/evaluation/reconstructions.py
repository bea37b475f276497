"""What a masked autoencoder makes of some validation images, to look at."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.data.images.contact_sheet import draw_sheet
from fmjax.data.inspect.images import describe
from fmjax.sharding.mesh import batch_shards
from fmjax.training.experiment import Experiment

IMAGES = 8


def reconstructions(experiment: Experiment) -> Callable:
    """An evaluation that draws images, what is seen of them and what is painted.

    For objectives with `pictures`, such as `masked_autoencoding`; nothing for others.
    """
    objective = experiment.objective
    if not hasattr(objective, "pictures"):
        return lambda step, variables, last: {}
    mesh, rules = experiment.mesh.build(), experiment.mesh.all_rules
    # Whole in every process, wherever the rows were painted.
    everywhere = NamedSharding(mesh, PartitionSpec())
    paint = jax.jit(objective.pictures, out_shardings=everywhere)

    def evaluation(step: int, variables: dict, last: bool) -> dict[str, np.ndarray]:
        data = experiment.data.plain()
        records = data.records("validation")
        numbers = np.linspace(0, len(records) - 1, IMAGES).astype(int).tolist()
        rows = [records.reading(number, seed=0) for number in numbers]
        filled = rows + rows[:1] * (-len(rows) % batch_shards(mesh, rules))
        batch = {name: np.stack([row[name] for row in filled]) for name in rows[0]}
        tiles = data.preprocessing.shown(np.asarray(paint(variables, batch)))
        lines = [(describe(data, row), list(line)) for row, line in zip(rows, tiles)]
        return {"reconstructions": np.asarray(draw_sheet(lines))}

    return evaluation
