"""Captions as rows of tokens: an image's own text, or templates for its class."""

from collections.abc import Sequence

import numpy as np

from fmjax.data.text.packing import Row
from fmjax.data.text.pairs import shortened
from fmjax.data.tokenizers.tokenizers import Tokenizer


class Captions:
    """Makes rows of captions of at most `length` tokens, BOS and EOS included.

    Attributes:
      templated: whether captions are made of templates and class names.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        length: int,
        templates: Sequence[str] = (),
        class_names: Sequence[str] = (),
        masked: bool = True,
    ):
        """Describes the rows.

        Args:
          tokenizer: of the texts.
          length: T.
          templates: with a `{}` for the class, if captions are made of them.
          class_names: of these.
          masked: whether the padding mask tells padding apart; False counts it as text.
        """
        self.tokenizer, self.length, self._masked = tokenizer, length, masked
        self.templated = bool(templates)
        self._by_label = [
            [self._ended(template.replace("{}", name)) for template in templates]
            for name in class_names
        ]

    def row(self, tokens: np.ndarray) -> Row:
        """The row of a caption's int [N] tokens, with EOS, without BOS; zeros for none.

        Returns:
          `tokens` int32 [T]: BOS if the vocabulary has one, the caption, cut before its
          EOS if it is too long, padding; `padding_mask` bool [T], False for padding,
          or True throughout where that counts as text.
        """
        tokenizer = self.tokenizer
        tokens = np.asarray(tokens, np.int32)
        if len(tokens) and tokenizer.bos_id is not None:
            tokens = np.concatenate([np.int32([tokenizer.bos_id]), tokens])
        tokens = shortened(tokens, self.length, tokenizer.eos_id)
        row = np.full(self.length, tokenizer.pad_id or 0, np.int32)
        row[: len(tokens)] = tokens
        length = len(tokens) if self._masked else self.length
        return {"tokens": row, "padding_mask": np.arange(self.length) < length}

    def of_class(self, label: int, rng) -> np.ndarray:
        """Tokens of a template drawn at random; `rng` gives the generator."""
        choices = self._by_label[label]
        number = int(rng().integers(len(choices))) if len(choices) > 1 else 0
        return choices[number]

    def of_texts(self, texts: Sequence[str]) -> Row:
        """`tokens` int32 [B, T] and `padding_mask` bool [B, T] of texts (prompts)."""
        rows = [self.row(self._ended(text)) for text in texts]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _ended(self, text: str) -> np.ndarray:
        eos = self.tokenizer.eos_id
        ids = self.tokenizer.encode(text)
        return np.array(ids if eos is None else [*ids, eos], np.int32)
