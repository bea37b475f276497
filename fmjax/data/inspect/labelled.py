"""`fmjax data inspect` for labelled texts: classes, their shares, and examples."""

import dataclasses

import numpy as np
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fmjax.data.inspect.split_report import SplitReport, split_reports, split_table
from fmjax.data.runtime.batches import Records
from fmjax.data.text.text_data import Data

# Maximum number of records of a split whose labels are counted; classes that are shown.
_COUNTED, _SHOWN = 100_000, 30
_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class LabelledReport:
    """The report of `inspect_labelled`.

    Attributes:
      splits: a report for each cache; empty for streamed data.
      vocab_size: vocabulary size of the tokenizer.
      length: T, tokens of a row.
      class_names: names of the labels 0, 1, …; empty if labels are numbers.
      counts: maps a split to the number of rows of each class, int [K].
      counted: maps a split to the number of rows, or of words, that these are of.
      examples: decoded training rows.
    """

    splits: tuple[SplitReport, ...]
    vocab_size: int
    length: int
    class_names: tuple[str, ...]
    counts: dict[str, np.ndarray]
    counted: dict[str, int]
    examples: tuple[str, ...]

    def render(self, console: Console) -> None:
        """Prints the report as tables and examples."""
        console.print(Group(*self._parts()))

    def _parts(self):
        yield from split_table(self.splits, of_images=False)
        kind = f"{len(self.class_names):,} classes" if self.class_names else "numbers"
        yield Text(
            f"vocabulary {self.vocab_size:,}, rows of {self.length} positions, {kind}"
        )
        if self.counts:
            yield self._counts()
            if (more := len(self.class_names) - _SHOWN) > 0:
                yield Text(f"and {more:,} more classes")
        for number, example in enumerate(self.examples, 1):
            yield Panel(Text(example), title=f"row {number}", title_align="left")

    def _counts(self) -> Table:
        """Numbers and shares of the classes in each split."""
        table = Table("class")
        for split, counted in self.counted.items():
            of_some = f" (of {counted:,})" if counted >= _COUNTED else ""
            table.add_column(f"{split}{of_some}", justify="right")
        for number, name in enumerate(self.class_names[:_SHOWN]):
            shares = (
                f"{self.counts[split][number]:,}  "
                f"{self.counts[split][number] / counted:6.1%}"
                for split, counted in self.counted.items()
            )
            table.add_row(Text(name), *shares)
        return table


def inspect_labelled(data: Data, *, examples: int = 3) -> LabelledReport:
    """Builds missing caches, counts labels and reports; of a stream it counts none.

    Args:
      data: the data to inspect, which has labels.
      examples: number of rows to decode.
    """
    data.prepare()
    data.prepare_training()
    names = data.class_names()
    counts, counted = {}, {}
    splits = ("train", "validation") if data.has_validation else ("train",)
    for split in () if data.streaming or not names else splits:
        counts[split], counted[split] = _count(data.records(split), len(names))
        if data.label_kind().of_words:
            counted[split] = int(counts[split].sum())
    batches = data.train_batches(max(examples, 1), range(max(examples, 1)), seed=0)
    try:
        batch = next(batches)
    finally:
        batches.close()
    rows = ({name: a[r] for name, a in batch.items()} for r in range(examples))
    tokenizer = data.tokenizer()
    return LabelledReport(
        splits=() if data.streaming else split_reports(data),
        vocab_size=tokenizer.vocab_size,
        length=data.length,
        class_names=names,
        counts=counts,
        counted=counted,
        examples=tuple(_describe(row, tokenizer, names) for row in rows),
    )


def _count(records: Records, classes: int) -> tuple[np.ndarray, int]:
    """Numbers of records of each class, of some spread over all, and of these."""
    numbers = range(0, len(records), -(-len(records) // _COUNTED))
    found = np.zeros(classes, np.int64)
    for start in range(0, len(numbers), _AT_ONCE):
        for record in records.read(numbers[start : start + _AT_ONCE]):
            if "labels" in record:
                labels = record["labels"]
                found += np.bincount(labels[labels >= 0], minlength=classes)
    return found, len(numbers)


def _describe(row, tokenizer, names: tuple[str, ...]) -> str:
    """Text of a row, with special tokens left out, and the names of its labels."""
    used, types = row["segment_ids"] > 0, row.get("token_types")
    parts = [used] if types is None else [used & (types == n) for n in (0, 1)]
    text = "\n―――\n".join(tokenizer.decode(row["tokens"][part]) for part in parts)
    labels = row["labels"]
    if labels.shape == row["tokens"].shape and labels.dtype.kind == "i":
        return _describe_words(row, tokenizer, names)
    if not names:
        return f"{text}\n→ {labels:g}"
    numbers = np.flatnonzero(labels) if labels.ndim else [int(labels)]
    return f"{text}\n→ {', '.join(names[n] for n in numbers) or 'no label'}"


def _describe_words(row, tokenizer, names: tuple[str, ...]) -> str:
    """Labelled tokens of a row, each with those up to the next one, and their names."""
    tokens, labels = row["tokens"][row["segment_ids"] > 0], row["labels"]
    starts = np.flatnonzero(labels >= 0)
    ends = [*starts[1:], len(tokens)]
    return "\n".join(
        f"{tokenizer.decode(tokens[start:end]).strip()} → {names[labels[start]]}"
        for start, end in zip(starts, ends)
    )
