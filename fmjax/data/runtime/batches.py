"""Batches from a cache, in an order that is a pure function of (seed, position).

Row r of batch `position` has the number p = position · batch_size + r and depends only
on the seed and p. A process reads the rows [start, stop) of each global batch. So the
number of processes, prefetching and interruptions do not change what is read.
"""

import collections
import itertools
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from fmjax.data.records import BadRecord, Record, Row, RowLayout, empty_record
from fmjax.data.runtime.cache import Cache, decode_record
from fmjax.data.tasks.corrupt_fraction import check_while_reading
from fmjax.errors import UserError

Batch = dict[str, np.ndarray]

EVAL_SEED = 0
_NAMED = 20  # maximum number of corrupt records that are printed
_thread = threading.local()
# No read-ahead, since the access is random.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class Records:
    """Random access to the records of several caches, numbered consecutively.

    A record is corrupt if it cannot be read, has ids outside the vocabulary, or cannot
    be made into a row. It is replaced by an empty record, whose row has weight 0, is
    counted in `bad_rows` and named on stderr. If more than `max_corrupt_fraction` of
    all records are corrupt, a UserError ends the run.
    """

    def __init__(
        self,
        caches: Sequence[Cache],
        layout: RowLayout,
        vocab_size: int,
        max_corrupt_fraction: float = 1.0,
    ):
        """Opens the shards.

        Args:
          caches: the caches, one for each member of a mixture.
          layout: makes rows from records.
          vocab_size: V; ids of records must be below.
          max_corrupt_fraction: share of the records that may be corrupt.

        Raises:
          UserError: the shards do not hold the expected number of records.
        """
        self._max_corrupt_fraction = max_corrupt_fraction
        shards = [str(shard) for cache in caches for shard in cache.shards]
        self._shards = shards
        self._readers = [ArrayRecordReader(shard, _READER_OPTIONS) for shard in shards]
        sizes = [reader.num_records() for reader in self._readers]
        self._starts = np.cumsum([0, *sizes])
        self._layout = layout
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._bad: set[int] = set()
        ends = list(itertools.accumulate(cache.rows for cache in caches))
        self.ranges = tuple(map(range, [0, *ends[:-1]], ends))
        if len(self) != ends[-1]:
            raise UserError(
                f"The shards of {[str(cache.folder) for cache in caches]} hold "
                f"{len(self)} rows; expected {ends[-1]}. Delete the folders to build "
                "the caches again."
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, numbers: Sequence[int]) -> list[Record]:
        """The records with the given numbers; corrupt ones are empty."""
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        records: list[Record | None] = [None] * len(numbers)
        for shard in np.unique(shards):
            positions = np.flatnonzero(shards == shard)
            indices = [int(numbers[p] - self._starts[shard]) for p in positions]
            try:
                contents = self._readers[shard].read(indices)
            except Exception:
                # `_decode` reads them one by one, to find the corrupt ones.
                contents = [None] * len(indices)
            for position, index, content in zip(positions, indices, contents):
                number = int(numbers[position])
                records[position] = self._decode(number, int(shard), index, content)
        return records

    def draw(self, rng: np.random.Generator) -> Record:
        """A record drawn at random."""
        return self.read([int(rng.integers(len(self)))])[0]

    def row(
        self, number: int, record: Record, rng: Callable[[], np.random.Generator]
    ) -> Row:
        """The row of a record.

        Args:
          number: the record's number.
          record: the record, from `read`.
          rng: returns the row's generator.
        """
        try:
            return self._layout.row(record, rng, self.draw)
        except BadRecord as error:
            self._note(number, error)
            return self._layout.row(empty_record(), rng, self.draw)

    def reading(self, number: int, seed: int) -> Row:
        """The row of one record, with the random numbers of (seed, number)."""
        (record,) = self.read([number])
        return self.row(number, record, row_rng(seed, number))

    @property
    def has_text_bytes(self) -> bool:
        """Whether targets are the text itself, so that bits per byte are defined."""
        return self._layout.has_text_bytes

    @property
    def bad_rows(self) -> int:
        """Number of distinct corrupt records so far."""
        return len(self._bad)

    def _note(self, number: int, why: Exception) -> None:
        with self._lock:
            if number in self._bad:
                return
            self._bad.add(number)
            shard = int(np.searchsorted(self._starts, number, side="right")) - 1
            name = f"{self._shards[shard]}: record {number - self._starts[shard]}"
            if len(self._bad) <= _NAMED:
                line = f"corrupt record, left out: {name} ({why!r:.200})"
                print(line, file=sys.stderr, flush=True)
            check_while_reading(
                len(self._bad),
                len(self),
                self._max_corrupt_fraction,
                self._shards[shard],
                [name],
            )

    def _decode(
        self, number: int, shard: int, index: int, content: bytes | None
    ) -> Record:
        try:
            if content is None:
                (content,) = self._readers[shard].read([index])
            record = decode_record(content)
            tokens = record.get("tokens", np.zeros(0))
            if tokens.size and not 0 <= tokens.min() <= tokens.max() < self._vocab_size:
                raise ValueError("ids outside the vocabulary")
            self._layout.check(record)
        except Exception as error:
            # One corrupt record must not end a run of weeks.
            self._note(number, error)
            return empty_record()
        return record


class Batches:
    """An iterator of batches that are prefetched by background threads.

    The state is the position of the next batch to return, independent of prefetching.
    """

    def __init__(
        self,
        batch_at: Callable[[int], Batch],
        *,
        threads: int,
        prefetch: int,
        records: Records,
        stop: int | None = None,
    ):
        """Starts no thread yet.

        Args:
          batch_at: maps a position to its batch.
          threads: number of threads that make batches.
          prefetch: number of batches made in advance.
          records: the records that `batch_at` reads.
          stop: number of batches; None for endless.
        """
        self._batch_at = batch_at
        self._stop = stop
        self._prefetch = max(prefetch, 1)
        self._records = records
        self._pool = ThreadPoolExecutor(max(threads, 1), thread_name_prefix="batches")
        self._ahead: collections.deque = collections.deque()
        self._position = 0

    def __iter__(self) -> "Batches":
        return self

    def __len__(self) -> int:
        if self._stop is None:
            raise TypeError("training batches have no end")
        return self._stop

    def __next__(self) -> Batch:
        if self._stop is not None and self._position >= self._stop:
            raise StopIteration
        while len(self._ahead) < self._prefetch:
            position = self._position + len(self._ahead)
            if self._stop is not None and position >= self._stop:
                break
            self._ahead.append(self._pool.submit(self._batch_at, position))
        batch = self._ahead.popleft().result()
        self._position += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The state, {"position": number of the next batch}."""
        return {"position": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves forwards or backwards to a state from `get_state`."""
        while self._ahead:
            self._ahead.popleft().cancel()
        self._position = int(state["position"])

    @property
    def bad_rows(self) -> int:
        """Number of distinct corrupt records so far; their rows have weight 0."""
        return self._records.bad_rows

    def close(self) -> None:
        """Stops the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def train_batches(
    records: Records,
    rates: Sequence[float],
    *,
    batch_size: int,
    rows: range,
    seed: int,
    threads: int,
    prefetch: int,
) -> Batches:
    """Endless batches, shuffled anew every epoch and mixed at fixed rates.

    Args:
      records: the records of the members of the mixture.
      rates: the members' shares of the rows.
      batch_size: rows of the global batch.
      rows: contiguous rows of the global batch that this process reads.
      seed: seed of the order of the rows and of the randomness in them.
      threads: number of threads that make batches.
      prefetch: number of batches made in advance.
    """
    # Grain shuffles an epoch with seed + epoch. Hashed seeds prevent that epoch 2 of
    # seed 1 equals epoch 1 of seed 2.
    row_seed, *seeds = np.random.SeedSequence(seed).generate_state(1 + len(rates))
    shuffled = [
        grain.MapDataset.range(own.start, own.stop).shuffle(seed=int(own_seed)).repeat()
        for own, own_seed in zip(records.ranges, seeds)
    ]
    # Grain orders record numbers only: reading through Grain would cost more.
    order = shuffled[0]
    if len(shuffled) > 1:
        order = grain.MapDataset.mix(shuffled, list(rates))

    def batch_at(position: int) -> Batch:
        numbers = [position * batch_size + r for r in rows]
        indices = [int(order[number]) for number in numbers]
        return stack(
            [
                records.row(index, record, row_rng(int(row_seed), number))
                for number, index, record in zip(
                    numbers, indices, records.read(indices)
                )
            ]
        )

    return Batches(batch_at, threads=threads, prefetch=prefetch, records=records)


def eval_batches(
    records: Records,
    token_bytes: np.ndarray,
    *,
    batch_size: int,
    rows: range,
    max_batches: int | None,
    threads: int,
    prefetch: int,
) -> Batches:
    """One pass over the rows, in order; rows of weight 0 fill the last batch.

    Every process gets the same number of batches. If the targets are the text itself,
    batches have `target_bytes` float32 [B]. Arguments as in `train_batches`.

    Args:
      records: the records of the split.
      token_bytes: number of bytes of each id, int [V].
      batch_size: rows of the global batch.
      rows: contiguous rows of the global batch that this process reads.
      max_batches: maximum number of batches; None for all.
      threads: number of threads that make batches.
      prefetch: number of batches made in advance.
    """

    def batch_at(position: int) -> Batch:
        first = position * batch_size
        numbers = [first + r for r in rows if first + r < len(records)]
        found = records.read(numbers) if numbers else []
        found += [empty_record()] * (len(rows) - len(found))
        # A fixed seed, so that every evaluation has the same random corruption.
        made = [
            records.row(number, record, row_rng(EVAL_SEED, number))
            for number, record in enumerate(found, first + rows.start)
        ]
        batch = stack(made)
        if records.has_text_bytes and token_bytes.any():
            batch = with_target_bytes(batch, token_bytes)
        return batch

    stop = -(-len(records) // batch_size)
    if max_batches is not None:
        stop = min(stop, max_batches)
    return Batches(
        batch_at, stop=stop, threads=threads, prefetch=prefetch, records=records
    )


def stack(rows: Sequence[Row]) -> Batch:
    """Stacks rows, arrays […], to a batch, arrays [B, …]."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def with_target_bytes(batch: Batch, token_bytes: np.ndarray) -> Batch:
    """Adds `target_bytes` float32 [B], the bytes of each row's weighted targets."""
    counted = token_bytes[batch["targets"]] * batch["weights"]
    return batch | {"target_bytes": counted.sum(-1, dtype=np.float32)}


def row_rng(seed: int, number: int) -> Callable[[], np.random.Generator]:
    """A function that returns the generator of row `number` of a run.

    Each thread has one, which the next row of the thread resets.
    """

    def generator() -> np.random.Generator:
        # Each thread resets one generator for every row: to create another asks the
        # system for entropy, which takes as long as making the row.
        if not hasattr(_thread, "generator"):
            _thread.generator = np.random.Generator(np.random.Philox(key=[0, 0]))
            _thread.start = _thread.generator.bit_generator.state
        key = np.array([seed, number], np.uint64)
        state = _thread.start["state"] | {"key": key}
        _thread.generator.bit_generator.state = _thread.start | {"state": state}
        return _thread.generator

    return generator
