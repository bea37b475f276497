"""A source of batches that looks at the model: it trains on the examples of most loss.

Online batch selection (Loshchilov and Hutter 2016, arXiv:1511.06343), in its simplest
form: read more rows than are trained on, score all of them, keep the worst.
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
    """Batches of the rows of most loss, chosen anew every `observe_every` steps.

    Then `factor` times as many rows are read as those steps train on; each is scored
    by its loss under the parameters of that step, and the worst are dealt out to the
    batches. Validation is that of the images.

    Resume: parameters of earlier steps are not kept. A run that continues at a multiple
    of observe_every ends with the same bits as one that was never stopped; so bind
    train.checkpoint_every to one. At another step the same rows are scored again, by
    the newer parameters.

    Every row must be scored by the process that reads it, so this is for one process.

    Attributes:
      images: where rows come from.
      factor: rows scored for each that is trained on.
      observe_every: steps between choices.
    """

    images: ImageData
    factor: int = 2
    observe_every: int = 20

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        require(self, "factor", self.factor >= 1, "at least 1")

    @property
    def has_validation(self):
        """Of the images, as is all that is not said to be otherwise."""
        return self.images.has_validation

    def tokenizer(self):
        """See `fmjax.data.runtime.batch_source.BatchSource`, as for the others."""
        return self.images.tokenizer()

    def prepare(self):
        """Builds the cache of the images."""
        self.images.prepare()

    def wait_until_prepared(self, timeout_seconds=3600):
        """Waits for it."""
        self.images.wait_until_prepared(timeout_seconds)

    def row_shapes(self):
        """Those of the images' rows."""
        return self.images.row_shapes()

    def train_batches(self, batch_size, rows, seed):
        """Batches that observe parameters; raises UserError in several processes."""
        if len(rows) != batch_size:
            raise UserError(
                f"@hard_examples() gives this process {len(rows)} rows of "
                f"{batch_size}: it is for runs of one process."
            )
        every = self.images.train_batches(batch_size, rows, seed)
        return HardBatches(every, self.factor, self.observe_every)

    def eval_batches(self, batch_size, rows, max_batches=None, split="validation"):
        """Those of the images."""
        return self.images.eval_batches(batch_size, rows, max_batches, split)

    def train_rows(self):
        """Rows of the split, of which one in `factor` is trained on."""
        return self.images.train_rows() // self.factor

    def target_counts(self):
        """None: there is no text."""

    def fingerprint(self):
        """The images'."""
        return self.images.fingerprint()


class HardBatches:
    """Batches of the hardest rows of another iterator's.

    Batch n belongs to window n // every, whose rows are `every * factor` batches of the
    other iterator, at the place that the window's number gives.

    Args:
      batches: of all rows.
      factor: as of `HardExamples`.
      every: observe_every, likewise.
    """

    def __init__(self, batches, factor, every):
        self._all, self._factor, self._every = batches, factor, every
        self._position, self._chosen = 0, []
        self._score, self._scored_for = None, None

    @property
    def bad_rows(self):
        """Of all rows that were read."""
        return self._all.bad_rows

    def observe(self, objective, variables, step):
        """Scores the rows of the window that the next batch is in, and chooses."""
        del step  # The window follows from the position, which a rollback may move.
        first = self._position // self._every * self._every * self._factor
        if self._all.get_state()["position"] != first:
            self._all.set_state(self._all.get_state() | {"position": first})
        read = [next(self._all) for _ in range(self._every * self._factor)]
        rows = {name: np.concatenate([b[name] for b in read]) for name in read[0]}
        if self._scored_for is not objective:
            self._score = jax.jit(jax.vmap(_loss_of(objective), (None, 0)))
            self._scored_for = objective
        # Batch by batch, so that no more memory is needed than a step takes.
        losses = np.concatenate([np.asarray(self._score(variables, b)) for b in read])
        size = len(losses) // self._factor
        hardest = np.argsort(-losses, kind="stable")[:size]
        # Dealt out in turn, so that no batch has harder rows than another.
        self._chosen = [
            {name: array[hardest[i :: self._every]] for name, array in rows.items()}
            for i in range(self._every)
        ]

    def __iter__(self):
        """Itself."""
        return self

    def __next__(self):
        """The next batch of the window."""
        batch = self._chosen[self._position % self._every]
        self._position += 1
        return batch

    def get_state(self):
        """The place among chosen batches."""
        return self._all.get_state() | {"position": self._position}

    def set_state(self, state):
        """Goes to a place; `observe` follows before the next batch."""
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
