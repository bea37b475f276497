"""The head of a decoder-only model: tied to the table, untied, or missing."""

from fmjax.interop.entries import fixed, option
from fmjax.interop.family import Architecture
from fmjax.interop.rows import Row

HEAD = Row("language_head/kernel", "lm_head.weight", "d v -> v d")
WITH_BIAS = (HEAD, Row("language_head/bias", "lm_head.bias"))
# A class without a head has nothing to untie: the model here uses the table as head.
ALWAYS_TIED = option(
    "tie_word_embeddings",
    "tie_embeddings",
    bool,
    True,
    to_field={True: True, False: True},
)


def architectures(
    headed: str, bare: str, tied: bool = True, *, rows: tuple[Row, ...] = (HEAD,)
) -> dict[str, Architecture]:
    """The architectures of a family: with and without language head.

    Args:
      headed: name of the class with the head.
      bare: name of the class without the head.
      tied: transformers' default of tie_word_embeddings.
      rows: rows of the weights of the head.
    """
    given = option("tie_word_embeddings", "tie_embeddings", bool, tied)
    biased = any(row.path.endswith("/bias") for row in rows)
    return {
        headed: Architecture((given, fixed({"head_bias": biased})), rows),
        bare: Architecture((ALWAYS_TIED, fixed({"head_bias": False}))),
    }
