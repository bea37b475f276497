"""A batch of texts as models read it: tokens, and what is known of each of them."""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextInputs:
    """Tokens [B, T], and optional arrays of the same shape.

    A method of a model that reads text takes this struct or, short for it, an array of
    tokens (`Text`). Models refuse arrays that they do not read.

    Attributes:
      tokens: int32, ids below the model's vocab_size.
      token_types: int32, the kind of each token, such as 0 in a first sentence and 1 in
        a second. None: 0 everywhere.
      positions: int32 [B or 1, T], index of each token in its document; with a
        key-value cache the slots that are written. None: 0 … T-1 in every row, unless
        a field of the model, such as bert.position_padding_id, says otherwise.
      segment_ids: int32, number of each token's document in a packed row, 0 for
        padding; tokens attend only to their own segment. None: a row is one document.
      padding_mask: bool, False for padding, which no token attends to. None: nothing is
        padding.
    """

    tokens: Int[Array, "B T"]
    token_types: Int[Array, "B T"] | None = None
    positions: Int[Array, "#B T"] | None = None
    segment_ids: Int[Array, "B T"] | None = None
    padding_mask: Bool[Array, "B T"] | None = None

    @classmethod
    def of(cls, text: "Text") -> "TextInputs":
        """The struct of a text, which may be an array of tokens."""
        return text if isinstance(text, cls) else cls(text)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Array], fields: Iterable[str], prefix: str = ""
    ) -> "TextInputs":
        """The struct of arrays by name, such as those of a batch.

        Args:
          arrays: must have `{prefix}tokens`.
          fields: the others that are read, without the prefix, where `arrays` has them.
          prefix: before each name, such as "encoder_".
        """
        names = {field: prefix + field for field in fields}
        given = {field: arrays[name] for field, name in names.items() if name in arrays}
        return cls(arrays[prefix + "tokens"], **given)

    @property
    def given(self) -> set[str]:
        """Names of the arrays that there are besides the tokens."""
        names = {field.name for field in dataclasses.fields(self)} - {"tokens"}
        return {name for name in names if getattr(self, name) is not None}


# The length has no name: an encoder's and a decoder's text in one call may differ.
Text = TextInputs | Int[Array, "B _"]

# For each argument of a model's call that is a `Text`, the fields of `TextInputs` that
# the model reads besides the tokens.
TextArguments = Mapping[str, tuple[str, ...]]


def count_positions(counted: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Positions that count only some tokens, from 0; -1 for those not counted."""
    return counted.cumsum(1) * counted - 1
