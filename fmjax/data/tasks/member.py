"""Members of mixtures: seqio tasks, described without importing TensorFlow."""

import dataclasses
from typing import Any, NamedTuple


class LabelKind(NamedTuple):
    """What the labels of a task are.

    Attributes:
      names: names of the classes 0, 1, …; empty if labels are numbers.
      several: whether an example has any number of labels rather than one.
      texts: number of texts of an example, 1 or 2.
      numbers: whether a label is a number rather than a class.
      of_words: whether each word has a label, rather than the text.
    """

    names: tuple[str, ...]
    several: bool
    texts: int
    numbers: bool = False
    of_words: bool = False


@dataclasses.dataclass(frozen=True)
class Member:
    """One seqio task of a mixture.

    Attributes:
      name: name in seqio's registry.
      rate: share of the rows, relative to the other members.
      keys: maps a split to everything that its tokenized documents depend on.
      sizes: maps a split to its approximate bytes of text; None if unknown.
      task: the configurable that registers it: a text_task, seqio_task or image_task.
      listings: maps a split to its `listing_of`, of those that have one.
    """

    name: str
    rate: float
    keys: dict[str, dict]
    sizes: dict[str, int | None]
    task: Any
    listings: dict[str, str] = dataclasses.field(default_factory=dict)
