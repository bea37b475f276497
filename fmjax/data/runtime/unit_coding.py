"""What a build makes of the examples of a unit, and the arrays that hold it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from fmjax.data.runtime.cache import Example
from fmjax.data.sources.examples import Skipped


class UnitCoding(Protocol):
    """From the examples of a source to those of a cache, and to arrays and back.

    It is pickled for the processes that work on a build.
    """

    def encoded(
        self,
        examples: Iterable[Any],
        name: str,
        tokenizer: Any,
        skipped: Skipped,
    ) -> Iterator[Example]:
        """Yields the valid examples, tokenized and checked.

        Args:
          examples: of a part of the source: `TextExample`s or `FoundImage`s.
          name: name of the task and split, for messages.
          tokenizer: the `Tokenizer` of the texts; None if there are none.
          skipped: counts the examples that are left out.
        """

    def pack(self, examples: Sequence[Any], tokenizer: Any) -> dict[str, np.ndarray]:
        """The arrays that hold at least one example."""

    def unpack(self, arrays: dict[str, np.ndarray]) -> Iterator[Example]:
        """Yields what `pack` was given."""
