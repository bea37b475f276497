"""`fmjax data inspect` for rows of whole texts: how long they are, and examples."""

import dataclasses

import numpy as np
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from fmjax.data.inspect.split_report import SplitReport, split_reports, split_table
from fmjax.data.text.text_data import Data

_SAMPLED = 256


@dataclasses.dataclass(frozen=True)
class TextGroupsReport:
    """The report of `inspect_text_groups`.

    Attributes:
      splits: a report for each cache; empty for streamed data.
      vocab_size: vocabulary size of the tokenizer.
      texts: G, texts of a row.
      length: T, tokens of a text.
      full_share: share of the sampled texts that fill a row, so that they may have been
        truncated.
      padding_share: share of the sampled tokens that are padding.
      examples: decoded training rows.
    """

    splits: tuple[SplitReport, ...]
    vocab_size: int
    texts: int
    length: int
    full_share: float
    padding_share: float
    examples: tuple[str, ...]

    def render(self, console: Console) -> None:
        """Prints the report as tables and examples."""
        console.print(Group(*self._parts()))

    def _parts(self):
        yield from split_table(self.splits, of_images=False)
        yield Text(
            f"vocabulary {self.vocab_size:,}, rows of {self.texts} texts of up to "
            f"{self.length} tokens, {self.padding_share:.1%} padding; "
            f"{self.full_share:.1%} of the texts are full rows, perhaps truncated"
        )
        for number, example in enumerate(self.examples, 1):
            yield Panel(Text(example), title=f"row {number}", title_align="left")


def inspect_text_groups(data: Data, *, examples: int = 3) -> TextGroupsReport:
    """Builds missing caches, reads some training rows and reports.

    Args:
      data: the data to inspect, with data.rows = 'texts'.
      examples: number of rows to decode.
    """
    data.prepare()
    data.prepare_training()
    size = max(_SAMPLED, examples)
    batches = data.train_batches(size, range(size), seed=0)
    try:
        batch = next(batches)
    finally:
        batches.close()
    tokenizer, used = data.tokenizer(), batch["segment_ids"] > 0
    _, texts, length = used.shape
    return TextGroupsReport(
        splits=() if data.streaming else split_reports(data),
        vocab_size=tokenizer.vocab_size,
        texts=texts,
        length=length,
        full_share=float((used.sum(-1) == length).mean()),
        padding_share=float(1 - used.mean()),
        examples=tuple(
            _describe(batch["tokens"][row], used[row], tokenizer)
            for row in range(examples)
        ),
    )


def _describe(tokens: np.ndarray, used: np.ndarray, tokenizer) -> str:
    """The texts of a row, with special tokens left out, below each other."""
    texts = (tokenizer.decode(ids[mask].tolist()) for ids, mask in zip(tokens, used))
    return "\n―――\n".join(texts)
