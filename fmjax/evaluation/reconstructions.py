"""The evaluation `reconstructions`: validation images rebuilt by an autoencoder."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax.configurable import configurable
from fmjax.data.images.image_data import ImageData
from fmjax.data.inspect.contact_sheet import draw_sheet
from fmjax.data.inspect.images import describe
from fmjax.errors import UserError
from fmjax.objectives.objective import ReconstructionObjective
from fmjax.sharding.mesh import batch_shards
from fmjax.training.experiment import EvaluationPoint, Experiment

IMAGES = 8


@configurable("reconstructions")
@dataclasses.dataclass(frozen=True)
class Reconstructions:
    """Draws validation images, their visible patches, and the model's reconstruction.

    For objectives with `pictures`, such as @masked_autoencoding().
    """

    def check(self, experiment: Experiment) -> None:
        """Raises a UserError without pictures of the objective, or without a cache."""
        if not isinstance(experiment.objective, ReconstructionObjective):
            raise UserError(
                "experiment.evaluations has @reconstructions(), but "
                f"@{experiment.objective.gin_name}() does not reconstruct images; "
                "expected @masked_autoencoding()."
            )
        data = experiment.data
        if isinstance(data, ImageData) and data.streaming:
            raise UserError(
                "images.streaming = True, but experiment.evaluations has "
                "@reconstructions(), which reads chosen images from a cache; expected "
                "images.streaming=False, or no @reconstructions()."
            )

    def __call__(
        self, experiment: Experiment, at: EvaluationPoint
    ) -> dict[str, np.ndarray]:
        """{"reconstructions": picture uint8 [H, W, 3]}, a line for each of 8 images."""
        mesh, rules = experiment.mesh.build(), experiment.mesh.all_rules
        data = experiment.data.plain()
        records = data.records("validation")
        numbers = np.linspace(0, len(records) - 1, IMAGES).astype(int).tolist()
        rows = [records.reading(number, seed=0) for number in numbers]
        filled = rows + rows[:1] * (-len(rows) % batch_shards(mesh, rules))
        batch = {name: np.stack([row[name] for row in filled]) for name in rows[0]}
        painted = _painter(experiment.objective, mesh)(at.variables, batch)
        tiles = data.preprocessing.shown(np.asarray(painted))
        lines = [(describe(data, row), list(line)) for row, line in zip(rows, tiles)]
        return {"reconstructions": np.asarray(draw_sheet(lines))}


@functools.lru_cache(maxsize=1)
def _painter(objective, mesh: Mesh) -> Callable:
    # Replicated, so that every process has all rows.
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(objective.pictures, out_shardings=everywhere)
