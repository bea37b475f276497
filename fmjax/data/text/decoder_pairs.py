"""The layout of pairs for a decoder: inputs, then targets, in one row."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from fmjax.data.records import Record, Row
from fmjax.data.text.first_fit import first_fit
from fmjax.data.text.pairs import join, shortened

# (inputs without EOS, targets with EOS)
Pair = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DecoderPairs:
    """The layout of pairs for next-token prediction of the targets; see `RowLayout`.

    A pair is BOS (or EOS), inputs, targets, EOS. Its inputs end without EOS, so that a
    prompt is the inputs' text; what separates the two, such as a space or "=", is
    part of that text. Only targets and their EOS have weight.

    Attributes:
      length: T, tokens of a row. Targets of more than T tokens are truncated at their
        end, and inputs to the last ones for which there is room.
      packed: whether a row holds several pairs, each a segment of its own.
      first_id: id before the inputs, BOS or EOS.
      eos_id: id of EOS.
    """

    length: int
    packed: bool
    first_id: int
    eos_id: int

    @property
    def name(self) -> str:
        """Name of the layout, part of the name of a cache's folder."""
        kind = "packed_decoder_pairs" if self.packed else "decoder_pairs"
        return f"{kind}{self.length}"

    def cache_key(self) -> dict:
        """The settings that the records depend on: all of them."""
        return dataclasses.asdict(self)

    @property
    def has_text_bytes(self) -> bool:
        """True: every token of a target text is a target exactly once."""
        return True

    def records(self, documents: Iterable[Pair]) -> Iterator[Record]:
        """Yields records of pairs (inputs int [N], targets int [M]), both with EOS.

        Pairs with an empty text are left out.
        """
        pairs = (
            self._fitting(*pair) for pair in documents if len(pair[0]) and len(pair[1])
        )
        if not self.packed:
            return (join([pair]) for pair in pairs)
        return map(join, first_fit(pairs, _size, self.length))

    def row(self, record: Record, rng=None, other=None) -> Row:
        """The row of a record; an empty record gives zeros of weight 0.

        Args:
          record: a record of `records`.
          rng: not used.
          other: not used.

        Returns:
          `tokens`, `targets`, `segment_ids` (1, 2, …; 0 is padding), `positions` int32
          [T] and `weights` float32 [T], which are 1 for targets and their EOS.
        """
        del rng, other
        row = {
            name: np.zeros(self.length, np.int32)
            for name in ("tokens", "targets", "segment_ids", "positions")
        }
        row["weights"] = np.zeros(self.length, np.float32)
        tokens = record["tokens"].astype(np.int32)
        texts = np.split(tokens, np.cumsum(record["lengths"]))[:-1]
        at = 0
        for segment, (inputs, targets) in enumerate(zip(texts[::2], texts[1::2]), 1):
            pair = np.concatenate([inputs, targets])
            end = at + len(pair) - 1
            row["tokens"][at:end] = pair[:-1]
            row["targets"][at:end] = pair[1:]
            row["weights"][end - len(targets) : end] = 1
            row["segment_ids"][at:end] = segment
            row["positions"][at:end] = np.arange(end - at)
            at = end
        return row

    def check(self, record: Record) -> None:
        """Raises ValueError if the record does not fit the layout."""
        tokens, lengths = record["tokens"], record["lengths"]
        adds_up = lengths.sum() == len(tokens) and (lengths > 0).all()
        if not adds_up or len(lengths) % 2 or not len(lengths):
            raise ValueError("lengths of a record of pairs do not add up")
        if (used := len(tokens) - len(lengths) // 2) > self.length:
            raise ValueError(f"{used} targets in a record; expected {self.length}")

    def filled(self, record: Record) -> tuple[int, int]:
        """(used positions, T) of the record's row."""
        return len(record["tokens"]) - len(record["lengths"]) // 2, self.length

    def _fitting(self, inputs: np.ndarray, targets: np.ndarray) -> Pair:
        if inputs[-1] == self.eos_id:
            inputs = inputs[:-1]
        targets = shortened(targets, self.length, self.eos_id)
        # The first id takes no room: positions are one fewer than tokens.
        room = self.length - len(targets)
        inputs = inputs[len(inputs) - min(len(inputs), room) :]
        return np.concatenate([[self.first_id], inputs]), targets


def _size(pair: Pair) -> int:
    return len(pair[0]) + len(pair[1]) - 1
