"""A seqio task as part of a mixture, described without TensorFlow."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Member:
    """One seqio task of a mixture.

    Attributes:
      name: its name in seqio's registry.
      rate: share of the rows, relative to the other members.
      keys: by split, everything that shapes its tokenized documents.
      sizes: by split, bytes of text, roughly; None where unknown.
      task: the configurable that registers it: a text_task, seqio_task or image_task.
    """

    name: str
    rate: float
    keys: dict[str, dict]
    sizes: dict[str, int | None]
    task: Any
