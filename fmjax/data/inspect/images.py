"""`fmjax data inspect` for images: content of the dataset and speed of the reader."""

import dataclasses
import time

from rich.console import Console, Group
from rich.text import Text

from fmjax.data.images.image_data import ImageData
from fmjax.data.inspect.split_report import SplitReport, split_reports, split_table


@dataclasses.dataclass(frozen=True)
class ImageReport:
    """The report of `inspect_images`.

    Attributes:
      splits: a report for each cache.
      shapes: shapes of the arrays of a row.
      class_names: names of the labels 0, 1, …; empty if there are none.
      vocab_size: vocabulary of the captions; None if there are none.
      examples: labels and captions of training rows, as text.
      images_per_second: speed of the reader on this machine.
      bad_rows: number of corrupt records found while reading.
    """

    splits: tuple[SplitReport, ...]
    shapes: dict[str, tuple[int, ...]]
    class_names: tuple[str, ...]
    vocab_size: int | None
    examples: tuple[str, ...]
    images_per_second: float
    bad_rows: int

    def render(self, console: Console) -> None:
        """Prints the report as tables and examples."""
        console.print(Group(*self._parts()))

    def _parts(self):
        yield from split_table(self.splits, of_images=True)
        shapes = ", ".join(
            f"{name} {list(shape)}" for name, shape in self.shapes.items()
        )
        lines = [f"rows of {shapes}"]
        if self.class_names:
            names = ", ".join(self.class_names[:10])
            more = ", …" if len(self.class_names) > 10 else ""
            lines.append(f"{len(self.class_names)} classes: {names}{more}")
        if self.vocab_size is not None:
            lines.append(f"vocabulary of captions {self.vocab_size:,}")
        lines.append(
            f"read at {self.images_per_second:,.0f} images per second"
            + (f", {self.bad_rows} damaged rows" if self.bad_rows else "")
        )
        lines += [f"row {i}: {text}" for i, text in enumerate(self.examples, 1)]
        yield Text("\n".join(lines))


def inspect_images(
    data: ImageData, *, examples: int = 3, batch_size: int = 16, seconds: float = 2.0
) -> ImageReport:
    """Builds missing caches, reads training batches for a while and reports.

    Args:
      data: the data to inspect.
      examples: number of rows to describe.
      batch_size: rows of a batch.
      seconds: time for which the reader's speed is measured.
    """
    data.prepare()
    stream = data.train_batches(batch_size, range(batch_size), seed=0)
    try:
        first = next(stream)
        # Batches that were prefetched before the measurement must not count.
        for _ in range(data.prefetch):
            next(stream)
        started, images = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < seconds or not images:
            images += len(next(stream)["weights"])
        bad_rows = stream.bad_rows
    finally:
        stream.close()
    tokenizer = data.tokenizer()
    return ImageReport(
        splits=() if data.streaming else split_reports(data),
        shapes=data.row_shapes(),
        class_names=data.class_names(),
        vocab_size=None if tokenizer is None else tokenizer.vocab_size,
        examples=tuple(
            describe(data, {name: array[r] for name, array in first.items()})
            for r in range(min(examples, batch_size))
        ),
        images_per_second=images / elapsed,
        bad_rows=bad_rows,
    )


def describe(data: ImageData, row) -> str:
    """A row's label and caption as text."""
    parts = []
    if "labels" in row:
        parts.append(data.class_names()[int(row["labels"])])
    if "label_share" in row:
        other = data.class_names()[int(row["other_labels"])]
        share = float(row["label_share"])
        parts = [f"{share:.0%} {parts[0]}, {1 - share:.0%} {other}"]
    if "tokens" in row:
        parts.append(f"“{data.tokenizer().decode(row['tokens'][row['padding_mask']])}”")
    return " ".join(parts)
