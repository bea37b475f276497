"""How much of some data may be broken."""

from collections.abc import Sequence

from fmjax.errors import UserError

# Fewer tell nothing of a share.
FEW = 10


def check_bad_share(
    bad: int, total: int, share: float, name: str, examples: Sequence[str]
) -> None:
    """Raises a UserError where more than FEW, and more than a share, is broken.

    Args:
      bad: examples that are.
      total: of all.
      share: from 0 to 1.
      name: of the data.
      examples: some that are broken.
    """
    if bad > max(FEW, share * total):
        raise UserError(
            f"{bad} of {total} examples of {name} are broken, more than "
            "data.max_corrupt_fraction (images.max_corrupt_fraction) = "
            f"{share} allows: {', '.join(examples[:3])}, …"
        )
