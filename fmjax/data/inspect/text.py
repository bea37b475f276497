"""`fmjax data inspect` for text: content of the dataset and speed of the reader."""

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
from fmjax.data.text.masking import Masking
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.specials import spellings


@dataclasses.dataclass(frozen=True)
class DataReport:
    """The report of `inspect`.

    Attributes:
      splits: a report for each cache; empty for streamed data.
      vocab_size: vocabulary size of the tokenizer.
      length: T, tokens of a row.
      row_targets: (minimum, median, maximum) number of targets of the rows that were
        read.
      padding_share: share of padding in these rows, in encoder and decoder together.
      examples: decoded training rows.
      tokens_per_second: speed of the reader on this machine, without padding.
      bad_rows: number of corrupt records found while reading.
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
        """Prints the report as tables and examples."""
        console.print(Group(*self._parts()))

    def _parts(self):
        yield from split_table(self.splits, of_images=False)
        least, median, most = self.row_targets
        yield Text(
            f"vocabulary {self.vocab_size:,}, rows of {self.length} positions with "
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
    """Builds missing caches, reads training batches for a while and reports.

    Args:
      data: the data to inspect.
      examples: number of rows to decode.
      batch_size: rows of a batch.
      seconds: time for which the reader's speed is measured.
    """
    data.prepare()
    tokenizer = data.tokenizer()
    decode = _Decoder(tokenizer, data.corruption)
    stream = data.train_batches(batch_size, range(batch_size), seed=0)
    weights = []
    try:
        first = next(stream)
        started = time.perf_counter()
        filled = room = 0
        while (elapsed := time.perf_counter() - started) < seconds or not weights:
            batch = next(stream)
            weights.append(batch["weights"].sum(-1).astype(int))
            for mask in _padding_masks(batch):
                filled, room = filled + int(mask.sum()), room + mask.size
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


def _padding_masks(batch) -> list[np.ndarray]:
    """Padding masks, bool [B, T], of the encoder's and the decoder's tokens."""
    if "encoder_tokens" in batch:
        return [batch["encoder_segment_ids"] > 0, batch["weights"] > 0]
    if "segment_ids" in batch:
        return [batch["segment_ids"] > 0]
    return [batch["weights"] > 0]


def _decode(decode: "_Decoder", row) -> str:
    """Text of a row, with a line between packed documents.

    A pair gives the inputs and the targets; a masked row gives the text with
    «target → input» for each masked part.
    """
    counted = row["weights"] > 0
    if "encoder_tokens" in row:
        texts = []
        for segment in range(1, int(row["decoder_segment_ids"].max()) + 1):
            read = row["encoder_tokens"][row["encoder_segment_ids"] == segment]
            written = row["targets"][row["decoder_segment_ids"] == segment]
            texts.append(f"{decode(read)}\n→ {decode(written)}")
        return "\n―――\n".join(texts)
    if decode.masks and not counted[row["segment_ids"] > 0].all():
        return _masked(decode, row, counted)
    segments = row.get("segment_ids", counted)
    texts = []
    for segment in np.unique(segments[counted]):
        read = row["targets"][~counted & (segments == segment)]
        text = decode.tokenizer.decode(row["targets"][counted & (segments == segment)])
        texts.append(f"{decode(read)}\n→ {text}" if len(read) else text)
    return "\n―――\n".join(texts)


def _masked(decode: "_Decoder", row, counted: np.ndarray) -> str:
    parts = []
    padding_mask = row["segment_ids"] > 0
    cuts = np.flatnonzero(np.diff(counted[padding_mask])) + 1
    for positions in np.split(np.flatnonzero(padding_mask), cuts):
        read = decode(row["tokens"][positions])
        if len(positions) and counted[positions[0]]:
            read = f"«{decode(row['targets'][positions])} → {read}»"
        parts.append(read)
    if row.get("next_sentence_weights", 0):
        origin = "another text" if row["next_sentence"] else "the same text"
        parts.append(f"\n→ the second sentence is from {origin}")
    return "".join(parts)


class _Decoder:
    """Decodes ids to text, including special tokens."""

    def __init__(self, tokenizer, corruption):
        self.tokenizer = tokenizer
        self.masks = isinstance(corruption, Masking)
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
