"""Text inputs of models: tokens, and optional arrays that describe them."""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextInputs:
    """Text inputs: tokens [B, T], and optional arrays of the same shape.

    Methods of models that read text take this struct or, in short, an array of tokens
    (`Text`). Models raise a UserError for arrays that they do not read.

    Attributes:
      tokens: int32, ids below the model's vocab_size.
      token_types: int32, the kind of each token, such as 0 in a first sentence and 1 in
        a second. None: 0 everywhere.
      positions: int32 [B or 1, T], index of each token in its document; with a
        key-value cache, the slots to write. None: 0 … T-1 in every row, unless a field
        of the model, such as bert.position_padding_id, defines them otherwise.
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
        """Converts a text, which may be an array of tokens, to the struct."""
        return text if isinstance(text, cls) else cls(text)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Array], fields: Iterable[str], prefix: str = ""
    ) -> "TextInputs":
        """Makes the struct from arrays by name, such as those of a batch.

        Args:
          arrays: must have `{prefix}tokens`.
          fields: optional fields to read, without the prefix, if `arrays` has them.
          prefix: of each name, such as "encoder_".
        """
        names = {field: prefix + field for field in fields}
        given = {field: arrays[name] for field, name in names.items() if name in arrays}
        return cls(arrays[prefix + "tokens"], **given)

    @property
    def given(self) -> set[str]:
        """Names of the optional arrays that are given."""
        names = {field.name for field in dataclasses.fields(self)} - {"tokens"}
        return {name for name in names if getattr(self, name) is not None}


# The length is unnamed: the encoder's and decoder's texts of one call may differ in it.
Text = TextInputs | Int[Array, "B _"]

# For each argument of a model's call that is a `Text`, the fields of `TextInputs` that
# the model reads besides the tokens.
TextArguments = Mapping[str, tuple[str, ...]]


def count_positions(counted: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Positions [B, T] that count only some tokens, from 0; -1 for the other tokens."""
    return counted.cumsum(1) * counted - 1
