"""What a model that knows only how often each token occurs would reach."""

import numpy as np
from jaxtyping import Int


def baseline(counts: Int[np.ndarray, " V"], num_bytes: int) -> dict[str, float]:
    """The unigram entropy of a split, -Σ p log p over its own counts.

    No model without context does better on that split, so a loss clearly below it has
    learned from context.

    Args:
      counts: how often each id is a target.
      num_bytes: UTF-8 bytes of the text that the targets stand for.

    Returns:
      "unigram_nll" in nats a token and "unigram_bits_per_byte".
    """
    total = counts.sum()
    p = counts[counts > 0] / total
    entropy = float(-(p * np.log(p)).sum())
    bits = entropy * float(total) / np.log(2) / num_bytes if num_bytes else float("nan")
    return {"unigram_nll": entropy, "unigram_bits_per_byte": float(bits)}
