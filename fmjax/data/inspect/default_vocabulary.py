"""The vocabulary that tokens are counted with if none is given: as a config's would be.

It is that of the gin which `fmjax data inspect` suggests.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fmjax.data.tokenizers.tokenizers import ByteTokenizer, Tokenizer
from fmjax.data.tokenizers.vocabularies import SentencePiece, trained_on
from fmjax.errors import UserError

# Less text than this has too few words for a vocabulary of its own.
VOCABULARY_BYTES = 2_000_000
# Bytes of text that it is trained on, and that are counted with it, approximately.
_TRAINED_BYTES = _COUNTED_BYTES = 2_000_000


class Counting(NamedTuple):
    """How tokens are counted.

    Attributes:
      tokenizer: the tokenizer.
      vocabulary: what it is, in words.
      step: only every so many-th text is counted, from `first`: others were trained on.
      first: number of the first text that is counted.
    """

    tokenizer: Tokenizer
    vocabulary: str
    step: int = 1
    first: int = 0

    def counts(self, number: int) -> bool:
        """Whether the tokens of a text are counted."""
        return number >= self.first and (number - self.first) % self.step == 0


def default_counting(texts: Sequence[bytes], total_bytes: float) -> Counting:
    """Bytes for little or a single text, else SentencePiece of a half of the texts.

    Args:
      texts: those that were read.
      total_bytes: bytes of all text of the files, approximately.
    """
    read = sum(map(len, texts))
    settings = SentencePiece(training_bytes=_TRAINED_BYTES)
    why = f"since {total_bytes / 1e6:,.1f} MB of text are too little for others"
    if len(texts) < 2:
        why = "since there are too few texts to count others than are trained on"
    elif total_bytes >= VOCABULARY_BYTES:
        half = (("", text) for text in texts[::2])
        try:
            made = trained_on(half, read // 2, settings)
        except UserError:
            why = f"since a half of the texts gives no {settings.vocab_size:,} pieces"
        else:
            step = 2 * max(1, read // 2 // _COUNTED_BYTES)
            what = (
                f"SentencePiece of {settings.vocab_size:,} pieces, trained on a half "
            )
            return Counting(made, f"{what}of the texts and counted on others", step, 1)
    # `suggested_config` binds bytes for little text alone.
    is_trained = total_bytes >= VOCABULARY_BYTES
    more = f"; the gin trains {settings.vocab_size:,} pieces on all texts"
    return Counting(ByteTokenizer(), f"bytes, {why}{more if is_trained else ''}")
