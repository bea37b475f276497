"""Prediction of a text from another: translation, and denoising of many kinds."""

import dataclasses

from fmjax.configurable import configurable
from fmjax.objectives.terms import RowShapes
from fmjax.objectives.token_prediction import TokenPrediction


@configurable("seq2seq_lm")
@dataclasses.dataclass(frozen=True)
class Seq2SeqLM(TokenPrediction):
    """Mean cross-entropy of a decoder's next token, given what the encoder read.

    Its model is an encoder-decoder, such as `seq2seq`. What is read and what must be
    written is the data's affair: pairs, spans of a corrupted text, the rest of a text.
    """

    reads = ("encoder_tokens", "decoder_tokens")
    may_read = (
        "encoder_segment_ids",
        "encoder_positions",
        "decoder_segment_ids",
        "decoder_positions",
    )

    def train_flops_per_row(self, params, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step for a row, padding or not."""
        (source,), (length,) = rows["encoder_tokens"], rows["decoder_tokens"]
        return length * self.model.train_flops_per_token(params, length, source)
