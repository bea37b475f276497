"""Sequence-to-sequence language modelling: translation, denoising."""

import dataclasses

import jax.numpy as jnp

from fmjax.configurable import configurable
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.objectives.terms import Batch, RowShapes
from fmjax.objectives.token_prediction import TokenPrediction


@configurable("seq2seq_lm")
@dataclasses.dataclass(frozen=True)
class Seq2SeqLM(TokenPrediction):
    """Sequence-to-sequence loss: mean cross-entropy of the decoder's next token.

    The model is an encoder-decoder, such as `seq2seq`. The data defines both texts:
    pairs, a corrupted text and its masked spans, or a prefix and its continuation. The
    first target of a text is predicted from the model's start id, every other one from
    the target before it.
    """

    reads = ("encoder_tokens", "decoder_positions")
    may_read = ("encoder_segment_ids", "encoder_positions", "decoder_segment_ids")

    def train_flops_per_row(self, params, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step per row, padding included."""
        (source,), (length,) = rows["encoder_tokens"], rows["targets"]
        return length * self.model.train_flops_per_token(params, length, source)

    def _hidden(self, variables: dict, batch: Batch, rng) -> dict:
        fields = ("positions", "segment_ids")
        encoder = TextInputs.from_arrays(batch, fields, "encoder_")
        before = jnp.roll(batch["targets"], 1, axis=1)
        first = batch["decoder_positions"] == 0
        shifted = {"decoder_tokens": jnp.where(first, self.model.start_id, before)}
        decoder = TextInputs.from_arrays(batch | shifted, fields, "decoder_")
        return self.model.apply(variables, encoder, decoder, keys=rng, method="hidden")
