"""The interface of `experiment.data`: what a run needs of its data."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from fmjax.data.tokenizers.tokenizers import Tokenizer

Batch = dict[str, np.ndarray]  # arrays [B, …]


class TrainBatches(Protocol):
    """An endless iterator of training batches that can resume from a saved state.

    Attributes:
      bad_rows: number of distinct corrupt rows so far; each has weight 0.
    """

    bad_rows: int

    def __iter__(self) -> Iterator[Batch]:
        """Returns itself."""

    def __next__(self) -> Batch:
        """This process's rows of the next global batch."""

    def get_state(self) -> dict[str, int]:
        """The state of the iterator, which can be stored as JSON in a checkpoint.

        It contains "position", the number of the next batch.
        """

    def set_state(self, state: dict[str, int]) -> None:
        """Moves forwards or backwards to a state from `get_state`."""

    def close(self) -> None:
        """Stops the threads that prefetch batches."""


@runtime_checkable
class DividedBatches(Protocol):
    """`TrainBatches` of which each process knows only its own part of the state."""

    def merge_states(self, states: Sequence[dict]) -> dict:
        """The state to save, of those of all processes; `set_state` takes it."""


@runtime_checkable
class ChecksTraining(Protocol):
    """Data that needs more for training rows than for others."""

    def check_training(self) -> None:
        """Raises a UserError if training rows cannot be made; before caches are."""


@runtime_checkable
class PreparesTraining(Protocol):
    """Data that makes more for training rows than caches."""

    def prepare_training(self) -> None:
        """Makes it, when the caches are there; all processes of a run call it."""


class BatchSource(Protocol):
    """The interface of `experiment.data`: batches for training and evaluation.

    `@data()` and `@images()` implement it, and a class of your own may. It is checked
    when an experiment is built. In a run of several processes each process asks for its
    own rows of every batch.
    """

    gin_name: ClassVar[str]

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation split."""

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, which is stored with the run; None for data without text."""

    def prepare(self) -> None:
        """Builds missing files such as caches. Only the first process calls it."""

    def wait_until_prepared(self, timeout_seconds: float = 3600) -> None:
        """Waits until the first process has finished `prepare`; raises TimeoutError."""

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays of a training row, without the batch axis."""

    def row_dtypes(self) -> dict[str, np.dtype]:
        """Dtypes of the arrays of a training row."""

    def train_batches(self, batch_size: int, rows: range, seed: int) -> TrainBatches:
        """Endless training batches.

        Args:
          batch_size: rows of the global batch.
          rows: contiguous rows of the global batch that this process reads.
          seed: seed of the order of the rows and of the randomness in them.
        """

    def eval_batches(
        self,
        batch_size: int,
        rows: range,
        max_batches: int | None = None,
        split: str = "validation",
    ) -> Iterator[Batch]:
        """One pass over a split, in order.

        Rows of weight 0 fill the last batch.

        Args:
          batch_size: rows of the global batch.
          rows: contiguous rows of the global batch that this process reads.
          max_batches: maximum number of batches; None for all.
          split: "validation" or "train".

        Raises:
          UserError: there is no such split.
        """

    def train_rows(self) -> int | None:
        """Number of rows of the train split (of an epoch); None if unknown."""

    def target_counts(self) -> tuple[np.ndarray, int | None] | None:
        """Frequency of each target id in the validation split, for a baseline.

        Returns:
          Counts int64 [V], and the number of bytes of the targets' text (None if the
          targets are not the text itself). None if there is no text or no validation
          split.
        """

    def fingerprint(self) -> str:
        """Digest of the rows; a run does not resume after it has changed."""


@runtime_checkable
class ObservesParameters(Protocol):
    """A `BatchSource` whose training batches depend on the model's parameters.

    Examples are rollouts of the model and hard example mining
    (`examples/hard_examples`). It is checked when an experiment is built.

    Attributes:
      observe_every: number of training steps between two calls of `observe`.
    """

    observe_every: int

    def observe(
        self, batches: TrainBatches, objective: Any, variables: dict, step: int
    ) -> None:
        """Shows the current parameters to training batches.

        Called in every process before the batch of step 0, `observe_every`, 2 ·
        `observe_every`, …, and before the first batch of a run that resumes at another
        step. Parameters of earlier steps are not kept, so the batches of a run that
        resumes at another step may differ from those of an uninterrupted run.

        Args:
          batches: from `train_batches` of this source.
          objective: the run's objective.
          variables: {"params": …, other collections} on the run's mesh. The next step
            donates their memory, so copy what is to be kept.
          step: updates done.
        """
