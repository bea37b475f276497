"""Streaming: rows directly from files, for data of which no cache fits on the disk.

The rows of a global batch come from a number of lanes, which depends on the batch and
the data alone. A lane reads its own share of the parts of the files, in an order drawn
for every epoch, and shuffles its documents within windows of bounded size. Windows are
tokenized and made into rows on their own, so the state of a lane is the place where its
window starts, and the number of rows returned of it. A resume is exact, on any number
of processes: it reads that window again, and what is before it in its part of the
files, which is the whole file if that cannot be divided.

Files of too few parts, such as a compressed one, are read by all processes, each of
which keeps its share of the records. Then a resume needs the same number of processes.
"""

import itertools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fmjax.data.records import empty_record
from fmjax.data.runtime.batches import Batch, stack, with_target_bytes
from fmjax.data.streaming.ahead import Ahead
from fmjax.data.streaming.lanes import (
    PARTS_OF_LANE,
    LaneRows,
    MemberReader,
    Place,
    parts_for,
)
from fmjax.data.streaming.streamed_rows import StreamedRows
from fmjax.errors import UserError

# Maximum number of lanes.
_LANES = 32
_STATE = ("position", "lanes", "count", "processes")
# Consecutive multiples of it are spread evenly over [0, 1).
_GOLDEN_RATIO = (5**0.5 - 1) / 2


class StreamedBatches:
    """Endless training batches, prefetched by background threads."""

    def __init__(
        self,
        rows: StreamedRows,
        batch_size: int,
        own: range,
        seed: int,
        *,
        shuffled_bytes: int,
        part_bytes: int,
        threads: int,
        row_threads: int,
        prefetch: int,
    ):
        """Divides the data; starts no thread yet.

        Args:
          rows: the rows of the train split.
          batch_size: B, rows of the global batch.
          own: contiguous rows of the global batch that this process reads.
          seed: seed of the order of the rows and of the randomness in them.
          shuffled_bytes: bytes of text or images of the windows of all lanes together.
          part_bytes: bytes of the parts of files, see `parts_for`.
          threads: number of threads that tokenize windows.
          row_threads: number of threads that make rows; 0 if they are made one by one.
          prefetch: number of batches made in advance.

        Raises:
          UserError: files have so few parts that processes share them, and the
            processes do not read equal numbers of rows.
        """
        self._rows, self._own = rows, own
        self._batch_size = batch_size
        self._prefetch = prefetch
        self._threads, self._row_threads = threads, row_threads
        lanes = max(n for n in range(1, _LANES + 1) if batch_size % n == 0)
        parts = [
            parts_for(member.division, lanes, part_bytes) for member in rows.members
        ]
        self._processes = 0  # any number
        if min(map(len, parts)) < PARTS_OF_LANE * lanes:
            if not len(own) or batch_size % len(own) or own.start % len(own):
                raise UserError(
                    f"{rows.binding} = True: expected the same number of rows for "
                    f"every process, but of train.batch_size = {batch_size} rows this "
                    f"process has rows {own.start} to {own.stop}."
                )
            lanes = self._processes = batch_size // len(own)
        self._lanes = lanes
        rates = np.array([member.rate for member in rows.members], float)
        shares = rates / rates.sum()
        self._shares = np.cumsum(shares)
        self._readers = [
            MemberReader(
                rows, number, own_parts, lanes, shuffled_bytes * share / lanes, seed
            )
            for number, (own_parts, share) in enumerate(zip(parts, shares))
        ]
        start = [Place() for _ in rows.members]
        mine = {self._lane(row) for row in own}
        # Of each lane by its number, as JSON has it: the places of all members.
        self._position, self._places = (
            0,
            {str(lane): [list(place) for place in start] for lane in mine},
        )
        self._ahead: Ahead | None = None

    def __iter__(self) -> "StreamedBatches":
        return self

    def __next__(self) -> Batch:
        if self._ahead is None:
            batches = self._batches(self._position, self._places)
            self._ahead = Ahead(batches, self._prefetch)
        batch, self._position, self._places = self._ahead.get()
        return batch

    def get_state(self) -> dict:
        """Position of the next batch, and the places of this process's lanes."""
        values = (self._position, self._places, self._lanes, self._processes)
        return dict(zip(_STATE, values))

    def merge_states(self, states: Sequence[dict]) -> dict:
        """The state of the whole run, of the states of all its processes."""
        lanes = {}
        for state in states:
            lanes |= state["lanes"]
        return dict(states[0]) | {"lanes": lanes}

    @property
    def bad_rows(self) -> int:
        """Number of examples left out so far.

        Those whose row cannot be made, such as damaged images, are rows of weight 0.
        """
        return self._rows.skipped.count

    def set_state(self, state: dict) -> None:
        """Moves to a state from `get_state`, or of a whole run.

        Raises:
          UserError: the state was saved with another number of processes though they
            share files, by a run without streaming, or by an earlier version.
        """
        if set(state) != set(_STATE):
            raise UserError(
                f"{self._rows.binding} = True: the checkpoint's data state has "
                f"{sorted(state)}; expected {sorted(_STATE)}. Was the run started "
                "without streaming, or by an earlier version, whose streams had "
                "another order?"
            )
        if state["processes"] != self._processes:
            raise UserError(
                f"{self._rows.binding} = True: the checkpoint was saved by "
                f"{state['processes']} processes, and this run has "
                f"{self._processes}; expected the same number, since the data have so "
                "few parts that can be read on their own that processes share files."
            )
        missing = set(self._places) - set(state["lanes"])
        if state["count"] != self._lanes or missing:
            raise UserError(
                f"{self._rows.binding} = True: the checkpoint's data state has "
                f"{len(state['lanes'])} of {state['count']} lanes; expected all of "
                f"{self._lanes}."
            )
        self.close()
        self._position = int(state["position"])
        self._places = {name: state["lanes"][name] for name in self._places}

    def close(self) -> None:
        """Stops the threads."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _lane(self, row: int) -> int:
        return row * self._lanes // self._batch_size

    def _batches(
        self, position: int, places: dict[str, list]
    ) -> Generator[tuple[Batch, int, dict[str, list]], None, None]:
        """Batches from a position onwards, each with the next position and places."""
        pool = ThreadPoolExecutor(max(self._threads, 1), "windows")
        makers = ThreadPoolExecutor(max(self._row_threads, 1), "rows")
        each = makers.map if self._row_threads else map
        try:
            lanes = {
                int(name): [
                    LaneRows(reader, int(name), Place(*place), pool)
                    for reader, place in zip(self._readers, own)
                ]
                for name, own in places.items()
            }
            # All rows of these lanes, also those that other processes return.
            rows = [r for r in range(self._batch_size) if self._lane(r) in lanes]
            for number in itertools.count(position):
                made = []
                for r in rows:
                    row_number = number * self._batch_size + r
                    share = (row_number + 0.5) * _GOLDEN_RATIO % 1
                    member = int(np.searchsorted(self._shares, share, side="right"))
                    member = min(member, len(self._readers) - 1)
                    lane = lanes[self._lane(r)][member]
                    make = lane.next(is_wanted=r in self._own)
                    if make is not None:
                        made.append(make)
                after = {
                    str(name): [list(lane.place) for lane in members]
                    for name, members in lanes.items()
                }
                rows_made = list(each(lambda make: make(), made))
                yield stack(rows_made), number + 1, after
        finally:
            makers.shutdown(cancel_futures=True)
            pool.shutdown(cancel_futures=True)


def streamed_eval_batches(
    rows,
    token_bytes: np.ndarray,
    *,
    batch_size: int,
    own: range,
    row_threads: int,
    max_batches: int | None,
) -> Iterator[Batch]:
    """One pass over a split, as `batches.eval_batches`.

    Every process reads the whole split, and makes its own rows of each batch.

    Args:
      rows: the rows of the split: `StreamedRows` or `SeqioRows`.
      token_bytes: number of bytes of each id, int [V].
      batch_size: rows of the global batch.
      own: contiguous rows of the global batch that this process returns.
      row_threads: number of threads that make rows; 0 if they are made one by one.
      max_batches: maximum number of batches; None for all.
    """
    source = rows.in_order()
    filling = rows.layout.row(empty_record(), np.random.default_rng)
    has_bytes = rows.layout.has_text_bytes and token_bytes.any()
    with ThreadPoolExecutor(max(row_threads, 1), "rows") as makers:
        each = makers.map if row_threads else map
        for _ in itertools.count() if max_batches is None else range(max_batches):
            makes = list(itertools.islice(source, batch_size))
            found = list(each(lambda make: make(), makes[own.start : own.stop]))
            if len(makes) < batch_size:
                rows.skipped.check_whole()
            if not makes:
                return
            batch = stack(found + [filling] * (len(own) - len(found)))
            yield with_target_bytes(batch, token_bytes) if has_bytes else batch
