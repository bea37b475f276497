"""Names of ids that stand for no text, in the order in which a vocabulary gets them."""

from collections.abc import Sequence

from fmjax.errors import UserError

_MOST_SENTINELS = 100_000


def names_above(
    specials: Sequence[str], sentinels: int, configurable: str
) -> tuple[str, ...]:
    """Names for the highest ids of a vocabulary, lowest id first.

    Sentinels come last and descend: <extra_id_0> has the highest id of all, as in T5
    (Raffel et al. 2020) and in seqio.

    Args:
      specials: tokens as they are spelled, such as "[MASK]".
      sentinels: how many of <extra_id_0>, <extra_id_1>, … there are.
      configurable: whose bindings these are, for messages.

    Raises:
      UserError: a name is empty or occurs twice, or there are too many sentinels.
    """
    if not 0 <= sentinels <= _MOST_SENTINELS:
        raise UserError(
            f"{configurable}.sentinels = {sentinels}: expected 0 to {_MOST_SENTINELS}."
        )
    names = (*specials, *(f"<extra_id_{i}>" for i in reversed(range(sentinels))))
    if "" in names or len(set(names)) < len(names):
        raise UserError(
            f"{configurable}.specials = {tuple(specials)}, {configurable}.sentinels = "
            f"{sentinels}: expected names that are not empty and all differ."
        )
    return names
