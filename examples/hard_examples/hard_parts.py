"""Hard example mining: a data source that selects the rows of highest loss.

This is online batch selection (Loshchilov and Hutter 2016, arXiv:1511.06343) in its
simplest form: read more rows than are trained on, compute the loss of all, and train on
those of highest loss.
"""

import dataclasses

import jax
import numpy as np

from fmjax.configurable import configurable
from fmjax.data.images.image_data import ImageData
from fmjax.errors import UserError, require
from fmjax.objectives.terms import total


@configurable("hard_examples")
@dataclasses.dataclass(frozen=True)
class HardExamples:
    """Hard example mining: batches of the rows of highest loss.

    Every `observe_every` steps, `factor` times as many rows are read as are trained on
    until the next selection. Each is scored by its loss with the current parameters,
    and those of highest loss are distributed over the batches. Validation is that of
    the images.

    Resuming: parameters of earlier steps are not kept. A run that resumes at a multiple
    of observe_every ends with the same bits as an uninterrupted one, so bind
    train.checkpoint_every to a multiple. At any other step the same rows are scored
    again with the newer parameters.

    Only runs of one process are supported, since a process scores the rows it reads.

    Attributes:
      images: the data that rows are read from.
      factor: rows scored per row that is trained on.
      observe_every: steps between selections.
    """

    images: ImageData
    factor: int = 2
    observe_every: int = 20

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        require(self, "factor", self.factor >= 1, "at least 1")

    @property
    def has_validation(self):
        """Whether the images have a validation split."""
        return self.images.has_validation

    def tokenizer(self):
        """See `fmjax.data.runtime.batch_source.BatchSource`, also for other methods."""
        return self.images.tokenizer()

    def prepare(self):
        """Builds the cache of the images."""
        self.images.prepare()

    def wait_until_prepared(self, timeout_seconds=3600):
        """Waits until the cache is built."""
        self.images.wait_until_prepared(timeout_seconds)

    def row_shapes(self):
        """Shapes of the images' rows."""
        return self.images.row_shapes()

    def row_dtypes(self):
        """Dtypes of the images' rows."""
        return self.images.row_dtypes()

    def train_batches(self, batch_size, rows, seed):
        """Selected batches; raises a UserError in a run of several processes."""
        if len(rows) != batch_size:
            raise UserError(
                f"@hard_examples() gives this process {len(rows)} rows of "
                f"{batch_size}: it is for runs of one process."
            )
        every = self.images.train_batches(batch_size, rows, seed)
        return HardBatches(every, self.factor, self.observe_every)

    def observe(self, batches, objective, variables, step):
        """Selects the hardest rows with the current parameters."""
        batches.observe(objective, variables, step)

    def eval_batches(self, batch_size, rows, max_batches=None, split="validation"):
        """Evaluation batches of the images."""
        return self.images.eval_batches(batch_size, rows, max_batches, split)

    def train_rows(self):
        """Rows trained on in a pass over the train split: one of `factor` rows."""
        return self.images.train_rows() // self.factor

    def target_counts(self):
        """None: there is no text."""

    def fingerprint(self):
        """The fingerprint of the images."""
        return self.images.fingerprint()


class HardBatches:
    """Iterator over batches of the rows of highest loss of another iterator.

    Batch n belongs to window n // every. The rows of a window are `every * factor`
    consecutive batches of the other iterator.

    Args:
      batches: iterator over batches of all rows.
      factor: as for `HardExamples`.
      every: observe_every of `HardExamples`.
    """

    def __init__(self, batches, factor, every):
        self._all, self._factor, self._every = batches, factor, every
        self._position, self._chosen = 0, []
        self._score, self._scored_for = None, None

    @property
    def bad_rows(self):
        """Number of bad rows among all rows that were read."""
        return self._all.bad_rows

    def observe(self, objective, variables, step):
        """Scores the rows of the next batch's window and selects the hardest ones."""
        del step  # The window follows from the position, which a rollback may move.
        first = self._position // self._every * self._every * self._factor
        if self._all.get_state()["position"] != first:
            self._all.set_state(self._all.get_state() | {"position": first})
        read = [next(self._all) for _ in range(self._every * self._factor)]
        rows = {name: np.concatenate([b[name] for b in read]) for name in read[0]}
        if self._scored_for is not objective:
            self._score = jax.jit(jax.vmap(_loss_of(objective), (None, 0)))
            self._scored_for = objective
        # One batch at a time, so that scoring needs no more memory than a step.
        losses = np.concatenate([np.asarray(self._score(variables, b)) for b in read])
        size = len(losses) // self._factor
        hardest = np.argsort(-losses, kind="stable")[:size]
        # Distributed in turn, so that all batches are about equally hard.
        self._chosen = [
            {name: array[hardest[i :: self._every]] for name, array in rows.items()}
            for i in range(self._every)
        ]

    def __iter__(self):
        """Returns the iterator itself."""
        return self

    def __next__(self):
        """The next batch of the window."""
        batch = self._chosen[self._position % self._every]
        self._position += 1
        return batch

    def get_state(self):
        """The state, with the number of the next batch as position."""
        return self._all.get_state() | {"position": self._position}

    def set_state(self, state):
        """Restores a state; `observe` must be called before the next batch."""
        self._position = state["position"]
        self._all.set_state(state | {"position": self._position * self._factor})

    def close(self):
        """Ends the threads of the other iterator."""
        self._all.close()


def _loss_of(objective):
    """(variables, a row) → its loss, as in evaluation."""

    def loss(variables, row):
        batch = {name: value[None] for name, value in row.items()}
        return total(objective.loss(variables, batch, None).terms)

    return loss
