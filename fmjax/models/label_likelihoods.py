"""Likelihoods of labels as text, which an encoder-decoder writes (T5)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from fmjax.models.language.seq2seq import EncoderOutput
from fmjax.models.layers.text_inputs import TextInputs


class LabelLikelihoods(NamedTuple):
    """What a decoder says of each of K label texts, for B encoder texts.

    Attributes:
      log_likelihoods: the sum over a label's tokens of their log-probabilities.
      greedy: whether the label is what greedy decoding writes: each of its tokens is
        the likeliest one after those before it.
    """

    log_likelihoods: Float[Array, "B K"]
    greedy: Bool[Array, "B K"]


def label_likelihoods(
    model: nn.Module,
    variables: Mapping[str, Any],
    text: TextInputs,
    labels: Int[Array, "K L"],
    lengths: Int[Array, " K"],
) -> LabelLikelihoods:
    """Sequence log-likelihoods of every label: log p(label | text), float32.

    The encoder reads each text once, and the decoder one label after another for all
    texts, so that logits [B, L, V] of one label are in memory at a time.

    Args:
      model: an encoder-decoder, see `GeneratesFromText`.
      variables: of the model.
      text: of the encoder, [B, S], with a padding mask.
      labels: tokens of each label with EOS, padded.
      lengths: number of tokens of each label, at least 1.
    """
    encoded = model.apply(variables, text, method="encode")["hidden"]
    count = encoded.shape[1] - text.tokens.shape[1]
    # Virtual tokens are before the text.
    mask = jnp.pad(text.padding_mask, ((0, 0), (count, 0)), constant_values=True)
    read = EncoderOutput(encoded, padding_mask=mask, prompt=count)
    B = len(text.tokens)

    def of_label(label):
        tokens, length = label
        counts = jnp.arange(len(tokens)) < length
        shifted = jnp.roll(tokens, 1).at[0].set(model.start_id)
        decoder = TextInputs(jnp.broadcast_to(shifted, (B, len(tokens))))
        hidden = model.apply(variables, decoder, read, method="decode")["hidden"]
        logits = model.apply(variables, hidden, method="head").astype(jnp.float32)
        # A masked sum stays on its shard of the vocabulary; a gather would not.
        is_label = jnp.arange(logits.shape[-1]) == tokens[:, None]
        own = jnp.where(is_label, logits, 0).sum(-1)
        log_probs = own - jax.nn.logsumexp(logits, axis=-1)
        return (
            jnp.where(counts, log_probs, 0).sum(-1),
            ((own >= logits.max(-1)) | ~counts).all(-1),
        )

    log_likelihoods, greedy = jax.lax.map(of_label, (labels, lengths))
    return LabelLikelihoods(log_likelihoods.T, greedy.T)
