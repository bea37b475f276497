"""What is in a dataset of images and how fast it is read: `fmjax data inspect`."""

import dataclasses
import time

from rich.console import Console, Group
from rich.text import Text

from fmjax.data.images.image_data import ImageData
from fmjax.data.inspect.split_report import SplitReport, split_reports, split_table


@dataclasses.dataclass(frozen=True)
class ImageReport:
    """What `inspect_images` found; `render` shows it.

    Attributes:
      splits: one a cache.
      shapes: of the arrays of a row.
      class_names: of labels 0, 1, …; none where there are none.
      vocab_size: of captions; None where there are none.
      examples: labels and captions of training rows.
      images_per_second: that the reader gave on this machine.
      bad_rows: records found damaged while reading.
    """

    splits: tuple[SplitReport, ...]
    shapes: dict[str, tuple[int, ...]]
    class_names: tuple[str, ...]
    vocab_size: int | None
    examples: tuple[str, ...]
    images_per_second: float
    bad_rows: int

    def render(self, console: Console) -> None:
        """Prints tables and examples."""
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
    """Builds what is missing, reads training batches for a while and reports.

    Args:
      data: what to look at.
      examples: rows to describe.
      batch_size: rows in a batch while measuring.
      seconds: how long to measure the reader.
    """
    data.prepare()
    stream = data.train_batches(batch_size, range(batch_size), seed=0)
    try:
        first = next(stream)
        # What was made ahead would count as read in no time.
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
        splits=split_reports(data),
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
    """A row's label and caption in words."""
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
