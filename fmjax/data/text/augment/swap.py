"""Random swaps of words."""

import dataclasses
from collections.abc import Sequence

from fmjax.configurable import configurable
from fmjax.data.text.augment.augmentation import (
    Rng,
    TextAugmentation,
    check_rate,
    num_changes,
)


@configurable("swap")
@dataclasses.dataclass(frozen=True)
class Swap(TextAugmentation):
    """Swaps two random words, several times.

    Attributes:
      rate: number of swaps for each word of the text; at least one swap unless it is 0.
    """

    rate: float = 0.1

    def __post_init__(self):
        check_rate(self)

    def change(self, words: Sequence[str], rng: Rng) -> list[str]:
        """See `TextAugmentation`."""
        changed, count = list(words), len(words)
        if count < 2:
            return changed
        for _ in range(num_changes(self.rate, count)):
            i = int(rng.integers(count))
            j = (i + 1 + int(rng.integers(count - 1))) % count
            changed[i], changed[j] = changed[j], changed[i]
        return changed
