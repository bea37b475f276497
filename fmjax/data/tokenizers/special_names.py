"""Names of special tokens and sentinels, in the order of their ids."""

from collections.abc import Sequence

from fmjax.errors import UserError

_MAX_SENTINELS = 100_000


def names_above(
    specials: Sequence[str], sentinels: int, configurable: str
) -> tuple[str, ...]:
    """Names of the highest ids of a vocabulary, lowest id first.

    Sentinels come last in descending order: <extra_id_0> has the highest id, as in T5
    (Raffel et al. 2020) and seqio.

    Args:
      specials: special tokens such as "[MASK]".
      sentinels: number of sentinels <extra_id_0>, <extra_id_1>, ….
      configurable: gin name of the configurable with these fields, for messages.

    Raises:
      UserError: a name is empty or occurs twice, or there are too many sentinels.
    """
    if not 0 <= sentinels <= _MAX_SENTINELS:
        raise UserError(
            f"{configurable}.sentinels = {sentinels}: expected 0 to {_MAX_SENTINELS}."
        )
    names = (*specials, *(f"<extra_id_{i}>" for i in reversed(range(sentinels))))
    if "" in names or len(set(names)) < len(names):
        raise UserError(
            f"{configurable}.specials = {tuple(specials)}, {configurable}.sentinels = "
            f"{sentinels}: expected names that are not empty and differ."
        )
    return names
