"""What a model that knows only how often each token occurs would reach."""

import numpy as np
from jaxtyping import Int


def baseline(counts: Int[np.ndarray, " V"], num_bytes: int | None) -> dict[str, float]:
    """The unigram entropy of a split's targets, -Σ p log p over their own counts.

    No model without context does better on that split, so a loss clearly below it has
    learned from context.

    Args:
      counts: how often each id is a target.
      num_bytes: UTF-8 bytes of the text that the targets stand for; None or 0 where
        they are not a text.

    Returns:
      "unigram_nll" in nats a token, and "unigram_bits_per_byte" where there is a text.
    """
    total = counts.sum()
    p = counts[counts > 0] / total
    entropy = float(-(p * np.log(p)).sum())
    found = {"unigram_nll": entropy}
    if num_bytes:
        bits = entropy * float(total) / np.log(2) / num_bytes
        found["unigram_bits_per_byte"] = float(bits)
    return found
