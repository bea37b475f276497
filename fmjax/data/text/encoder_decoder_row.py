"""Encoder-decoder rows: tokens of the encoder and targets of the decoder."""

import numpy as np

from fmjax.data.records import Row


def encoder_decoder_row(
    pairs: list[tuple[np.ndarray, np.ndarray]], length: int, target_length: int
) -> Row:
    """Packs pairs of encoder tokens and targets into one row, a segment for each pair.

    Args:
      pairs: (encoder tokens int [n], targets int [m]); together at most `length` and
        `target_length` tokens.
      length: S, tokens of the encoder's row.
      target_length: T, tokens of the decoder's row.

    Returns:
      `encoder_tokens`, `encoder_segment_ids`, `encoder_positions` int32 [S]; `targets`,
      `decoder_segment_ids`, `decoder_positions` int32 [T]; `weights` float32 [T].
      Segments are numbered from 1; 0 is padding. The objective makes the decoder's
      inputs by shifting the targets right after the model's start id.
    """
    row = {
        name: np.zeros(length, np.int32)
        for name in ("encoder_tokens", "encoder_segment_ids", "encoder_positions")
    }
    row |= {
        name: np.zeros(target_length, np.int32)
        for name in ("targets", "decoder_segment_ids", "decoder_positions")
    }
    row["weights"] = np.zeros(target_length, np.float32)
    encoder_end = decoder_end = 0
    for segment, (source, targets) in enumerate(pairs, 1):
        span = slice(encoder_end, encoder_end := encoder_end + len(source))
        row["encoder_tokens"][span] = source
        row["encoder_segment_ids"][span] = segment
        row["encoder_positions"][span] = np.arange(len(source))
        span = slice(decoder_end, decoder_end := decoder_end + len(targets))
        row["targets"][span] = targets
        row["decoder_segment_ids"][span] = segment
        row["decoder_positions"][span] = np.arange(len(targets))
        row["weights"][span] = 1
    return row
