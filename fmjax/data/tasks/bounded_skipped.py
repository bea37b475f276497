"""Counting the corrupt documents of a stream, which may be too many to go on."""

import sys

from fmjax.data.sources.examples import Skipped, truncation
from fmjax.data.tasks.corrupt_fraction import check_while_reading, check_whole

# Maximum number of corrupt documents that are printed.
_NAMED = 10


class BoundedSkipped(Skipped):
    """Examples left out, which are named on stderr; too many raise a UserError.

    Attributes:
      good_bytes: bytes of text of the documents that were not left out.
    """

    def __init__(self, data: str, fraction: float):
        """Counts nothing yet.

        Args:
          data: name of the data, for messages.
          fraction: `data.max_corrupt_fraction`.
        """
        super().__init__()
        self._data, self._fraction = data, fraction
        self.good_bytes = 0

    def add(
        self, name: str, count: int = 1, *, size: int = 0, empty: bool = False
    ) -> None:
        """See `Skipped.add`; raises a UserError if too many documents are corrupt."""
        super().add(name, count, size=size, empty=empty)
        if self.count - count < _NAMED:
            print(f"left out: {name}", file=sys.stderr, flush=True)
        self._check()

    def merge(self, others: Skipped) -> None:
        """See `Skipped.merge`; raises a UserError if too many are corrupt."""
        before, cut = self.count, self.truncated
        super().merge(others)
        self._tell_truncation(cut)
        for name in others.names[: max(_NAMED - before, 0)]:
            print(f"left out: {name}", file=sys.stderr, flush=True)
        self._check()

    def check_whole(self) -> None:
        """Raises a UserError if too many of the documents of an epoch are corrupt."""
        check_whole(
            self.broken,
            self.total,
            self._fraction,
            self._data,
            self.names,
            self.bytes,
            self.good_bytes + self.bytes if self.bytes else 0,
        )

    def add_cut(self, tokens: int, trained: int) -> None:
        """See `Skipped.add_cut`; the first, tenth, hundredth … is told of."""
        super().add_cut(tokens, trained)
        self._tell_truncation(self.truncated - 1)

    def _tell_truncation(self, before: int) -> None:
        if self.truncated and (
            not before or len(str(before)) < len(str(self.truncated))
        ):
            print(f"so far {truncation(self)}", file=sys.stderr, flush=True)

    def _check(self) -> None:
        check_while_reading(
            self.broken, self.total, self._fraction, self._data, self.names
        )
