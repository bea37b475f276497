"""Prompt tuning: vectors before those of a text in the input of a model."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.layers.adapters import Adapter
from fmjax.models.layers.virtual_tokens import PROMPT
from fmjax.optim.peft.added import Added, Weight, chosen, normal


@configurable("prompt")
@dataclasses.dataclass(frozen=True)
class Prompt:
    """Vectors of virtual tokens before every text (Lester et al. 2021).

    They are where the vectors of tokens are, below positions and token types, and take
    the positions before the text. The outputs of the model are those of the text alone:
    BERT's pooler reads the text's first token, where peft's reads the first virtual
    one. An encoder-decoder has them in its encoder, and its decoder reads their outputs
    there. Step 0 is not the base model.

    Attributes:
      length: number of virtual tokens.
      init: of their vectors: "vocabulary" for those of ids that are drawn from the
        first `init_ids` of the vocabulary, as in the paper; "normal" for numbers of
        standard deviation 1, as peft's default.
      init_ids: the largest id that may be drawn, and one more.
      paths: patterns of the tables of tokens, see `fmjax.models.parameter_paths`.
    """

    length: int = 20
    init: Literal["vocabulary", "normal"] = "vocabulary"
    init_ids: int = 5000
    paths: tuple[str, ...] = ("tokens/table",)

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        require(self, "length", self.length >= 1, "at least 1")
        require(self, "init_ids", self.init_ids >= 1, "at least 1")

    def added(self, weights: Sequence[Weight]) -> dict[str, Added]:
        """The vectors of virtual tokens; see `Method`."""
        every = {}
        for table in chosen_tables(self.paths, "prompt.paths", weights):
            rows, width = table.shape
            shape = (self.length, width)
            one = Added(shape, (None, table.names[1]), normal(1.0, shape))
            if self.init == "vocabulary":
                ids = np.random.default_rng(0).integers(
                    min(self.init_ids, rows), size=self.length
                )

                def fit(table: Array, prompt: Adapter, ids=ids) -> Array:
                    del prompt
                    return jnp.take(table, ids, axis=0).astype(jnp.float32)

                one = dataclasses.replace(one, fit=fit)
            every[f"{table.path}{PROMPT}/rows"] = one
        return every


def chosen_tables(
    paths: Sequence[str], binding: str, weights: Sequence[Weight]
) -> list[Weight]:
    """The tables that patterns match.

    Args:
      paths: the patterns.
      binding: that they are from.
      weights: the matrices of the model.

    Raises:
      UserError: they match none, or a weight that is no table.
    """
    found = chosen(paths, binding, weights)
    for weight in found:
        if not weight.is_table:
            raise UserError(
                f"{binding} matches {weight.path!r}, which is no table; expected "
                "'tokens/table'."
            )
    return found
