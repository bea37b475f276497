"""What is in a dataset of text and how fast it is read: `fmjax data inspect`."""

import dataclasses
import time

import numpy as np
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from fmjax.data.inspect.split_report import SplitReport, split_reports, split_table
from fmjax.data.text.corruption.mixture import CorruptionMixture
from fmjax.data.text.corruption.prefix_lm import PrefixLM
from fmjax.data.text.corruption.span_corruption import SpanCorruption
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.specials import spellings


@dataclasses.dataclass(frozen=True)
class DataReport:
    """What `inspect` found; `render` shows it.

    Attributes:
      splits: one a cache; none for streamed data.
      vocab_size: of the tokenizer.
      length: T.
      row_targets: counted targets of a sample of training rows: (least, median, most).
      padding_share: of that sample; of both sides where rows have two.
      examples: decoded training rows.
      tokens_per_second: that the reader gave on this machine, padding left out.
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
        yield from split_table(self.splits, of_images=False)
        least, median, most = self.row_targets
        yield Text(
            f"vocabulary {self.vocab_size:,}, rows of {self.length} places with "
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
    decode = _Speller(tokenizer, data.corruption)
    stream = data.train_batches(batch_size, range(batch_size), seed=0)
    weights = []
    try:
        first = next(stream)
        started = time.perf_counter()
        filled = room = 0
        while (elapsed := time.perf_counter() - started) < seconds or not weights:
            batch = next(stream)
            weights.append(batch["weights"].sum(-1).astype(int))
            for used in _used(batch):
                filled, room = filled + int(used.sum()), room + used.size
        bad_rows = stream.bad_rows
    finally:
        stream.close()
    counts = np.concatenate(weights)
    return DataReport(
        splits=() if data.streaming else split_reports(data),
        vocab_size=tokenizer.vocab_size,
        length=data.row_shapes()["targets"][0],
        row_targets=(int(counts.min()), int(np.median(counts)), int(counts.max())),
        padding_share=float(1 - filled / room),
        examples=tuple(
            _decode(decode, {name: array[r] for name, array in first.items()})
            for r in range(min(examples, batch_size))
        ),
        tokens_per_second=filled / elapsed,
        bad_rows=bad_rows,
    )


def _used(batch) -> list[np.ndarray]:
    """Where each side of a batch holds tokens."""
    if "encoder_tokens" in batch:
        return [batch["encoder_segment_ids"] > 0, batch["weights"] > 0]
    if "segment_ids" in batch:
        return [batch["segment_ids"] > 0]
    return [batch["weights"] > 0]


def _decode(decode: "_Speller", row) -> str:
    """Text of a row, with a line between packed documents.

    Of an encoder-decoder's, what is read and what must be written; of a masked one, the
    text with «what was chosen → what stands there» in it.
    """
    counted = row["weights"] > 0
    if "encoder_tokens" in row:
        texts = []
        for segment in range(1, int(row["decoder_segment_ids"].max()) + 1):
            read = row["encoder_tokens"][row["encoder_segment_ids"] == segment]
            written = row["targets"][row["decoder_segment_ids"] == segment]
            texts.append(f"{decode(read)}\n→ {decode(written)}")
        return "\n―――\n".join(texts)
    if not counted[row.get("segment_ids", counted) > 0].all():
        return _masked(decode, row, counted)
    segments = row.get("segment_ids", np.ones_like(row["targets"]))
    texts = [
        decode.tokenizer.decode(row["targets"][counted & (segments == segment)])
        for segment in np.unique(segments[counted])
    ]
    return "\n―――\n".join(texts)


def _masked(decode: "_Speller", row, counted: np.ndarray) -> str:
    parts = []
    real = row["segment_ids"] > 0
    cuts = np.flatnonzero(np.diff(counted[real])) + 1
    for places in np.split(np.flatnonzero(real), cuts):
        read = decode(row["tokens"][places])
        if len(places) and counted[places[0]]:
            read = f"«{decode(row['targets'][places])} → {read}»"
        parts.append(read)
    if row.get("next_sentence_weights", 0):
        whence = "another text" if row["next_sentence"] else "the same text"
        parts.append(f"\n→ the second sentence is from {whence}")
    return "".join(parts)


class _Speller:
    """Text of ids, special tokens as they are spelled."""

    def __init__(self, tokenizer, corruption):
        self.tokenizer = tokenizer
        self._is_text = tokenizer.token_bytes() > 0
        members = (corruption,)
        if isinstance(corruption, CorruptionMixture):
            members = corruption.corruptions
        modes = {m.mode for m in members if isinstance(m, SpanCorruption | PrefixLM)}
        self._spellings = spellings(tokenizer, modes - {""})

    def __call__(self, ids: np.ndarray) -> str:
        is_text = self._is_text[ids]
        cuts = np.flatnonzero(np.diff(is_text)) + 1
        return "".join(
            self.tokenizer.decode(part.tolist())
            if self._is_text[part[0]]
            else "".join(self._spellings.get(i, f"⟨{i}⟩") for i in part.tolist())
            for part in np.split(ids, cuts)
            if len(part)
        )
