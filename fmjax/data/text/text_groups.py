"""The layout of texts that belong together, each in a row of tokens of its own."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from fmjax.data.records import Record, Row, RowLayout
from fmjax.data.text.decoder_pairs import DecoderPairs
from fmjax.data.text.pairs import Pairs
from fmjax.data.tokenizers import special_template
from fmjax.data.tokenizers.special_template import Slot


@dataclasses.dataclass(frozen=True)
class TextGroups:
    """The layout of G texts an example, for contrast; see `RowLayout`.

    Attributes:
      length: T, tokens of a text with special tokens; longer ones are truncated.
      texts: G: 1 for documents, 2 for pairs, more with hard negatives.
      template: special tokens around a text.
      eos_id: id of the EOS that documents and texts of pairs end with, which the
        template replaces; None if they end without.
      augment: changes the tokens of a text, drawing from a generator; None for no
        change.
    """

    length: int
    texts: int
    template: tuple[Slot, ...]
    eos_id: int | None
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None

    @property
    def name(self) -> str:
        """Name of the layout, part of the name of a cache's folder."""
        return f"texts{self.texts}x{self.length}"

    def cache_key(self) -> dict:
        """The settings that the records depend on."""
        key = {"name": self.name, "room": self._room}
        # Several processes left hard negatives out of caches of earlier versions.
        return key | ({"negatives": "kept"} if self.texts > 2 else {})

    @property
    def has_text_bytes(self) -> bool:
        """False: no token is a target."""
        return False

    def records(
        self, documents: Iterable[np.ndarray | tuple[np.ndarray, ...]]
    ) -> Iterator[Record]:
        """Yields the record of each document, or of the texts of an example."""
        for document in documents:
            texts = document if isinstance(document, tuple) else (document,)
            kept = [self._bare(text)[: self._room] for text in texts]
            if all(len(text) for text in kept):
                lengths = np.array([len(text) for text in kept], np.int32)
                yield {"tokens": np.concatenate(kept), "lengths": lengths}

    def row(
        self,
        record: Record,
        rng: Callable[[], np.random.Generator],
        other=None,
    ) -> Row:
        """The row of a record; an empty record gives zeros of weight 0.

        Args:
          record: a record of `records`.
          rng: returns the generator of `augment`.
          other: not used.

        Returns:
          `tokens`, `segment_ids` int32 [G, T], 1 for tokens and 0 for padding;
          `weights` float32 [].
        """
        del other
        shape = (self.texts, self.length)
        row = {name: np.zeros(shape, np.int32) for name in ("tokens", "segment_ids")}
        row["weights"] = np.zeros((), np.float32)
        ends = np.cumsum(record["lengths"])[:-1]
        if not len(record["lengths"]):
            return row
        texts = np.split(record["tokens"].astype(np.int32), ends)
        if self.augment is not None:
            generator = rng()
            texts = [self.augment(text, generator)[: self._room] for text in texts]
        for at, text in enumerate(texts):
            ids, _ = special_template.fill(self.template, [text.tolist()])
            row["tokens"][at, : len(ids)] = ids
            row["segment_ids"][at, : len(ids)] = 1
        row["weights"][...] = 1
        return row

    def check(self, record: Record) -> None:
        """Raises ValueError if the record does not fit the layout."""
        tokens, lengths = record["tokens"], record["lengths"]
        if lengths.sum() != len(tokens) or len(lengths) != self.texts:
            raise ValueError("lengths of a record of texts do not add up")
        if not 0 < lengths.min() <= lengths.max() <= self._room:
            raise ValueError(f"{lengths} tokens in a record are too many, or none")

    def filled(self, record: Record) -> tuple[int, int]:
        """(tokens with special ones, G · T) of the record's row."""
        special = self.texts * (self.length - self._room)
        return len(record["tokens"]) + special, self.texts * self.length

    @property
    def _room(self) -> int:
        """Tokens of a text without the special ones."""
        return self.length - sum(slot.text is None for slot in self.template)

    def _bare(self, text: np.ndarray) -> np.ndarray:
        is_ended = self.eos_id is not None and len(text) and text[-1] == self.eos_id
        return text[:-1] if is_ended else text


def reads_pairs(layout: RowLayout) -> bool:
    """Whether a layout's examples have inputs as well as targets."""
    if isinstance(layout, TextGroups):
        return layout.texts > 1
    return isinstance(layout, Pairs | DecoderPairs)
