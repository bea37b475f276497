"""The experiment: the whole configuration of a run, a frozen tree of configurables.

The interface of its evaluations, which are given the experiment, is here too.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Protocol

import numpy as np
from jaxtyping import Array, Float, Int

from fmjax.configurable import configurable, runtime_field
from fmjax.data.images.image_data import ImageData
from fmjax.data.images.preprocessing import Preprocessing
from fmjax.data.runtime.batch_source import BatchSource, ObservesParameters
from fmjax.data.text.text_data import Data
from fmjax.errors import UserError, require
from fmjax.models.generation import Generation
from fmjax.models.text_embedding import TextEmbedding
from fmjax.objectives.attack import PixelRange
from fmjax.objectives.objective import Objective
from fmjax.objectives.text_contrast import TextContrast
from fmjax.optim.freezing import Freeze
from fmjax.optim.mup import MuP
from fmjax.optim.optimizers import Optimizer
from fmjax.optim.peft.peft import Peft
from fmjax.sharding.mesh import MeshConfig
from fmjax.training.adversary import Adversary
from fmjax.training.bad_steps import BadSteps
from fmjax.training.imported import Imported
from fmjax.training.init_from import InitFrom
from fmjax.training.reporting.trackers.tracker import Tracker
from fmjax.training.train_config import TrainConfig

# Numbers to log, texts and pictures (uint8 [H, W, 3]) to show, by name.
Found = dict[str, float | str | np.ndarray]


@dataclasses.dataclass(frozen=True)
class EvaluationPoint:
    """The step, variables and validation metrics that an evaluation is given.

    Attributes:
      step: updates done.
      variables: {"params": …, other collections}; the parameters are averaged if the
        run keeps averages.
      metrics: loss and metrics on the validation split; empty without such a split.
      last: whether the run ends at this step.
    """

    step: int
    variables: dict
    metrics: Mapping[str, float]
    last: bool


class Evaluation(Protocol):
    """Protocol of `experiment.evaluations`: a configurable run after each validation.

    Every process of a run calls it, on the run's mesh. An exception is recorded as an
    event and the run continues; it must be raised in all processes or in none.
    """

    gin_name: ClassVar[str]

    def check(self, experiment: "Experiment") -> None:
        """Raises a UserError if it cannot evaluate such an experiment.

        Called in the first process before anything is compiled or written.
        """

    def __call__(self, experiment: "Experiment", at: EvaluationPoint) -> Found:
        """Evaluates the variables of `at`; returns numbers, texts, pictures by name."""


@configurable("experiment")
@dataclasses.dataclass(frozen=True)
class Experiment:
    """The whole configuration of a run.

    Attributes:
      objective: the training objective; it holds the model.
      data: tasks and how they become batches; None for a model that was imported.
      optimizer: an optimizer and its schedule; None for a model that was imported.
      parametrization: @mup() or @completep(), by which initial values and learning
        rates follow from a smaller base model; None for those of the config.
      mesh: sizes of the device mesh.
      train: number of steps, batch size and intervals of the run.
      init_from: runs whose parameters this run starts from.
      freeze: parameters that are not trained before a given step, or never.
      peft: parameter-efficient fine-tuning of the model of `init_from`; None trains
        what is not frozen.
      adversary: perturbs inputs in training, such as @freelb(); None for none.
      bad_steps: what to do about a loss or gradient that is not finite, or a spike.
      preprocessing: image preprocessing of an imported model; None for a model of text,
        and for the preprocessing of `data`.
      evaluations: further evaluations, run after each validation.
      trackers: services that metrics are reported to, besides the run directory's
        files: Weights & Biases, MLflow, Prometheus.
      generation: end-of-text tokens and default decoding options of the model; None for
        the tokenizer's EOS and sampling.
      embedding: how vectors of texts follow from the hidden states, see `run.embed`;
        None for that of the objective, or the mean of the tokens.
      labels: names of the classes of the model's head for texts or tokens, in order;
        none if they have no names.
      imported: what the files of an imported model said; None for one that was trained.
      modules: Python modules that its gin files imported.
    """

    objective: Objective
    data: Data | ImageData | BatchSource | None = None
    optimizer: Optimizer | None = None
    parametrization: MuP | None = None
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    init_from: tuple[InitFrom, ...] = ()
    freeze: tuple[Freeze, ...] = ()
    peft: Peft | None = None
    adversary: Adversary | None = None
    bad_steps: BadSteps = BadSteps()
    preprocessing: Preprocessing | None = None
    evaluations: tuple[Evaluation, ...] = runtime_field(())
    trackers: tuple[Tracker, ...] = runtime_field(())
    generation: Generation | None = None
    embedding: TextEmbedding | None = None
    labels: tuple[str, ...] = ()
    imported: Imported | None = None
    modules: tuple[str, ...] = ()

    def __post_init__(self):
        """Raises UserError for a data source that would never observe parameters, for
        two trackers of a kind, which would keep the same files, or if vectors of texts
        would be others than those that are trained.
        """
        names = [tracker.gin_name for tracker in self.trackers]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(
                f"experiment.trackers has @{twice.pop()}() twice; expected it once."
            )
        objective, own = self.objective, self.embedding
        if isinstance(objective, TextContrast) and own not in (
            None,
            objective.embedding,
        ):
            raise UserError(
                f"experiment.embedding = {own}, and text_contrast.embedding = "
                f"{objective.embedding}; expected the same, such as @text_embedding() "
                "of both."
            )
        missing = {"observe_every", "observe"} - {*dir(self.data)}
        if len(missing) == 1:
            raise UserError(
                f"experiment.data = @{self.data.gin_name}() has no {missing.pop()}; "
                "expected both observe_every and observe, or neither, see "
                f"{ObservesParameters.__module__}.ObservesParameters."
            )
        if isinstance(self.data, ObservesParameters):
            every = self.data.observe_every
            require(self.data, "observe_every", every >= 1, "at least 1")

    def learning_rate(self, step: int | Int[Array, ""]) -> Float[Array, ""]:
        """The learning rate of the update at `step` = 0, 1, …, before its factors.

        It is scaled to the batch, see `train.lr_scaling`.
        """
        rate = self.optimizer.learning_rate(step, self.train.steps)
        return self.train.rate_factor * rate

    @property
    def own_embedding(self) -> TextEmbedding | None:
        """How vectors of texts are made, if the run says so."""
        objective = self.objective
        of_objective = (
            objective.embedding if isinstance(objective, TextContrast) else None
        )
        return self.embedding or of_objective

    @property
    def image_preprocessing(self) -> Preprocessing | None:
        """Image preprocessing, the model's own or the data's; None for text."""
        of_data = self.data.preprocessing if isinstance(self.data, ImageData) else None
        return self.preprocessing or of_data

    @property
    def pixel_range(self) -> PixelRange | None:
        """Normalized values of black and of white in the rows of data, if it has them.

        A data source of one's own may normalize in any way, so it has none.
        """
        data = self.data
        return data.preprocessing.pixel_range if isinstance(data, ImageData) else None
