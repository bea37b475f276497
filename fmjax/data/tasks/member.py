"""Members of mixtures: seqio tasks, described without importing TensorFlow."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Member:
    """One seqio task of a mixture.

    Attributes:
      name: name in seqio's registry.
      rate: share of the rows, relative to the other members.
      keys: maps a split to everything that its tokenized documents depend on.
      sizes: maps a split to its approximate bytes of text; None if unknown.
      task: the configurable that registers it: a text_task, seqio_task or image_task.
    """

    name: str
    rate: float
    keys: dict[str, dict]
    sizes: dict[str, int | None]
    task: Any
