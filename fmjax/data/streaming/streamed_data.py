"""The base class of data that is read from caches, or streamed from its files."""

import contextlib
from collections.abc import Callable, Iterator

from fmjax.data.folders import wait_until
from fmjax.data.records import RowLayout
from fmjax.data.runtime import batches
from fmjax.data.runtime.cache import Cache
from fmjax.data.runtime.cached_data import CachedData, source_of
from fmjax.data.sources.division import Divisible, Division
from fmjax.data.sources.file_digest import sampled_digests
from fmjax.data.streaming.streamed_batches import StreamedBatches, streamed_eval_batches
from fmjax.data.streaming.streamed_rows import StreamedMember, StreamedRows
from fmjax.errors import UserError


class StreamedData(CachedData):
    """Data with caches, or with `streaming` without any.

    Attributes:
      streaming: whether to read the files in training instead of making a cache.
      shuffle_mb: with streaming, megabytes that are shuffled at a time, of all
        processes together.
    """

    # Threads that make rows of what a stream has read; 0 if that takes no time.
    _row_threads = 0
    # Bytes of a part of a file that a lane reads.
    _part_bytes = 1 << 20

    def prepare(self) -> None:
        """Builds what is missing; see `CachedData`. Streaming needs no cache."""
        if self.streaming:
            self.tokenizer()
            return
        super().prepare()

    def wait_until_prepared(self, timeout_seconds: float = 3600) -> None:
        """Waits until another process has finished `prepare`; raises TimeoutError."""
        if self.streaming:
            wait_until(self._tokenizers_are_built, "the tokenizer", timeout_seconds)
            return
        super().wait_until_prepared(timeout_seconds)

    def is_prepared(self) -> bool:
        """Whether the tokenizer and all caches exist."""
        if self.streaming:
            return self._tokenizers_are_built()
        return super().is_prepared()

    def train_batches(self, batch_size: int, rows: range, seed: int):
        """Endless batches; see `CachedData`."""
        if not self.streaming:
            return super().train_batches(batch_size, rows, seed)
        return StreamedBatches(
            self._streamed("train", self._training_layout(), self._training_division),
            batch_size,
            rows,
            seed,
            shuffled_bytes=round(self.shuffle_mb * 1e6),
            part_bytes=self._part_bytes,
            threads=self.threads,
            row_threads=self._row_threads,
            prefetch=self.prefetch,
        )

    def eval_batches(
        self,
        batch_size: int,
        rows: range,
        max_batches: int | None = None,
        split: str = "validation",
    ) -> batches.Batches | Iterator[batches.Batch]:
        """One pass over a split, in order; see `CachedData`."""
        if not self.streaming:
            return super().eval_batches(batch_size, rows, max_batches, split)
        self._check_has(split)
        return streamed_eval_batches(
            self._in_order(split),
            self._token_bytes,
            batch_size=batch_size,
            own=rows,
            row_threads=self._row_threads,
            max_batches=max_batches,
        )

    def train_rows(self) -> int | None:
        """Number of rows of the train split; None with streaming."""
        return None if self.streaming else super().train_rows()

    def caches(self, split: str) -> tuple[Cache, ...]:
        """The opened caches of a split; see `CachedData`.

        Raises:
          UserError: there are none, because of streaming.
        """
        if self.streaming:
            raise UserError(
                f"{self._streams} = True: rows cannot be read in any order, which this "
                f"needs; expected {self._streams}=False, which makes a cache."
            )
        return super().caches(split)

    @property
    def _streams(self) -> str:
        """The gin name of `streaming`."""
        return f"{self.gin_name}.streaming"

    @contextlib.contextmanager
    def _digests(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(super()._digests())
            if self.streaming:
                # What no cache can hold is too large to be read at every start.
                stack.enter_context(sampled_digests())
            yield

    def _kind_of_reading(self) -> bool | list:
        """A JSON value of the order of rows, for the fingerprint."""
        if self.streaming and self._is_divisible("train"):
            # Its order was another, by seqio's shuffling, in earlier versions.
            return ["lanes", self.shuffle_mb]
        return self.streaming

    def _is_divisible(self, split: str) -> bool:
        """Whether the files of all tasks can be read in parts, without seqio."""
        sources = [source_of(member) for member in self._members[split]]
        return all(isinstance(source, Divisible) for source in sources)

    def _in_order(self, split: str):
        """What `streamed_eval_batches` takes."""
        return self._streamed(split, self._layout(split), self._division)

    def _division(self, source: Divisible, split: str) -> Division:
        """A split of a source, in the order of a cache."""
        return source.division(split)

    def _training_division(self, source: Divisible, split: str) -> Division:
        """A split of a source, in the order from which training shuffles."""
        return self._division(source, split)

    def _streamed(
        self,
        split: str,
        layout: RowLayout,
        division_of: Callable[[Divisible, str], Division],
    ) -> StreamedRows:
        """The rows of a split.

        Args:
          split: "train" or "validation".
          layout: makes records and rows.
          division_of: the division of a source and split.

        Raises:
          UserError: a source cannot be read in parts.
        """
        members = self._members[split]
        for member in members:
            if not isinstance(source_of(member), Divisible):
                raise UserError(
                    f"{self._streams} = True: the files of the task {member.name!r} "
                    f"cannot be read in parts; expected {self._streams}=False."
                )
        with self._digests():
            streamed = [
                StreamedMember(m.name, division_of(source_of(m), split), m.rate)
                for m in members
            ]
        return StreamedRows(
            streamed,
            split,
            layout,
            self._coding(layout),
            self._tokenizer,
            self.max_corrupt_fraction,
            self._streams,
        )
