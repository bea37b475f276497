"""Labels as text: their tokens, which an encoder-decoder writes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from fmjax.data.text.pairs import shortened
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError
from fmjax.training.experiment import Experiment


class LabelTokens(NamedTuple):
    """The tokens of K labels, as targets of pairs have them.

    Attributes:
      tokens: of each label with EOS, zeros after its end.
      lengths: number of tokens of each.
    """

    tokens: Int[np.ndarray, "K L"]
    lengths: Int[np.ndarray, " K"]


def label_tokens(experiment: Experiment, tokenizer: Tokenizer) -> LabelTokens:
    """The tokens of `experiment.labels`, truncated as targets are in training.

    Raises:
      UserError: two labels have the same tokens.
    """
    names, data, eos_id = experiment.labels, experiment.data, tokenizer.eos_id
    end = [] if eos_id is None else [eos_id]
    every = [[*tokenizer.encode(name), *end] for name in names]
    if isinstance(data, Data):
        limit = data.target_length or data.length
        every = [shortened(ids, limit, eos_id) for ids in every]
    seen: dict[tuple[int, ...], str] = {}
    for name, ids in zip(names, every):
        if (other := seen.setdefault(tuple(ids), name)) != name:
            raise UserError(
                f"record_pairs.labels: {other!r:.80} and {name!r:.80} are the same "
                "tokens for the decoder; expected different ones. A larger "
                "data.target_length cuts off less."
            )
    return padded_labels(every)


def padded_labels(every: Sequence[Sequence[int]]) -> LabelTokens:
    """The tokens of labels as arrays."""
    lengths = np.array([len(ids) for ids in every], np.int32)
    tokens = np.zeros((len(every), lengths.max()), np.int32)
    for row, ids in zip(tokens, every):
        row[: len(ids)] = ids
    return LabelTokens(tokens, lengths)


def label_prompts(data: Data, texts: Sequence[str | Sequence[str]]) -> list[str]:
    """What the encoder reads of each text, or of the texts of several fields.

    Raises:
      UserError: `texts` is one text, or the number of texts is not that of the fields.
    """
    if isinstance(texts, str):
        raise UserError("texts is one text; expected a list of texts.")
    found = []
    for number, text in enumerate(texts):
        parts = [text] if isinstance(text, str) else text
        if not isinstance(parts, list | tuple) or not all(
            isinstance(part, str) for part in parts
        ):
            raise UserError(f"texts[{number}]: expected a text, or a tuple of texts.")
        try:
            found.append(data.label_prompt(parts))
        except UserError as error:
            raise UserError(f"texts[{number}]: {error}") from None
    return found
