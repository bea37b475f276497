"""Encoder-decoder rows: tokens of the encoder and targets of the decoder."""

import numpy as np

from fmjax.data.text.packing import Row


def encoder_decoder_row(
    pairs: list[tuple[np.ndarray, np.ndarray]], length: int, target_length: int
) -> Row:
    """Pairs of a source and its targets side by side, each a segment of its own.

    Args:
      pairs: int arrays [n], [m]; all sources fit into `length`, all targets into
        `target_length`.
      length: S.
      target_length: T.

    Returns:
      `encoder_tokens`, `encoder_segment_ids`, `encoder_positions` int32 [S]; `targets`,
      `decoder_segment_ids`, `decoder_positions` int32 [T], `weights` float32 [T].
      Segments count from 1; 0 is padding. The objective makes the decoder's inputs: the
      targets shifted right behind the model's start id.
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
    at_source = at_target = 0
    for segment, (source, targets) in enumerate(pairs, 1):
        place = slice(at_source, at_source := at_source + len(source))
        row["encoder_tokens"][place] = source
        row["encoder_segment_ids"][place] = segment
        row["encoder_positions"][place] = np.arange(len(source))
        place = slice(at_target, at_target := at_target + len(targets))
        row["targets"][place] = targets
        row["decoder_segment_ids"][place] = segment
        row["decoder_positions"][place] = np.arange(len(targets))
        row["weights"][place] = 1
    return row
