"""`fmjax data inspect` for conversations: the weight of every token of some of them."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console, ConsoleOptions, Group
from rich.panel import Panel
from rich.text import Text

from fmjax.data.inspect.split_report import SplitReport, split_reports, split_table
from fmjax.data.runtime.batches import Batch
from fmjax.data.sources.examples import truncation
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.chat_tokens import ChatEncoder
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.specials import spellings
from fmjax.data.tokenizers.tokenizers import Tokenizer

# Rows that shares are measured on.
_ROWS = 64
# Neighbouring tokens have another style each: of those that are trained, and of others.
_TRAINED = ("bold green", "bold bright_green underline")
_READ = ("bright_black", "white")


@dataclasses.dataclass(frozen=True)
class WeightedTokens:
    """A conversation as rich renders it: with a style for weights, or in plain text.

    In plain text each line has the tokens of one weight.

    Attributes:
      tokens: what each token stands for.
      weights: of each, 0 or 1.
    """

    tokens: tuple[str, ...]
    weights: tuple[int, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator:
        """Yields the tokens."""
        if not console.is_terminal or console.no_color:
            yield Text(self.plain(), overflow="fold")
            return
        text = Text(overflow="fold")
        for n, (token, weight) in enumerate(zip(self.tokens, self.weights)):
            style = (_TRAINED if weight else _READ)[n % 2]
            text.append(token.replace("\n", "⏎\n"), style)
        yield text

    def plain(self) -> str:
        """Lines with a weight and its tokens, which have bars between them."""
        lines = []
        pairs = zip(self.weights, self.tokens)
        for weight, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            shown = (token.replace("\n", "\\n") for _, token in group)
            lines.append(f"{weight}  {'│'.join(shown)}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class ConversationReport:
    """The report of `inspect_conversations`.

    Attributes:
      splits: a report for each cache; empty for streamed data.
      cut: what truncation loses, in words; "" if nothing, or for streamed data.
      vocab_size: vocabulary size of the tokenizer.
      length: T, positions of a row.
      per_row: mean number of conversations of a row.
      trained_share: share of the tokens that are trained.
      stop: the token that ends what the assistant says; None if there is none.
      examples: some training conversations.
    """

    splits: tuple[SplitReport, ...]
    cut: str
    vocab_size: int
    length: int
    per_row: float
    trained_share: float
    stop: str | None
    examples: tuple[WeightedTokens, ...]

    def render(self, console: Console) -> None:
        """Prints the report as tables and examples."""
        console.print(Group(*self._parts()))

    def _parts(self) -> Iterator:
        yield from split_table(self.splits, of_images=False)
        if self.cut:
            yield Text(self.cut)
        stop = f", each turn ends in {self.stop!r}" if self.stop else ""
        yield Text(
            f"vocabulary {self.vocab_size:,}, rows of {self.length} positions with "
            f"{self.per_row:.1f} conversations\n{self.trained_share:.1%} of the tokens "
            f"are trained: weight 1{stop}"
        )
        for number, example in enumerate(self.examples, 1):
            title = f"conversation {number}"
            yield Panel(example, title=title, title_align="left")


def inspect_conversations(data: Data, *, examples: int = 3) -> ConversationReport:
    """Builds missing caches, reads a batch of training rows and reports.

    Args:
      data: the data to inspect, of conversations with a loss mask.
      examples: number of conversations to decode.
    """
    data.prepare()
    tokenizer = data.tokenizer()
    batches = data.train_batches(_ROWS, range(_ROWS), seed=0)
    try:
        batch = next(batches)
    finally:
        batches.close()
    splits = ("train", "validation") if data.has_validation else ("train",)
    caches = [(s, c) for s in splits if not data.streaming for c in data.caches(s)]
    stop = ChatEncoder(tokenizer).stop_ids()[:1]
    found = itertools.islice(_conversations(batch), examples)
    return ConversationReport(
        splits=() if data.streaming else split_reports(data),
        cut="\n".join(
            f"{split}: {truncation(c)}" for split, c in caches if c.truncated
        ),
        vocab_size=tokenizer.vocab_size,
        length=data.length,
        per_row=float(batch["segment_ids"].max(-1).mean()),
        trained_share=float(batch["weights"].sum() / (batch["segment_ids"] > 0).sum()),
        stop=next(iter(spelled(tokenizer, stop)), None),
        examples=tuple(
            WeightedTokens(tuple(spelled(tokenizer, ids)), tuple(weights))
            for ids, weights in found
        ),
    )


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each id stands for, special tokens included; a part of a character is �."""
    names = spellings(tokenizer)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        names = {i: tokenizer.piece(i) for i in tokenizer.added_ids}
    texts, before = [], []
    for i in ids:
        if i in names:
            texts.append(names[i])
            before = []
            continue
        # After another token, since decoders drop the space before a first one.
        context = tokenizer.decode(before)
        texts.append(tokenizer.decode([*before, i])[len(context) :])
        before = [i]
    return texts


def _conversations(batch: Batch) -> Iterator[tuple[list[int], list[int]]]:
    """Yields the ids and weights of each conversation, a row after another."""
    for r in range(len(batch["tokens"])):
        for segment in range(1, int(batch["segment_ids"][r].max()) + 1):
            inside = np.flatnonzero(batch["segment_ids"][r] == segment)
            ids = [*batch["tokens"][r][inside], batch["targets"][r][inside[-1]]]
            weights = [0, *batch["weights"][r][inside]]
            yield [int(i) for i in ids], [int(w) for w in weights]
