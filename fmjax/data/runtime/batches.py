"""Rows of a cache as batches: order a pure function of (seed, position).

Row p = position · batch_size + r of a run depends on the seed and p alone, and a
process reads the rows [start, stop) of each global batch: neither the number of
processes, nor prefetching, nor where a run was interrupted changes what is read.
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

from fmjax.data.runtime.cache import Cache, decode_record
from fmjax.data.tasks.corrupt_fraction import check_while_reading
from fmjax.data.text.packing import BadRecord, Record, Row, RowLayout, empty_record
from fmjax.errors import UserError

Batch = dict[str, np.ndarray]

_EVAL_SEED = 0
_NAMED = 20  # broken records that are told of by name
_thread = threading.local()
# Random access: what lies ahead in the file is not read next.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class Records:
    """Random access to the records of several caches, numbered one after another.

    A record that cannot be read, has ids outside the vocabulary, or cannot be made into
    a row becomes an empty one: its row has zero weight, it is counted in `bad_rows` and
    named on stderr. More of them than `max_corrupt_fraction` end the run.
    """

    def __init__(
        self,
        caches: Sequence[Cache],
        layout: RowLayout,
        vocab_size: int,
        max_corrupt_fraction: float = 1.0,
    ):
        """Opens the shards; they are read when asked for."""
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
                f"{len(self)} rows; {ends[-1]} are expected. Delete the folders to "
                "have them built again."
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, numbers: Sequence[int]) -> list[Record]:
        """The records of these numbers, in one call a shard."""
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        records: list[Record | None] = [None] * len(numbers)
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            inside = [int(numbers[place] - self._starts[shard]) for place in places]
            try:
                contents = self._readers[shard].read(inside)
            except Exception:
                contents = [None] * len(inside)  # Find out below which one it was.
            for place, index, content in zip(places, inside, contents):
                number = int(numbers[place])
                records[place] = self._decode(number, int(shard), index, content)
        return records

    def draw(self, rng: np.random.Generator) -> Record:
        """Any one record."""
        return self.read([int(rng.integers(len(self)))])[0]

    def row(
        self, number: int, record: Record, rng: Callable[[], np.random.Generator]
    ) -> Row:
        """The row of a record that `read` gave."""
        try:
            return self._layout.row(record, rng, self.draw)
        except BadRecord as error:
            self._note(number, error)
            return self._layout.row(empty_record(), rng, self.draw)

    def reading(self, number: int, seed: int) -> Row:
        """The row of one record, by the randomness of (seed, number)."""
        (record,) = self.read([number])
        return self.row(number, record, _row_rng(seed, number))

    @property
    def has_text_bytes(self) -> bool:
        """Whether targets are the text itself."""
        return self._layout.has_text_bytes

    @property
    def bad_rows(self) -> int:
        """Distinct records found to be bad so far."""
        return len(self._bad)

    def _note(self, number: int, why: Exception) -> None:
        with self._lock:
            if number in self._bad:
                return
            self._bad.add(number)
            shard = int(np.searchsorted(self._starts, number, side="right")) - 1
            name = f"{self._shards[shard]}: record {number - self._starts[shard]}"
            if len(self._bad) <= _NAMED:
                told = f"broken, counts for nothing: {name} ({why!r:.200})"
                print(told, file=sys.stderr, flush=True)
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
            # Whatever is wrong with one record must not end a run of weeks.
            self._note(number, error)
            return empty_record()
        return record


class Batches:
    """Iterator of batches made ahead in background threads.

    The state is the position of the next batch to be returned, whatever has been
    prefetched. `bad_rows` counts records that became rows of zero weight.
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
        """Takes the function from position to batch, and where to stop, if anywhere."""
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
        """The state: {"position": number of the next batch}."""
        return {"position": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position, forwards or back."""
        while self._ahead:
            self._ahead.popleft().cancel()
        self._position = int(state["position"])

    @property
    def bad_rows(self) -> int:
        """Distinct records found to be bad so far."""
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
    """Endless batches, reshuffled every epoch, mixed at fixed rates.

    Args:
      records: of the members of the mixture.
      rates: the members' shares of the rows.
      batch_size: rows of the global batch.
      rows: those that this process reads, contiguous.
      seed: of the order and of everything random in a row.
      threads: that make batches.
      prefetch: batches made ahead.
    """
    # Grain's epochs use seed + epoch; hashed seeds keep runs with seeds 1 and 2 apart.
    row_seed, *seeds = np.random.SeedSequence(seed).generate_state(1 + len(rates))
    shuffled = [
        grain.MapDataset.range(own.start, own.stop).shuffle(seed=int(own_seed)).repeat()
        for own, own_seed in zip(records.ranges, seeds)
    ]
    # Record numbers rather than records: Grain's bookkeeping costs more than reading.
    order = shuffled[0]
    if len(shuffled) > 1:
        order = grain.MapDataset.mix(shuffled, list(rates))

    def batch_at(position: int) -> Batch:
        numbers = [position * batch_size + r for r in rows]
        places = [int(order[number]) for number in numbers]
        return stack(
            [
                records.row(place, record, _row_rng(int(row_seed), number))
                for number, place, record in zip(numbers, places, records.read(places))
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
    """Every row once and in order; rows of zeros fill the last batch.

    Every process sees the same number of batches. Each batch has `target_bytes`, where
    targets are the text itself.
    """

    def batch_at(position: int) -> Batch:
        first = position * batch_size
        numbers = [first + r for r in rows if first + r < len(records)]
        found = records.read(numbers) if numbers else []
        found += [empty_record()] * (len(rows) - len(found))
        # What is corrupted at random is so in the same way in every evaluation.
        made = [
            records.row(number, record, _row_rng(_EVAL_SEED, number))
            for number, record in enumerate(found, first + rows.start)
        ]
        batch = stack(made)
        if records.has_text_bytes:
            batch = with_target_bytes(batch, token_bytes)
        return batch

    stop = -(-len(records) // batch_size)
    if max_batches is not None:
        stop = min(stop, max_batches)
    return Batches(
        batch_at, stop=stop, threads=threads, prefetch=prefetch, records=records
    )


def stack(rows: Sequence[Row]) -> Batch:
    """Rows [T] to a batch [B, T]."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def with_target_bytes(batch: Batch, token_bytes: np.ndarray) -> Batch:
    """Adds `target_bytes` float32 [B]: text bytes behind each row's counted targets."""
    counted = token_bytes[batch["targets"]] * batch["weights"]
    return batch | {"target_bytes": counted.sum(-1, dtype=np.float32)}


def _row_rng(seed: int, number: int) -> Callable[[], np.random.Generator]:
    """Randomness of row `number` of a run, made only if the layout draws any."""

    def generator() -> np.random.Generator:
        # A thread's one generator is set anew for each row: making another asks the
        # system for entropy, which takes as long as the row.
        if not hasattr(_thread, "generator"):
            _thread.generator = np.random.Generator(np.random.Philox(key=[0, 0]))
            _thread.start = _thread.generator.bit_generator.state
        key = np.array([seed, number], np.uint64)
        state = _thread.start["state"] | {"key": key}
        _thread.generator.bit_generator.state = _thread.start | {"state": state}
        return _thread.generator

    return generator
