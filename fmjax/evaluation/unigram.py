"""The unigram baseline: the loss of a model that knows only token frequencies."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Int

from fmjax.configurable import configurable
from fmjax.training.experiment import EvaluationPoint, Experiment


def baseline(counts: Int[np.ndarray, " V"], num_bytes: int | None) -> dict[str, float]:
    """The unigram entropy of a split's targets, -Σ p log p with p from their counts.

    It is the lowest loss of any model that ignores the context. A lower loss shows that
    a model uses the context, or sees some targets in its input: in BERT one in ten,
    which lowers the loss by a tenth of the entropy.

    Args:
      counts: frequency of each target id.
      num_bytes: UTF-8 bytes of the targets' text; None or 0 if they are not text.

    Returns:
      "unigram_nll" in nats per token, and with `num_bytes` "unigram_bits_per_byte".
    """
    total = counts.sum()
    p = counts[counts > 0] / total
    entropy = float(-(p * np.log(p)).sum())
    found = {"unigram_nll": entropy}
    if num_bytes:
        bits = entropy * float(total) / np.log(2) / num_bytes
        found["unigram_bits_per_byte"] = float(bits)
    return found


@configurable("unigram_baseline")
@dataclasses.dataclass(frozen=True)
class UnigramBaseline:
    """The unigram entropy of the validation split, for text, after the last step."""

    def check(self, experiment: Experiment) -> None:
        """Accepts every experiment; data without text gives no baseline."""

    def __call__(
        self, experiment: Experiment, at: EvaluationPoint
    ) -> dict[str, float | str]:
        """The result of `baseline`, with a warning if the validation loss is higher.

        Empty before the last step and for data without text.
        """
        if not at.last or jax.process_index() != 0:
            return {}
        counts = experiment.data.target_counts()
        if counts is None:
            return {}
        found: dict[str, float | str] = {**baseline(*counts)}
        loss, entropy = at.metrics.get("nll"), found["unigram_nll"]
        if loss is not None and loss > entropy:
            found["warning"] = (
                f"the validation loss of {loss:.2f} nats per token is above the "
                f"unigram entropy of the split, {entropy:.2f}: the model predicts "
                "worse than the token frequencies of the split would. The run is too "
                "short, or the validation text is of another kind than the text that "
                "was trained on."
            )
        return found
