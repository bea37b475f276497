"""The limit on the share of a dataset that may be corrupt."""

from collections.abc import Sequence

from fmjax.errors import UserError

# Number of corrupt examples that are tolerated while a dataset is read, whatever their
# share: one corrupt example among the first few is a large share.
FEW = 10
# Maximum share of a whole dataset that so few examples may be.
FEW_SHARE = 0.1


def check_while_reading(
    bad: int, total: int, fraction: float, name: str, examples: Sequence[str]
) -> None:
    """Checks a dataset that has been read only in part.

    Args:
      bad: number of corrupt examples so far.
      total: number of all examples, or of those read so far.
      fraction: share that may be corrupt, from 0 to 1.
      name: name of the dataset.
      examples: names of some corrupt examples.

    Raises:
      UserError: more than FEW examples and more than the fraction are corrupt.
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
    """Checks a dataset that has been read completely.

    Args:
      bad: number of corrupt examples.
      total: number of all examples.
      fraction: share that may be corrupt, from 0 to 1.
      name: name of the dataset.
      examples: names of some corrupt examples.
      bad_bytes: bytes of text of the corrupt examples.
      total_bytes: bytes of text of all examples; 0 to check no bytes.

    Raises:
      UserError: more than the fraction of the examples are corrupt (unless they are at
        most FEW and at most FEW_SHARE of all), or more than the fraction of the bytes.
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
        f"{found} of {name} are corrupt, more than data.max_corrupt_fraction "
        f"(images.max_corrupt_fraction) = {fraction} allows: "
        f"{', '.join(examples[:3])}{', …' if len(examples) > 3 else ''}."
    )
