"""Captions as rows of tokens: the text of an image, or templates for its class."""

from collections.abc import Sequence

import numpy as np

from fmjax.data.records import Row
from fmjax.data.text.pairs import shortened
from fmjax.data.tokenizers.tokenizers import Tokenizer


class Captions:
    """Makes rows of `length` tokens from captions, with BOS and EOS.

    Attributes:
      templated: whether captions are made from templates and class names.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        length: int,
        templates: Sequence[str] = (),
        class_names: Sequence[str] = (),
        masked: bool = True,
    ):
        """Stores the format of the rows.

        Args:
          tokenizer: the tokenizer of the captions.
          length: T, tokens of a row.
          templates: captions with `{}` for the class name; empty if images have their
            own captions.
          class_names: names of the labels 0, 1, …; used with templates.
          masked: whether the padding mask is False at padding; if not, it is True
            everywhere, so that models read padding as text.
        """
        self.tokenizer, self.length, self._masked = tokenizer, length, masked
        self.templated = bool(templates)
        self._by_label = [
            [self._with_eos(template.replace("{}", name)) for template in templates]
            for name in class_names
        ]

    def row(self, tokens: np.ndarray) -> Row:
        """The row of a caption.

        Args:
          tokens: int [N], the caption with EOS, without BOS; empty for padding only.

        Returns:
          `tokens` int32 [T]: BOS if the vocabulary has one, the caption (truncated
          before its EOS if it is too long), padding. `padding_mask` bool [T], False at
          padding if `masked`.
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
        """Tokens int32 [N] of a random template for a class.

        Args:
          label: the class, from 0.
          rng: a function that returns the generator.
        """
        choices = self._by_label[label]
        number = int(rng().integers(len(choices))) if len(choices) > 1 else 0
        return choices[number]

    def of_texts(self, texts: Sequence[str]) -> Row:
        """Rows of texts such as prompts.

        Returns:
          `tokens` int32 [B, T] and `padding_mask` bool [B, T], as in `row`.
        """
        rows = [self.row(self._with_eos(text)) for text in texts]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _with_eos(self, text: str) -> np.ndarray:
        eos = self.tokenizer.eos_id
        ids = self.tokenizer.encode(text)
        return np.array(ids if eos is None else [*ids, eos], np.int32)
