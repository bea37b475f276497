"""The interface of training objectives."""

import abc
from typing import Any, ClassVar

from flax import linen as nn
from jaxtyping import Array, Float, Key

from fmjax.models.contracts import ProjectsParams
from fmjax.objectives.terms import Batch, LossOutput, RowShapes

Embeddings = dict[str, Array]


class Objective(abc.ABC):
    """A training objective: a frozen dataclass that holds a model.

    Attributes:
      model: a linen module.
      unit: what the weight of the first term counts, one of `terms.UNITS`; throughput
        is measured in it.
      gin_name: its name in gin files, from `configurable`.
    """

    model: nn.Module
    unit: ClassVar[str]
    gin_name: ClassVar[str]

    @abc.abstractmethod
    def init(self, rng: Key[Array, ""]) -> dict:
        """Initial boxed variables {"params": …, other collections}.

        Collections other than "params" (batch statistics, a queue, a teacher) are not
        differentiated; those that `loss` returns replace the old ones.
        """

    @abc.abstractmethod
    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> LossOutput:
        """Terms, metrics and new collections of a batch.

        Args:
          variables: unboxed, with the structure of `init`.
          batch: arrays [B, …].
          rng: one key per example; None in evaluation, where new collections are
            discarded and metrics that are too costly for every step may be computed.
        """

    @abc.abstractmethod
    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """The weight of each term of `loss`, in the same order.

        Depends on the batch alone, not on parameters.
        """

    @abc.abstractmethod
    def check(self, rows: RowShapes, vocab_size: int | None) -> None:
        """Raises a UserError if the model cannot take such rows.

        Args:
          rows: the shape of each array of a row.
          vocab_size: of the data's tokenizer; None if the data has no text.
        """

    @abc.abstractmethod
    def train_flops_per_row(self, params: Any, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step per row, padding included."""

    def check_data(self, data: Any) -> None:  # noqa: B027
        """Raises a UserError if the data does not fit; accepts all data by default.

        Unlike `check`, this may read files.

        Args:
          data: `experiment.data`.
        """

    def project_params(self, params: dict) -> dict:
        """Projects parameters into the model's bounds after an update.

        See `fmjax.models.contracts.ProjectsParams`; those of other models are
        unchanged.

        Args:
          params: nested dict; frozen parameters are `optax.MaskedNode`.
        """
        if isinstance(self.model, ProjectsParams):
            return self.model.project_params(params)
        return params

    def without_own_params(self) -> "Objective":
        """The objective without parameters beside the model's, as exports have it."""
        return self

    @property
    def vocab_size(self) -> int | None:
        """Vocabulary size of the model; None if it has no vocabulary."""
        return None


class ReconstructionObjective(Objective):
    """An objective whose model reconstructs images, which can be shown as pictures."""

    @abc.abstractmethod
    def pictures(
        self, variables: dict, batch: Batch
    ) -> Float[Array, "B 3 height width C"]:
        """Each image, its visible patches (0 elsewhere), and its reconstruction."""


class EmbeddingObjective(Objective):
    """An objective that compares every row of the global batch with all others.

    With microbatches, rows are embedded microbatch by microbatch, and the loss is
    computed from the embeddings of the global batch (GradCache, Gao et al. 2021).
    """

    @abc.abstractmethod
    def embed(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> tuple[Embeddings, LossOutput]:
        """Embeddings [B, …] of rows, and the terms that depend on each row alone."""

    @abc.abstractmethod
    def loss_from_embeddings(
        self,
        variables: dict,
        embeddings: Embeddings,
        batch: Batch,
        rng: Key[Array, " B"] | None,
    ) -> LossOutput:
        """The terms that compare all rows, given the embeddings of the global batch.

        Args:
          variables: with the collections that `embed` returned.
          embeddings: of all rows.
          batch: the global batch.
          rng: as in `loss`.
        """

    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> LossOutput:
        """Terms, metrics and new collections of a global batch; see `embed`."""
        embeddings, own = self.embed(variables, batch, rng)
        compared = self.loss_from_embeddings(
            variables | own.collections, embeddings, batch, rng
        )
        return compared.joined(own)
