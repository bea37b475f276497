"""What a run needs of its data: the contract of `experiment.data`."""

from collections.abc import Iterator
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from fmjax.data.tokenizers.tokenizers import Tokenizer

Batch = dict[str, np.ndarray]  # Arrays [B, …].


class TrainBatches(Protocol):
    """An endless iterator of training batches that can go on from a saved state.

    Attributes:
      bad_rows: distinct rows found to be broken so far, each given zero weight.
    """

    bad_rows: int

    def __iter__(self) -> Iterator[Batch]:
        """Itself."""

    def __next__(self) -> Batch:
        """This process's rows of the next global batch."""

    def get_state(self) -> dict[str, int]:
        """The next batch's place, as JSON, saved with each checkpoint.

        It has "position", the number of the next batch.
        """

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a place that `get_state` gave, forwards or back."""

    def close(self) -> None:
        """Ends threads that make batches ahead."""


class BatchSource(Protocol):
    """A configurable of `experiment.data`: batches for training and evaluation.

    `@data()` and `@images()` are such, and so may be a class of one's own. All of it
    is checked when an experiment is built. Every process calls the methods that give
    batches, with its own rows.
    """

    gin_name: ClassVar[str]

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation split."""

    def tokenizer(self) -> Tokenizer | None:
        """The vocabulary of the text, stored with the run; None without text."""

    def prepare(self) -> None:
        """Builds what is missing, such as caches. The first process alone calls it."""

    def wait_until_prepared(self, timeout_seconds: float = 3600) -> None:
        """Waits for the first process's `prepare`; raises TimeoutError."""

    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each array of a training row, without the batch axis."""

    def train_batches(self, batch_size: int, rows: range, seed: int) -> TrainBatches:
        """Endless training batches.

        Args:
          batch_size: rows of the global batch.
          rows: those that this process reads, contiguous.
          seed: of the order and of all that is random in a row.
        """

    def eval_batches(
        self,
        batch_size: int,
        rows: range,
        max_batches: int | None = None,
        split: str = "validation",
    ) -> Iterator[Batch]:
        """A split once, in order, the last batch filled with rows of zero weight.

        Raises:
          UserError: there is no such split.
        """

    def train_rows(self) -> int | None:
        """Rows of the train split, by which epochs are counted; None if unknown."""

    def target_counts(self) -> tuple[np.ndarray, int | None] | None:
        """How often each id is a target of the validation split, for a baseline.

        Returns:
          int64 [V], and the bytes of text that all targets stand for, None where they
          are not the text itself; None alone without text or validation split.
        """

    def fingerprint(self) -> str:
        """Digest of the rows: a run is not resumed where it has changed."""


@runtime_checkable
class ObservesParameters(Protocol):
    """A `BatchSource` whose training batches depend on the model's parameters.

    Such are rollouts of the model's own, and examples that are chosen by their loss;
    `examples/hard_examples` is one. Its `train_batches` gives `ObservingBatches`.

    Attributes:
      observe_every: training steps from one look at the parameters to the next.
    """

    observe_every: int


@runtime_checkable
class ObservingBatches(Protocol):
    """Training batches that are shown the parameters; they are `TrainBatches` too."""

    def observe(self, objective: Any, variables: dict, step: int) -> None:
        """Takes a look at what the model is by now.

        Called in every process before the batch of step 0, `observe_every`, 2 ·
        `observe_every`, …, and, where a run begins or goes on from a checkpoint at
        another step, before its first batch: parameters between two checkpoints are not
        kept, so batches of a resumed run may then be other ones.

        Args:
          objective: the run's.
          variables: {"params": …, other collections} on the run's mesh. The next step
            takes their memory: what is to be kept must be copied.
          step: updates done.
        """
