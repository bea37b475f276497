"""The head of a decoder-only model: tied to the table, untied, or missing."""

from fmjax.interop.entries import option
from fmjax.interop.family import Architecture
from fmjax.interop.rows import Row

HEAD = Row("language_head/kernel", "lm_head.weight", "d v -> v d")
# A class without a head has nothing to untie: the model here uses the table as head.
ALWAYS_TIED = option(
    "tie_word_embeddings",
    "tie_embeddings",
    bool,
    True,
    to_field={True: True, False: True},
)


def architectures(headed: str, bare: str, tied: bool = True) -> dict[str, Architecture]:
    """The architectures of a family: with and without language head.

    Args:
      headed: name of the class with the head.
      bare: name of the class without the head.
      tied: transformers' default of tie_word_embeddings.
    """
    given = option("tie_word_embeddings", "tie_embeddings", bool, tied)
    return {
        headed: Architecture((given,), (HEAD,)),
        bare: Architecture((ALWAYS_TIED,)),
    }
