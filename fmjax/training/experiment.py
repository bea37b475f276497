"""What a run is made of: a frozen tree of configurables."""

import dataclasses
import typing

from fmjax.configurable import configurable, runtime_field
from fmjax.data.images.image_data import ImageData
from fmjax.data.images.preprocessing import Preprocessing
from fmjax.data.runtime.batch_source import BatchSource
from fmjax.data.text.text_data import Data
from fmjax.optim.freezing import Freeze
from fmjax.sharding.mesh import MeshConfig
from fmjax.training.faults.bad_steps import BadSteps
from fmjax.training.init_from import InitFrom
from fmjax.training.train_config import TrainConfig
from fmjax.training.validation import Evaluation


@configurable("experiment")
@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a run is made of.

    Attributes:
      objective: what is minimized; it holds the model.
      data: tasks and how they become batches; None for a model that was imported.
      optimizer: an optimizer and its schedule; None likewise.
      mesh: how devices are arranged.
      train: length, batch and intervals of the run.
      init_from: parameters of other runs that it starts from.
      freeze: parameters that do not change until a step.
      bad_steps: what to do about a loss that is not finite, or far out of the usual.
      preprocessing: what an imported model's images go through; None for one of text,
        and for that of `data`.
      evaluations: what is evaluated beside the loss on the validation split.
      modules: Python modules that its gin files imported.
    """

    objective: typing.Any
    data: Data | ImageData | BatchSource | None = None
    optimizer: typing.Any = None
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    init_from: tuple[InitFrom, ...] = ()
    freeze: tuple[Freeze, ...] = ()
    bad_steps: BadSteps = BadSteps()
    preprocessing: Preprocessing | None = None
    evaluations: tuple[Evaluation, ...] = runtime_field(())
    modules: tuple[str, ...] = ()

    @property
    def image_preprocessing(self) -> Preprocessing | None:
        """What images go through, the model's own or the data's; None for text."""
        return self.preprocessing or getattr(self.data, "preprocessing", None)
