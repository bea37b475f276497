"""Random deletion of words."""

import dataclasses
from collections.abc import Sequence

from fmjax.configurable import configurable
from fmjax.data.text.augment.augmentation import Rng, TextAugmentation, check_rate


@configurable("deletion")
@dataclasses.dataclass(frozen=True)
class Deletion(TextAugmentation):
    """Deletes random words; if none is left, one of them at random is kept.

    Attributes:
      rate: probability that a word is deleted.
    """

    rate: float = 0.1

    def __post_init__(self):
        check_rate(self)

    def change(self, words: Sequence[str], rng: Rng) -> list[str]:
        """See `TextAugmentation`."""
        kept = rng.random(len(words)) >= self.rate
        if len(words) and not kept.any():
            kept[rng.integers(len(words))] = True
        return [word for word, is_kept in zip(words, kept) if is_kept]
