"""The head of a decoder: the table's transpose, a matrix of its own, or in no file."""

from fmjax.interop.entries import option
from fmjax.interop.family import Architecture
from fmjax.interop.rows import Row

HEAD = Row("language_head/kernel", "lm_head.weight", "d v -> v d")
# A class without a head leaves nothing to untie: the table serves as the one here.
ALWAYS_TIED = option(
    "tie_word_embeddings",
    "tie_embeddings",
    bool,
    True,
    to_field={True: True, False: True},
)


def architectures(headed: str, bare: str, tied: bool = True) -> dict[str, Architecture]:
    """Both classes of a family.

    Args:
      headed: the name of the one with a head.
      bare: of the one without.
      tied: whether Hugging Face ties the head where nothing is told.
    """
    told = option("tie_word_embeddings", "tie_embeddings", bool, tied)
    return {
        headed: Architecture((told,), (HEAD,)),
        bare: Architecture((ALWAYS_TIED,)),
    }
