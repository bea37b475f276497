"""Measurements of image encoders, by the names of the options of `fmjax eval`."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Literal

from fmjax.configurable import configurable, runtime_field
from fmjax.errors import explained_out_of_memory
from fmjax.evaluation.captions import captions
from fmjax.evaluation.current_run import check_one_process, current_run
from fmjax.evaluation.image_features import ImageRun, check_measurable, load_images
from fmjax.evaluation.probes import knn, linear_probe
from fmjax.evaluation.validation import LESS_MEMORY
from fmjax.evaluation.zero_shot import retrieval, zero_shot
from fmjax.training.experiment import Experiment
from fmjax.training.validation import EvaluationPoint

MEASURES = {
    measure.__name__: measure
    for measure in (linear_probe, knn, zero_shot, retrieval, captions)
}


@explained_out_of_memory(LESS_MEMORY)
def measure_images(
    run_dir: str | os.PathLike,
    names: Sequence[str],
    *,
    step: int | None = None,
    bindings: Sequence[str] = (),
    trust: bool = False,
) -> dict[str, float]:
    """The results of several measurements of a run.

    Args:
      run_dir: the run directory.
      names: keys of MEASURES.
      step: step of the checkpoint; None for the newest.
      bindings: "NAME=VALUE" bindings of data and batch size, see `load_images`.
      trust: whether the stored config may import code.

    Raises:
      UserError: see `load_images` and each measurement.
    """
    images = load_images(run_dir, step=step, bindings=bindings, trust=trust)
    values: dict[str, float] = {}
    for name in names:
        values |= MEASURES[name](images)
    return values


@configurable("image_measure")
@dataclasses.dataclass(frozen=True)
class ImageMeasure:
    """Measures the image encoder during training, as `fmjax eval` does after it.

    Attributes:
      measure: linear_probe and knn of features, zero_shot and retrieval of a model with
        two encoders, or captions.
      every_validation: whether after each validation, or after the last step alone.
    """

    measure: Literal["linear_probe", "knn", "zero_shot", "retrieval", "captions"]
    every_validation: bool = runtime_field(False)

    def check(self, experiment: Experiment) -> None:
        """Raises a UserError without images, an image encoder, or one process."""
        check_one_process(self.gin_name, self.measure)
        check_measurable(experiment, "experiment.evaluations has @image_measure()")

    def __call__(self, experiment: Experiment, at: EvaluationPoint) -> dict[str, float]:
        """The results of the measurement, such as {"knn": accuracy}."""
        if not (at.last or self.every_validation):
            return {}
        run = current_run(experiment, at.variables, at.step)
        train = experiment.train
        size = train.eval_batch_size or train.batch_size
        images = ImageRun(run, experiment.data.plain(), size)
        return MEASURES[self.measure](images)
