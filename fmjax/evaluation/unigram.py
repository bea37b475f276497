"""What a model that knows only how often each token occurs would reach."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Int

from fmjax.configurable import configurable
from fmjax.training.experiment import Experiment
from fmjax.training.validation import EvaluationPoint


def baseline(counts: Int[np.ndarray, " V"], num_bytes: int | None) -> dict[str, float]:
    """The unigram entropy of a split's targets, -Σ p log p over their own counts.

    No model without context does better on that split, so a loss clearly below it has
    learned from context; or from the targets themselves, where some of them can be
    seen: of BERT's one in ten, which alone is worth a tenth of the entropy.

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


@configurable("unigram_baseline")
@dataclasses.dataclass(frozen=True)
class UnigramBaseline:
    """The unigram entropy of a validation split of text, after the last step."""

    def check(self, experiment: Experiment) -> None:
        """Accepts every experiment: data without text has no baseline."""

    def __call__(
        self, experiment: Experiment, at: EvaluationPoint
    ) -> dict[str, float | str]:
        """What `baseline` gives, with a warning where the validation loss is above it.

        Nothing before the last step, and without text.
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
                f"the validation loss of {loss:.2f} nats a token is above the unigram "
                f"entropy of the split, {entropy:.2f}: the model predicts it worse "
                "than the frequency of each token there would. The run is too short, "
                "or the split is text of another kind than what was trained on."
            )
        return found
