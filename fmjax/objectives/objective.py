"""The contract of objectives: what training needs of what it minimizes."""

import abc
from typing import Any, ClassVar

from flax import linen as nn
from jaxtyping import Array, Float, Key

from fmjax.objectives.terms import Batch, LossOutput, RowShapes

Embeddings = dict[str, Array]


class Objective(abc.ABC):
    """What training minimizes: a frozen dataclass that holds a model.

    Attributes:
      model: a linen module.
      unit: what throughput is measured in, one of `terms.UNITS`: what the weight of the
        first term counts.
      gin_name: its name in gin files, from `configurable`.
    """

    model: nn.Module
    unit: ClassVar[str]
    gin_name: ClassVar[str]

    @abc.abstractmethod
    def init(self, rng: Key[Array, ""]) -> dict:
        """Boxed variables {"params": …, other collections}.

        Collections other than "params" (batch statistics, a queue, a teacher) are not
        differentiated; what `loss` gives of them is kept for the next step.
        """

    @abc.abstractmethod
    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> LossOutput:
        """Terms, metrics and new collections of a batch.

        Args:
          variables: unboxed, as `init` gives them.
          batch: arrays [B, …].
          rng: one key an example; None in evaluation, where new collections are not
            kept and metrics may be computed that would cost too much in every step.
        """

    @abc.abstractmethod
    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """The weight of each term of `loss`, in the same order, of the batch alone."""

    @abc.abstractmethod
    def check(self, rows: RowShapes, vocab_size: int | None) -> None:
        """Raises a UserError where the model cannot take such rows.

        Args:
          rows: the shape of each array of a row.
          vocab_size: of the data's tokenizer; None where the data has no text.
        """

    @abc.abstractmethod
    def train_flops_per_row(self, params: Any, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step for a row, padding or not."""

    def check_data(self, data: Any) -> None:  # noqa: B027
        """Raises a UserError where the data does not fit; by default all data does.

        Args:
          data: `experiment.data`; unlike `check`, this may read files.
        """

    def project_params(self, params: dict) -> dict:
        """Parameters after an update, put back into their bounds; by default as is.

        Args:
          params: nested dict; frozen parameters are `optax.MaskedNode`.
        """
        return params

    @property
    def vocab_size(self) -> int | None:
        """Of the model; None where it has no vocabulary."""
        return None


class ReconstructionObjective(Objective):
    """An objective whose model reconstructs images, which can be looked at."""

    @abc.abstractmethod
    def pictures(
        self, variables: dict, batch: Batch
    ) -> Float[Array, "B 3 height width C"]:
        """Each image, its visible patches (0 elsewhere), and its reconstruction."""


class EmbeddingObjective(Objective):
    """A loss that compares every row of the global batch with all others.

    Microbatches embed their rows apart; the loss is taken of all embeddings at once
    (Gao et al. 2021, GradCache).
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
          variables: with the collections that `embed` gave.
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
