"""What a run is made of: a frozen tree of configurables."""

import dataclasses

from fmjax.configurable import configurable, runtime_field
from fmjax.data.images.image_data import ImageData
from fmjax.data.images.preprocessing import Preprocessing
from fmjax.data.runtime.batch_source import BatchSource, ObservesParameters
from fmjax.data.text.text_data import Data
from fmjax.errors import require
from fmjax.models.generation import Generation
from fmjax.objectives.objective import Objective
from fmjax.optim.freezing import Freeze
from fmjax.optim.optimizers import Optimizer
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
      generation: what ends the model's texts, and how they are generated unless told
        otherwise; None for the tokenizer's EOS and sampling.
      imported_dtype: of the files that a model was imported from, which an export
        writes unless told otherwise; None for a model that was trained.
      modules: Python modules that its gin files imported.
    """

    objective: Objective
    data: Data | ImageData | BatchSource | None = None
    optimizer: Optimizer | None = None
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    init_from: tuple[InitFrom, ...] = ()
    freeze: tuple[Freeze, ...] = ()
    bad_steps: BadSteps = BadSteps()
    preprocessing: Preprocessing | None = None
    evaluations: tuple[Evaluation, ...] = runtime_field(())
    generation: Generation | None = None
    imported_dtype: str | None = None
    modules: tuple[str, ...] = ()

    def __post_init__(self):
        """Raises UserError for a source that would never observe parameters."""
        if isinstance(self.data, ObservesParameters):
            every = self.data.observe_every
            require(self.data, "observe_every", every >= 1, "at least 1")

    @property
    def image_preprocessing(self) -> Preprocessing | None:
        """What images go through, the model's own or the data's; None for text."""
        of_data = self.data.preprocessing if isinstance(self.data, ImageData) else None
        return self.preprocessing or of_data
