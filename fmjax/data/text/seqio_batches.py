"""Streaming from seqio's tf.data, for tasks whose source cannot be divided.

seqio gives the documents of an epoch, shuffled with a seed for the epoch. Process i of
P reads shard i of P and makes rows with the same layout as for caches. The state is a
few numbers: to resume, the epoch's rows are made again and those already returned are
skipped. So resuming is exact, takes time, and needs the same number of processes.
"""

import collections
import itertools
from collections.abc import Callable, Generator, Iterator

import numpy as np

from fmjax.data.records import Row, RowLayout
from fmjax.data.runtime.batches import Batch, stack
from fmjax.data.seqio_import import import_seqio
from fmjax.data.streaming.ahead import Ahead
from fmjax.data.tasks.bounded_skipped import BoundedSkipped
from fmjax.data.tasks.documents import tokenized_documents
from fmjax.data.text.text_groups import reads_pairs
from fmjax.errors import UserError

# Number of recent records from which a row can draw another text (next sentences).
_RECENT = 256
_STATE = ("position", "epoch", "row", "processes")


class SeqioRows:
    """Rows of one split of a seqio task or mixture, on one shard.

    Attributes:
      skipped: the documents left out so far.
      layout: makes records and rows.
    """

    def __init__(
        self,
        provider,
        tasks,
        split: str,
        layout: RowLayout,
        vocab_size: int,
        max_corrupt_fraction: float,
    ):
        """Reads nothing yet.

        Args:
          provider: a seqio.Task or seqio.Mixture.
          tasks: its tasks, for reading in order.
          split: "train" or "validation".
          layout: makes records and rows.
          vocab_size: V; ids must be below.
          max_corrupt_fraction: `data.max_corrupt_fraction`.
        """
        self._provider = provider
        self._tasks = tasks
        self._split = split
        self.layout = layout
        self._vocab_size = vocab_size
        self.skipped = BoundedSkipped(f"{provider.name} {split}", max_corrupt_fraction)

    def epoch(self, epoch: int, seed: int, index: int, processes: int) -> Iterator[Row]:
        """The shuffled rows of one epoch on shard `index` of `processes`.

        An epoch of a mixture never ends: seqio draws documents at the mixture's rates
        and repeats each task.
        """
        seqio = import_seqio()
        dataset = self._provider.get_dataset(
            None,
            self._split,
            shuffle=True,
            seed=int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]),
            shard_info=seqio.ShardInfo(index, processes) if processes > 1 else None,
            try_in_mem_cache=False,
        )
        yield from self._rows(dataset, [seed, epoch, index])

    def in_order(self) -> Iterator[Callable[[], Row]]:
        """Functions that return each row of the split, in the order of a cache."""
        for task in self._tasks:
            dataset = task.get_dataset(
                None, self._split, shuffle=False, try_in_mem_cache=False
            )
            for row in self._rows(dataset, [0]):
                yield lambda row=row: row

    def _rows(self, dataset, entropy: list[int]) -> Iterator[Row]:
        rng = np.random.default_rng(entropy)
        documents = tokenized_documents(
            dataset,
            f"{self._provider.name} {self._split}",
            self._vocab_size,
            self.skipped,
            reads_pairs(self.layout),
        )

        def contents() -> Iterator:
            for document in documents:
                self.skipped.good_bytes += document.size or 0
                yield document.content
            self.skipped.check_whole()

        recent: collections.deque = collections.deque(maxlen=_RECENT)
        for record in self.layout.records(contents()):
            recent.append(record)
            yield self.layout.row(
                record, lambda: rng, lambda rng: recent[int(rng.integers(len(recent)))]
            )


class SeqioBatches:
    """Endless training batches, prefetched by one background thread."""

    def __init__(
        self, rows: SeqioRows, batch_size: int, own: range, seed: int, prefetch: int
    ):
        """Starts no thread yet.

        Args:
          rows: the rows of the train split.
          batch_size: rows of the global batch.
          own: contiguous rows of the global batch that this process reads.
          seed: seed of the order of the rows and of the randomness in them.
          prefetch: number of batches made in advance.

        Raises:
          UserError: the processes do not read equal numbers of rows.
        """
        if not len(own) or batch_size % len(own) or own.start % len(own):
            raise UserError(
                "data.streaming = True: expected the same number of rows for every "
                f"process, but of train.batch_size = {batch_size} rows this process "
                f"has rows {own.start} to {own.stop}."
            )
        self._rows = rows
        self._size = len(own)
        self._processes = batch_size // len(own)
        self._index = own.start // len(own)
        self._seed = seed
        self._prefetch = prefetch
        self._state = {"position": 0, "epoch": 0, "row": 0}
        self._ahead: Ahead | None = None

    def __iter__(self) -> "SeqioBatches":
        return self

    def __next__(self) -> Batch:
        if self._ahead is None:
            self._ahead = Ahead(self._batches(dict(self._state)), self._prefetch)
        batch, self._state = self._ahead.get()
        return batch

    def get_state(self) -> dict[str, int]:
        """Position of the next batch, its epoch, and rows returned of that epoch."""
        return self._state | {"processes": self._processes}

    @property
    def bad_rows(self) -> int:
        """Number of documents left out so far; a stream has no rows of weight 0."""
        return self._rows.skipped.count

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to a state from `get_state`.

        Raises:
          UserError: the state was saved with another number of processes, or by a run
            without streaming.
        """
        if set(state) != set(_STATE):
            raise UserError(
                f"data.streaming = True: the checkpoint's data state has "
                f"{sorted(state)}; expected {sorted(_STATE)}. Was the run started "
                "without streaming?"
            )
        if state["processes"] != self._processes:
            raise UserError(
                f"data.streaming = True: the checkpoint was saved by "
                f"{state['processes']} processes, and this run has {self._processes}; "
                "expected the same number."
            )
        self.close()
        self._state = {name: int(state[name]) for name in _STATE[:3]}

    def close(self) -> None:
        """Stops the thread."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _batches(
        self, state: dict[str, int]
    ) -> Generator[tuple[Batch, dict], None, None]:
        """Batches from a state onwards, each with the state that follows it."""
        position, made = state["position"], []
        for epoch in itertools.count(state["epoch"]):
            empty = True
            skip = state["row"] if epoch == state["epoch"] else 0
            rows = self._rows.epoch(epoch, self._seed, self._index, self._processes)
            for number, row in enumerate(rows):
                empty = False
                if number < skip:
                    continue
                made.append(row)
                if len(made) == self._size:
                    position += 1
                    after = {"position": position, "epoch": epoch, "row": number + 1}
                    yield stack(made), after
                    made = []
            if empty:
                raise UserError(
                    f"data.streaming = True: shard {self._index} of {self._processes} "
                    "of the train split gives no rows."
                )
