"""What is in a dataset and how fast it is read: the report of `fmjax data inspect`."""

import dataclasses
import time

import numpy as np
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fmjax.data.pipeline import Data


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """One split of one task, as its cache describes it.

    Attributes:
      task: name.
      split: "train" or "validation".
      folder: of the cache.
      rows: records.
      documents: that went in.
      skipped: documents left out as broken, and the names of some.
      skipped_names: the first of those.
      tokens: of the documents.
      bytes: of their text, or None.
      padding_share: of all positions.
      build_seconds: time the cache took to build.
    """

    task: str
    split: str
    folder: str
    rows: int
    documents: int
    skipped: int
    skipped_names: tuple[str, ...]
    tokens: int
    bytes: int | None
    padding_share: float
    build_seconds: float


@dataclasses.dataclass(frozen=True)
class DataReport:
    """What `inspect` found; `render` shows it.

    Attributes:
      splits: one a cache; none for streamed data.
      vocab_size: of the tokenizer.
      length: T.
      row_targets: counted targets of a sample of training rows: (least, median, most).
      padding_share: of that sample.
      examples: decoded training rows.
      tokens_per_second: counted targets a second that the reader gave on this machine.
      bad_rows: records found damaged while reading.
    """

    splits: tuple[SplitReport, ...]
    vocab_size: int
    length: int
    row_targets: tuple[int, int, int]
    padding_share: float
    examples: tuple[str, ...]
    tokens_per_second: float
    bad_rows: int

    def render(self, console: Console) -> None:
        """Prints tables and examples."""
        console.print(Group(*self._parts()))

    def _parts(self):
        table = Table("task", "split", "rows", "documents", "left out", "tokens")
        table.add_column("bytes/token", justify="right")
        table.add_column("padding", justify="right")
        for s in self.splits:
            ratio = "?" if s.bytes is None else f"{s.bytes / max(s.tokens, 1):.2f}"
            counts = [f"{n:,}" for n in (s.rows, s.documents, s.skipped, s.tokens)]
            table.add_row(s.task, s.split, *counts, ratio, f"{s.padding_share:.2%}")
        if self.splits:
            yield table
            yield Text(f"cached in {self.splits[0].folder}", overflow="fold")
        least, median, most = self.row_targets
        yield Text(
            f"vocabulary {self.vocab_size:,}, rows of {self.length} tokens with "
            f"{least} to {most} targets (median {median}), "
            f"padding {self.padding_share:.2%}\n"
            f"read at {self.tokens_per_second:,.0f} tokens per second"
            + (f", {self.bad_rows} damaged rows" if self.bad_rows else "")
        )
        for number, example in enumerate(self.examples, 1):
            yield Panel(Text(example), title=f"row {number}", title_align="left")


def inspect(
    data: Data, *, examples: int = 3, batch_size: int = 64, seconds: float = 2.0
) -> DataReport:
    """Builds what is missing, reads training batches for a while and reports.

    Args:
      data: what to look at.
      examples: rows to decode.
      batch_size: rows in a batch while measuring.
      seconds: how long to measure the reader.
    """
    data.prepare()
    tokenizer = data.tokenizer()
    stream = data.train_batches(batch_size, range(batch_size), seed=0)
    weights = []
    try:
        first = next(stream)
        started = time.perf_counter()
        targets = 0
        while (elapsed := time.perf_counter() - started) < seconds or not weights:
            batch = next(stream)
            weights.append(batch["weights"].sum(-1).astype(int))
            targets += int(weights[-1].sum())
        bad_rows = stream.bad_rows
    finally:
        stream.close()
    counts = np.concatenate(weights)
    return DataReport(
        splits=() if data.streaming else tuple(_splits(data)),
        vocab_size=tokenizer.vocab_size,
        length=data.length,
        row_targets=(int(counts.min()), int(np.median(counts)), int(counts.max())),
        padding_share=float(1 - counts.mean() / data.length),
        examples=tuple(
            _decode(tokenizer, {name: array[r] for name, array in first.items()})
            for r in range(min(examples, batch_size))
        ),
        tokens_per_second=targets / elapsed,
        bad_rows=bad_rows,
    )


def _splits(data: Data):
    for split in ("train", "validation"):
        for cache in data.caches(split):
            yield SplitReport(
                task=cache.folder.name.partition(f"-{split}-")[0],
                split=split,
                folder=str(cache.folder),
                rows=cache.rows,
                documents=cache.documents,
                skipped=cache.skipped,
                skipped_names=cache.skipped_names,
                tokens=cache.tokens,
                bytes=cache.bytes,
                padding_share=cache.padding_share,
                build_seconds=cache.seconds,
            )


def _decode(tokenizer, row) -> str:
    """Text of a row's targets, with a line between packed documents."""
    counted = row["weights"] > 0
    segments = row.get("segment_ids", np.ones_like(row["targets"]))
    texts = [
        tokenizer.decode(row["targets"][counted & (segments == segment)])
        for segment in np.unique(segments[counted])
    ]
    return "\n―――\n".join(texts)
