"""Lanes of streamed data: rows of a share of the files, from a place onwards.

A lane shuffles its documents within windows of bounded size. Windows are tokenized and
laid out on their own, so a place is where a window starts, and a number of its rows.
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from fmjax.data.records import Record, Row
from fmjax.data.sources.division import Division, FilePart, RawExample
from fmjax.data.streaming.streamed_rows import StreamedRows
from fmjax.errors import UserError

# The least number of parts that a lane should have.
PARTS_OF_LANE = 2
# Maximum number of parts, approximately.
_MAX_PARTS = 200_000
# What a record takes in memory at least, however little text it has.
_RECORD_BYTES = 256
# So many epochs or windows of a lane without a document or a row are an error.
_FRUITLESS = 100


class Place(NamedTuple):
    """Where a lane is in a member of the mixture.

    Attributes:
      epoch: how often the lane has read its share.
      part: where its window starts: number of the part, in the epoch's order,
      record: and number of the record in the part.
      row: number of rows of the window that were returned.
    """

    epoch: int = 0
    part: int = 0
    record: int = 0
    row: int = 0


class Window(NamedTuple):
    """Records made of the documents of a window.

    Attributes:
      start: its place, without rows.
      entropy: seed of the random numbers of its rows.
      records: in the order of the rows.
    """

    start: Place
    entropy: list[int]
    records: list[Record]


class MemberReader:
    """Reads windows of one member."""

    def __init__(
        self,
        rows: StreamedRows,
        number: int,
        parts: list[FilePart],
        lanes: int,
        window_bytes: float,
        seed: int,
    ):
        self.rows, self._member = rows, rows.members[number]
        self._parts, self._lanes = parts, lanes
        self._window_bytes = window_bytes
        self._entropy = [seed, number]
        self._shared = len(parts) < PARTS_OF_LANE * lanes and lanes > 1

    def windows(self, lane: int, place: Place) -> Iterator[tuple[Place, list]]:
        """Yields (start, examples) of the windows of a lane from a place onwards.

        Raises:
          UserError: the lane has no documents.
        """
        epoch, first, skip = place.epoch, place.part, place.record
        fruitless = 0
        while fruitless < _FRUITLESS:
            order = self._order(lane, epoch)
            start = Place(epoch, first, skip)
            examples: list[RawExample] = []
            size, is_empty = 0, not (first or skip)
            for part in range(first, len(order)):
                read = self._member.division.read(self._parts[order[part]])
                for record, example in enumerate(read):
                    if record < skip:
                        continue
                    if self._shared and record % self._lanes != lane:
                        continue
                    examples.append(example)
                    size += max(example.size, _RECORD_BYTES)
                    if size >= self._window_bytes:
                        yield start, examples
                        start = Place(epoch, part, record + 1)
                        examples, size, is_empty = [], 0, False
                skip = 0
            if examples:
                yield start, examples
            fruitless = fruitless + 1 if is_empty and not examples else 0
            epoch, first, skip = epoch + 1, 0, 0
        raise UserError(
            f"{self.rows.binding} = True: share {lane + 1} of {self._lanes} of the "
            f"train split of {self._member.name} has no documents."
        )

    def window(self, lane: int, start: Place, examples: list) -> Window:
        """Shuffles, tokenizes and lays out a window."""
        entropy = [*self._entropy, lane, *start[:3]]
        order = np.random.default_rng([*entropy, 0]).permutation(len(examples))
        shuffled = [examples[i] for i in order]
        return Window(start, entropy, self.rows.records(self._member, shuffled))

    def _order(self, lane: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([*self._entropy, epoch])
        order = rng.permutation(len(self._parts))
        return order if self._shared else order[lane :: self._lanes]


class LaneRows:
    """The rows of one member in one lane; its next window is made in advance.

    Attributes:
      place: of the next row.
    """

    def __init__(
        self, reader: MemberReader, lane: int, place: Place, pool: ThreadPoolExecutor
    ):
        self._reader, self._lane, self._pool = reader, lane, pool
        self.place = place
        self._windows = reader.windows(lane, place)
        self._window: Window | None = None
        self._next = self._submit()

    def next(self, is_wanted: bool) -> Callable[[], Row] | None:
        """A function that makes the next row; None if it is not wanted."""
        fruitless = 0
        while self._window is None or self.place.row >= len(self._window.records):
            window = self._next.result()
            self._next = self._submit()
            resumes = self._window is None
            self._window = window
            self.place = window.start._replace(row=self.place.row if resumes else 0)
            fruitless = 0 if window.records else fruitless + 1
            if fruitless > _FRUITLESS:
                raise UserError(
                    f"{self._reader.rows.binding} = True: {_FRUITLESS} shares of "
                    "documents, one after another, gave no rows; are all empty or "
                    "corrupt?"
                )
        number, records = self.place.row, self._window.records
        self.place = self.place._replace(row=number + 1)
        if not is_wanted:
            return None
        rng = np.random.default_rng([*self._window.entropy, 1, number])
        make = self._reader.rows.row
        return functools.partial(make, records[number], records, lambda: rng)

    def _submit(self) -> Future:
        return self._pool.submit(self._make)

    def _make(self) -> Window:
        start, examples = next(self._windows)
        return self._reader.window(self._lane, start, examples)


def parts_for(division: Division, lanes: int, part_bytes: int) -> list[FilePart]:
    """Parts for so many lanes; lines are not counted, which would read the files.

    Args:
      division: the split.
      lanes: number of lanes.
      part_bytes: bytes of a part at most, unless there would be too many parts.
    """
    files = division.parts()
    total = sum(part.size for part in files)
    limit = max(part_bytes, total // _MAX_PARTS)
    size = min(limit, max(1, total // (8 * PARTS_OF_LANE * lanes)))
    return division.parts(size, numbered=False)
