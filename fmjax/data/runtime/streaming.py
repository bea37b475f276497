"""Rows straight from seqio's tf.data, for data too large to cache.

An epoch's documents are seqio's, shuffled with seed + epoch; process i of P reads shard
i of P and lays its rows out with the code that fills caches. The state is a few
numbers: resuming makes the epoch's rows again and skips those already returned, so it
is exact, takes time, and holds for the same number of processes only.
"""

import collections
import itertools
import queue
import sys
import threading
from collections.abc import Iterator

import numpy as np

from fmjax.data.runtime.batches import Batch, stack, with_target_bytes
from fmjax.data.tasks.corrupt_fraction import check_while_reading, check_whole
from fmjax.data.tasks.documents import Skipped, tokenized_documents
from fmjax.data.tasks.seqio_import import import_seqio
from fmjax.data.text.packing import Row, RowLayout
from fmjax.data.text.pairs import Pairs
from fmjax.errors import UserError

# Records that a row can take another text from (next sentences).
_RECENT = 256
# Broken documents whose names are said; the others only count.
_NAMED = 10
_STATE = ("position", "epoch", "row", "processes")


class StreamedRows:
    """Rows of one split of a seqio task or mixture, on this process's shard.

    Attributes:
      skipped: documents left out as broken so far.
    """

    def __init__(
        self,
        provider,
        tasks,
        split: str,
        layout: RowLayout,
        vocab_size: int,
        max_corrupt_fraction: float = 0.01,
    ):
        """Takes a seqio.Task or Mixture, its tasks, `data.max_corrupt_fraction`."""
        self._provider = provider
        self._tasks = tasks
        self._split = split
        self._layout = layout
        self._vocab_size = vocab_size
        self.skipped = _BoundedSkipped(f"{provider.name} {split}", max_corrupt_fraction)

    def epoch(self, epoch: int, seed: int, index: int, processes: int) -> Iterator[Row]:
        """The shuffled rows of one epoch on shard `index` of `processes`.

        An epoch of a mixture never ends: seqio draws documents at the given rates and
        repeats each task by itself.
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

    @property
    def has_text_bytes(self) -> bool:
        """Whether targets are the text itself."""
        return self._layout.has_text_bytes

    def in_order(self) -> Iterator[Row]:
        """Every row of the split, once, as a cache would hold it."""
        for task in self._tasks:
            dataset = task.get_dataset(
                None, self._split, shuffle=False, try_in_mem_cache=False
            )
            yield from self._rows(dataset, [0])

    def _rows(self, dataset, entropy: list[int]) -> Iterator[Row]:
        rng = np.random.default_rng(entropy)
        documents = tokenized_documents(
            dataset,
            f"{self._provider.name} {self._split}",
            self._vocab_size,
            self.skipped,
            isinstance(self._layout, Pairs),
        )

        def contents() -> Iterator:
            for document in documents:
                self.skipped.good_bytes += document.size or 0
                yield document.content
            self.skipped.check_whole()

        recent: collections.deque = collections.deque(maxlen=_RECENT)
        for record in self._layout.records(contents()):
            recent.append(record)
            yield self._layout.row(
                record, lambda: rng, lambda rng: recent[int(rng.integers(len(recent)))]
            )


class _BoundedSkipped(Skipped):
    """Examples left out, each named on stderr, and too many of them refused.

    Attributes:
      good_bytes: of text, in the documents that were not left out.
    """

    def __init__(self, data: str, fraction: float):
        super().__init__()
        self._data, self._fraction = data, fraction
        self.good_bytes = 0

    def add(
        self, name: str, count: int = 1, *, size: int = 0, empty: bool = False
    ) -> None:
        """As `Skipped.add`; raises a UserError where more than the fraction broke."""
        super().add(name, count, size=size, empty=empty)
        if self.count - count < _NAMED:
            print(f"left out: {name}", file=sys.stderr, flush=True)
        check_while_reading(
            self.broken, self.total, self._fraction, self._data, self.names
        )

    def check_whole(self) -> None:
        """Raises a UserError where too much of what was read to its end is broken."""
        check_whole(
            self.broken,
            self.total,
            self._fraction,
            self._data,
            self.names,
            self.bytes,
            self.good_bytes + self.bytes if self.bytes else 0,
        )


class StreamedBatches:
    """Endless training batches, made ahead in one background thread."""

    def __init__(
        self, rows: StreamedRows, batch_size: int, own: range, seed: int, prefetch: int
    ):
        """Takes the rows of the global batch that are this process's own."""
        if not len(own) or batch_size % len(own) or own.start % len(own):
            raise UserError(
                f"data.streaming needs equal rows for every process; of {batch_size} "
                f"this one has {own.start} to {own.stop}."
            )
        self._rows = rows
        self._size = len(own)
        self._processes = batch_size // len(own)
        self._index = own.start // len(own)
        self._seed = seed
        self._prefetch = prefetch
        self._state = {"position": 0, "epoch": 0, "row": 0}
        self._ahead: _Ahead | None = None

    def __iter__(self) -> "StreamedBatches":
        return self

    def __next__(self) -> Batch:
        if self._ahead is None:
            self._ahead = _Ahead(self._batches(dict(self._state)), self._prefetch)
        batch, self._state = self._ahead.get()
        return batch

    def get_state(self) -> dict[str, int]:
        """Position of the next batch; epoch and rows of it that have been returned."""
        return self._state | {"processes": self._processes}

    @property
    def bad_rows(self) -> int:
        """Documents left out as broken so far; a stream has no rows to blank."""
        return self._rows.skipped.count

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a state that `get_state` gave.

        Raises:
          UserError: it was saved on another number of processes, or by a cached run.
        """
        if set(state) != set(_STATE):
            raise UserError(
                f"The checkpoint's data state has {sorted(state)}; data.streaming "
                f"needs {sorted(_STATE)}. Was the run started without it?"
            )
        if state["processes"] != self._processes:
            raise UserError(
                f"data.streaming resumes on {state['processes']} processes, the number "
                f"it was saved on; this run has {self._processes}."
            )
        self.close()
        self._state = {name: int(state[name]) for name in _STATE[:3]}

    def close(self) -> None:
        """Stops the thread."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _batches(self, state: dict[str, int]) -> Iterator[tuple[Batch, dict]]:
        """Batches from a state on, each with the state after it."""
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
                    f"data.streaming: shard {self._index} of {self._processes} of the "
                    "train split gives no rows."
                )


def streamed_eval_batches(
    rows: StreamedRows,
    token_bytes: np.ndarray,
    *,
    batch_size: int,
    own: range,
    max_batches: int | None,
) -> Iterator[Batch]:
    """As `batches.eval_batches`; every process reads the whole split."""
    source = rows.in_order()
    for _ in itertools.count() if max_batches is None else range(max_batches):
        made = list(itertools.islice(source, batch_size))
        if not made:
            return
        zeros = {name: np.zeros_like(array) for name, array in made[0].items()}
        made += [zeros] * (batch_size - len(made))
        batch = stack([made[r] for r in own])
        yield with_target_bytes(batch, token_bytes) if rows.has_text_bytes else batch


class _Ahead:
    """Runs an iterator in a thread, a few items ahead."""

    def __init__(self, items: Iterator, size: int):
        self._items = items
        self._queue: queue.Queue = queue.Queue(max(size, 1))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="stream")
        self._thread.start()

    def get(self):
        item, error = self._queue.get()
        if error is not None:
            raise error
        return item

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put((item, None)):
                    return
        except BaseException as error:
            self._put((None, error))

    def _put(self, item) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
