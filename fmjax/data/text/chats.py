"""The layout of conversations of which only what the assistant says is trained."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from fmjax.data.records import Record, Row, RowLayout
from fmjax.data.text.best_fit import best_fit
from fmjax.data.tokenizers.chat_tokens import ChatTokens


@dataclasses.dataclass(frozen=True)
class Chats:
    """The layout of conversations for next-token prediction; see `RowLayout`.

    The first token of a conversation is an input alone, and no token is predicted from
    one of another conversation.

    Attributes:
      length: T, tokens of a row.
      packed: whether a row holds several conversations, each a segment of its own.
    """

    length: int
    packed: bool

    @property
    def name(self) -> str:
        """Name of the layout, part of the name of a cache's folder."""
        return f"{'packed_chats' if self.packed else 'chats'}{self.length}"

    @property
    def longest(self) -> int:
        """Number of tokens of the longest conversation that a row has room for."""
        return self.length + 1

    def cache_key(self) -> dict:
        """The settings that the records depend on: all of them."""
        return dataclasses.asdict(self)

    @property
    def has_text_bytes(self) -> bool:
        """True: every token that the assistant says is a target exactly once."""
        return True

    def records(self, documents: Iterable[ChatTokens]) -> Iterator[Record]:
        """Yields records of conversations of 2 to `longest` tokens."""
        if not self.packed:
            return (_join([chat]) for chat in documents)
        return map(_join, best_fit(documents, lambda c: len(c.ids) - 1, self.length))

    def row(self, record: Record, rng=None, other=None) -> Row:
        """The row of a record; an empty record gives zeros of weight 0.

        Args:
          record: a record of `records`.
          rng: not used.
          other: not used.

        Returns:
          `tokens`, `targets`, `segment_ids` (1, 2, …; 0 is padding), `positions` int32
          [T], and `weights` float32 [T], which are 1 for what the assistant says.
        """
        del rng, other
        row = {
            name: np.zeros(self.length, np.int32)
            for name in ("tokens", "targets", "segment_ids", "positions")
        }
        row["weights"] = np.zeros(self.length, np.float32)
        if "loss_mask" not in record:
            return row
        at = start = 0
        for segment, length in enumerate(record["lengths"].tolist(), 1):
            end, stop = at + length - 1, start + length
            row["tokens"][at:end] = record["tokens"][start : stop - 1]
            row["targets"][at:end] = record["tokens"][start + 1 : stop]
            row["weights"][at:end] = record["loss_mask"][start + 1 : stop]
            row["segment_ids"][at:end] = segment
            row["positions"][at:end] = np.arange(length - 1)
            at, start = end, stop
        return row

    def check(self, record: Record) -> None:
        """Raises ValueError or KeyError if the record does not fit the layout."""
        tokens, lengths = record["tokens"], record["lengths"]
        mask = record["loss_mask"]
        if lengths.sum() != len(tokens) or (lengths < 2).any() or not len(lengths):
            raise ValueError("lengths of a record of conversations do not add up")
        if len(mask) != len(tokens) or mask.min() < 0 or mask.max() > 1:
            raise ValueError("the loss mask of a record is damaged")
        if (used := len(tokens) - len(lengths)) > self.length:
            raise ValueError(f"{used} targets in a record; expected {self.length}")

    def filled(self, record: Record) -> tuple[int, int]:
        """(used positions, T) of the record's row."""
        return len(record["tokens"]) - len(record["lengths"]), self.length


def longest_chat(layout: RowLayout) -> int | None:
    """Tokens to which conversations are truncated; None for layouts of other texts."""
    return layout.longest if isinstance(layout, Chats) else None


def _join(chats: list[ChatTokens]) -> Record:
    return {
        "tokens": np.concatenate([chat.ids for chat in chats]),
        "lengths": np.array([len(chat.ids) for chat in chats], np.int32),
        "loss_mask": np.concatenate([c.loss_mask for c in chats]).astype(np.uint8),
    }
