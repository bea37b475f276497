"""How much of a data set may be broken before it is refused."""

from collections.abc import Sequence

from fmjax.errors import UserError

# Broken examples that are tolerated whatever their share, while a data set is read: of
# the few that are read first, one is a large share.
FEW = 10
# Of a whole data set, the largest share that so few may be.
FEW_SHARE = 0.1


def check_while_reading(
    bad: int, total: int, fraction: float, name: str, examples: Sequence[str]
) -> None:
    """Raises a UserError where more than FEW, and more than a fraction, is broken.

    Args:
      bad: broken examples so far.
      total: of all, or of those read so far.
      fraction: that may be broken, from 0 to 1.
      name: of the data.
      examples: names of some broken ones.
    """
    if bad > max(FEW, fraction * total):
        raise _too_many(f"{bad} of {total} examples", name, fraction, examples)


def check_whole(
    bad: int,
    total: int,
    fraction: float,
    name: str,
    examples: Sequence[str],
    bad_bytes: int = 0,
    total_bytes: int = 0,
) -> None:
    """Raises a UserError where too much of a data set was broken.

    That is more than a fraction of its examples, but for FEW that are at most a tenth;
    or more than the fraction of its bytes of text, however few the documents are.

    Args:
      bad: broken examples.
      total: of all.
      fraction: that may be broken, from 0 to 1.
      name: of the data.
      examples: names of some broken ones.
      bad_bytes: of text, in the broken examples.
      total_bytes: of text, in all; 0 where bytes are no measure.
    """
    if bad > max(fraction * total, min(FEW, FEW_SHARE * total)):
        raise _too_many(f"{bad} of {total} examples", name, fraction, examples)
    if total_bytes and bad_bytes > fraction * total_bytes:
        found = f"{bad} of {total} examples, {bad_bytes:,} of {total_bytes:,} bytes,"
        raise _too_many(found, name, fraction, examples)


def _too_many(
    found: str, name: str, fraction: float, examples: Sequence[str]
) -> UserError:
    return UserError(
        f"{found} of {name} are broken, more than data.max_corrupt_fraction "
        f"(images.max_corrupt_fraction) = {fraction} allows: "
        f"{', '.join(examples[:3])}{', …' if len(examples) > 3 else ''}."
    )
